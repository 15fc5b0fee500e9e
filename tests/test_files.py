"""Writing whole or not at all, checkpoints that are verified before use, and run directories."""

import errno
import json
import os
import pickle
from pathlib import Path

import h5py
import pytest
import torch
from fault_parts import largest_file

from hsal_cli.errors import FileError, UsageError
from hsal_cli.policy.variant import DEFAULT
from hsal_cli.runs import run as runs
from hsal_cli.settings import as_dict
from hsal_cli.storage.atomic import atomic_write, write_json, write_text
from hsal_cli.storage.checkpoints import KEEP, load, read_checkpoint, save, write_checkpoint
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import digest_of, digest_of_file
from hsal_cli.storage.hdf5 import attribute, open_hdf5, seal, stamp

WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(2.5), "count": torch.tensor(3)}
STATE = {"task": {"moments": [torch.ones(2), 3]}, "progress": {"epoch": 1, "best": float("-inf"), "rows": [{"loss": 0.5}]}}


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- files ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(fault: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"old": 1})
    with pytest.raises(FileError if isinstance(fault, OSError) else type(fault)) as caught, atomic_write(target) as temporary:
        temporary.write_text("half of it")
        raise fault
    assert json.loads(target.read_text()) == {"old": 1} and entries(tmp_path) == ["result.json"]
    if isinstance(fault, OSError):
        assert str(target) in caught.value.message and "No space left" in caught.value.message


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a bug"), atomic_write(tmp_path / "folder", folder=True) as temporary:
        (temporary / "part").write_text("x")
        raise ValueError("a bug")
    assert entries(tmp_path) == []


def test_a_write_replaces_the_file_at_once_and_makes_missing_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "text"
    write_text(target, "first")
    with atomic_write(target) as temporary:
        temporary.write_text("second")
        assert target.read_text() == "first" and temporary.parent == target.parent
    assert target.read_text() == "second" and entries(target.parent) == ["text"]


