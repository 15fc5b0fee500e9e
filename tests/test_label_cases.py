"""The inputs on which reading labels once failed, made anew and read: what their expected.txt says."""

from pathlib import Path

import pytest
from label_parts import Made

PAIR = [["cat", "dog"]] * 8
YOLO_NAMES = (
    "block",
    "flow_map",
    "shuffled",
    "gap",
    "quoted_comma",
    "indent",
    "multi",
    "crlf_bom",
    "names_first_bom",
    "colon_key",
    "spaced",
)


def made(place: Path, images: str, labels: str, **changes) -> Made:
    return Made(place / images, place / labels, image_size=120, **{"fit": "pad", **changes})


def error_of(place: Path, images: str, labels: str) -> str:
    return made(place, images, labels).error.message


def reasons(found: Made) -> set[str]:
    return set(found.skipped.values())


def test_class_lists(case):
    place = case("class_lists")
    assert reasons(made(place, "blank/images", "blank/labels")) == {"class 1, which has no name"}  # and 2 is dog
    assert "both called cat" in error_of(place, "twice/images", "twice/labels")
    assert made(place, "bom/images", "bom/labels").classes == ["cat", "dog", "bird"]
    assert "line 1 is not UTF-8" in error_of(place, "latin1/images", "latin1/labels")
    assert made(place, "numbered/images", "numbered/labels").classes == ["cat", "dog", "bird"]
    assert reasons(made(place, "short/images", "short/labels")) == {"class 2, which has no name"}
    for name in ("iscrowd_text", "lvis"):
        assert made(place, "set", f"{name}.json").train == PAIR
    for name in ("null_annotations", "null_annotation", "list_id"):
        assert "annotation" in error_of(place, "set", f"{name}.json")
    assert reasons(made(place, "set", "odd_names.json")) == {"a label is a text or a number, not null"}
    assert made(place, "set", "null_file.json").train == PAIR[1:]
    assert made(place, "set", "trailing_space.json").classes == ["cat"]


def test_coco_dup_category(case):
    found = made(case("coco_dup_category"), "set/train", "set/train/_annotations.coco.json")
    assert found.classes == ["fish", "lobster trap"] and len(found.train) == 12 and found.skipped == {}


def test_coco_exif(case):
    place = case("coco_exif")
    from draw import scene

    found = made(place, "set", "set/labels.json")
    for number, boxes in enumerate(found.boxes["train"]):
        _, raw = scene([0, 1], size=(120, 90), seed=number)
        # 120 x 90 px shown as 90 x 120, 15 px of margin at either side.
        assert boxes == [[15 + 90 - y1, x0, 15 + 90 - y0, x1] for x0, y0, x1, y1 in raw]


def test_coco_odd(case):
    place = case("coco_odd")
    same = "plain bom utf16 string_ids string_refs windows_urlencoded windows_abs segm_only mixed_category_ids normalised"
    expected = made(place, "set", "plain.json")
    assert expected.train == PAIR
    for name in same.split():
        found = made(place, "set", f"{name}.json")
        assert (found.train, found.boxes) == (expected.train, expected.boxes) and bool(found.remarks) == (name == "normalised"), name
    for name, left in (("bad_boxes", 3), ("crowd_rle", 7), ("missing_refs", 7), ("image_twice", 5)):
        found = made(place, "set", f"{name}.json")
        assert found.train == PAIR[:left] and found.skipped, name
    assert reasons(made(place, "set", "image_twice.json")) == {"listed twice"}
    assert reasons(made(place, "set", "twice_as_large.json")) == {"the labels say 240 x 180 px, the picture has 120 x 90"}
    for name, said in (
        ("list_top", "Label Studio"),
        ("results_only", "results"),
        ("no_annotations", "no list of annotations"),
        ("via", "VIA"),
    ):
        assert said in error_of(place, "set", f"{name}.json")
    assert "none of its 8 images has an object" in error_of(place, "set", "empty.json")


def test_csv_forms(case):
    place = case("csv_forms")
    expected = made(place, "set", "quoted_header.csv")
    assert expected.train == PAIR
    for name in ["excel_sep", "semicolon_bom", "utf16_tab", "openimages", "norm", "tf", "mac_cr", "index_col"]:
        found = made(place, "set", f"{name}.csv")
        assert (found.train, found.boxes) == (expected.train, expected.boxes) and bool(found.remarks) == (name in ("openimages", "norm")), (
            name
        )
    for name in ("quoted_list", "json_list", "comma_list"):
        assert made(place, "set", f"{name}.csv").train == PAIR
    for name in ("case", "jpeg", "ids"):
        assert made(place, "set", f"{name}.csv").train == [["cat"]] * 8
    assert made(place, "set", "counts.csv").train == [["cat"] * (1 + number % 3) for number in range(8)]
    assert made(place, "set", "onehot.csv", labels_format="counts").train == [["cat"] + ["dog"] * (number % 2) for number in range(8)]
    assert made(place, "set", "empty_label.csv").train == [["cat", "dog"] if number % 2 else [] for number in range(8)]
    assert "line 2 is not UTF-8" in error_of(place, "set", "cp1252.csv")
    for name in ("noheader", "wheat", "onehot"):
        assert "has no column" in error_of(place, "set", f"{name}.csv")
    assert made(place, "set", "nan_boxes.csv").train == PAIR[:7]
    assert made(place, "set", "space_list.csv").remarks and made(place, "set", "xywh_imgsize.csv").remarks
    assert reasons(made(place, "set", "floatids.csv")) == {"no such image", "no label"}
    assert {split: len(rows) for split, rows in made(place, "set", "splits.csv").held.items()} == {"train": 2, "test": 6}


