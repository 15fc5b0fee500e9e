"""Labels as other programs write them: read rightly, or refused with the reason; by format."""

import csv
import io
import json
import unicodedata

import pytest
from label_parts import Made, draw, write

GOOD = "0 .5 .5 .5 .5\n"  # a YOLO line: the box 10, 10, 30, 30 once the picture is a square of 40 px
SQUARE = [10, 10, 30, 30]


# ---- tables


def table(*rows) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


HEAD = "filename,class,xmin,ymin,xmax,ymax\n"
BOXED = (["cat"], [[2, 4, 20, 30]])
TABLES = {  # the table -> labels and boxes of a.png, or why it is left out
    "tensorflow": ("filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,20,cat,2,2,20,15\n", BOXED),
    "sep": ("sep=;\r\n" + HEAD.replace(",", ";") + "a.png;cat;2;2;20;15\r\n", BOXED),
    "old mac": (HEAD.replace("\n", "\r") + "a.png,cat,2,2,20,15\r", BOXED),
    "decimal comma": (HEAD.replace(",", ";") + "a.png;cat;2,0;2,0;20,0;15,0\n", BOXED),
    "mark": ("\ufeff" + HEAD + "a.png,cat,2,2,20,15\n", BOXED),
    "utf-16": ((HEAD.replace(",", "\t") + "a.png\tcat\t2\t2\t20\t15\n").encode("utf-16"), BOXED),
    "utf-16 without mark": ((HEAD + "a.png,cat,2,2,20,15\n").encode("utf-16-le"), BOXED),
    "shares": ("ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,.05,.5,.1,.75\n", BOXED),
    "a group": ("ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,2,20,2,15,1\n", "a crowd, not one object"),
    "index column": ("," + HEAD + "0,a.png,cat,2,2,20,15\n", BOXED),
    "no box in any cell": (HEAD + "a.png,cat,,,,\n", (["cat"], None)),
    "no object": (HEAD + "a.png,,,,,\n", ([], [])),
    "half a box": (HEAD + "a.png,cat,2,2,,\n", "a value that is not a number"),
    "cell too many": (HEAD + "a.png,cat,2,2,20,15,9\n", "7 cells where the header has 6"),
    "several for one box": (HEAD + "a.png,cat;dog,2,2,20,15\n", "several labels for one box"),
    "semicolons": ("image,label\na.png,cat; dog|cat\n", (["cat", "dog", "cat"], None)),
    "python's list": ("image,labels\na.png,\"['cat', 'dog, small']\"\n", (["cat", "dog, small"], None)),
    "json's list": (table(["image", "labels"], ["a.png", '["cat", 3]']), (["cat", "3"], None)),
    "broken list": (table(["image", "labels"], ["a.png", "['cat',"]), "a list of labels that cannot be read"),
    "commas where several may stand": ('image,labels\na.png,"cat, dog"\n', (["cat", "dog"], None)),
    "commas where one stands": (
        'image,label\na.png,"cat, dog"\n',
        'a comma in a label: cat;dog is two, and ["cat, dog"] is one of that name',
    ),
    "comma in a name with a box": (HEAD + 'a.png,"cat, small",2,2,20,15\n', (["cat, small"], [[2, 4, 20, 30]])),
    "numbers as pandas writes them": ("image,label\na.png,3.0\n", (["3"], None)),
    "class number": ("image,class_id,x0,y0,x1,y1\na.png,3,2,2,20,15\n", (["3"], [[2, 4, 20, 30]])),
    "count": ("image,label,count\na.png,cat,2\n", (["cat", "cat"], None)),
    "no count": ("image,label,count\na.png,cat,1.5\n", "a count that is not 0 to 64"),
    "two rows of one image": ("image,label\na.png,cat\n./a.png,cat\n", (["cat", "cat"], None)),
    "in both splits": ("image,label,split\na.png,cat,train\na.png,dog,test\n", "in both splits"),
    "two columns that name one image": ("image,file_path,id,label\na.png,some/a.png,7,cat\n", (["cat"], None)),
    "two columns that name different images": (
        HEAD.replace("class", "file,class") + "a.png,z.png,cat,2,2,20,15\n",
        "different images are named: z.png and a.png",
    ),
    "a width without height": (
        HEAD.replace("class", "width,class") + "a.png,80,cat,2,2,20,15\n",
        "the labels say 80 x ? px, the picture has 40 x 20",
    ),
    "the picture's width without height": (HEAD.replace("class", "width,class") + "a.png,40,cat,2,2,20,15\n", BOXED),
    "unknown split": ("image,label,split\na.png,cat,some\n", "an unknown split some"),
    "one of two names": ("image,label\na.png,\u00e9\na.png,e\u0301\n", (["\u00e9", "\u00e9"], None)),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(tmp_path, case):
    text, expected = TABLES[case]
    draw(tmp_path / "i", "a.png", "z.png")
    labels = write(tmp_path / "l.csv", text)
    if isinstance(expected, str):
        made = Made(tmp_path / "i", labels)
        assert made.error and expected in made.skipped.values()
        return
    if not expected[0]:  # a data set needs an object
        write(labels, text + "z.png,cat,2,2,20,15\n")
    made = Made(tmp_path / "i", labels)
    assert (made.train[0], made.boxes["train"][0]) == expected


def region(kind: str, **numbers) -> str:
    item = {"rotation": 0, "original_width": 40, "original_height": 20, f"{kind}labels": ["cat"], **numbers}
    return json.dumps([item])


@pytest.mark.parametrize(
    ("cell", "box"),
    [
        (region("rectangle", x=5, y=10, width=45, height=65), [2, 4, 20, 30]),
        (region("polygon", points=[[5, 10], [50, 75], [5, 75]]), [2, 4, 20, 30]),
        (region("ellipse", x=50, y=50, radiusX=25, radiusY=25), SQUARE),
        (region("rectangle", x=5, y=10, width=45, height=65, rotation=30), "a box that is turned"),
        (region("rectangle", x=5, y=10, width=45, height=65, original_width=80), "the labels say 80 x 20 px, the picture has 40 x 20"),
        (json.dumps({"choices": ["cat", "cat"]}), None),
    ],
)
def test_label_studios_tables(tmp_path, cell, box):
    draw(tmp_path / "i", "a b.png")
    labels = write(tmp_path / "l.csv", table(["image", "id", "label", "annotator"], ["/data/upload/4/0a1b2c3d-a%20b.png", 1, cell, 1]))
    made = Made(tmp_path / "i", labels)
    if isinstance(box, str):
        assert box in made.skipped.values()
    else:
        assert made.boxes["train"] == [[box] if box else None] and made.train == [["cat"] if box else ["cat", "cat"]]


def test_a_column_a_class_counts_if_that_is_said(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png", "c.png")
    labels = write(tmp_path / "l.csv", "filename, cat, dog\na.png, 2, 1\nb.png,0,\nc.png,x,0\n")
    made = Made(tmp_path / "i", labels, labels_format="counts")
    assert made.train == [["cat", "cat", "dog"], []] and made.skipped == {"c.png (line 4: cat = 'x')": "a value that is not a number"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('image,label,bbox\na.png,cat,"[1, 2, 3, 4]"\n', "columns that are not read as boxes: bbox"),
        ("image,labels\na.png,cat dog\n", "labels with blanks, such as cat dog, are one class each"),
        (HEAD + "a.png,cat,2,2,9,9\n" * 2, "pictures with two objects of one class in the very same box: 1"),
    ],
)
def test_what_a_table_may_mean_otherwise_is_told(tmp_path, text, said):
    draw(tmp_path / "i", "a.png")
    assert Made(tmp_path / "i", write(tmp_path / "l.csv", text)).remarks[0].startswith(said)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "image,spilt,labels\na.png,test,cat\n", "columns that are not read: spilt (did you mean split?)"),
        (
            "l.csv",
            "Image,ID,Label,XMin,YMin,XMax,YMax,IsGroupOf,split,coutn,note,width,height\na.png,,cat,1,1,9,9,0,train,,x,40,20\n",
            "columns that are not read: coutn (did you mean count?), note",
        ),
        ("l.csv", ",image,label,Split,count,width,height\n0,a.png,cat,,1,40,20\n", None),
        ("l.csv", f"image,label,{','.join(f'note{n}' for n in range(10))}\na.png,cat{',' * 10}\n", "note6, note7, 2 more"),
        ("l.jsonl", '{"image": "a.png", "labels": ["cat"], "spilt": "test"}\n', "keys that are not read: spilt (did you mean split?)"),
        ("l.jsonl", '{"file_name": "a.png", "label": "cat", "width": 40, "height": 20, "split": "train"}\n', None),
    ],
)
def test_what_nobody_reads_is_told_with_what_it_may_have_meant(tmp_path, name, text, said):
    draw(tmp_path / "i", "a.png")
    found = [remark for remark in Made(tmp_path / "i", write(tmp_path / name, text)).remarks if "not read" in remark]
    assert len(found) == (said is not None) and all(remark.endswith(said) for remark in found)


