"""Nothing of somebody else's is removed or replaced, nothing through a link; and the modes that files get."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from fault_parts import CLASSES
from PIL import Image
from shipped_parts import write_backbone, write_policy
from typer.testing import CliRunner

from hsal_cli.errors import FileError, HsalError
from hsal_cli.features.writer import may_be_ours
from hsal_cli.main import app
from hsal_cli.models.export import export
from hsal_cli.pictures.writing import write_bytes, write_picture
from hsal_cli.report.report_page import Page, check_folder, write_report
from hsal_cli.runs import run as runs
from hsal_cli.storage import atomic, checkpoints
from hsal_cli.storage.documents import refuse_foreign_results

PAGE = Page("title", "lead", ["run"], [["a"]], {}, [], [], {})


def everything(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, links included as what they name."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def checkpoint(run: Path, name: str = "epoch-1") -> None:
    import torch

    checkpoints.save(run / "checkpoints", name, {"w": torch.zeros(2)}, {"step": 1}, {"kind": "policy"}, best=True)


@pytest.mark.fault(32, "a report.json from elsewhere that names other files, or no names at all: all stay", tried=5)
@pytest.mark.parametrize("names", [["photo.png", "notes.txt"], ["../kept.png", "/etc/passwd"], ["link.png"], "photo.png", [7, None, "."]])
def test_a_report_removes_only_pictures_that_bear_hsals_mark(tmp_path, names) -> None:
    folder = tmp_path / "plots"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(folder / "photo.png")
    (folder / "notes.txt").write_text("mine")
    write_picture(Image.new("RGB", (4, 4)), tmp_path / "kept.png")
    (folder / "link.png").symlink_to(tmp_path / "kept.png")
    (folder / "report.json").write_text(json.dumps({"format": "hsal-report", "files": names}))
    before = everything(tmp_path)
    write_report(PAGE, {}, folder)
    after = everything(tmp_path)
    assert {name: after.get(name) for name in before if name != "plots/report.json"} == {
        name: held for name, held in before.items() if name != "plots/report.json"
    }


@pytest.mark.fault(32, "an older report's own pictures are removed when they are not drawn again", tried=1)
def test_a_report_removes_its_own_stale_pictures(tmp_path) -> None:
    write_picture(Image.new("RGB", (4, 4)), tmp_path / "old.png")
    (tmp_path / "report.json").write_text(json.dumps({"format": "hsal-report", "files": ["old.png"]}))
    write_report(PAGE, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.fault(32, "a report whose folder is a link, or holds a page of somebody else's", tried=2)
def test_a_report_goes_through_no_link_and_replaces_no_foreign_page(tmp_path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "plots").symlink_to(tmp_path / "other")
    with pytest.raises(FileError, match="is a link to"):
        check_folder(tmp_path / "plots")
    (tmp_path / "other" / "report.html").write_text("mine")
    with pytest.raises(FileError, match=r"report.html exists and was not made by hsal"):
        write_report(PAGE, {}, tmp_path / "other")
    assert everything(tmp_path / "other") == {"report.html": b"mine"}


@pytest.mark.fault(32, "--overwrite of a run that is a link, or whose checkpoints or plots are one: the other run stays whole", tried=3)
@pytest.mark.parametrize("linked", ["", "checkpoints", "plots"])
def test_overwriting_a_run_reaches_no_other_run_through_a_link(tmp_path, linked) -> None:
    other = runs.create(tmp_path / "other", "policy", {"seed": 1})
    checkpoint(other.path)
    (other.path / "plots").mkdir()
    write_picture(Image.new("RGB", (4, 4)), other.path / "plots" / "a.png")
    run = tmp_path / "run"
    if linked:
        runs.create(run, "policy", {"seed": 2})
        if linked == "checkpoints":
            (run / "checkpoints").rmdir()
        (run / linked).symlink_to(other.path / linked)
    else:
        run.symlink_to(other.path)
    before = everything(other.path)
    with pytest.raises(FileError, match="is a link to"):
        runs.create(run, "policy", {"seed": 3}, overwrite=True)
    assert everything(other.path) == before


@pytest.mark.fault(32, "a checkpoint that is a link to another run's: neither counted, nor removed, nor written through", tried=1)
def test_a_linked_checkpoint_is_somebody_elses(tmp_path) -> None:
    checkpoint(tmp_path / "other")
    root = tmp_path / "run" / "checkpoints"
    root.mkdir(parents=True)
    (root / "epoch-1").symlink_to(tmp_path / "other" / "checkpoints" / "epoch-1")
    before = everything(tmp_path / "other")
    assert checkpoints.names(root) == []
    with pytest.raises(FileError, match="is a link to"):
        checkpoint(tmp_path / "run")
    for name in ("epoch-2", "epoch-3", "epoch-4"):
        checkpoint(tmp_path / "run", name)
    assert all(not file.is_relative_to(root / "epoch-1") for file in checkpoints.all_files(root))
    assert everything(tmp_path / "other") == before and (root / "epoch-1").is_symlink()


@pytest.fixture
def exported(tmp_path, monkeypatch) -> Path:
    """A folder with runs/a, whose export stands in out/."""
    monkeypatch.chdir(tmp_path)
    write_policy(Path("runs/a"), write_backbone(Path("runs/finetune")))
    export(["runs/a"], Path("out"))
    return tmp_path


@pytest.mark.fault(32, "folders of somebody else's beside an export: .NAME.old, .NAME.new", tried=2)
@pytest.mark.parametrize("name", [".out.old", ".out.new"])
def test_an_export_removes_no_strangers_folder(exported, name) -> None:
    (exported / name).mkdir()
    (exported / name / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="was not made by hsal, and is in the way"):
        export(["runs/a"], Path("out"), overwrite=True)
    assert everything(exported / name) == {"thesis.txt": b"mine"}
    assert (exported / "out" / "manifest.json").is_file()


@pytest.mark.fault(32, "an export that holds something of somebody else's, deep in it or as a link, or is a link itself", tried=3)
@pytest.mark.parametrize("strange", ["backbone/notes.txt", "mnist-toy.rl/link", ""])
def test_an_export_with_something_of_others_in_it_is_not_replaced(exported, strange) -> None:
    if strange.endswith("link"):
        (exported / "out" / strange).symlink_to(exported / "runs")
    elif strange:
        (exported / "out" / strange).write_text("mine")
    else:
        (exported / "out").rename(exported / "real")
        (exported / "out").symlink_to(exported / "real")
    before = everything(exported)
    with pytest.raises(HsalError, match=r"was not made by hsal export|is a link to"):
        export(["runs/a"], Path("out"), overwrite=True)
    assert everything(exported) == before


@pytest.mark.fault(32, "a picture, page or animation of somebody else's, or a link, under the name of an output: refused", tried=4)
@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.html", "link.png"])
def test_no_picture_or_page_of_others_is_replaced(tmp_path, name) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG mine")
    (tmp_path / "a.gif").write_bytes(b"GIF89a mine")
    (tmp_path / "a.html").write_text("<html>mine")
    (tmp_path / "link.png").symlink_to(tmp_path / "none.png")
    before = everything(tmp_path)
    with pytest.raises(FileError, match="was not made by hsal"):
        write_bytes(b"new", tmp_path / name)
    assert everything(tmp_path) == before


@pytest.mark.fault(32, "results of somebody else's under the name of an output of eval, sweep, reproduce: refused", tried=4)
@pytest.mark.parametrize(
    ("there", "held"), [("eval.json", '{"mine": 1}'), ("eval.json", "no JSON"), ("eval.json", "[1]"), ("sweep.md", "my notes")]
)
def test_no_results_of_others_are_replaced(tmp_path, there, held) -> None:
    (tmp_path / there).write_text(held)
    with pytest.raises(FileError, match=f"{there} exists and was not made by hsal"):
        refuse_foreign_results(tmp_path / "eval.json", "exact_match", tmp_path / "sweep.md")
    (tmp_path / "eval.json").write_text('{"exact_match": 1}')
    refuse_foreign_results(tmp_path / "eval.json", "exact_match", tmp_path / "sweep.md")


def test_hsal_eval_replaces_no_file_of_others(tmp_path) -> None:
    (tmp_path / "notes.json").write_text("mine")
    done = CliRunner().invoke(app, ["eval", "--out", str(tmp_path / "notes.json")])
    assert isinstance(done.exception, FileError) and (tmp_path / "notes.json").read_text() == "mine"


@pytest.mark.fault(32, "a .partial of a feature file that is somebody else's text, or a link to a file of theirs", tried=3)
def test_a_partial_file_is_begun_anew_only_where_it_is_one(tmp_path) -> None:
    (tmp_path / "text").write_text("my notes")
    (tmp_path / "link").symlink_to(tmp_path / "text")
    assert not may_be_ours(tmp_path / "text") and not may_be_ours(tmp_path / "link")
    for held in (b"", bytes(100), b"\x89HDF\r\n\x1a\n and so on"):
        (tmp_path / "ours").write_bytes(held)
        assert may_be_ours(tmp_path / "ours")


@pytest.mark.fault(32, "an output that is a device or a pipe: it is not replaced by a file", tried=1)
def test_a_device_or_pipe_is_never_replaced(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is a named pipe"):
        atomic.write_text(tmp_path / "pipe", "x")
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)


@pytest.mark.fault(32, "what a killed writer left, where a link stands in for it: the link alone is removed", tried=1)
def test_what_a_dead_writer_left_is_removed_but_not_what_a_link_names(tmp_path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("mine")
    left = tmp_path / f"{atomic._beginning_of_temporary(tmp_path / 'x.json')}{2**22 + 1}.abcd.tmp"
    left.symlink_to(tmp_path / "kept")
    atomic.write_json(tmp_path / "x.json", {})
    assert not left.is_symlink() and (tmp_path / "kept" / "a").read_text() == "mine"


@pytest.mark.fault(
    202, "a file .notes.tmp of somebody else's in a run that is trained on: it stays, what a killed writer left goes", tried=1
)
def test_only_temporary_files_of_hsal_are_cleared_from_a_run(tmp_path) -> None:
    left = atomic._fresh(tmp_path / "config.json", folder=False)
    folder = atomic._fresh(tmp_path / "epoch-1", folder=True)
    (tmp_path / ".notes.tmp").write_text("mine")
    checkpoints.clear_temporary(tmp_path)
    assert not left.exists() and not folder.exists() and (tmp_path / ".notes.tmp").read_text() == "mine"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.fault(33, "new files and folders under umask 077, 022 and 002", tried=3)
@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_new_files_and_folders_have_the_mode_that_the_umask_gives(tmp_path, umask, monkeypatch) -> None:
    before = os.umask(umask)
    try:
        atomic.write_json(tmp_path / "a.json", {})
        runs.create(tmp_path / "run", "policy", {"seed": 1})
        checkpoint(tmp_path / "run")
        write_scenes_of(tmp_path / "s.h5")
        monkeypatch.chdir(tmp_path)
        write_policy(Path("runs/a"), write_backbone(Path("runs/finetune")))
        export(["runs/a"], Path("out"))
    finally:
        os.umask(before)
    for path in (tmp_path / "a.json", tmp_path / "s.h5", *(tmp_path / "run").rglob("*"), tmp_path / "run", *(tmp_path / "out").rglob("*")):
        assert mode(path) == (0o777 if path.is_dir() else 0o666) & ~umask, path


def write_scenes_of(path: Path) -> None:
    from hsal_cli.scenes.scene_file import write_scenes as writing

    with writing(path, {}, CLASSES) as writer:
        writer.write_split("test", iter([(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 1), np.int16), None)]), (2, 4, 4))


@pytest.mark.fault(33, "a file or an exported folder that is replaced keeps its mode", tried=3)
def test_what_is_replaced_keeps_its_mode(exported) -> None:
    for path in (exported / "a.json", exported / "s.h5"):
        path.write_bytes(b"")
        path.chmod(0o640)
    (exported / "out").chmod(0o750)
    atomic.write_json(exported / "a.json", {})
    write_scenes_of(exported / "s.h5")
    export(["runs/a"], Path("out"), overwrite=True)
    assert (mode(exported / "a.json"), mode(exported / "s.h5"), mode(exported / "out")) == (0o640, 0o640, 0o750)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root may give files away")
@pytest.mark.fault(33, "a file of another owner that root replaces stays that owner's", tried=1)
def test_what_root_replaces_stays_its_owners(tmp_path) -> None:
    (tmp_path / "a.json").write_text("")
    os.chown(tmp_path / "a.json", 1234, 4321)
    atomic.write_json(tmp_path / "a.json", {})
    held = (tmp_path / "a.json").stat()
    assert (held.st_uid, held.st_gid) == (1234, 4321)
