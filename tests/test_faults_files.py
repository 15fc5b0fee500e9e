"""Files that are not what they should be, disks that fail, writers that meet: each named, nothing replaced by something worse."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from evaluation_parts import small_table, write_features
from fault_parts import (
    CLASSES,
    InterruptedWriting,
    contents,
    fill_features,
    flip_inside,
    largest_file,
    left_behind,
    small_run,
    small_scenes,
)
from learning_parts import StoppingReporter
from test_loop import LineTask

from hsal_cli.console import prepare_streams, print_json, print_table
from hsal_cli.errors import FileError, HsalError, TrainingError
from hsal_cli.features.table import open_features
from hsal_cli.progress import SILENT
from hsal_cli.runs import run as runs
from hsal_cli.runs.loop import train
from hsal_cli.runs.start import say_missing_classes
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import atomic_write, only_writer, write_sealed, write_text
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.hdf5 import format_of
from hsal_cli.storage.steady import SteadyFile
from hsal_cli.vision.devices import fitting

# --- HDF5 -------------------------------------------------------------------------------------------------------------------------


def test_hdf5_through_a_steady_file_is_plain_hdf5(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32)
    with SteadyFile(tmp_path / "a.h5", "w", libver=("v108", "latest")) as file:
        data = file.create_dataset("x", values.shape, np.float32, chunks=(7, 40), fletcher32=True)
        for start in range(0, 500, 50):
            data[start : start + 50] = values[start : start + 50]
        np.testing.assert_array_equal(data[13:99], values[13:99])
    with SteadyFile(tmp_path / "a.h5", "r+") as file:
        file["x"][3] = 5
        file.attrs["note"] = "changed"
    values[3] = 5
    with h5py.File(tmp_path / "a.h5", "r") as file:
        np.testing.assert_array_equal(file["x"][()], values)
        assert file.attrs["note"] == "changed"


@pytest.mark.fault(7, "the disk fails under an open HDF5 file, at any size: the error of the disk, no crash at exit", tried=12)
def test_a_disk_that_fails_under_hdf5_is_an_os_error_and_the_process_ends_well(tmp_path: Path) -> None:
    code = """
import errno, resource, sys
sys.dont_write_bytecode = True
import numpy as np
from pathlib import Path
from hsal_cli.storage.steady import SteadyFile
for limit in [0, 50, 100, 1000, 3000, 9000, 30_000, 60_000, 90_000, 120_000, 150_000, 160_000]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with SteadyFile(Path(sys.argv[1]), "w", libver=("v108", "latest"), rdcc_nbytes=1 << 20) as file:
            data = file.create_dataset("x", (400, 100), np.float32, chunks=(16, 100), fletcher32=True)
            for start in range(0, 400, 10):
                data[start : start + 10] = start
                assert (data[max(0, start - 20) : start + 10][-1] == start).all()  # what was written is read back all the same
            file.attrs["done"] = True
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    else:
        sys.exit(f"no error at {limit}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("well")
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.h5"], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and done.stdout == "well\n" and done.stderr == "", done


@pytest.mark.fault(7, "scene and feature files on a disk without room for them: previous files intact, no temporary file", tried=8)
@pytest.mark.parametrize("limit", [0, 300, 1500, 2500])
def test_data_files_on_a_full_disk(limit: int, tmp_path: Path) -> None:
    small_scenes(tmp_path / "s.h5")
    fill_features(tmp_path / "s.h5", tmp_path / "f.features.h5")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with largest_file(limit), pytest.raises(FileError, match=r"cannot write .*File too large") as caught:
        small_scenes(tmp_path / "s.h5", seed=1)
    assert "free some space" in caught.value.hint
    with largest_file(limit), pytest.raises(FileError, match=r"cannot write .*File too large"):
        fill_features(tmp_path / "s.h5", tmp_path / "g.features.h5")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert left_behind(tmp_path) == [] and not (tmp_path / "g.features.h5").exists()
    fill_features(tmp_path / "s.h5", tmp_path / "g.features.h5")
    for name, values in contents(tmp_path / "f.features.h5").items():
        np.testing.assert_array_equal(contents(tmp_path / "g.features.h5")[name], values)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs the rights of root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.fault(7, "a tmpfs of 256 KiB that fills up: checkpoints, scene files, metrics", tried=3)
def test_a_small_disk_that_fills_up(small_disk: Path) -> None:
    run = small_run(small_disk / "run")
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 8192))
    before = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file() and path.name != "filler"}
    with pytest.raises(FileError, match="No space left on device"):
        checkpoints.save(run.checkpoints, "epoch-00004-step-0000000", {"w": torch.zeros(30_000)}, {}, {"kind": "policy"}, True)
    with pytest.raises(FileError, match="No space left on device"):
        small_scenes(small_disk / "s.h5", train=500)
    with pytest.raises(FileError, match="No space left on device"):
        run.write_rows([{"epoch": number, "loss": 0.5} for number in range(1, 2000)])
    assert {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file() and path.name != "filler"} == before
    assert checkpoints.load(run.checkpoints, "last").path.name == "epoch-00003-step-0000000"


