"""Two looks: a first one finds the region of the whole image that the policy then sees, enlarged and at full resolution."""

import dataclasses
import importlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_parts import a_look
from PIL import Image
from shipped_parts import use_tiny_backbone, write_backbone, write_policy
from svhn_files import HOUSES, write_svhn
from typer.testing import CliRunner

import hsal_cli
from hsal_cli.app import app
from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.flops import backbone_flops
from hsal_cli.features.settings import LookSettings
from hsal_cli.features.two_looks import FINER, TwoLooks, salient_region
from hsal_cli.models.load import find_backbone, load_policy
from hsal_cli.models.look import look_at_files
from hsal_cli.models.seen import to_json
from hsal_cli.pictures.film import frame_of, frames
from hsal_cli.pictures.marks import cell_box, panel_size, seen_in
from hsal_cli.pictures.palette import ORANGE, PAPER
from hsal_cli.pictures.replay import document_of
from hsal_cli.pictures.trajectory import MARGIN, layout_of, trajectories
from hsal_cli.scenes.folder import make_from_folder
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.settings import FolderSettings, StreetSettings, SvhnSettings
from hsal_cli.scenes.street.frames import Found, overlap
from hsal_cli.scenes.street.street import make_street_numbers
from hsal_cli.scenes.street.svhn import make_svhn
from hsal_cli.vision.backbone import load_backbone
from hsal_cli.vision.images import FORMATS, read_image


def slow_region(saliency: np.ndarray, seen: tuple[int, int, int, int], threshold: float, groups: str) -> tuple[float, ...]:
    """The same, a place at a time: groups are flooded from each in turn."""
    coarse = [[math.sqrt(value) for value in row] for row in saliency.tolist()]
    height, width = FINER * len(coarse), FINER * len(coarse[0])

    def between(place: int, cells: int) -> tuple[int, int, float]:
        middle = min(max((place + 0.5) / FINER - 0.5, 0), cells - 1)
        return int(middle), min(int(middle) + 1, cells - 1), middle % 1

    def value(row: int, column: int) -> float:
        (above, below, down), (left, right, across) = between(row, len(coarse)), between(column, len(coarse[0]))
        upper, lower = (coarse[at][left] * (1 - across) + coarse[at][right] * across for at in (above, below))
        return upper * (1 - down) + lower * down

    root = [[value(row, column) for column in range(width)] for row in range(height)]
    top = max(max(row) for row in root)
    if top == 0:
        return tuple(float(value) for value in seen)
    left = {(row, column) for row in range(height) for column in range(width) if root[row][column] >= threshold * top}
    found = []
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            left -= edge
            edge = {cell for cell in left if any(abs(cell[0] - row) <= 1 and abs(cell[1] - column) <= 1 for row, column in edge)}
        found.append(group)
    if groups == "strongest":
        found = [max(found, key=lambda group: sum(root[row][column] for row, column in group))]
    cells = set().union(*found)
    rows, columns = [row for row, _ in cells], [column for _, column in cells]
    x0, y0, x1, y1 = seen
    across, down = (x1 - x0) / width, (y1 - y0) / height
    return x0 + min(columns) * across, y0 + min(rows) * down, x0 + (max(columns) + 1) * across, y0 + (max(rows) + 1) * down


def one_group() -> np.ndarray:
    saliency = np.full((7, 7), 0.01)
    saliency[2:4, 3:6] = [[4, 9, 4], [1, 4, 0.2]]
    return saliency


def two_groups() -> np.ndarray:
    saliency = np.zeros((7, 7))
    saliency[1, 1], saliency[2, 2] = 100, 81  # touch at a corner
    saliency[5, 4:7] = 64
    return saliency


@pytest.mark.parametrize("groups", ["all", "strongest"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.45, 0.9, 1.0])
@pytest.mark.parametrize(
    "saliency", [one_group(), two_groups(), np.zeros((7, 7)), np.ones((3, 5)), np.random.default_rng(4).random((7, 7))]
)
def test_the_region_is_the_box_of_the_cells_above_the_threshold(saliency, threshold, groups):
    for seen in ((0, 0, 70, 70), (11, 3, 123, 60)):
        found = salient_region(saliency.astype(np.float32), seen, threshold, groups)
        assert found == pytest.approx(slow_region(saliency.astype(np.float32), seen, threshold, groups))