# ---- JSON lines

LINES = {
    "list": ({"labels": ["cat", 3, 2.0]}, (["cat", "3", "2"], None)),
    "boxes": ({"labels": ["cat"], "boxes": [[2, 2, 20, 15]]}, (["cat"], [[2, 4, 20, 30]])),
    "one": ({"label": "cat"}, (["cat"], None)),
    "separators in a text": ({"labels": ["cat"], "note": "one\u2028two\x85three"}, (["cat"], None)),
    "hugging face": ({"objects": {"bbox": [[2, 2, 18, 13]], "categories": ["cat"]}}, (["cat"], [[2, 4, 20, 30]])),
    "hugging face, a list": ({"objects": [{"bbox": [2, 2, 18, 13], "category": "cat"}]}, (["cat"], [[2, 4, 20, 30]])),
    "hugging face, nothing": ({"objects": {"bbox": [], "categories": []}}, ([], [])),
    "text of several": ({"labels": "cat;dog"}, "several labels in one text: make them a list"),
    "null": ({"labels": None}, "a label is a text or a number, not null"),
    "true": ({"labels": [True]}, "a label is a text or a number, not true"),
    "counts": ({"labels": {"cat": 2}}, 'a label is a text or a number, not {"cat": 2}'),
    "objects": ({"labels": [{"name": "cat"}]}, 'a label is a text or a number, not {"name": "cat"}'),
    "empty text": ({"labels": [" "]}, "a label without a text"),
    "none": ({"tag": 1}, "no labels"),
    "two names, two meanings": ({"labels": ["cat"], "label": "dog"}, "labels under two names that differ: labels and label"),
    "two names, one meaning": ({"labels": ["cat"], "label": "cat"}, (["cat"], None)),
    "box of three": ({"labels": ["cat"], "boxes": [[1, 2, 3]]}, "a box that is not four numbers"),
    "box as object": ({"labels": ["cat"], "boxes": [{"x": 1}]}, "a box that is not four numbers"),
    "another count": ({"labels": ["cat"], "boxes": []}, "boxes and labels of different number"),
}