def test_a_disk_that_takes_no_more_is_a_file_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the system refuses the write itself."""
    target = tmp_path / "numbers"
    write_text(target, "old")
    with largest_file(1000):
        with pytest.raises(FileError, match="cannot write"):
            write_text(target, "x" * 5000)
        with pytest.raises(FileError, match="cannot write"):
            write_checkpoint(tmp_path / "weights", {"w": torch.zeros(5000)}, None, {})
        with pytest.raises(FileError, match="cannot write"):
            write_checkpoint(tmp_path / "state", {"w": torch.zeros(2)}, {"s": torch.zeros(5000)}, {})
    assert target.read_text() == "old" and entries(tmp_path) == ["numbers"]


def test_a_place_that_cannot_be_written_is_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for target in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(FileError, match="cannot write"):
            write_text(target, "y")
    assert entries(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("text", ["<html>404</html>", "", "{", "\udcff"])
def test_what_is_not_json_is_named(text: str, tmp_path: Path) -> None:
    source = tmp_path / "eval.json"
    source.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FileError, match="eval"):
        read_document(source, dict, "hsal eval")
    with pytest.raises(FileError) as caught:
        read_document(tmp_path / "missing.json", dict, "hsal eval")
    assert "hsal eval" in caught.value.hint


def test_digests_depend_on_content_alone(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": [2, 3]}) == digest_of({"b": [2, 3], "a": 1}) != digest_of({"a": 1, "b": [3, 2]})
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_of_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def made(path: Path, whole_file: bool = True, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        stamp(file, "hsal-scenes", {"seed": 1})
        if whole_file:
            seal(file, "d" * 64)
        file.attrs.update(attributes)
    return path


def test_only_a_whole_file_of_the_format_is_opened(tmp_path: Path) -> None:
    with open_hdf5(made(tmp_path / "good.h5"), "hsal-scenes", "hsal make-data") as file:
        assert attribute(file, "digest") == "d" * 64 and json.loads(attribute(file, "config")) == {"seed": 1}
    (tmp_path / "page.h5").write_text("<html>not found</html>")
    (tmp_path / "folder.h5").mkdir()
    cut = tmp_path / "cut.h5"
    cut.write_bytes((tmp_path / "good.h5").read_bytes()[:600])
    for path, said in (
        (made(tmp_path / "half.h5", whole_file=False), "not complete"),
        (made(tmp_path / "new.h5", format_version=99), "format version 99"),
        (made(tmp_path / "other.h5", format="hsal-features"), "its format is hsal-features"),
        (tmp_path / "page.h5", "not a readable HDF5 file"),
        (cut, "not a readable HDF5 file"),
        (tmp_path / "folder.h5", "is a folder"),
        (tmp_path / "missing.h5", "is missing"),
    ):
        with pytest.raises(FileError, match=said) as caught:
            open_hdf5(path, "hsal-scenes", "hsal make-data")
        assert str(path) in caught.value.message


# --- checkpoints ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "one", WEIGHTS, STATE, {"kind": "policy", "epoch": 1})
    return tmp_path / "one"


def test_a_checkpoint_comes_back_as_it_was(folder: Path) -> None:
    found = read_checkpoint(folder)
    assert found.weights.keys() == WEIGHTS.keys() and all(torch.equal(found.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert torch.equal(found.state["task"]["moments"][0], torch.ones(2)) and found.state["progress"] == STATE["progress"]
    assert found.meta == {"kind": "policy", "epoch": 1} and found.note == ""
    assert found.digest == digest_of_file(folder / "weights.safetensors")
    write_checkpoint(folder.parent / "exported", WEIGHTS, None, {})
    assert read_checkpoint(folder.parent / "exported").state is None


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["flip", "cut", "page", "gone"])
def test_a_damaged_file_is_named_before_anything_of_it_is_used(name: str, damage: str, folder: Path, monkeypatch) -> None:
    file = folder / name
    content = file.read_bytes()
    middle = len(content) // 2
    if damage == "gone":
        file.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"flip": flipped, "cut": content[:middle], "page": b"<html>404</html>"}[damage])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a damaged state was loaded"))
    if name == "weights.safetensors":
        monkeypatch.setattr("safetensors.torch.load_file", lambda *_, **__: pytest.fail("damaged weights were loaded"))
    with pytest.raises(FileError) as caught:
        read_checkpoint(folder)
    assert str(folder) in caught.value.message and name in caught.value.message


@pytest.mark.parametrize("manifest", ["<html>404</html>", "{}", "[]", '{"sha256": {}, "meta": {}}', '{"sha256": 3, "meta": 4}', None])
def test_a_manifest_that_says_nothing_useful_is_refused(manifest: str | None, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(FileError, match=r"cannot be read|manifest\.json does not hold a JSON object|manifest\.json is missing"):
        read_checkpoint(folder)


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_state_that_carries_code_is_refused_and_runs_none_though_its_checksum_fits(how: str, folder: Path) -> None:
    proof = folder.parent / "code ran"
    if how == "torch":
        torch.save({"task": Bomb(proof)}, folder / "state.pt")
    else:
        (folder / "state.pt").write_bytes(pickle.dumps({"task": Bomb(proof)}))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["state.pt"] = digest_of_file(folder / "state.pt")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError) as caught:
        read_checkpoint(folder)
    assert str(folder) in caught.value.message and "weights_only" not in caught.value.message
    assert not proof.exists()


def test_best_and_last_are_found_and_only_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path, f"epoch-{number}", {"w": torch.tensor(float(number))}, {}, {"epoch": number}, best=number in (0, 2))
    assert load(tmp_path, "last").meta["epoch"] == 5 and load(tmp_path, "best").meta["epoch"] == 2
    kept = [f"epoch-{number}" for number in sorted({2, *range(6 - KEEP, 6)})]
    assert entries(tmp_path) == [*kept, "index.json"]
    assert read_document(tmp_path / "index.json", dict, "hsal train") == {"last": "epoch-5", "best": "epoch-2"}


def test_saving_under_the_same_name_replaces(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save(tmp_path, "epoch-1", {"w": torch.tensor(value)}, {}, {}, best=True)
    assert load(tmp_path, "best").weights["w"] == 2.0


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_good_one_and_that_is_noted(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path, f"epoch-{number}", {"w": torch.tensor(float(number))}, {}, {}, best=number == 2)
    (tmp_path / "epoch-2" / "weights.safetensors").write_bytes(b"")
    for which in ("last", "best"):
        found = load(tmp_path, which)
        assert found.path.name == "epoch-1" and "epoch-2 is damaged" in found.note and "using epoch-1" in found.note
    (tmp_path / "epoch-1" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(FileError, match="no other checkpoint is left"):
        load(tmp_path, "last")


@pytest.mark.parametrize("index", ["{", "[]", '{"last": 3}', '{"last": "gone"}', '{"last": "../one"}', None])
def test_without_a_usable_index_the_newest_checkpoint_serves(index: str | None, tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / "c", f"epoch-{number}", {"w": torch.tensor(float(number))}, {}, {}, best=True)
    (tmp_path / "c" / "index.json").unlink()
    if index is not None:
        (tmp_path / "c" / "index.json").write_text(index)
    assert load(tmp_path / "c", "last").path.name == "epoch-2"


def test_no_checkpoint_at_all_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no checkpoint"):
        load(tmp_path / "nowhere", "best")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, "epoch-1", {"w": torch.tensor(1.0)}, {}, {}, best=True)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FileError, match="No space left"):
        save(tmp_path, "epoch-2", {"w": torch.tensor(2.0)}, {}, {}, best=True)
    assert entries(tmp_path) == ["epoch-1", "index.json"] and load(tmp_path, "last").weights["w"] == 1.0


# --- runs -------------------------------------------------------------------------------------------------------------------------


CONFIG = {"features": "f.h5", "features_digest": "f" * 64, "train": {}, "variant": as_dict(DEFAULT)}


def test_a_run_records_how_it_was_made(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "run", "policy", {**CONFIG, "train": {"epochs": 3}})
    assert {"config.json", "command.txt", "env.json", "status.json", "checkpoints"} == set(entries(run.path))
    assert run.config.train.epochs == 3 and run.config.features == "f.h5" and run.status.kind == "policy" and run.status.state == "running"
    run.set_status("finished", exact_match=0.5)
    assert run.status.state == "finished" and run.status.exact_match == 0.5 and run.status.kind == "policy"
    assert json.loads((run.path / "env.json").read_text())["torch"] == torch.__version__
    assert runs.open_run(run.path, "policy").path == run.path
    with pytest.raises(FileError, match="of kind policy, not backbone"):
        runs.open_run(run.path, "backbone")
    with pytest.raises(FileError, match="is not a run"):
        runs.open_run(tmp_path, "policy")


def test_rows_come_back_without_a_line_that_a_crash_cut_short(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "run", "policy", {})
    assert run.rows() == []
    run.write_rows([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "extra": 1}])
    assert run.rows() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "extra": 1}]
    assert (run.path / "results.csv").read_text() == "epoch,loss,extra\n1,0.5,\n2,0.25,1\n"
    text = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text(text[:-5])
    assert run.rows() == [{"epoch": 1, "loss": 0.5}]


def test_overwriting_replaces_a_run_and_spares_everything_else(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "run", "policy", {**CONFIG, "old": True})
    (run.path / "notes.txt").write_text("mine")
    save(run.checkpoints, "epoch-1", {"w": torch.ones(1)}, {}, {}, best=True)
    write_json(run.path / "eval.json", {})
    with pytest.raises(UsageError, match="holds a run already") as caught:
        runs.create(run.path, "policy", {**CONFIG, "new": True})
    assert "--overwrite" in caught.value.hint and run.config.raw == {**CONFIG, "old": True}
    runs.create(run.path, "policy", {**CONFIG, "new": True}, overwrite=True)
    assert run.config.raw == {**CONFIG, "new": True} and entries(run.checkpoints) == [] and (run.path / "notes.txt").read_text() == "mine"
    assert not (run.path / "eval.json").exists()


@pytest.mark.parametrize("status", [None, "{}", '{"format": "other"}', "<html>"])
def test_what_is_not_a_run_is_never_replaced(status: str | None, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints" / "mine").write_text("x")
    if status is not None:
        (place / "status.json").write_text(status)
    with pytest.raises(UsageError, match="is not a run of hsal"):
        runs.create(place, "policy", {}, overwrite=True)
    assert (place / "checkpoints" / "mine").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is not a run of hsal"):
        runs.create(tmp_path / "file", "policy", {}, overwrite=True)


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert runs.create(tmp_path, "backbone", {}).status.kind == "backbone"


def test_the_newest_finished_run_of_the_kind_is_found_though_another_is_damaged(tmp_path: Path) -> None:
    assert runs.newest("policy", tmp_path) is None
    for name, kind, state in (
        ("a", "policy", "finished"),
        ("b", "policy", "finished"),
        ("c", "policy", "stopped"),
        ("d", "backbone", "finished"),
    ):
        runs.create(tmp_path / name, kind, {}).set_status(state)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "status.json").write_text("{")
    assert runs.newest("policy", tmp_path).path.name == "b" and runs.newest("backbone", tmp_path).path.name == "d"
    runs.Run(tmp_path / "a").set_status("finished")
    assert runs.newest("policy", tmp_path).path.name == "a"


def test_a_fresh_path_is_one_that_does_not_exist(tmp_path: Path) -> None:
    assert runs.fresh_path("x", tmp_path).name == "x"
    for name in ("x", "x-2"):
        (tmp_path / name).mkdir()
    assert runs.fresh_path("x", tmp_path).name == "x-3"


def test_a_folder_that_cannot_be_made_is_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write"):
        runs.create(tmp_path / "file" / "run", "policy", {})
