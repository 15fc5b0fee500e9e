"""Animations: what appears when, where the panels stand, and the file that is written."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from picture_parts import a_look
from PIL import Image, ImageDraw

from hsal_cli.pictures import film as film_module
from hsal_cli.pictures.film import GLIMPSE, LAST, MASK, NAME, SIDES, film, frame_of, frames
from hsal_cli.pictures.marks import BAR, cell_box, draw_classes, draw_glimpses, draw_plate, likeliest
from hsal_cli.pictures.palette import INK, ORANGE, PALE, PAPER, font, heat
from hsal_cli.pictures.writing import write_bytes
from hsal_cli.storage.files import bears_mark


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(film_module, "SIDES", (100, 60))


def marked(picture, box, cell, grid=(3, 4)):
    """Whether a cell of a panel is outlined as glimpsed: its lower edge is never under a number's plate."""
    x0, _, x1, y1 = cell_box(box, cell, grid)
    edge = np.asarray(picture)[y1 - 2 : y1, x0 + 4 : x1 - 4].astype(int)
    return bool((np.abs(edge - ORANGE).sum(-1) < 12).any())


def test_mask_glimpses_and_label_appear_one_after_the_other_and_all_at_the_end():
    look = a_look()
    frame, shown = frame_of(look), list(frames(look, ["3", "3"]))
    assert [duration for _, duration in shown] == [MASK, GLIMPSE, GLIMPSE, NAME] * 2 + [LAST]
    for place, (picture, _) in enumerate(shown[:-1]):
        taken = min(place % 4, 2)
        for box in (frame.image, frame.panel(2)):
            assert [marked(picture, box, cell) for cell in ((0, 1), (2, 0), (1, 3))] == [taken > 0, taken > 1, False]
        x0, y0, x1, y1 = frame.place(3)
        bars = (np.asarray(picture)[y0:y1, x0:x1] == PALE).all(-1).any()
        assert bars == (place % 4 == 3)  # the classes are known when the label is named
    last = shown[-1][0]
    assert all(marked(last, frame.image, cell) for cell in ((0, 1), (2, 0))) and not marked(last, frame.panel(2), (0, 1))


def test_each_label_is_written_once_at_the_end_however_many_glimpses_it_took(monkeypatch):
    written = []
    monkeypatch.setattr(film_module, "draw_plate", lambda draw, box, cell, text, photo: written.append(text))
    list(frames(a_look(), None))
    assert sorted(", ".join(written).split(", ")) == sorted(a_look().labels)


def test_maps_are_those_of_the_meta_step_and_at_the_end_those_of_stop():
    look = a_look(glimpses=())
    frame, shown = frame_of(look), [picture for picture, _ in frames(look, None)]
    for picture, step in ((shown[0], look.steps[0]), (shown[2], look.steps[1]), (shown[-1], look.end)):
        for number, values in ((0, step.saliency), (2, step.priority)):
            for cell in np.ndindex(3, 4):
                x0, y0, _, _ = cell_box(frame.panel(number), cell, (3, 4))
                assert tuple(np.asarray(picture)[y0 + 2, x0 + 2]) == tuple(heat(values[cell]))


@pytest.mark.parametrize("size", [(60, 90), (200, 600), (427, 140), (3000, 4000), (100, 100), (40, 400)])
def test_panels_keep_the_proportions_of_the_image_and_do_not_overlap(size):
    look = a_look(size=size)
    wide = size[1] / size[0]
    for side in SIDES:
        frame = frame_of(look, side)
        boxes = [frame.image, *(frame.panel(number) for number in range(3)), frame.place(3)]
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= frame.size[0] and 0 <= y0 < y1 <= frame.foot
        for x0, y0, x1, y1 in boxes[:4]:
            assert abs((x1 - x0) - wide * (y1 - y0)) <= 1 + wide  # to the px
        for place, (x0, y0, x1, y1) in enumerate(boxes):
            for u0, v0, u1, v1 in boxes[:place]:
                assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0


