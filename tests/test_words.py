"""Words of others: control signs and orders of text never reach a terminal or a page, names of any length and bytes are borne."""

import csv
import io
import json
import os
import re
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from picture_parts import a_look, drawn
from shipped_parts import use_tiny_backbone, write_backbone, write_policy, write_scenes
from typer.testing import CliRunner

from hsal_cli import console
from hsal_cli.errors import HsalError
from hsal_cli.main import app
from hsal_cli.models.export import export
from hsal_cli.pictures.charts.panels import Bars, Curves, Heat, draw_panels
from hsal_cli.pictures.contact_sheet import contact_sheet
from hsal_cli.pictures.film import film
from hsal_cli.pictures.replay import replay_page
from hsal_cli.report.markdown import markdown_table
from hsal_cli.report.report_page import Page, PageFinding, render
from hsal_cli.runs import run as runs
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import atomic, checkpoints, hdf5
from hsal_cli.storage.documents import read_document
from hsal_cli.vision.weights import read_weights
from hsal_cli.words import CELL, NAME, brief, json_text, plain, slip

STEERING = {
    "colour": "a\x1b[31mred",
    "clipboard": "\x1b]52;c;aGk=\x07",
    "C1": "a\x9b2Jb",
    "line": "a\nError: all lost\r",
    "order": "\u202egnp.exe\u2066",
    "separator": "a\u2028b",
    "half": "caf\udce9",
    "tab": "a\tb\x7f\x00",
}
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\ud800-\udfff]")


@pytest.mark.fault(34, "control signs, C1, OSC, bidi overrides, separators, halves of signs: shown as escapes, JSON keeps them", tried=8)
@pytest.mark.parametrize("name", STEERING.values(), ids=STEERING)
def test_signs_that_steer_are_shown_as_escapes_and_come_back_from_json(name) -> None:
    assert not RAW.search(plain(name)) and "\n" not in plain(name) and "\t" not in plain(name)
    assert json.loads(json_text({name: [name]})) == {name: [name]} and not RAW.search(json_text([name]))
    assert plain("Ünd [b]/é.h5 \U0001f468\u200d\U0001f469 中文 עברית") == "Ünd [b]/é.h5 \U0001f468\u200d\U0001f469 中文 עברית"


@pytest.mark.fault(34, "such signs in everything that console prints: lines, tables, JSON, news, notes, progress, errors", tried=8)
@pytest.mark.parametrize("name", STEERING.values(), ids=STEERING)
def test_nothing_that_is_printed_steers_the_terminal(name, capsys) -> None:
    console.print_line(name)
    console.print_table(name, [name, name], [[name, name]])
    console.print_json({name: name})
    reporter = console.TerminalReporter()
    reporter.say(name)
    reporter.warn(name)
    with reporter.track(name, 3, name) as advance:
        advance(1, name)
    console.print_error(name, name)
    said = capsys.readouterr()
    assert not RAW.search(said.out + said.err)
    assert "Error: all lost" not in (said.out + said.err).splitlines()


def test_markup_of_rich_is_shown_and_not_obeyed(capsys) -> None:
    console.print_line("[red]a[/red]")
    console.print_table("[b]t[/b]", ["[i]c"], [["[link=x]y[/link]"]])
    console.TerminalReporter().say("[red]n[/]")
    said = capsys.readouterr()
    assert all(text in said.out + said.err for text in ("[red]a[/red]", "[b]t[/b]", "[i]c", "[link=x]y[/link]", "[red]n[/]"))


EVIL = "</script><img src=x onerror=alert(1)>\"'&\x1b[31m\u202e"