def test_a_key_that_stands_twice_in_a_line_is_told(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png")
    text = '{"image": "a.png", "labels": ["cat"], "labels": ["dog"]}\n{"image": "b.png", "labels": ["cat"]}\n'
    made = Made(tmp_path / "i", write(tmp_path / "l.jsonl", text))
    assert made.train == [["cat"]] and "gives 'labels' twice" in made.skipped["line 1"]


def test_both_images_that_one_line_names_are_left_out(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png", "z.png")
    lines = [{"image": "a.png", "label": "cat"}, {"image": "a.png", "file": "b.png", "label": "dog"}, {"image": "z.png", "label": "cat"}]
    made = Made(tmp_path / "i", write(tmp_path / "l.jsonl", "\n".join(map(json.dumps, lines))))
    assert made.train == [["cat"]] and "different images are named: a.png and b.png" in made.skipped.values()


def test_the_splits_that_coco_states_are_taken(tmp_path):
    draw(tmp_path / "i", "a.png", "z.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.json", coco(one(), split="val")))
    assert made.held == {"train": [["dog"]], "test": [["cat"]]}


@pytest.mark.parametrize("case", LINES)
def test_json_lines(tmp_path, case):
    row, expected = LINES[case]
    draw(tmp_path / "i", "a.png", "z.png")
    lines = [{"file_name": "a.png", **row}, {"file_name": "z.png", "labels": ["cat"], "boxes": [[1, 1, 9, 9]]}]
    made = Made(tmp_path / "i", write(tmp_path / "l.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)))
    if isinstance(expected, str):
        assert made.train == [["cat"]] and made.skipped == {"a.png (line 1)": expected}
    else:
        assert made.train[0] == expected[0] and (expected[1] is None or made.boxes["train"][0] == expected[1])


@pytest.mark.parametrize(
    ("line", "reason"),
    [("[1]", "not a JSON object"), ("{}", "no image is named"), ("[" * 5000, "not JSON: nested too deeply"), ("{", "not JSON: ")],
)
def test_lines_without_an_image_are_told(tmp_path, line, reason):
    draw(tmp_path / "i", "z.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.jsonl", line + '\n{"image": "z.png", "labels": ["cat"]}\n'))
    assert made.train == [["cat"]] and made.skipped["line 1"].startswith(reason)


def test_an_image_that_two_lines_list_whole_is_left_out(tmp_path):
    draw(tmp_path / "i", "a.png", "z.png")
    lines = [("a.png", ["cat"]), ("a.png", ["dog"]), ("z.png", ["cat"])]
    made = Made(tmp_path / "i", write(tmp_path / "l.jsonl", "\n".join(json.dumps({"image": i, "labels": n}) for i, n in lines)))
    assert made.train == [["cat"]] and made.skipped == {"a.png": "listed twice"}


@pytest.mark.parametrize("kind", ["metadata.jsonl", "metadata.csv", "_annotations.coco.json"])
def test_export_roots_with_a_label_file_in_each_split(tmp_path, kind):
    place = draw(tmp_path / "d", "train/0.png", "valid/0.png")
    for split, name in (("train", "cat"), ("valid", "dog")):
        text = {
            "metadata.jsonl": json.dumps({"file_name": "0.png", "label": name}),
            "metadata.csv": f"file_name,label\n0.png,{name}\n",
            "_annotations.coco.json": coco([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}], name=name, file_name="0.png"),
        }[kind]
        write(place / split / kind, text)
    assert Made(place, place).held == {"train": [["cat"]], "test": [["dog"]]}


# ---- COCO


def coco(annotations: list, name: object = "cat", file_name: object = "a.png", **image) -> dict:
    images = [{"id": 1, "file_name": file_name, **image}, {"id": 2, "file_name": "z.png"}]
    good = {"image_id": 2, "category_id": 7, "bbox": [2, 2, 18, 13]}
    return {"images": images, "categories": [{"id": 7, "name": "dog"}, {"id": 1, "name": name}], "annotations": [*annotations, good]}


def one(**changes) -> list:
    return [{"image_id": 1, "category_id": 1, "bbox": [2, 2, 18, 13], **changes}]


COCO = {  # the document -> labels and boxes of a.png, or why it is left out
    "plain": (coco(one()), (["cat"], [[2, 4, 20, 30]])),
    "ids as texts": (coco(one(image_id="1", category_id="1")), (["cat"], [[2, 4, 20, 30]])),
    "ids with a point": (coco(one(image_id=1.0)), (["cat"], [[2, 4, 20, 30]])),
    "no crowd": (coco(one(iscrowd="0")), (["cat"], [[2, 4, 20, 30]])),
    "address": (coco(one(), file_name=None, coco_url="http://x.org/set/a.png"), (["cat"], [[2, 4, 20, 30]])),
    "polygon alone": (coco(one(bbox=[], segmentation=[[2, 2, 20, 2, 20, 15], [3, 3, 4, 4, 5, 3]])), (["cat"], [[2, 4, 20, 30]])),
    "blank in a name": (coco(one(), name=" dog "), (["dog"], [[2, 4, 20, 30]])),
    "number as name": (coco(one(), name=5), (["5"], [[2, 4, 20, 30]])),
    "none": (coco([]), ([], [])),
    "crowd": (coco(one(iscrowd=1)), "a crowd, not one object"),
    "no name": (coco(one(), name=None), "a label is a text or a number, not null"),
    "no such category": (coco(one(category_id=5)), "an unknown category 5"),
    "empty box": (coco(one(bbox=[2, 2, 0, 5])), "a box that is empty"),
    "negative box": (coco(one(bbox=[9, 9, -5, -5])), "a box that is empty"),
    "null box": (coco(one(bbox=[None] * 4)), "a value that is not a number"),
    "box as object": (coco(one(bbox={"x": 1})), "a box that is not four numbers"),
    "half a point": (coco(one(bbox=None, segmentation=[[1, 2, 3]])), "a polygon with half a point"),
    "unknown split": (coco(one(), split="some"), "an unknown split some"),
    "a height without width": (coco(one(), height=40), "the labels say ? x 40 px, the picture has 40 x 20"),
    "another size": (coco(one(), width=80, height=40), "the labels say 80 x 40 px, the picture has 40 x 20"),
}


@pytest.mark.parametrize("case", COCO)
def test_coco(tmp_path, case):
    document, expected = COCO[case]
    draw(tmp_path / "i", "a.png", "z.png")
    made = Made(tmp_path / "i", write(tmp_path / "l.json", document))
    if isinstance(expected, str):
        assert made.train == [["dog"]] and list(made.skipped.values()) == [expected]
    else:
        assert (made.train[0], made.boxes["train"][0]) == expected and made.skipped == {}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_json_in_any_unicode(tmp_path, encoding):
    draw(tmp_path / "i", "a.png", "z.png")
    text = json.dumps(coco(one(), name="Käfer"), ensure_ascii=False).encode(encoding)
    assert Made(tmp_path / "i", write(tmp_path / "l.json", text)).train == [["Käfer"], ["dog"]]


def test_two_categories_of_one_name_are_one_class_and_one_without_objects_is_none(tmp_path):
    draw(tmp_path / "i", "a.png", "z.png")
    document = coco(one(category_id=8))
    document["categories"] += [{"id": 0, "name": "dog", "supercategory": "none"}, {"id": 8, "name": "dog"}]
    made = Made(tmp_path / "i", write(tmp_path / "l.json", document))
    assert made.classes == ["dog"] and made.train == [["dog"], ["dog"]]


def test_annotations_and_images_that_lead_nowhere_are_told(tmp_path):
    draw(tmp_path / "i", "a.png", "z.png")
    document = coco([*one(), *one(image_id=9, id=40)])
    document["images"] += [{"id": 3, "file_name": None}, {"id": 4, "file_name": "gone.png"}, {"id": 5, "file_name": "a.png"}]
    made = Made(tmp_path / "i", write(tmp_path / "l.json", document))
    assert made.train == [["dog"]]
    away = {
        "annotation 40": "of an image that is not listed",
        "image 3": "no file_name",
        "gone.png": "no such image",
        "a.png": "listed twice",
    }
    assert made.skipped == away


# ---- Pascal VOC


def voc(name: str | None = "a.png", label: str = "cat", box: str = "3,3,20,15", size: str = "", more: str = "") -> str:
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box.split(","), strict=True))
    file = "" if name is None else f"<filename>{name}</filename>"
    return f"<annotation>{file}{size}<object><name>{label}</name>{more}<bndbox>{edges}</bndbox></object></annotation>"