def test_the_file_repeats_for_ever_in_exact_colours_and_is_known_as_ours(tmp_path, small):
    look = a_look()
    write_bytes(film([look], [["3", "5"]]), tmp_path / "a.gif")
    assert bears_mark(tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as found:
        assert found.info["loop"] == 0 and found.n_frames == 9
        durations = []
        for place in range(found.n_frames):
            found.seek(place)
            durations.append(found.info["duration"])
        last = np.asarray(found.convert("RGB"))
    assert durations == [MASK, GLIMPSE, GLIMPSE, NAME] * 2 + [LAST]
    drawn = np.asarray(list(frames(look, ["3", "5"], 100))[-1][0])
    plain = (drawn == PAPER).all(-1) | (drawn == ORANGE).all(-1)
    assert plain.mean() > 0.2 and (last[plain] == drawn[plain]).all()


def test_an_animation_that_is_too_large_is_made_smaller(monkeypatch, small):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    look = a_look(labels=("3",), size=(80, 80))
    object.__setattr__(look, "image", noise)
    whole = film([look])
    monkeypatch.setattr(film_module, "BYTES", len(whole) - 1)
    smaller = film([look])
    assert len(smaller) < len(whole)
    assert Image.open(io.BytesIO(smaller)).size < Image.open(io.BytesIO(whole)).size


def test_several_episodes_play_one_after_the_other(small):
    looks = [a_look(labels=("3",)), a_look(labels=("5",), size=(90, 60)), a_look(labels=(), end=False)]
    found = Image.open(io.BytesIO(film(looks)))
    assert found.n_frames == 5 + 5 + 1


def test_bars_are_as_long_as_the_probabilities_and_the_highest_come_first():
    classes = [("a", 0.25), ("b", 0.5), ("c", 0.125), ("d", 0.125), ("e", 0.0)]
    assert [name for name, _ in likeliest(classes, 3)] == ["b", "a", "c"]
    picture = Image.new("RGB", (200, 3 * BAR + 4), PAPER)
    draw_classes(ImageDraw.Draw(picture), (0, 0, 200, 3 * BAR + 4), classes)
    pixels = np.asarray(picture)
    lengths = []
    for place in range(4):
        line = pixels[min(place * BAR + 4, len(pixels) - 1)]
        track = np.flatnonzero((line == PALE).all(-1) | (np.abs(line.astype(int) - INK).sum(-1) < 300))
        track = track[(track >= 12) & (track < 173)]  # between names and figures
        lengths.append((line[track] != PALE).any(-1).mean() if len(track) else None)
    assert lengths[:3] == pytest.approx([0.5, 0.25, 0.125], abs=0.02) and lengths[3] is None


@pytest.mark.parametrize("name", ["Käse", "élève", "кошка", "γάτα"])
def test_names_in_other_alphabets_are_drawn_letter_by_letter(name):
    def drawn(text):
        picture = Image.new("L", (200, 40))
        ImageDraw.Draw(picture).text((5, 30), text, 255, font(20), anchor="ls")
        return np.asarray(picture)

    assert all((drawn(sign) != drawn("\uffff")).any() for sign in name)  # not the box that stands for a missing sign
    assert drawn(name)[:, 5 + round(font(20).getlength(name)) + 2 :].max() == 0


def test_a_plate_lies_in_the_panel_where_it_hides_least_of_the_photo():
    photo = Image.new("RGB", (100, 100))
    photo.paste(Image.effect_noise((100, 50), 90).convert("RGB"), (0, 0))  # ink above the cell, none below
    for shown, below in ((photo, True), (None, False)):
        picture = Image.new("RGB", (120, 120))
        draw_plate(ImageDraw.Draw(picture), (10, 10, 110, 110), (40, 60, 60, 80), "1,2", shown)
        rows = np.flatnonzero((np.asarray(picture) == ORANGE).all(-1).any(-1))
        assert (rows.min() >= 80) == below and (rows.max() < 60) == (not below)


def test_a_glimpses_number_hides_no_other_glimpse() -> None:
    step = SimpleNamespace(glimpses=[(4, 4), (5, 4)], mask=np.zeros((14, 14)))
    box = (10, 10, 122, 122)  # cells of 8 px, smaller than a number
    one, both = (Image.new("RGB", (140, 140), "black") for _ in range(2))
    draw_glimpses(ImageDraw.Draw(one), box, step, taken=1)
    draw_glimpses(ImageDraw.Draw(both), box, step)
    cell = cell_box(box, (4, 4), (14, 14))
    inside = (cell[0], cell[1], cell[2], cell[3] - 1)  # the rings of neighbours share their rim
    assert np.array_equal(np.asarray(one.crop(inside)), np.asarray(both.crop(inside)))