def test_only_one_process_writes_an_hdf5_file_and_none_reads_it_meanwhile(tmp_path: Path) -> None:
    with SteadyFile(tmp_path / "a.h5", "w") as file:
        file.attrs["x"] = 1
        file.flush()
        with pytest.raises(BlockingIOError):
            SteadyFile(tmp_path / "a.h5", "w")  # must not empty what the first is writing
        with pytest.raises(BlockingIOError):
            h5py.File(tmp_path / "a.h5", "r")
    with h5py.File(tmp_path / "a.h5", "r") as file:
        assert file.attrs["x"] == 1


@pytest.mark.fault(5, "a partial feature file whose labels or name of classes changed on the disk: begun anew or mended", tried=2)
@pytest.mark.parametrize("damage", ["labels", "classes"])
def test_a_partial_file_that_changed_on_the_disk_is_not_gone_on_with_blindly(damage: str, tmp_path: Path) -> None:
    scenes = small_scenes(tmp_path / "s.h5")
    fill_features(scenes, tmp_path / "whole.features.h5")
    with pytest.raises(InterruptedWriting):
        fill_features(scenes, tmp_path / "f.features.h5", stop_after=3)
    with h5py.File(tmp_path / "f.features.h5.partial", "r+") as file:
        if damage == "labels":
            file["train/labels"][0] = 2
        else:
            file.attrs["classes"] = json.dumps(["x", "y", "z"])
    fill_features(scenes, tmp_path / "f.features.h5")
    with open_features(tmp_path / "f.features.h5") as found:
        assert found.classes == CLASSES
    for name, values in contents(tmp_path / "whole.features.h5").items():
        np.testing.assert_array_equal(contents(tmp_path / "f.features.h5")[name], values)


@pytest.mark.fault(5, "feature files written by others with NaN, labels or boxes out of range, floats for labels", tried=6)
@pytest.mark.parametrize(
    ("part", "place", "value", "said"),
    [
        ("volumes", (4, 1, 2, 2), np.nan, "row 4 of volumes has values that are not finite"),
        ("saliency", (5, 0, 0), np.inf, "row 5 of saliency has values that are not finite"),
        ("labels", (3, 0), 3, r"row 3 has a label outside 0 to 2 \(-1 pads\): 3"),
        ("labels", (2,), [-1, 0, 1], "row 2 has a label behind the padding"),
        ("boxes", (4, 0, 3), 32_000, "row 4 has a box that is empty or leaves the image"),
        ("labels", None, None, "type float64, not integers"),
    ],
)
def test_features_that_nobody_could_learn_from_are_refused_by_row(part: str, place, value, said: str, tmp_path: Path) -> None:
    path = write_features(tmp_path / "f.h5", {"train": small_table(8)})
    with h5py.File(path, "r+") as file:
        del file.attrs["attributes_digest"]  # as if another program had written it
        if place is None:
            labels = file["train/labels"][()].astype(float)
            del file["train/labels"]
            file["train/labels"] = labels
        else:
            file[f"train/{part}"][place] = value
    with open_features(path) as features, pytest.raises(FileError, match=said):
        features.table("train")
    if part in ("volumes", "saliency"):
        with open_features(path) as features:
            assert len(features.table("train", slice(0, 3))) == 3
            with pytest.raises(FileError, match=said):
                features.table("train", torch.tensor([1, place[0]]))


