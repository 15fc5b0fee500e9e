"""hsal check finds every kind of damage and goes on with the rest; hsal doctor says what falls short and what helps."""

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from fault_parts import InterruptedWriting, edit_json, fill_features, flip, flip_inside, small_run, small_scenes
from typer.testing import CliRunner

from hsal_cli.commands.check import check
from hsal_cli.commands.doctor import doctor
from hsal_cli.errors import HsalError, NotInstalled
from hsal_cli.storage import checkpoints
from hsal_cli.upkeep import doctor as room
from hsal_cli.upkeep.check import check_path, check_paths

app = typer.Typer()
app.command("check")(check)
app.command("doctor")(doctor)


def call(*words: object, code: int = 0):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == code, (found.output, found.exception)
    return found


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder with one of each thing, all of them sound."""
    folder = tmp_path_factory.mktemp("sound")
    small_scenes(folder / "s.h5")
    fill_features(folder / "s.h5", folder / "s.features.h5")
    small_run(folder / "run")
    return folder


@pytest.fixture
def place(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "a [folder] of mine"))


def test_what_is_sound_is_said_to_be_so_in_a_line_each(place: Path) -> None:
    last = sorted((place / "run" / "checkpoints").glob("epoch-*"))[-1]
    lines = call("check", place / "s.h5", place / "s.features.h5", place / "run", last).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ok    {path}" for path in (place / "s.h5", place / "s.features.h5", place / "run", last)
    ]
    assert "7 train images of 10x12 px and 3 test images of 10x12 px, 3 classes" in lines[0]
    assert "7 train and 3 test volumes of 4x2x3" in lines[1]
    assert "of a policy, finished, 3 epochs, 2 checkpoints" in lines[2]


def test_a_folder_of_things_is_checked_thing_by_thing_and_json_says_the_same(place: Path) -> None:
    found = json.loads(call("check", place, "--json").stdout)
    assert [Path(part["path"]).name for part in found] == ["run", "s.features.h5", "s.h5"]
    assert all(part["ok"] and part["faults"] == [] for part in found)
    assert {part["kind"] for part in found} == {"run", "feature file", "scene file"}


def test_a_fault_is_exit_code_1_and_the_others_are_checked_all_the_same(place: Path) -> None:
    (place / "page.h5").write_text("<html>404</html>")
    lines = call("check", place / "nothing.h5", place / "page.h5", place / "s.h5", code=1).stdout.splitlines()
    assert [line[:5] for line in lines] == ["FAULT", "FAULT", "ok   "]
    assert "missing" in lines[0] and "not an HDF5 file" in lines[1]


def damage_scenes(path: Path, what: str) -> None:
    if what == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        return
    if what == "a class name":
        flip_inside(path, b'["one", "two", "thr')
        return
    with h5py.File(path, "r+") as file:
        if what == "another image":
            file["train/images"][3] = 7
        elif what == "a label out of range":
            file["test/labels"][1] = [3, -1]
        elif what == "an empty label set":
            file["test/labels"][1] = -1
        elif what == "a label that wraps":
            labels = file["test/labels"][()].astype(np.int64)
            del file["test/labels"]
            file["test/labels"] = labels
            file["test/labels"][1, 0] = 40_000
            del file.attrs["attributes_digest"]
        elif what == "a box outside":
            file["train/boxes"][2, 0] = [1, 2, 11, 9]
        elif what == "not complete":
            file.attrs["complete"] = False
        elif what == "a newer format":
            file.attrs["format_version"] = 2


@pytest.mark.fault(5, "scene file damaged, each kind of damage found by hsal check", tried=9)
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", "not a readable HDF5 file|damaged|cannot be read"),
        ("a class name", "is damaged"),
        ("another image", "its writer noted"),
        ("a label out of range", "test: row 1 has a label outside 0 to 2"),
        ("an empty label set", "its writer noted"),
        ("a label that wraps", r"test: row 1 has a label outside 0 to 2 \(-1 pads\): 40000"),
        ("a box outside", "train: row 2 has a box that is empty or leaves the image"),
        ("not complete", "not complete"),
        ("a newer format", "format version 2|attributes do not have the digest"),
    ],
)
def test_every_damage_to_a_scene_file_is_found(what: str, said: str, place: Path) -> None:
    damage_scenes(place / "s.h5", what)
    report = check_path(place / "s.h5")
    assert not report.ok and re.search(said, report.faults[0]), report.faults


@pytest.mark.fault(5, "feature file damaged, each kind of damage found by hsal check", tried=6)
@pytest.mark.parametrize(
    ("part", "row", "value", "said"),
    [
        ("train/volumes", 3, np.nan, "train: row 3 of volumes has values that are not finite"),
        ("test/saliency", 1, np.inf, "test: row 1 of saliency has values that are not finite"),
        ("test/saliency", 0, -1.0, "row 0 of saliency has values below 0"),
        ("train/labels", 2, 1, "labels does not have the digest"),
        ("train/boxes", 2, 0, "boxes does not have the digest"),
        (None, 0, 0, "digest"),
    ],
)
def test_every_damage_to_a_feature_file_is_found(part: str | None, row: int, value: float, said: str, place: Path) -> None:
    with h5py.File(place / "s.features.h5", "r+") as file:
        if part is None:
            file.attrs["backbone_digest"] = "c" * 64
        elif part.endswith("volumes"):
            file[part][row, 1, 1, 1] = value  # not the first cell of its row
        else:
            file[part][row] = value
    report = check_path(place / "s.features.h5")
    assert not report.ok and said in report.faults[0], report.faults


def test_a_file_that_a_user_wrote_is_sound_without_digests_and_a_missing_class_is_a_note(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["cat", "dog"])
        file["train/images"], file["train/labels"] = np.zeros((3, 8, 8), np.uint8), np.zeros((3, 1), np.int16)
    report = check_path(tmp_path / "own.h5")
    assert report.ok and any("noted no digest" in note for note in report.notes) and any("holds dog" in note for note in report.notes)


def test_a_partial_feature_file_is_unfinished_work(place: Path) -> None:
    with pytest.raises(InterruptedWriting):
        fill_features(place / "s.h5", place / "t.features.h5", stop_after=2)
    report = check_path(place / "t.features.h5.partial")
    assert not report.ok and "4 of 10 images are computed" in report.faults[0]


def damage_run(run: Path, what: str) -> None:
    names = sorted(path.name for path in (run / "checkpoints").glob("epoch-*"))
    last = run / "checkpoints" / names[-1]
    if what == "a number in the config":
        edit_json(run / "config.json", train={"epochs": 4})
    elif what == "a byte of the weights":
        flip(last / "weights.safetensors", -1)
    elif what == "a byte of the state":
        flip(last / "state.pt", 100)
    elif what == "a number in the manifest":
        edit_json(last / "manifest.json", meta={})
    elif what == "no best":
        checkpoints.write_sealed(run / "checkpoints" / "index.json", {"last": names[-1]})
    elif what == "a row twice":
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join([*lines, lines[-1]]))
    elif what == "a number in the table":
        (run / "results.csv").write_text((run / "results.csv").read_text().replace("0.2", "0.9"))
    elif what == "a number in the metrics":
        (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace("0.2", "0.9"))
    elif what == "the status":
        flip_inside(run / "status.json", b"finished")
    elif what == "the evaluation":
        (run / "eval.json").write_text('{"exact_match": 0.5, "digest": "00"}')
    elif what == "the environment":
        (run / "env.json").unlink()


@pytest.mark.fault(3, "run damaged, each kind of damage found by hsal check", tried=11)
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("a number in the config", "config.json is damaged"),
        ("a byte of the weights", "weights.safetensors does not have the checksum"),
        ("a byte of the state", "state.pt does not have the checksum"),
        ("a number in the manifest", "manifest.json is damaged"),
        ("no best", "does not say which checkpoint is the best one"),
        ("a row twice", "its epochs are 1, 2, 3, 3"),
        ("a number in the table", "results.csv does not hold what metrics.jsonl holds"),
        ("a number in the metrics", "metrics.jsonl does not hold what the last checkpoint holds"),
        ("the status", "status.json is damaged"),
        ("the evaluation", "eval.json is damaged"),
        ("the environment", "env.json is missing"),
    ],
)
def test_every_damage_to_a_run_is_found(what: str, said: str, place: Path) -> None:
    damage_run(place / "run", what)
    report = check_path(place / "run")
    assert any(said in fault for fault in report.faults), report.faults


def test_an_unfinished_run_is_sound_and_the_way_on_is_named(place: Path) -> None:
    from hsal_cli.runs.run import Run

    Run(place / "run").set_status("stopped")
    report = check_path(place / "run")
    assert report.ok and f"hsal train --resume {place / 'run'}" in report.notes[0]


def test_weights_that_do_not_fit_their_own_description_are_a_fault(place: Path) -> None:
    import torch

    folder = place / "run" / "checkpoints" / "epoch-00003-step-0000000"
    found = checkpoints.read_checkpoint(folder)
    shutil.rmtree(folder)
    checkpoints.write_checkpoint(folder, {**found.weights, "meta.gru.weight": torch.zeros(2)}, None, found.meta)
    report = check_path(folder)
    assert "meta.gru.weight is unknown" in report.faults[0]


def test_a_network_whose_package_is_not_here_is_no_fault(place: Path, monkeypatch) -> None:
    def missing(*_: object) -> None:
        raise NotInstalled("networks of timm need timm", "pip install 'hsal[timm]'")

    monkeypatch.setattr("hsal_cli.upkeep.check_run.policy_of", missing)
    report = check_path(place / "run" / "checkpoints" / "epoch-00003-step-0000000")
    assert report.ok and "networks of timm need timm" in report.notes[0]


def test_a_folder_with_nothing_of_ours_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    assert [report.faults for report in check_paths([tmp_path])] == [["it is a folder with nothing of hsal in it"]]


# --- doctor -----------------------------------------------------------------------------------------------------------------------


def findings() -> dict[str, room.Finding]:
    return {finding.what: finding for finding in room.examine()}


def test_the_doctor_looks_at_everything_and_json_says_the_same(monkeypatch, tmp_path, mnist_dir) -> None:
    monkeypatch.setenv("HSAL_MNIST_DIR", str(mnist_dir))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    found = json.loads(call("doctor", "--json").stdout)
    names = [part["what"] for part in found]
    for name in ("python", "hsal", "torch", "torchvision", "cpu", "cuda", "mps", "ImageNet weights", "timm", "MNIST", "memory", "disk"):
        assert name in names
    held = {part["what"]: part for part in found}
    assert held["MNIST"]["state"] == "ok" and str(mnist_dir) in held["MNIST"]["found"]
    assert held["ImageNet weights"]["state"] == "note" and held["ImageNet weights"]["hint"]
    assert all(part["hint"] for part in found if part["state"] != "ok")
    lines = call("doctor").stdout.splitlines()
    assert sum(line.startswith(("ok", "note", "FAULT")) for line in lines) == len(found)


def test_torch_and_torchvision_that_do_not_match_are_a_fault_with_a_way_out(monkeypatch) -> None:
    def mismatch() -> None:
        raise HsalError("torch 2.6 and torchvision 0.19 do not match", "install both together")

    monkeypatch.setattr("hsal_cli.vision.backbone.torchvision_resnet", mismatch)
    found = findings()["torchvision"]
    assert found.state == "fault" and "do not match" in found.found and "install both" in found.hint
    assert "do not match" in call("doctor", code=1).stdout


@pytest.mark.fault(9, "ImageNet weights in the cache damaged or half downloaded: found by hsal doctor", tried=2)
def test_a_damaged_and_a_half_downloaded_weights_file_are_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    (cache / "resnet34-b627a593.pth.8f1.partial").write_bytes(b"half")
    found = findings()["ImageNet weights"]
    assert found.state == "note" and "broke off" in found.found
    (cache / "resnet34-b627a593.pth").write_text("<html>log in</html>")
    found = findings()["ImageNet weights"]
    assert found.state == "fault" and "damaged" in found.found and found.hint.startswith("delete it")


def test_a_small_disk_few_memory_and_a_wrong_mnist_folder_fall_short(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    monkeypatch.setattr(room, "SMALL_MEMORY", 1e18)
    monkeypatch.setenv("HSAL_MNIST_DIR", str(tmp_path / "nowhere"))
    found = findings()
    assert found["disk"].state == "note" and found["memory"].state == "note" and found["MNIST"].state == "fault"
    assert "does not exist" in found["MNIST"].found and found["MNIST"].hint
