"""Whatever is replaced stands whole, the old or the new one, though the process is killed at any file operation."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_parts import small_run
from shipped_parts import write_backbone, write_policy

from hsal_cli.errors import FileError, UsageError
from hsal_cli.experiments import grid_report, sweep_report
from hsal_cli.models.export import export
from hsal_cli.models.shipped import find_shipped, read_manifest
from hsal_cli.pictures.writing import encoded
from hsal_cli.policy.variant import COLUMNS
from hsal_cli.report.report_page import Page, PageFigure, Section, check_folder, write_report
from hsal_cli.runs import run as runs
from hsal_cli.runs.start import being_trained
from hsal_cli.settings import as_dict
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import finish_replacing, replacing, write_together
from hsal_cli.storage.files import digest_of_file


class Killed(BaseException):
    """Stands for a process that is gone: from then on nothing of it touches a file."""


def at_each_operation(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Prepares, and has `work` killed before its first file operation, then before its second and so on, as long as it has more.

    Yields:
        The number of operations that were done; what is left then is to be looked at.
    """
    done, most = [0], [-1]
    while most[0] < 200:
        prepare()
        done[0], most[0] = 0, most[0] + 1
        with monkeypatch.context() as patch:
            for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
                real = getattr(os, name)

                def counted(*given, real=real, **more):
                    if done[0] >= most[0]:
                        raise Killed
                    done[0] += 1
                    return real(*given, **more)

                patch.setattr(os, name, counted)
            try:
                work()
                return
            except Killed:
                pass
        yield most[0]
    raise AssertionError("it never ends")