def test_known_maps_give_known_regions():
    assert salient_region(one_group(), (0, 0, 70, 140), 0.45) == (32.5, 40, 57.5, 75)
    assert salient_region(two_groups(), (0, 0, 70, 70), 0.45) == (10, 10, 70, 60)
    assert salient_region(two_groups(), (0, 0, 70, 70), 0.45, "strongest") == (40, 50, 70, 60), "3 x 8 is more than 10 + 9"
    assert salient_region(np.zeros((7, 7)), (5, 6, 70, 80), 0.45) == (5, 6, 70, 80), "nothing stands out: the whole part"


@pytest.fixture(scope="module")
def patches() -> type:
    """A backbone of 7 x 7 cells whose saliency is how bright a cell is, and nothing where all is black."""

    class Bright(torch.nn.Module):
        input_size, channels = 70, 1

        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(1, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            black = -0.485 / 0.229
            return torch.nn.functional.avg_pool2d((images[:, :1] - black).clamp(min=1e-3) - 1e-3, 10)

    return Bright


def finder(patches, monkeypatch, **settings) -> TwoLooks:
    monkeypatch.setattr("hsal_cli.features.two_looks.fused", lambda model: model)
    loaded = type("Loaded", (), {"model": patches(), "path": Path("look"), "digest": "d" * 64})()
    return TwoLooks(loaded, LookSettings(**settings))


def dark(size: tuple[int, int], *bright: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size)
    for box in bright:
        image.paste((255, 255, 255), box)
    return image


def test_a_second_look_is_finer_and_reads_the_full_resolution(patches, monkeypatch):
    image = dark((700, 350), (330, 160, 420, 190))
    (first,) = finder(patches, monkeypatch, zooms=1)([image])
    (second,) = finder(patches, monkeypatch)([image])
    assert first.region == (275, 137.5, 450, 212.5), "cells of 100 x 50 px; the fifth has two sevenths of the light of the fourth"
    assert first.frame == (248, 126, 477, 224)
    # + 50%: 231 to 494 and 118 to 232, so quarters of cells of 9.4 x 4.1 px
    assert np.abs(np.array(second.region) - [330, 160, 420, 190]).max() < 5
    assert overlap(second.region, np.array([[330, 160, 420, 190]]), image.size) > overlap(
        first.region, np.array([[330, 160, 420, 190]]), image.size
    )


def test_images_of_any_size_are_looked_at_as_one_by_one_and_a_black_one_stays_whole(patches, monkeypatch):
    find = finder(patches, monkeypatch)
    images = [dark((90, 300), (0, 200, 40, 260)), dark((31, 33)), dark((400, 120), (10, 10, 60, 60), (300, 80, 390, 110))]
    found = find(images)
    assert found == [find([image])[0] for image in images]
    assert found[1] == Found((0, 0, 31, 33), (0, 0, 31, 33))
    for (region, frame), image in zip(found, images, strict=True):
        assert 0 <= frame[0] <= region[0] < region[2] <= frame[2] <= image.width
        assert 0 <= frame[1] <= region[1] < region[3] <= frame[3] <= image.height


def test_a_network_whose_values_are_not_finite_is_refused(patches, monkeypatch):
    find = finder(patches, monkeypatch)
    monkeypatch.setattr(type(find._model), "forward", lambda self, images: images[:, :1] * float("nan"))
    with pytest.raises(FileError, match="not finite"):
        find([dark((20, 20))])


def test_overlap_is_intersection_over_the_union_of_the_boxes():
    boxes = np.array([[0.0, 0, 10, 10], [20, 0, 30, 20]])
    assert overlap((0, 0, 30, 20), boxes, (100, 100)) == 1
    assert overlap((15, 0, 45, 20), boxes, (100, 100)) == pytest.approx(1 / 3)
    assert overlap((50, 50, 60, 60), boxes, (100, 100)) == 0
    assert overlap((0, 0, 30, 10), boxes, (100, 10)) == 1, "what lies outside of the image does not count"


class Told:
    """A finder that knows each image's frame by its size."""

    def __init__(self, regions: dict[tuple[int, int], tuple[int, int, int, int]]):
        self.regions, self.seen, self.config = regions, [], {"look": "told", "zooms": 1}

    def __call__(self, images):
        self.seen.append(len(images))
        return [Found(tuple(map(float, self.regions[image.size])), self.regions[image.size]) for image in images]


def write_own(folder: Path, boxes: bool = True, **settings) -> FolderSettings:
    rows = [
        {"image": "a.png", "labels": ["cat", "dog"], "boxes": [[10, 8, 20, 24], [40.5, 10, 52, 30]]},
        {"image": "b.png", "labels": ["cat"], "boxes": [[30, 10, 60, 40]]},
        {"image": "c.png", "labels": [], "boxes": []},
    ]
    for place, row in enumerate(rows):
        pixels = np.random.default_rng(place).integers(0, 255, (40 + place, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / row["image"])
        if not boxes:
            del row["boxes"]
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = {"image_size": 48, "test_share": 0.0, "frame": "found", **settings}
    return FolderSettings(images=str(folder), labels=str(folder / "l.jsonl"), **more)


FRAMES = {(80, 40): (5, 5, 45, 29), (80, 41): (30, 10, 60, 40), (80, 42): (0, 0, 20, 20)}


def test_found_frames_are_cut_at_full_resolution_and_boxes_go_along(tmp_path):
    told = Told(FRAMES)
    make_from_folder(write_own(tmp_path), tmp_path / "a.h5", read_image, FORMATS, finder=told)
    with open_scenes(tmp_path / "a.h5") as scenes:
        train = scenes.split("train")
        for row in range(3):
            known = int((train.labels[row] >= 0).sum())
            name = {2: "a.png", 1: "b.png", 0: "c.png"}[known]
            with Image.open(tmp_path / name) as image:
                frame = FRAMES[image.size]
                wanted = np.asarray(image.crop(frame).resize((48, 48), Image.Resampling.BILINEAR))
            assert np.array_equal(train.read(row, row + 1)[0], wanted), name
            if name == "a.png":
                x, y = 48 / 40, 48 / 24
                cat, dog = train.boxes[row][np.argsort(train.labels[row])]
                assert cat.tolist() == [math.floor(5 * x), 3 * y, 15 * x, 19 * y], "the first lies within the frame"
                assert dog.tolist() == [math.floor(35.5 * x), 5 * y, 48, 48], "the second is cut off at its edge"
        lie = scenes.config["found"]
    assert {key: lie[key] for key in told.config} == told.config
    # The union of a's boxes is 10, 8 to 52, 30: common 35 x 21, of 42 x 22 and 40 x 24 px.
    iou = (35 * 21) / (42 * 22 + 40 * 24 - 35 * 21)
    assert lie["train"] == {"images": 2, "iou": pytest.approx((1 + iou) / 2, abs=1e-4), "iou_above_half": 1.0, "all_inside": 0.5}


def test_found_frames_need_no_boxes_and_make_another_digest(tmp_path):
    digests = set()
    for name, settings, told in (
        ("a", {}, Told(FRAMES)),
        ("b", {"frame": "image"}, None),
        ("c", {}, Told(FRAMES | {(80, 41): (0, 0, 50, 40)})),
    ):
        make_from_folder(write_own(tmp_path, boxes=False, **settings), tmp_path / f"{name}.h5", read_image, FORMATS, finder=told)
        with open_scenes(tmp_path / f"{name}.h5") as scenes:
            digests.add(scenes.digest)
            assert scenes.config.get("found", {}).get("train") == ({} if told else None), "no box, no overlap to measure"
    assert len(digests) == 3


def test_svhn_is_looked_at_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("hsal_cli.scenes.street.frames.LOOKED_AT", 3)
    folder = write_svhn(tmp_path / "svhn", "train")
    told = Told({size: (0, 0, size[0] // 2, size[1]) for _, size, _ in HOUSES})
    make_svhn(SvhnSettings(svhn_dir=str(folder), image_size=32, test=0, frame="found"), tmp_path / "a.h5", read_image, finder=told)
    assert told.seen == [3, 1] and len(HOUSES) == 4
    with open_scenes(tmp_path / "a.h5") as scenes:
        for row, (name, size, _) in enumerate(HOUSES):
            with Image.open(folder / "train" / name) as image:
                wanted = image.convert("RGB").crop((0, 0, size[0] // 2, size[1])).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(scenes.split("train").read(row, row + 1)[0], np.asarray(wanted)), name


def test_street_numbers_are_painted_in_their_full_size_and_shown_whole_to_the_first_look(tmp_path):
    house = {"digits": [3, 8], "boxes_xyxy": [[100, 40, 130, 90], [131, 42, 160, 92]], "size_wh": [400, 200]}
    (tmp_path / "l.json").write_text(json.dumps({"train": {"1.png": house}, "test": {"1.png": house}}))
    shared = {"train": 2, "test": 1, "image_size": 64, "svhn_labels": str(tmp_path / "l.json"), "typefaces": "bundled"}
    told = Told({(400, 200): (91, 32, 169, 100)})
    with open_scenes(make_street_numbers(StreetSettings(**shared, frame="found"), tmp_path / "a.h5", finder=told)) as scenes:
        found = {
            split: (scenes.split(split).read(0, 1)[0], scenes.split(split).labels[0], scenes.split(split).boxes[0])
            for split in scenes.splits
        }
        assert told.seen == [2, 1] and scenes.config["found"]["test"]["all_inside"] == 1
    with open_scenes(make_street_numbers(StreetSettings(**shared, frame="number"), tmp_path / "b.h5", workers=1)) as scenes:
        for split, (image, labels, boxes) in found.items():  # the very same pictures: this frame is the number's
            part = scenes.split(split)
            assert np.array_equal(image, part.read(0, 1)[0]) and np.array_equal(labels, part.labels[0])
            assert np.abs(boxes - part.boxes[0]).max() <= 1


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with an untrained backbone, a policy on it, and pictures."""
    use_tiny_backbone(monkeypatch)
    monkeypatch.setattr(importlib.import_module("hsal_cli.features.two_looks"), "fused", lambda model: model)
    write_policy(tmp_path / "runs" / "policy", write_backbone(tmp_path / "runs" / "finetune"))
    write_backbone(tmp_path / "runs" / "other", seed=3)
    for place, size in enumerate(((120, 60), (50, 90))):
        pixels = np.random.default_rng(place).integers(0, 60, (size[1], size[0], 3), np.uint8)
        pixels[10:30, 20:44] += 150
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_show_the_region_in_the_whole_image_and_enlarged_in_its_own_proportions():
    """A region of 60 x 20 px in an image of 120 x 80 px; maps of 3 x 4 cells, the glimpse in row 2, column 3 of the region."""
    whole = a_look(labels=("3",), size=(80, 120), glimpses=((1, 2),))
    seen = dataclasses.replace(whole, region=(30, 20, 90, 40))
    side = math.sqrt(120 * 80)
    assert seen_in((5, 7, 125, 87), whole) == (5, 7, 125, 87) and seen_in((5, 7, 125, 87), seen) == (35, 27, 95, 47)
    assert len(layout_of(whole, side).rows) == 4 and layout_of(whole, side).part == layout_of(whole, side).panel == (120, 80)
    layout, picture = layout_of(seen, side), trajectories([seen], side=side)
    assert len(layout.rows) == 5 and layout.part == panel_size(np.zeros((20, 60, 3)), side) != layout.panel
    for row in range(5):  # panels lie below each other, the region's and all maps as wide and tall as the region is
        x0, y0, x1, y1 = layout.box(row, 0)
        assert (x1 - x0, y1 - y0) == (layout.part if row else (120, 80)) and (row == 0 or y0 > layout.box(row - 1, 0)[3])
    x, y = (start + MARGIN for start in layout.box(0, 0)[:2])
    assert picture.getpixel((x + 29, y + 22)) == picture.getpixel((x + 90, y + 38)) == PAPER, "a line around what the policy saw"
    for box, page in ((layout.box(1, 0), picture), (frame_of(seen, side).image, list(frames(seen, None, side))[2][0])):
        left, top, right, bottom = cell_box(box, (1, 2), (3, 4))
        margin = MARGIN if page is picture else 0
        corners = [(left, top), (right - 1, top), (left, bottom - 1), (right - 1, bottom - 1)]
        assert all(page.getpixel((x + margin, y + margin)) == ORANGE for x, y in corners), "cells are the region's"
    assert len(list(frames(seen, None, side))) == len(list(frames(whole, None, side))) + 1, "what it was cut out of comes first"
    page = document_of(seen)
    assert page["size"] == [60, 20] and page["whole"]["box"] == [0.25, 0.25, 0.5, 0.25] and document_of(whole)["whole"] is None
    assert document_of(dataclasses.replace(seen, region=(-10, 0, 60, 80)))["whole"]["box"] == [0, 0, 0.5, 1], "padding is not in the image"


def call(*words: str, code: int = 0):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


def test_predict_and_visualize_show_the_policy_the_region_alone(here):
    policy = load_policy(here / "runs" / "policy")
    backbone = find_backbone(policy)
    paths = [here / "0.png", here / "missing.png", here / "1.png"]
    find = TwoLooks(backbone, LookSettings(zooms=1, first_threshold=1.0))
    found = dict(look_at_files(paths, backbone, policy, finder=find))
    assert isinstance(found[paths[1]], FileError)
    for path in (paths[0], paths[2]):
        with Image.open(path) as image:
            ((_, frame),) = find([image])
            image.crop(frame).save(here / "part.png")
            assert frame != (0, 0, *image.size) and found[path].region == frame
            assert np.array_equal(found[path].image, np.asarray(image)), "the picture has the whole image"
        ((_, part),) = look_at_files([here / "part.png"], backbone, policy)
        assert part.labels == found[path].labels and part.labels and np.array_equal(part.glimpses, found[path].glimpses)
        said = json.loads(call("predict", str(path), "--frame", "found", "--zooms", "1", "--first-threshold", "1", "--json").stdout)[0]
        assert said["region"] == list(frame) and said["labels"] == part.labels
        for mapped, cut in zip(said["steps"], to_json(part)["steps"], strict=True):  # px are those of the whole image
            assert np.allclose(mapped["glimpses_px"], np.add(cut["glimpses_px"], [frame[1], frame[0]]), atol=0.11)
            assert np.allclose(mapped["boxes_px"], np.add(cut["boxes_px"], [*frame[:2], *frame[:2]]), atol=0.11)
        assert "region" not in json.loads(call("predict", str(path), "--json").stdout)[0]
    (drawn,) = json.loads(call("visualize", "1.png", "--frame", "found", "--look", "runs/other", "--gif", "--html", "--json").stdout)
    assert len(drawn["region"]) == 4 and all((here / drawn[key]).stat().st_size for key in ("picture", "animation", "replay"))


def test_make_data_cuts_by_a_look_and_says_how_well_the_regions_lie(here):
    asked = ["make-data", "street-numbers", "--train", "3", "--test", "2", "--image-size", "32", "--typefaces", "bundled"]
    made = json.loads(call(*asked, "--frame", "found", "--look", "runs/finetune", "--zoom-threshold", "0.2", "--json").stdout)
    digest = load_backbone(here / "runs" / "finetune").digest
    assert made["frame"] == "found" and made["found"]["look_digest"] == digest and made["found"]["zoom_threshold"] == 0.2
    assert made["found"]["test"]["images"] == 2 and 0 <= made["found"]["test"]["iou"] <= 1
    assert "found.zoom_threshold" in call("inspect", "data/street-numbers.h5").stdout
    said = call(*asked, "--frame", "found", "--look", "runs/finetune", "--overwrite").stdout
    assert said.count("the region's IoU with the union of the boxes") == 2


def test_a_policy_of_numbers_is_shown_the_region_unless_told_otherwise(here):
    digest = load_backbone(here / "runs" / "finetune").digest
    write_policy(here / "runs" / "numbers", digest, frame="number")
    alone = call("predict", "0.png", "--run", "runs/numbers", "--json")
    assert "frame number" in alone.stderr and "--frame image" in alone.stderr and "no network that looks first came" in alone.stderr
    whole = call("predict", "0.png", "--run", "runs/numbers", "--frame", "image", "--json")
    assert "region" in json.loads(alone.stdout)[0] and "region" not in json.loads(whole.stdout)[0] and "looks first" not in whole.stderr
    call("export", "runs/numbers", "--look", "runs/other", "--out", "exported")
    call("export", "runs/numbers", "--look", "exported", "--out", "again")  # the look in it is meant
    assert (here / "again/look/weights.safetensors").read_bytes() == (here / "exported/look/weights.safetensors").read_bytes()
    with_look = [
        call("predict", "0.png", *words, "--json")
        for words in (
            ("--pretrained", "exported/mnist-toy"),
            ("--pretrained", "exported"),
            ("--run", "exported/mnist-toy.rl"),
            ("--run", "runs/numbers", "--look", "exported"),
            ("--run", "runs/numbers", "--look", "exported/look"),
            ("--run", "runs/policy", "--frame", "found", "--look", "runs/other"),
        )
    ]
    regions = {tuple(json.loads(result.stdout)[0]["region"]) for result in with_look}
    assert len(regions) == 1 and not any("no network" in result.stderr for result in with_look)
    assert hsal_cli.load("exported")("0.png").region == regions.pop() and hsal_cli.load("exported", frame="image")("0.png").region is None
    own = hsal_cli.load("runs/numbers", look="runs/other")("0.png")
    assert own.region == hsal_cli.load("exported")("0.png").region and len(repr(hsal_cli.load("exported"))) < 200
    with pytest.raises(UsageError, match="no frame 'number'"):
        hsal_cli.load("exported", frame="number")


def test_eval_says_what_was_cut_out_of_the_images(here):
    asked = ["make-data", "street-numbers", "--train", "4", "--test", "3", "--image-size", "32", "--typefaces", "bundled"]
    for frame in ("number", "image"):
        call(*asked, "--frame", frame, "--out", f"{frame}.h5")
        call("precompute", "--data", f"{frame}.h5", "--backbone", "runs/finetune", "--resolution", "own")
    call("train", "--data", "number.features.h5", "--variant", "columns", "--epochs", "1", "--out", "runs/trained")
    own, other = (
        call("eval", "--run", "runs/trained", "--data", f"{frame}.features.h5", "--looking", "0").stdout for frame in ("number", "image")
    )
    assert "frame number, greedy" in own and "those of training" not in own
    assert "these images have frame image, those of training have frame number" in " ".join(other.split())
    kept = json.loads((here / "runs" / "trained" / "eval.image.json").read_text())
    assert kept["frame"] == "image" and kept["trained_frame"] == "number"


def test_the_work_of_an_image_counts_the_looks_that_found_its_frame(here):
    asked = ["make-data", "street-numbers", "--train", "4", "--test", "3", "--image-size", "32", "--typefaces", "bundled"]
    call(*asked, "--frame", "found", "--look", "runs/other", "--zooms", "3", "--out", "found.h5")
    call("precompute", "--data", "found.h5", "--backbone", "runs/finetune", "--resolution", "own")
    call("train", "--data", "found.features.h5", "--variant", "columns", "--epochs", "1", "--out", "runs/trained")

    def work():
        said = call("eval", "--run", "runs/trained", "--looking", "0").stdout
        row = next(line for line in said.splitlines() if "looks that find the frame" in line)
        return row, json.loads((here / "runs" / "trained" / "eval.json").read_text())["flops"]

    row, flops = work()
    assert flops["looks"] == 3 * backbone_flops(load_backbone(here / "runs" / "other").model)[0] > 0
    assert f" {flops['looks'] / 1e6:.1f} " in row
    assert flops["image"] == sum(flops[part] for part in ("looks", "backbone", "windows", "policy"))
    shutil.rmtree(here / "runs" / "other")
    row, flops = work()
    assert " - " in row and flops["looks"] is flops["image"] is None and flops["backbone"] > 0, "not known, so not left out"


def test_a_backbone_is_known_by_the_folder_it_was_exported_into(here):
    call("export", "runs/policy", "--out", "exported")
    call("saliency", "0.png", "--backbone", "exported")
    assert (here / "0.saliency.hsal.png").is_file()
    (here / "exported" / "backbone" / "weights.safetensors").write_bytes(b"no")
    refused = CliRunner().invoke(app, ["saliency", "0.png", "--backbone", "exported"]).exception
    assert isinstance(refused, FileError) and "exported/backbone/weights.safetensors is damaged" in refused.message


@pytest.mark.parametrize(
    "words",
    [
        ["make-data", "street-numbers", "--frame", "found"],
        ["make-data", "street-numbers", "--look", "runs/finetune"],
        ["make-data", "folder", "--images", ".", "--labels", "l.csv", "--look", "runs/finetune"],
        ["make-data", "svhn-multiset", "--frame", "found"],
        ["predict", "0.png", "--look", "runs/other"],
        ["predict", "0.png", "--zooms", "1"],
        ["predict", "0.png", "--frame", "image", "--groups", "strongest"],
        ["visualize", "--data", "a.h5", "--first-threshold", "0.2"],
        ["visualize", "0.png", "--look", "runs/other"],
        ["visualize", "--data", "a.h5", "--frame", "found"],
    ],
)
def test_a_look_without_its_frame_and_a_frame_without_its_look_are_refused(here, words):
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, UsageError) and ("--frame found" in refused.hint or "add --look " in refused.hint)


def test_frames_that_are_found_are_not_shifted():
    with pytest.raises(UsageError, match="cuts nothing out by boxes"):
        StreetSettings(frame="found", frame_jitter=2)
