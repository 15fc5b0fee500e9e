"""hsal inspect: what it measures, against slow references, what it prints and draws, and what it refuses."""

import io
import json

import h5py
import numpy as np
import pytest
import typer
from evaluation_parts import NAMES, SIZE, small_policy, small_table, write_features, write_run
from PIL import Image
from typer.testing import CliRunner

from hsal_cli.commands.inspect import inspect
from hsal_cli.errors import FileError
from hsal_cli.features.table import open_features
from hsal_cli.models.shipped import own_folder
from hsal_cli.pictures.charts.data_figure import data_figure
from hsal_cli.pictures.charts.panels import DPI, HEIGHT, WIDTH, Bars, Heat, draw_panels, histogram
from hsal_cli.scenes.summary import measure, summary
from hsal_cli.upkeep.contents import feature_summary

app = typer.Typer()
app.command("inspect")(inspect)


def call(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A scene file of two splits, features of it, and files that are neither."""
    root = tmp_path_factory.mktemp("files")
    tables = {name: small_table(9, seed=seed) for seed, name in enumerate(("train", "test"))}
    write_features(root / "toy.features.h5", tables)
    with h5py.File(root / "toy.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(NAMES)
        for name, table in tables.items():
            labels, boxes = table.labels.numpy(), table.boxes.numpy()
            order = np.argsort(labels < 0, axis=1, kind="stable")  # padding last
            file[f"{name}/images"] = np.zeros((9, *SIZE), np.uint8)
            file[f"{name}/labels"] = np.take_along_axis(labels, order, 1)
            file[f"{name}/boxes"] = np.take_along_axis(boxes, order[..., None], 1)
    (root / "words.txt").write_text("no data")
    with h5py.File(root / "other.h5", "w") as file:
        file["x"] = [1]
    return root, tables


def slow_overlap(labels, boxes):
    """For each image with two objects or more: the largest IoU, counted pixel by pixel, and whether two boxes touch."""
    found = []
    for row, own in zip(labels, boxes, strict=True):
        known = [box for label, box in zip(row, own, strict=True) if label >= 0]
        if len(known) < 2:
            continue
        pixels = [{(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])} for box in known]
        best, touching = 0.0, False
        for one in range(len(known)):
            for two in range(one):
                best = max(best, len(pixels[one] & pixels[two]) / len(pixels[one] | pixels[two]))
                grown = {(x + i, y) for x, y in pixels[two] for i in (-1, 0, 1)} | {(x, y + i) for x, y in pixels[two] for i in (-1, 0, 1)}
                corner = {(x + i, y + j) for x, y in pixels[two] for i in (-1, 1) for j in (-1, 1)}
                touching |= bool(pixels[one] & (grown | corner))
        found.append((best, touching))
    return found


def test_measures_agree_with_counting_pixels_and_labels():
    table = small_table(40, seed=3)
    labels, boxes = table.labels.numpy(), table.boxes.numpy()
    found = measure(labels, boxes, len(NAMES), SIZE)
    real = [[label for label in row if label >= 0] for row in labels.tolist()]
    assert found.classes.tolist() == [sum(row.count(c) for row in real) for c in range(3)]
    assert found.objects.tolist() == [len(row) for row in real]
    assert found.repeats.tolist() == [len(set(row)) < len(row) for row in real]
    slow = slow_overlap(labels, boxes)
    assert found.overlap == pytest.approx([best for best, _ in slow]) and found.overlap.max() > 0
    assert found.touching.tolist() == [touching for _, touching in slow]
    flat = boxes[labels >= 0]
    assert found.sides.tolist() == [[x1 - x0, y1 - y0] for x0, y0, x1, y1 in flat]
    assert found.centres == pytest.approx(np.array([[(x0 + x1) / 2 / 60, (y0 + y1) / 2 / 30] for x0, y0, x1, y1 in flat]))


def test_boxes_that_share_an_edge_touch_but_do_not_overlap_and_padding_counts_for_nothing():
    labels = np.array([[0, 0, -1], [1, 2, -1], [1, -1, -1]])
    boxes = np.array(
        [
            [[0, 0, 10, 10], [10, 0, 20, 10], [-1] * 4],  # edge to edge
            [[0, 0, 10, 10], [12, 0, 20, 10], [5, 5, 9, 9]],  # the box behind the padding lies in the first one
            [[0, 0, 10, 20], [0, 0, 10, 20], [-1] * 4],
        ]
    )
    found = summary(measure(labels, boxes, 3, (30, 60)), NAMES)
    assert found["boxes"]["touching"] == 0.5 and found["boxes"]["overlapping"] == 0 and found["boxes"]["max_iou"] == 0
    assert found["repeats"] == pytest.approx(1 / 3) and found["objects_per_image"] == {"1": 1, "2": 2}
    assert found["labels"] == {"cat": 2, "dog": 2, "owl": 1}
    assert found["boxes"]["height"] == {"min": 10.0, "mean": 12.0, "max": 20.0} and found["boxes"]["area"] == pytest.approx(116 / 1800)


def test_without_boxes_or_without_pairs_there_is_no_overlap():
    assert summary(measure(np.array([[0, 1]]), None, 3, (30, 60)), NAMES)["boxes"] is None
    one = summary(measure(np.array([[0, -1]]), np.array([[[0, 0, 5, 5], [-1] * 4]]), 3, (30, 60)), NAMES)
    assert one["boxes"]["touching"] is None and one["boxes"]["max_iou"] is None


def test_features_are_measured_as_their_arrays_say(place):
    root, tables = place
    with open_features(root / "toy.features.h5") as file:
        found, mean_map = feature_summary(file, "train")
    table = tables["train"]
    volumes, maps = table.volumes.double().numpy(), table.saliency.double().numpy()
    assert found["volumes"]["mean"] == pytest.approx(volumes.mean()) and found["volumes"]["std"] == pytest.approx(volumes.std())
    assert found["volumes"]["zero"] == (volumes == 0).mean() and found["saliency"]["max"] == pytest.approx(maps.max())
    scaled = np.mean([(one - one.min()) / (one.max() - one.min()) for one in maps], axis=0)
    assert mean_map == pytest.approx(scaled)
    hits = 0
    for one, labels, boxes in zip(maps, table.labels.tolist(), table.boxes.tolist(), strict=True):
        row, column = np.unravel_index(one.argmax(), one.shape)
        x, y = (column + 0.5) * 60 / 3, (row + 0.5) * 30 / 3
        hits += any(box[0] <= x < box[2] and box[1] <= y < box[3] for label, box in zip(labels, boxes, strict=True) if label >= 0)
    assert found["saliency"]["peak_on_object"] == pytest.approx(hits / 9)


def test_scene_and_feature_files_of_the_same_labels_give_the_same_summary(place):
    root, _ = place
    scenes, features = (json.loads(call(root / name, "--json").stdout) for name in ("toy.h5", "toy.features.h5"))
    for split in ("train", "test"):
        for key in ("images", "image_size", "objects", "labels", "objects_per_image", "repeats", "boxes"):
            assert scenes["splits"][split][key] == features["splits"][split][key], key
    assert scenes["splits"]["test"]["channels"] == 1 and features["volume_shape"] == [4, 3, 3]
    assert len(scenes["digest"]) == 64 and features["backbone_digest"] == "b" * 64


def test_tables_hold_what_the_json_does(place):
    root, tables = place
    said = call(root / "toy.features.h5").stdout
    for words in ("Splits", "Labels", "Objects in an image", "owl", "30 x 60", "maps whose maximum lies on an object", "b" * 64):
        assert words in said, words
    assert f"{int((tables['test'].labels == 2).sum())} (" in next(line for line in said.splitlines() if " owl " in line)


def test_the_picture_is_drawn_and_only_ours_is_replaced(place, tmp_path):
    root, _ = place
    for name, columns in (("toy.h5", 3), ("toy.features.h5", 3)):
        call(root / name, "--out", tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size == (round(columns * WIDTH * DPI), round(2 * HEIGHT * DPI))
    (tmp_path / "mine.png").write_bytes(b"mine")
    with pytest.raises(FileError, match="not made by hsal"):
        call(root / "toy.h5", "--out", tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.h5", "is missing"), ("words.txt", "not an HDF5 file"), ("other.h5", "neither a scene file nor"), (".", "not a run")],
)
def test_other_files_are_refused_by_name(place, name, said):
    with pytest.raises(FileError, match=said) as caught:
        call(place[0] / name)
    assert caught.value.hint


def test_a_checkpoint_of_a_run_is_described(tmp_path):
    policy = small_policy()
    place = write_run(tmp_path / "run", policy) / "checkpoints" / "epoch-1"
    found = json.loads(call(place, "--json").stdout)
    assert found["kind"] == "policy" and found["numbers"] == sum(tensor.numel() for tensor in policy.state_dict().values())
    assert found["meta"]["classes"] == NAMES and len(found["digest"]) == 64
    said = call(place).stdout
    for words in ("rl policy, frame image", found["digest"], "variant.gaussians", "volume_shape"):
        assert words in said, words
    (place / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileError, match="is damaged"):
        call(place)


def test_all_that_comes_with_hsal_is_listed():
    found = json.loads(call(own_folder(), "--json").stdout)
    assert {"backbone", "mnist-set.rl", "street-numbers/backbone", "street-numbers/look", "street-numbers/street-numbers.rl"} <= set(
        found["parts"]
    )
    assert "rl policy, frame number" in next(line for line in call(own_folder()).stdout.splitlines() if "street-numbers.rl" in line)


def test_histograms_are_shares_that_add_up_to_one():
    names, shares = histogram({"a": np.array([1, 1, 2, 5.0]), "b": np.zeros(0)}, np.array([1, 3, 5]))
    assert names == ["1", "3"] and shares == {"a": [0.75, 0.25], "b": [0.0, 0.0]}


def test_a_heat_map_shows_rows_from_the_top_in_the_palettes_colours():
    values = np.zeros((2, 2))
    values[0, 1] = 1.0
    png = draw_panels([Heat("t", "x", "y", values, "c", extent=(2.0, 2.0))])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    bright = np.argwhere(np.abs(pixels[:, :450] - (250, 228, 54)).sum(-1) < 6)
    dark = np.argwhere(np.abs(pixels[:, :450] - (38, 12, 72)).sum(-1) < 6)
    assert len(dark) > 2.5 * len(bright) > 0
    assert bright[:, 0].max() < np.median(dark[:, 0]) and bright[:, 1].mean() > dark[:, 1].mean()  # above and to the right


def test_bars_without_a_value_leave_their_place_empty():
    bars = Bars("t", "x", "y", ["1", "2"], {"a": [0.5, None]}, {"a": [0.1, None]}, top=1.0)
    with Image.open(io.BytesIO(draw_panels([bars]))) as picture:
        blue = np.argwhere((np.asarray(picture.convert("RGB")) == (0, 0x72, 0xB2)).all(-1))
    assert len(blue) and blue[:, 1].max() < picture.width * 0.65


def test_many_classes_and_many_sizes_are_drawn():
    generator = np.random.default_rng(0)
    corner = generator.integers(0, 500, (60, 3, 2))
    boxes = np.concatenate([corner, corner + generator.integers(1, 400, (60, 3, 2))], axis=-1)
    labels = generator.integers(0, 80, (60, 3))
    found = measure(labels, boxes, 80, (1000, 1000))
    assert data_figure({"train": found}, [f"a long name of class {c}" for c in range(80)])[:4] == b"\x89PNG"