def entries(folder: Path) -> list[str]:
    """What lies in a folder, but for the temporary files that the next process clears."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".tmp"))


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def marked(folder: Path) -> list[Path]:
    """What the toy below takes for its own: everything, if there is a mark, but notes.txt."""
    if not (folder / "mark").is_file():
        return []
    return [*(path for path in folder.rglob("*") if path.is_file() and path.name not in ("mark", "notes.txt")), folder / "mark"]


@pytest.mark.fault(16, "killed at any file operation while a folder is replaced: the old one or the new, and nobody's file gone", tried=12)
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    place, target = tmp_path / "place", tmp_path / "place" / "it"

    def prepare() -> None:
        clear(place)
        (target / "deep").mkdir(parents=True)
        for name in ("mark", "old", "deep/old"):
            (target / name).write_text("old")
        for name in ("notes.txt", "deep/notes.txt"):
            (target / name).write_text("mine")

    def work() -> None:
        with replacing(target, marked) as folder:
            for name in ("mark", "new"):
                (folder / name).write_text("new")

    found = set()
    for _ in at_each_operation(monkeypatch, work, prepare):
        finish_replacing(target, marked)
        which = (target / "mark").read_text()
        found.add(which)
        assert {path.name for path in marked(target)} == {"mark", which} and entries(place) == ["it"]
        assert (target / "notes.txt").read_text() == (target / "deep" / "notes.txt").read_text() == "mine"
        work()
        assert (target / "new").is_file() and not (target / "old").exists() and entries(place) == ["it"]
    assert found == {"old", "new"}


def test_what_is_not_ours_is_neither_replaced_nor_removed_where_it_is_in_the_way(tmp_path) -> None:
    for name in ("it", ".it.old", ".it.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.pdf").write_text("mine")
        if name != "it":
            (tmp_path / "it").mkdir()
            (tmp_path / "it" / "mark").write_text("ours")
        with pytest.raises(FileError, match="was not made by hsal"), replacing(tmp_path / "it", marked):
            raise AssertionError("it would be written")
        assert (tmp_path / name / "thesis.pdf").read_text() == "mine"
        shutil.rmtree(tmp_path / name)
        shutil.rmtree(tmp_path / "it", ignore_errors=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mark").write_text("mine")
    (tmp_path / ".it.old").symlink_to(tmp_path / "elsewhere")
    finish_replacing(tmp_path / "it", marked)
    assert (tmp_path / "elsewhere" / "mark").is_file() and not (tmp_path / "it").exists()
    (tmp_path / "it").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="replaced through a link"), replacing(tmp_path / "it", marked):
        raise AssertionError("it would be written")
    assert (tmp_path / "elsewhere" / "mark").is_file()


@pytest.mark.fault(16, "export --overwrite killed at any file operation: the next start finds the old or the new export, whole", tried=30)
def test_an_export_that_is_killed_leaves_the_old_or_the_new_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    digest = write_backbone(Path("runs/finetune"))
    write_policy(Path("runs/a"), digest)
    write_policy(Path("runs/b"), digest, "multiset", seed=1)
    place, out = tmp_path / "place", tmp_path / "place" / "out"

    export(["runs/a"], tmp_path / "before")

    def prepare() -> None:
        clear(place)
        shutil.copytree(tmp_path / "before", out)

    found = set()
    for _ in at_each_operation(monkeypatch, lambda: export(["runs/b"], out, overwrite=True), prepare):
        name = None
        for wanted in ("mnist-toy.rl", "mnist-toy.multiset"):
            try:
                name = find_shipped(f"{out}/{wanted}")[1]
                break
            except UsageError:
                continue
        found.add(name)
        manifest = read_manifest(out)
        for part, entry in [("backbone", manifest.backbone), *manifest.policies.items()]:
            assert entry.sha256 and {file: digest_of_file(out / part / file) for file in entry.sha256} == entry.sha256
        export(["runs/b"], out, overwrite=True)
        assert entries(place) == ["out"] and entries(out) == ["backbone", "manifest.json", "mnist-toy.multiset"]
    assert found == {"mnist-toy.rl", "mnist-toy.multiset"}


NEW = {"features": "f.h5", "features_digest": "f" * 64, "train": {}, "variant": as_dict(COLUMNS), "new": True}


@pytest.mark.fault(16, "train --overwrite killed at any file operation before it trains: the old run or the new one", tried=40)
def test_a_run_that_is_overwritten_is_the_old_or_the_new_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(runs, "environment", lambda: {})
    place, path = tmp_path / "place", tmp_path / "place" / "run"

    before = small_run(tmp_path / "before", epochs=1).path
    (before / "plots").mkdir()
    (before / "plots" / "report.html").write_text("of the old run")
    (before / "checkpoints" / "notes.txt").write_text("mine")

    def prepare() -> None:
        clear(place)
        shutil.copytree(before, path)

    found = set()
    for _ in at_each_operation(monkeypatch, lambda: runs.create(path, "policy", NEW, overwrite=True), prepare):
        newest = runs.newest("policy", place)
        run = runs.open_run(path, "policy")
        old = run.status.state == "finished"
        found.add(old)
        assert newest is None or newest.path == path
        assert checkpoints.present(run.checkpoints) == old == (path / "plots" / "report.html").is_file() == ("new" not in run.config.raw)
        with being_trained(run, run.config.raw, "cpu"):
            assert (path / "checkpoints" / "notes.txt").read_text() == "mine" and checkpoints.present(run.checkpoints) == old
        runs.create(path, "policy", NEW, overwrite=True)
        assert entries(place) == ["run"] and not checkpoints.present(run.checkpoints)
        assert (path / "checkpoints" / "notes.txt").read_text() == "mine"
    assert found == {True, False}


@pytest.mark.fault(16, "a checkpoint of the same name written again, killed at any file operation: one of them is whole", tried=20)
def test_a_checkpoint_that_is_written_again_is_whole_at_any_moment(tmp_path, monkeypatch) -> None:
    root = tmp_path / "checkpoints"

    def save(value: float, name: str = "epoch-2") -> None:
        checkpoints.save(root, name, {"w": torch.tensor([value])}, {}, {}, best=True)

    def prepare() -> None:
        clear(tmp_path)
        save(1.0, "epoch-1")
        save(2.0)

    for _ in at_each_operation(monkeypatch, lambda: save(3.0), prepare):
        assert float(checkpoints.load(root, "last").weights["w"]) in (1.0, 2.0, 3.0)
        checkpoints.clear_temporary(root)
        assert float(checkpoints.load(root, "last").weights["w"]) in (2.0, 3.0) and entries(root) == ["epoch-1", "epoch-2", "index.json"]


# --- reports ----------------------------------------------------------------------------------------------------------------------


def picture(colour: int) -> bytes:
    from PIL import Image

    return encoded(Image.new("RGB", (4, 4), (colour, 0, 0)))


def page_of(name: str, pictures: dict[str, bytes]) -> Page:
    figures = [PageFigure(figure, figure, name, png) for figure, png in pictures.items()]
    return Page(name, name, ["run"], [[name]], {}, [Section("s", "", figures)], [], {})


@pytest.mark.fault(16, "report killed at any file operation: the page is the old or the new one, with all that it shows", tried=10)
def test_a_report_that_is_killed_leaves_the_old_page_or_the_new_one(tmp_path, monkeypatch) -> None:
    folder, old, new = tmp_path / "page", {"a": picture(1), "b": picture(2)}, {"a": picture(3), "c": picture(4)}

    def write(name: str, pictures: dict[str, bytes]) -> None:
        check_folder(folder)
        write_report(page_of(name, pictures), {"name": name}, folder)

    def prepare() -> None:
        clear(tmp_path)
        write("old", old)

    pages = {}
    for name, pictures in (("old", old), ("new", new)):
        clear(tmp_path)
        write(name, pictures)
        pages[name] = (folder / "report.html").read_bytes()
    found = set()
    for _ in at_each_operation(monkeypatch, lambda: write("new", new), prepare):
        which = next(name for name, page in pages.items() if (folder / "report.html").read_bytes() == page)
        found.add(which)
        assert all((folder / f"{name}.png").is_file() for name in (old if which == "old" else new))
        assert all((folder / name).is_file() for name in json.loads((folder / "report.json").read_text())["files"] if name != "b.png")
        write("new", new)
        assert entries(folder) == ["a.png", "c.png", "report.html", "report.json"]
        assert (folder / "a.png").read_bytes() == new["a"]
    assert found == {"old", "new"}


def test_a_first_report_that_is_killed_does_not_keep_the_next_one_from_being_written(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "page"

    def write() -> None:
        check_folder(folder)
        write_report(page_of("new", {"a": picture(1), "b": picture(2)}), {}, folder)

    for _ in at_each_operation(monkeypatch, write, lambda: clear(tmp_path)):
        write()
        assert entries(folder) == ["a.png", "b.png", "report.html", "report.json"]


@pytest.mark.parametrize("kind", ["reproduce", "sweep"])
@pytest.mark.fault(16, "report of reproduce or sweep killed at any file operation: each picture that the page shows is there", tried=2)
def test_a_page_in_markdown_never_shows_a_picture_that_is_gone(kind: str, tmp_path, monkeypatch) -> None:
    from test_grid_report import PROVENANCE, run_of

    pictures, run = iter(range(1, 200)), run_of("rl", 0, 0.9)
    for room in (grid_report, sweep_report):
        monkeypatch.setattr(room, "draw_panels", lambda *given, **more: picture(next(pictures)))

    def write(name: str, drawn: bool) -> None:
        if kind == "sweep":
            sweep_report.write_report(tmp_path / "out", sweep_of(name, drawn))
        else:
            grid_report.write_report(tmp_path / "out", [run if drawn else dataclasses.replace(run, rows=[])], PROVENANCE, {}, name)

    def prepare() -> None:
        clear(tmp_path)
        write("old", True)

    page = tmp_path / "out" / ("sweep.md" if kind == "sweep" else "summary.md")
    for _ in at_each_operation(monkeypatch, lambda: write("new", False), prepare):
        text = page.read_text()
        assert ("`old`" in text) != ("`new`" in text)
        assert ("](" in text) == ("`old`" in text)
        assert all((page.parent / shown.partition(")")[0]).is_file() for shown in text.split("](")[1:])
        write("new", False)
        assert "`new`" in page.read_text()


def sweep_of(command: str, drawn: bool) -> dict[str, Any]:
    names = ("macro_f1", "cardinality_error", "glimpse_hit", "saliency_hit")
    row = {"value": "1", "x": 1.0, "examples": 3, "exact_match": 0.5, "exact_match_ci95": [0.4, 0.6], **dict.fromkeys(names, 0.5)}
    return {"command": command, "parts": {"trained": [row], **({"count": [row]} if drawn else {})}}


def test_files_that_belong_together_are_all_written_before_one_is_replaced(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    with pytest.raises(FileError, match="cannot write"):
        write_together({tmp_path / "a": b"new", tmp_path / "b" / "c": b"new"})
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["old", "old"] and entries(tmp_path) == ["a", "b"]