@pytest.mark.fault(34, "class names and run names that are HTML, script ends, Markdown, formulas: text in pages and reports", tried=4)
def test_names_are_text_in_pages(tmp_path) -> None:
    look = a_look(labels=(EVIL, "5"), classes=(EVIL, "5", "stop"), name=f"{EVIL}.png")
    page = replay_page([look], [[EVIL]])
    finding = PageFinding(EVIL, "good", EVIL, EVIL, [(1, 0.5), (2, 0.6)], 1)
    report = render(Page(EVIL, EVIL, [EVIL], [[EVIL]], {EVIL: [finding]}, [], [EVIL], {EVIL: {EVIL: EVIL}}))
    for text in (page, report):
        assert "<img src=x" not in text and not RAW.search(text.replace("\n", ""))
    assert page.count("</script>") == replay_page([a_look()]).count("</script>")
    table = markdown_table([EVIL, "a"], [["a|b\nc", EVIL]])
    assert "<img" not in "".join(table) and len(table[2].replace(r"\|", "").split("|")) == 4 and not any("\n" in line for line in table)


LONG = {"latin": "x" * 5000, "wide": "ȟ" * 5000, "words": "word " * 1000, "empty": "", "formula": r"$\frac{$"} | STEERING


@pytest.mark.fault(36, "names of 5,000 signs, none, formulas, control signs in every kind of picture and page: drawn in seconds", tried=13)
@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_any_name_is_drawn_in_seconds(name) -> None:
    start = time.process_time()
    look = a_look(labels=(name, "5", name), classes=(name, "5", "stop"), name=f"folder/{name}.png")
    picture = drawn(look, [name, name])
    film([look], [[name]])
    assert len(replay_page([look], [[name, name]])) < 100_000
    contact_sheet(np.zeros((2, 20, 20), np.uint8), np.array([[0, 1], [0, 0]]), None, [name, "b"])
    heat = Heat(name, "x", "y", np.ones((2, 2)), "c", x_names=[name, "b"], y_names=[name, "b"], percent=True)
    draw_panels([Bars(name, "x", "y", [name, "b"], {name: [1, 2], "s": [1, 2]}), heat])
    draw_panels([Curves(name, "epoch", "y", {name: [[(1, 0.5), (2, 0.6)]], "k": [[(1, 0.5), (2, 0.6)]]})])
    assert picture.width < 3000 and time.process_time() - start < 30


def test_a_long_name_ends_in_an_ellipsis_and_a_short_one_stays() -> None:
    assert brief("x" * NAME) == "x" * NAME and brief("x" * (NAME + 1)) == "x" * (NAME - 1) + "…"
    assert len(brief("\x1b" * 50)) == NAME and brief("a", 1) == "a"