def test_hidden_skips(case):
    assert made(case("hidden_skips"), "set", "labels.json").train == [["cat"]] * 6  # "10" is 10 now


def test_image_kinds(case):
    place = case("image_kinds")
    found = made(place, "set", "labels.csv")
    for name in ["avif.avif", "jfif.jfif", "jpe.jpe", "jp2.jp2", "ppm.ppm", "tga.tga", "mpo.mpo", "ico.ico", "noending"]:
        assert name not in found.skipped
    assert "no such image" not in reasons(found) and len(found.train) == 36
    assert len(made(place, "avifs", "avifs.csv").train) == 4


def test_partial_images(case):
    place = case("partial_images")
    for name in ("labels.csv", "labels.json"):
        found = made(place, "set", name)
        assert reasons(found) == {"a box that is empty"} and "--no-boxes" in found.error.hint
        assert made(place, "set", name, boxes=False).train == [["cat", "dog", "dog"]] * 10
        assert made(place, "set", name, classes="cat").train == [["cat"]] * 10


def test_voc_gb2312(case):
    assert made(case("voc_gb2312"), "set/images", "set/ann").train == [["车", "人"]] * 6


def test_voc_jsonl_names(case):
    place = case("voc_jsonl_names")
    expected = made(place, "set", "v_noext")
    assert expected.train == PAIR
    for name in ["v_stale", "v_nofilename", "v_parts", "v_namespace", "v_polygon", "v_unknownenc", "v_lxml"]:
        found = made(place, "set", name)
        assert (found.train, found.boxes) == (expected.train, expected.boxes), name
    assert made(place, "set", "v_empty").train == [[], *PAIR[1:]] and made(place, "set", "v_bad").train == PAIR[1:]
    assert reasons(made(place, "set", "v_badenc")) == {"cannot be read: unknown encoding: xyz-99"}
    assert reasons(made(place, "set", "v_wrongext")) == {"no such image; one with another ending is there", "no label"}
    for name in ("v_zero", "v_swapped"):
        assert made(place, "set", name).error and made(place, "set", name, boxes=False).train == PAIR
    assert made(place, "set", "lineseparator.jsonl").train == PAIR
    assert made(place, "set", "nulllabels.jsonl").train == PAIR[:4]
    assert made(place, "set", "emptylabels.jsonl").train == [[], ["cat", "dog"]] * 4
    assert made(place, "set", "hf.jsonl").boxes == expected.boxes
    for name in ("counts", "nested", "string", "list"):
        found = made(place, "set", f"{name}.jsonl")
        assert found.error and len(found.skipped) >= 8


def test_yolo_bad_lines(case):
    place = case("yolo_bad_lines")
    triple = [["cat", "dog", "bird"]] * 8
    for name in ("floats", "onefloat", "conf", "bom", "comma"):
        assert made(place, f"{name}/images", f"{name}/labels").train == triple, name
    assert made(place, "blank/images", "blank/labels").train == [[], *triple[1:]]
    assert made(place, "outofrange/images", "outofrange/labels").train == triple[1:]
    assert reasons(made(place, "tiny/images", "tiny/labels")) == {"a box that is empty"}
    assert made(place, "above1/images", "above1/labels").train == [[*labels, "dog"] for labels in triple]


@pytest.mark.parametrize(
    ("images", "labels", "tests"),
    [
        ("ultra/images", "ultra/labels", 4),
        ("ultra", "ultra/data.yaml", 4),
        ("cvat/obj_train_data", "cvat/obj_train_data", 0),
        ("cvat", "cvat", 0),
        ("robo", "robo", 5),
        ("ls", "ls", 0),
        ("ls/images", "ls/labels", 0),
        ("dark", "dark", 0),
    ],
)
def test_yolo_layouts(case, images, labels, tests):
    found = made(case("yolo_layouts"), images, labels)
    assert found.train == PAIR and found.held.get("test", []) == [["cat", "dog"]] * tests and found.skipped == {}


def test_yolo_layouts_named_one_by_one(case):
    place = case("yolo_layouts")
    for root, images, labels, tests in (("ultra", "images/{}", "labels/{}", ("val", 4)), ("robo", "{}/images", "{}/labels", ("valid", 3))):
        test = {f"test_{kind}": str(place / root / form.format(tests[0])) for kind, form in (("images", images), ("labels", labels))}
        found = made(place, f"{root}/{images.format('train')}", f"{root}/{labels.format('train')}", **test)
        assert found.held == {"train": PAIR, "test": PAIR[: tests[1]]}
    found = made(place, "ls/images", "ls/notes.json")
    assert found.error.hint.endswith(f"--labels {place / 'ls' / 'labels'}")


def test_yolo_macos_dotfiles(case):
    found = made(case("yolo_macos_dotfiles"), "set/images", "set/labels")
    assert found.train == PAIR and found.skipped == {}


def test_yolo_names_forms(case):
    place = case("yolo_names_forms")
    for name in YOLO_NAMES:
        second = "dog, small" if name == "quoted_comma" else "dog"
        assert made(place, f"{name}/images", f"{name}/labels").train == [["cat", second, "bird"]] * 6, name


def test_yolo_polygons(case):
    place = case("yolo_polygons")
    from draw import scene

    for number, boxes in enumerate(made(place, "set/images", "set/labels").boxes["train"]):
        _, raw = scene([0, 1], seed=number)
        for found, (x0, y0, x1, y1) in zip(boxes, raw, strict=True):
            # Shares of six digits: within a pixel. 15 px of margin above and below.
            assert max(abs(a - b) for a, b in zip(found, (x0, y0 + 15, x1, y1 + 15), strict=True)) <= 1