@pytest.mark.fault(5, "a byte of a class name flipped in a scene or feature file", tried=2)
def test_a_changed_class_name_is_found(tmp_path: Path) -> None:
    scenes = small_scenes(tmp_path / "s.h5")
    fill_features(scenes, tmp_path / "f.features.h5")
    for path, opened in ((scenes, open_scenes), (tmp_path / "f.features.h5", open_features)):
        flip_inside(path, b'["one", "two')
        with pytest.raises(FileError, match="is damaged"):
            opened(path)


@pytest.mark.fault(5, "strings of another program's file, in a heap without checksum at which HDF5 would loop without end", tried=1)
def test_a_file_over_whose_strings_hdf5_would_loop_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w", libver=("v110", "latest")) as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["one", "two"])
        file["train/images"], file["train/labels"] = np.zeros((2, 8, 8), np.uint8), np.array([[0], [1]], np.int16)
    with open_scenes(path) as scenes:
        assert scenes.classes == ["one", "two"]
    sound = path.read_bytes()
    free = sound.index(b"GCOL\1\0\0\0") + 16
    while int.from_bytes(sound[free : free + 2], "little"):  # over the objects, to the free space behind them
        free += 16 + (int.from_bytes(sound[free + 8 : free + 16], "little") + 7) // 8 * 8
    path.write_bytes(sound[: free + 8] + bytes(8) + sound[free + 16 :])
    with pytest.raises(FileError, match="an object of no length"):
        open_scenes(path)
    assert format_of(path) is None


@pytest.mark.fault(5, "a class that no training image holds: said before training", tried=1)
def test_a_class_without_images_is_said() -> None:
    reporter = StoppingReporter()
    say_missing_classes(torch.tensor([[0, 2], [2, -1]]), ["a", "b", "c", "d"], Path("x.h5"), reporter)
    assert reporter.warned == ["no training image of x.h5 holds b, d: they cannot be learned"]
    say_missing_classes(torch.tensor([[0, 1]]), ["a", "b"], Path("x.h5"), reporter)
    assert len(reporter.warned) == 1


# --- writers ----------------------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_the_lock_ends_with_the_block(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(FileError, match="is being written by another process"), only_writer(tmp_path):
        pytest.fail("two writers")
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    imports = "import os, sys; from pathlib import Path; from hsal_cli.storage.atomic import atomic_write"
    code = f"{imports}\nwith atomic_write(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"], cwd=Path(__file__).parents[1])
    assert len(left_behind(tmp_path)) == 1
    (tmp_path / ".a.txt.mine.tmp").write_text("not hsal's")
    with atomic_write(tmp_path / "a.txt") as outer:
        write_text(tmp_path / "a.txt", "inner")
        assert outer.exists()
    assert left_behind(tmp_path) == [".a.txt.mine.tmp"]


@pytest.mark.fault(7, "a reader loads checkpoints while a training replaces them", tried=40)
def test_a_reader_finds_a_good_checkpoint_while_newer_ones_replace_it(tmp_path: Path, monkeypatch) -> None:
    root, number = tmp_path / "c", 0

    def advance() -> None:
        nonlocal number
        number += 1
        checkpoints.save(root, f"epoch-{number:05d}", {"w": torch.tensor(float(number))}, {}, {"kind": "policy"}, best=False)

    read = checkpoints.read_checkpoint
    for _ in range(3):
        advance()

    def reading(folder: Path) -> checkpoints.Checkpoint:
        if number < 40:  # the training overtakes the reader before each of its looks
            for _ in range(3):
                advance()
        return read(folder)

    monkeypatch.setattr(checkpoints, "read_checkpoint", reading)
    while number < 40:
        found = checkpoints.load(root, "last")
        assert float(found.weights["w"]) == int(found.path.name.removeprefix("epoch-"))