PART = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><polygon><x1>1</x1></polygon>"
VOC = {
    "plain": (voc(), (["cat"], [[2, 4, 20, 30]])),
    "no filename": (voc(None), (["cat"], [[2, 4, 20, 30]])),
    "filename of before": (voc("IMG_OLD.jpg"), (["cat"], [[2, 4, 20, 30]])),
    "a path of Windows": (voc("C:\\data\\a.png"), (["cat"], [[2, 4, 20, 30]])),
    "parts": (voc(more=PART), (["cat"], [[2, 4, 20, 30]])),
    "blanks": (voc(label="\n   cat\n "), (["cat"], [[2, 4, 20, 30]])),
    "namespace": (voc().replace("<annotation>", '<annotation xmlns="http://x.y/z">'), (["cat"], [[2, 4, 20, 30]])),
    "size of nothing": (voc(size="<size><width>0</width><height>0</height></size>"), (["cat"], [[2, 4, 20, 30]])),
    "shares": (voc(box=".05,.1,.5,.75"), (["cat"], [[2, 4, 20, 30]])),
    "no object": ("<annotation><filename>a.png</filename></annotation>", ([], [])),
    "gb2312": (('<?xml version="1.0" encoding="gb2312"?>' + voc(label="车")).encode("gb2312"), (["车"], [[2, 4, 20, 30]])),
    "windows-1252": (
        ("<?xml version='1.0' encoding='windows-1252'?>" + voc(label="Käfer")).encode("cp1252"),
        (["Käfer"], [[2, 4, 20, 30]]),
    ),
    "shift_jis": (('<?xml version="1.0" encoding="Shift_JIS"?>' + voc(label="犬")).encode("shift_jis"), (["犬"], [[2, 4, 20, 30]])),
    "utf-16": (('<?xml version="1.0" encoding="utf-16"?>' + voc(label="犬")).encode("utf-16"), (["犬"], [[2, 4, 20, 30]])),
    "utf8 with a mark": (
        b"\xef\xbb\xbf" + ('<?xml version="1.0" encoding="utf8"?>' + voc(label="犬")).encode(),
        (["犬"], [[2, 4, 20, 30]]),
    ),
    "another size": (voc(size="<size><width>20</width><height>40</height></size>"), "the labels say 20 x 40 px, the picture has 40 x 20"),
    "entities": ('<!DOCTYPE a [<!ENTITY x "cat">]>' + voc(label="&x;"), "cannot be read: it declares a document type or entities"),
    "entities in UTF-16": (
        ('<!DOCTYPE a [<!ENTITY x "cat">]>' + voc(label="&x;")).encode("utf-16"),
        "cannot be read: it declares a document type",
    ),
    "unknown encoding": ('<?xml version="1.0" encoding="xyz-9"?>' + voc(), "cannot be read: unknown encoding: xyz-9"),
    "another encoding": (('<?xml version="1.0" encoding="utf-8"?>' + voc(label="Käfer")).encode("cp1252"), "cannot be read: 'utf-8' codec"),
    "no XML": ("<annotation>R&D", "cannot be read: unclosed token"),
    "empty file": ("", "cannot be read: no element found"),
    "no name": (voc(label=""), "a label without a text"),
    "zero": (voc(box="0,0,0,0"), "a box outside of the image"),
    "swapped": (voc(box="20,15,3,3"), "a box that is empty"),
    "turned": (voc().replace("bndbox", "robndbox"), "a box that is turned"),
    "shares in one alone": (voc(box=".05,.1,.5,.75"), (["cat"], [[2, 4, 20, 30]])),
}