@pytest.mark.fault(36, "a scene file with a class name of 5,000 signs, HTML, control signs: inspected and checked", tried=5)
@pytest.mark.parametrize("name", ["x" * 5000, EVIL, *list(STEERING.values())[:2], "caf\udce9"])
def test_a_scene_file_with_any_class_name_is_inspected(tmp_path, name, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes = json.loads(open_classes(write_scenes(tmp_path / "s.h5")))
    with h5py.File("s.h5", "r+") as file:
        del file.attrs["attributes_digest"]
        file.attrs["classes"] = json.dumps([name, *classes[1:]])
    for words in (["inspect", "s.h5", "--out", "a.png"], ["inspect", "s.h5", "--json"], ["check", "s.h5"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code in (0, 1) and not (done.exception and not isinstance(done.exception, (SystemExit, HsalError))), done.exception
        assert not RAW.search(done.output) and ("--json" in words or max(map(len, done.output.splitlines())) < CELL + 200)
        if "--json" in words:
            assert name in json.dumps(json.loads(done.stdout), ensure_ascii=False) or json.dumps(name)[1:-1] in done.stdout


def open_classes(path: Path) -> str:
    with h5py.File(path) as file:
        return file.attrs["classes"]


@pytest.fixture
def odd(tmp_path, monkeypatch) -> Path:
    """A folder whose name is not UTF-8, and in it a backbone and a policy."""
    use_tiny_backbone(monkeypatch)
    folder = tmp_path / os.fsdecode(b"caf\xe9 \xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system holds no such names")
    monkeypatch.chdir(folder)
    write_policy(folder / "runs" / "a", write_backbone(folder / "runs" / "finetune"))
    return folder


@pytest.mark.fault(36, "a folder whose name is not UTF-8: runs, checkpoints, weights, scenes, features, pictures, exports", tried=12)
def test_paths_that_are_not_utf8_work(odd) -> None:
    from PIL import Image

    scenes = write_scenes(odd / "s.h5")
    picture, features = odd / os.fsdecode(b"\xe9.png"), odd / os.fsdecode(b"\xe9.features.h5")
    Image.new("RGB", (40, 30)).save(picture)
    run = runs.create(
        odd / "runs" / os.fsdecode(b"r\xe9"), "policy", {"features": str(features), "features_digest": "f" * 64, "train": {"epochs": 1}}
    )
    assert Path(run.config.features).resolve() == features.resolve()
    export([str(odd / "runs" / "a")], odd / "out")
    assert checkpoints.load(odd / "runs" / "a" / "checkpoints", "best").weights
    assert read_weights(odd / "out" / "backbone")
    with open_scenes(scenes) as file:
        assert len(file.split("test")) == 41
    calls = [
        ["inspect", str(scenes), "--json"],
        ["inspect", str(run.path)],
        ["check", str(scenes), str(run.path)],
        ["predict", str(picture), "--run", str(odd / "runs" / "a"), "--json"],
        ["visualize", str(picture), "--run", str(odd / "runs" / "a"), "--html", "--gif"],
        ["precompute", "--data", str(scenes), "--backbone", str(odd / "runs" / "finetune"), "--resolution", "own"],
        ["eval", "--pretrained", f"{odd}/out/mnist-toy.rl", "--data", str(scenes), "--out", str(odd / "e.json"), "--resamples", "10"],
        ["report", str(odd / "runs" / "a")],
        ["predict", str(odd / "none.png"), "--run", str(odd / "runs" / "a")],
    ]
    for words in calls:
        done = CliRunner().invoke(app, words)
        assert done.exception is None or isinstance(done.exception, (SystemExit, HsalError)), (words, done.exception)
        assert done.exit_code == 0 or words[0] == "check" or "none.png" in words[1], (words, done.output)
        assert not RAW.search(done.output)
    assert picture.with_suffix(".hsal.png").is_file() and picture.with_suffix(".hsal.html").is_file()


@pytest.mark.fault(36, "texts, JSON, CSV and HDF5 attributes that hold bytes which are not UTF-8", tried=4)
def test_texts_that_are_not_utf8_are_written_and_read(tmp_path) -> None:
    name = os.fsdecode(b"caf\xe9")
    atomic.write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == r"caf\udce9"
    assert read_document(json_of(tmp_path / "a.json", {name: name}), dict, "x") == {name: name}
    sealed = atomic.write_sealed(tmp_path / "s.json", {"a": name})
    assert read_document(tmp_path / "s.json", dict, "x") == {"a": name} and sealed["digest"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        hdf5.stamp(file, "x", {"path": name})
        hdf5.put_text(file, "said", name)
        assert json.loads(hdf5.attribute(file, "config")) == {"path": name} and hdf5.attribute(file, "said") == r"caf\udce9"
    run = runs.create(tmp_path / "run", "policy", {})
    run.write_rows([{"epoch": 1, name: 2}])
    assert run.rows() == [{"epoch": 1, name: 2}]
    assert next(csv.reader(io.StringIO((run.path / "results.csv").read_text(encoding="utf-8")))) == ["epoch", r"caf\udce9"]


def json_of(path: Path, document: dict) -> Path:
    atomic.write_json(path, document)
    return path


@pytest.mark.parametrize(
    ("one", "other", "is_one"),
    [
        ("stra", "star", True),
        ("Stars", "star", True),
        ("circel", "circle", True),
        ("sqare", "square", True),
        ("trinagel", "triangle", True),
        ("spade", "square", False),
        ("cat", "cow", False),
        ("7", "1", False),
        ("class 1", "class 2", False),
        ("red triangle", "triangle", False),
    ],
)
def test_a_slip_is_a_letter_or_two(one, other, is_one):
    assert slip(one, other) == slip(other, one) == is_one