@pytest.mark.fault(8, "files of somebody else's among the checkpoints of a run that is overwritten or trained on: they stay", tried=2)
def test_what_lies_among_checkpoints_and_is_not_hsals_stays(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    mine = [run.checkpoints / "aaa" / "notes.txt", run.checkpoints / "epoch-00003-step-0000000" / "mine.txt", run.path / "plots" / "me.png"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    for number in (4, 5, 6):
        checkpoints.save(run.checkpoints, f"epoch-{number:05d}-step-0000000", {"w": torch.ones(1)}, {}, {}, best=True)
    runs.create(run.path, "policy", {}, overwrite=True)
    assert all(path.read_text() == "mine" for path in mine)
    assert not checkpoints.present(run.checkpoints)


# --- documents --------------------------------------------------------------------------------------------------------------------


def test_a_sealed_document_comes_back_and_a_changed_one_does_not(tmp_path: Path) -> None:
    document = {"seed": 3, "rate": 1e-3, "pair": (1, 2), "näme": None}
    assert write_sealed(tmp_path / "a.json", document)["digest"]
    assert read_document(tmp_path / "a.json", dict, "hsal train") == {**document, "pair": [1, 2]}
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(FileError, match="damaged or was changed by hand"):
        read_document(tmp_path / "a.json", dict, "hsal train")
    (tmp_path / "a.json").write_text('{"seed": 4}')  # written by an older hsal, or by hand
    assert read_document(tmp_path / "a.json", dict, "hsal train") == {"seed": 4}


def test_a_damaged_line_amid_the_metrics_is_not_taken_for_their_end(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text(lines[0] + lines[1][:9] + "\n" + lines[2])
    with pytest.raises(FileError, match="damaged in line 2"):
        run.rows()


# --- training ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(11, "an infinite gradient of a finite loss: training stops at that step, the last good checkpoint stays", tried=1)
def test_an_infinite_gradient_stops_training_at_its_step(tmp_path: Path) -> None:
    run, task = runs.create(tmp_path / "run", "policy", {}), LineTask()
    step = task.step

    def poisoned(place: int):
        count, metrics = step(place)
        norm = torch.tensor(float("inf") if len(task.taken) == 6 else 1.0)
        return count, {**metrics, "gradient_norm": norm}

    task.step = poisoned
    with pytest.raises(TrainingError, match="gradient is not finite at step 2 of epoch 2") as caught:
        train(task, run, SILENT)
    assert "--learning-rate" in caught.value.hint and len(task.taken) == 6
    assert checkpoints.load(run.checkpoints, "last").path.name == "epoch-00001-step-0000000"


@pytest.mark.fault(11, "a policy that collapses: training stops, the last checkpoint is one from before", tried=1)
def test_a_collapsed_policy_takes_the_place_of_no_good_one(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "run", "policy", {})
    with pytest.raises(TrainingError, match="collapsed"):
        train(LineTask(scores=(0.4, -1.0, 0.5)), run, SILENT)
    assert checkpoints.load(run.checkpoints, "last").meta["epoch"] == 1


@pytest.mark.fault(10, "out of memory on a GPU or CPU: the batch size used and one to try", tried=4)
@pytest.mark.parametrize(
    ("error", "batch", "hint"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore"), 128, "try --batch-size 64"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), 3, "try --batch-size 1"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"), 2, "try --batch-size 1"),
        (MemoryError(), 1, "more memory"),
    ],
)
def test_out_of_memory_names_the_batch_size_and_one_to_try(error: BaseException, batch: int, hint: str) -> None:
    with pytest.raises(HsalError, match=f"out of memory on cuda:0 with a batch size of {batch}") as caught, fitting("cuda:0", batch):
        raise error
    assert hint in caught.value.hint and "\n" not in caught.value.message
    with pytest.raises(RuntimeError, match="shapes"), fitting("cpu", batch):
        raise RuntimeError("shapes do not match")


# --- terminals --------------------------------------------------------------------------------------------------------------------


@pytest.mark.fault(14, "an encoding without umlauts: JSON stays JSON, tables are drawn with plain signs", tried=2)
def test_an_encoding_that_lacks_signs_gets_escapes(tmp_path: Path, monkeypatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        prepare_streams()
        print_json({"name": "Übung é \udcff"})
        print_table("Maß", ["a"], [["ü"]])
    text = (tmp_path / "out").read_text(encoding="ascii")
    assert json.loads(text.partition("}")[0] + "}") == {"name": "Übung é \udcff"}
    assert "+-" in text and "\\xfc" in text and "\\u2" not in text


def test_closed_streams_swallow_what_is_printed(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    prepare_streams()
    print_json({})
    assert sys.stderr.write("x") == 1


def test_errno_of_the_disk_becomes_words(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="Disk quota exceeded"), atomic_write(tmp_path / "a"):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