@pytest.mark.parametrize("case", VOC)
def test_voc(tmp_path, case):
    text, expected = VOC[case]
    draw(tmp_path / "i", "a.png", "z.png")
    write(tmp_path / "l" / "a.xml", text)
    if not case.startswith("shares"):
        write(tmp_path / "l" / "z.xml", voc("z.png", label="dog"))
    made = Made(tmp_path / "i", tmp_path / "l")
    if isinstance(expected, str):
        assert made.train == [["dog"]] and [reason[: len(expected)] for reason in made.skipped.values()] == [expected]
    else:
        assert (made.train[0], made.boxes["train"][0]) == expected


def test_shares_among_px_are_no_boxes(tmp_path):
    draw(tmp_path / "i", "a.png", "z.png")
    write(tmp_path / "l" / "a.xml", voc(box=".05,.1,.5,.75"))
    write(tmp_path / "l" / "z.xml", voc("z.png", label="dog"))
    made = Made(tmp_path / "i", tmp_path / "l")
    assert made.train == [["dog"]] and made.skipped == {"a.png (a.xml)": "a box within the first pixel: are these shares of the image?"}


def test_vocs_own_folders(tmp_path):
    place = draw(tmp_path / "VOC", "JPEGImages/a.jpg", "JPEGImages/train/1.jpg", "JPEGImages/val/1.jpg")
    write(place / "Annotations" / "a.xml", voc("a.jpg"))
    write(place / "Annotations" / "train" / "1.xml", voc("1.jpg", "dog"))
    write(place / "Annotations" / "val" / "1.xml", voc("1.jpg", "cow"))
    write(place / "ImageSets" / "Main" / "cat_train.txt", "a  1\n")
    assert Made(place, place).held == {"train": [["cat"], ["dog"]], "test": [["cow"]]}


def test_a_voc_file_that_could_be_of_either_of_two_images_is_of_none(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png", "z.png")
    write(tmp_path / "l" / "a.xml", voc("b.png"))
    write(tmp_path / "l" / "z.xml", voc("z.png"))
    made = Made(tmp_path / "i", tmp_path / "l")
    assert made.train == [["cat"]] and {"a.png", "b.png"} == set(made.skipped)


# ---- YOLO

YOLO = {  # a second line beside a good one -> its class and box, or why the image is left out
    "box": ("1 .5 .5 .5 .5", ("dog", SQUARE)),
    "class with a point": ("1.0 .5 .5 .5 .5", ("dog", SQUARE)),
    "class with an exponent": ("1.000e+00 .5 .5 .5 .5", ("dog", SQUARE)),
    "confidence": ("1 .5 .5 .5 .5 .93", ("dog", SQUARE)),
    "commas": ("1,.5,.5,.5,.5", ("dog", SQUARE)),
    "commas and blanks": ("1, .5, .5, .5, .5", ("dog", SQUARE)),
    "polygon": ("1 .25 .25 .75 .25 .75 .75 .5 .6", ("dog", SQUARE)),
    "turned box": ("1 .5 .25 .75 .5 .5 .75 .25 .5", ("dog", SQUARE)),
    "slightly beyond": ("1 .76 .75 .5 .5", ("dog", [20, 20, 40, 40])),
    "decimal commas": ("1 0,1 0,1 0,1 0,1", "blanks and commas in one line"),
    "keypoints": ("1 .5 .5 .5 .5 .4 .4 2", "keypoints, or a polygon: kpt_shape in data.yaml would tell"),
    "keypoints, two": ("1 .5 .5 .5 .5 .4 .4 2 .6 .6 1", "keypoints, or a polygon: kpt_shape in data.yaml would tell"),
    "seven numbers": ("1 .5 .5 .5 .5 .4 .4 .3", "7 numbers behind the class: neither a box nor a polygon"),
    "two numbers": ("1 .5 .5", "2 numbers behind the class: neither a box nor a polygon"),
    "px": ("1 20 10 5 5", "numbers that are no shares of the image, 0 to 1"),
    "a track": ("1 .5 .5 .5 .5 .9 17", "numbers that are no shares of the image, 0 to 1"),
    "no name": ("7 .5 .5 .5 .5", "class 7, which has no name"),
    "negative class": ("-1 .5 .5 .5 .5", "-1, which is no class number"),
    "class by name": ("dog .5 .5 .5 .5", "dog, which is no class number"),
    "part of a class": ("0.5 .5 .5 .5 .5", "0.5, which is no class number"),
    "empty": ("1 .5 .5 0 0", "a box that is empty"),
    "flat polygon": ("1 .1 .1 .5 .1 .7 .1", "a box that is empty"),
    "not a number": ("1 nan .5 .5 .5", "a value that is not a number"),
}


@pytest.mark.parametrize("case", YOLO)
def test_yolo(tmp_path, case):
    line, expected = YOLO[case]
    draw(tmp_path / "i", "a.png", "z.png")
    write(tmp_path / "l" / "classes.txt", "cat\ndog\n")
    write(tmp_path / "l" / "a.txt", f"\ufeff{GOOD}{line}\r\n \r\n")
    write(tmp_path / "l" / "z.txt", GOOD)
    made = Made(tmp_path / "i", tmp_path / "l")
    if isinstance(expected, str):
        assert made.train == [["cat"]] and made.skipped == {"a.png (line 2)": expected}
    else:
        assert made.train[0] == ["cat", expected[0]] and made.boxes["train"][0] == [SQUARE, expected[1]]


def test_yolo_keypoints_where_the_data_set_says_so(tmp_path):
    draw(tmp_path / "i", "a.png")
    write(tmp_path / "data.yaml", "kpt_shape: [2, 3]\nnames: [cat]\n")
    write(tmp_path / "l" / "a.txt", "0 .5 .5 .5 .5 .4 .4 2 .6 .6 1\n")
    assert Made(tmp_path / "i", tmp_path / "l").boxes["train"] == [[SQUARE]]


def test_yolo_empty_files_are_images_of_no_object_and_a_file_of_another_encoding_is_told(tmp_path):
    draw(tmp_path / "i", "a.png", "b.png", "c.png")
    write(tmp_path / "l" / "classes.txt", "cat\n")
    for name, text in (("a", GOOD), ("b", "\n \n"), ("c", "0 .5 .5 .5 .5 ä\n".encode("cp1252"))):
        write(tmp_path / "l" / f"{name}.txt", text)
    made = Made(tmp_path / "i", tmp_path / "l")
    assert made.train == [["cat"], []] and made.skipped == {"c.png (c.txt)": "line 1 is not UTF-8"}


NAMES = {  # a file of names -> the name of class 1, or a part of the error
    "list": ("data.yaml", 'names: ["red", blue]\n', "blue"),
    "lines": ("data.yaml", "names:\n- red\n- blue\nnc: 2\n", "blue"),
    "map": ("x.yml", "names: {1: blue, 0: red}\n", "blue"),
    "keys as texts": ("data.yaml", "names:\n  '1': blue\n  '0': red\n", "blue"),
    "words of YAML": ("data.yaml", "names: [yes, no]\n", "no"),
    "a comma": ("data.yaml", "names: [red, 'blue, dark']\n", "blue, dark"),
    "a mark": ("data.yaml", "\ufeffnames: [red, blue]\r\n", "blue"),
    "composed": ("data.yaml", "names: [red, " + unicodedata.normalize("NFD", "é") + "]\n", "é"),
    "CVAT": ("obj.names", "red\nblue\n", "blue"),
    "blank line": ("classes.txt", "red\n\nblue\n", "none of its images can be used"),
    "numbered": ("classes.txt", "0 red\n1 blue\n", "blue"),
    "numbers": ("classes.txt", "7\n8\n", "8"),
    "Label Studio": ("notes.json", '{"categories": [{"id": 0, "name": "red"}, {"id": 1, "name": "blue"}]}', "blue"),
    "repeated": ("classes.txt", "red\nblue\nred\n", "classes 0 and 2 are both called red"),
    "repeated in YAML": ("data.yaml", "names: [red, red]\n", "classes 0 and 1 are both called red"),
    "twice": ("data.yaml", "names: [red, blue]\nnames: [blue, red]\n", "names stands twice"),
    "keys that are no numbers": ("data.yaml", "names: {a: red, b: blue}\n", "a is no class number"),
    "odd keypoints": ("data.yaml", "names: [red, blue]\nkpt_shape: x\n", "kpt_shape is not two numbers"),
    "repeated number": ("data.yaml", "names: {0: red, 0: blue}\n", "a number has two names"),
    "another count": ("data.yaml", "names: [red, blue]\nnc: 3\n", "has 2 names, but nc: 3"),
    "a name that would run code": (
        "data.yaml",
        "names: [red, !!python/name:os.system x]\n",
        "could not determine a constructor for the tag",
    ),
    "a key that would run code": (
        "data.yaml",
        "names: {!!python/name:os.system 0: red}\n",
        "could not determine a constructor for the tag",
    ),
    "a text": ("data.yaml", "names: red\n", "are not understood: names is 'red'"),
    "a list in a list": ("data.yaml", "names: [red, [blue]]\n", "a name that is no text"),
    "no YAML": ("data.yaml", "names: [red, blue\n", "cannot read the class names"),
    "another encoding": ("classes.txt", "rot\nBläue\n".encode("cp1252"), "line 2 is not UTF-8"),
    "about something else": ("compose.yaml", "services: {}\n", "there are no class names"),
}


@pytest.mark.parametrize("case", NAMES)
def test_yolo_class_names(tmp_path, case):
    file, text, expected = NAMES[case]
    draw(tmp_path / "d" / "i", "a.png")
    write(tmp_path / "d" / "l" / "a.txt", "1 .5 .5 .5 .5\n")
    write(tmp_path / "d" / file, text)
    made = Made(tmp_path / "d" / "i", tmp_path / "d" / "l")
    if made.error:
        assert expected in made.error.message
    else:
        assert made.train == [[expected]]


def test_yolo_lists_of_names_that_disagree_are_an_error(tmp_path):
    draw(tmp_path / "i", "a.png")
    for name, text in (("l/a.txt", GOOD), ("classes.txt", "cat\n"), ("data.yaml", "names: [dog]\n")):
        write(tmp_path / name, text)
    made = Made(tmp_path / "i", tmp_path / "l")
    assert "classes.txt and data.yaml list different class names" in made.error.message
    (tmp_path / "data.yaml").unlink()  # as the hint says
    assert Made(tmp_path / "i", tmp_path / "l").train == [["cat"]]


@pytest.mark.parametrize("labels", ["d/labels", "d", "d/data.yaml"])
@pytest.mark.parametrize("images", ["d", "d/images"])
def test_ultralytics_folders(tmp_path, images, labels):
    draw(tmp_path / "d", "images/train/1.png", "images/val/1.png")
    write(tmp_path / "d" / "data.yaml", "names: [cat, dog]\n")
    write(tmp_path / "d" / "README.txt", "0 is a cat\n")
    write(tmp_path / "d" / "labels" / "train" / "1.txt", GOOD)
    write(tmp_path / "d" / "labels" / "val" / "1.txt", "1" + GOOD[1:])
    made = Made(tmp_path / images, tmp_path / labels)
    assert made.held == {"train": [["cat"]], "test": [["dog"]]} and made.skipped == {}


def test_a_single_folder_named_train_leaves_the_share_for_testing(tmp_path):
    draw(tmp_path / "d", *[f"images/train/{number}.png" for number in range(4)])
    write(tmp_path / "d" / "classes.txt", "cat\n")
    for number in range(4):
        write(tmp_path / "d" / "labels" / "train" / f"{number}.txt", GOOD)
    made = Made(tmp_path / "d", tmp_path / "d", test_share=0.25)
    assert {split: len(rows) for split, rows in made.held.items()} == {"train": 3, "test": 1}


def test_what_macos_and_windows_leave_behind_is_passed_over(tmp_path):
    place = draw(tmp_path / "d", "images/a.png")
    for name in ("images/._a.png", "__MACOSX/images/a.png", "labels/._a.txt", "._classes.txt", "images/Thumbs.db", "labels/desktop.ini"):
        write(place / name, b"\0\5\26\7 no text \xff")
    write(place / "classes.txt", "cat\n")
    write(place / "labels" / "a.txt", GOOD)
    made = Made(place, place)
    assert made.train == [["cat"]] and made.skipped == {}
