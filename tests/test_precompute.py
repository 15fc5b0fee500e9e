"""Precomputing: the right numbers, whatever interrupts it, and no file that passes for another."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.features import writer as feature_writer
from hsal_cli.features.precompute import plan, precompute
from hsal_cli.features.saliency.models import activation_saliency, maps_of_image, saliency_model
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.features.table import check_match, open_features
from hsal_cli.progress import Reporter
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.backbone import ActivationModel, load_backbone
from hsal_cli.vision.devices import autocast_gains
from hsal_cli.vision.images import to_input

CPU = torch.device("cpu")
TRAIN, TEST = 23, 5


class Heard(Reporter):
    """Notes what it is told, and asks to stop after so many batches."""

    def __init__(self, stop_after: int | None = None):
        self.said, self.warned, self.advances, self.stop_after = [], [], [], stop_after

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warned.append(message)

    @contextlib.contextmanager
    def track(self, what, total, unit, done=0):
        self.total, self.done = total, done

        def advance(n, note=""):
            self.advances.append(n)
            if self.stop_after is not None and len(self.advances) >= self.stop_after:
                self.stop_signal = signal.SIGINT

        yield advance


def write_scenes(path: Path, seed: int = 0, boxes: bool = True) -> Path:
    draw = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(["a", "b", "c"])
        for name, count in (("train", TRAIN), ("test", TEST)):
            group = file.create_group(name)
            group["images"] = draw.integers(0, 256, (count, 20, 30), dtype=np.uint8)
            labels = draw.integers(0, 3, (count, 2)).astype(np.int16)
            labels[::3, 1] = -1
            group["labels"] = labels
            if boxes:
                corner = draw.integers(0, 10, (count, 2, 2))
                found = np.concatenate([corner, corner + 5], axis=2).astype(np.int16)
                found[labels < 0] = -1
                group["boxes"] = found
    return path


def write_backbone(path: Path, seed: int = 0, poison: float = 0.0) -> Path:
    torch.manual_seed(seed)
    model = ActivationModel("resnet18", 3, 32, 1)
    torch.nn.init.constant_(model.bn1.bias, poison)
    meta = {"kind": "backbone", "arch": "resnet18", "input_size": 32, "resolution": 1, "classes": ["a", "b", "c"]}
    checkpoints.write_checkpoint(path, model.state_dict(), None, {**meta, "weights": "random", "accuracy": 0.3})
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scene file, a backbone, and the features that an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("made")
    scenes, backbone = write_scenes(folder / "s.h5"), write_backbone(folder / "b")
    features = precompute(scenes, backbone, folder / "f.h5", PrecomputeSettings(batch_size=4), CPU)
    return scenes, backbone, features


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 3 rows, so that a file of a few images has many."""
    monkeypatch.setattr(feature_writer, "BLOCK_BYTES", 3 * 1024)


def run(made, out: Path, reporter: Reporter | None = None, overwrite: bool = False, batch_size: int = 4) -> Path:
    scenes, backbone, _ = made
    return precompute(scenes, backbone, out, PrecomputeSettings(batch_size=batch_size), CPU, reporter or Reporter(), overwrite)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {f"{split}/{name}": data[()] for split, group in file.items() for name, data in group.items()}


def assert_same(one: Path, other: Path) -> None:
    a, b = contents(one), contents(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_features_are_those_of_a_direct_forward_pass_and_everything_else_is_copied(made):
    scenes, backbone, path = made
    model = load_backbone(backbone).model
    with open_features(path) as features, h5py.File(scenes) as source, torch.inference_mode():
        assert features.splits == ["train", "test"] and features.classes == ["a", "b", "c"]
        assert features.volume_shape == (512, 1, 1) and features.image_size == (20, 30) and features.input_size == 32
        assert features.backbone_digest == load_backbone(backbone).digest and len(features) == TRAIN + TEST
        for split in features.splits:
            table = features.table(split)
            volumes = model(to_input(torch.from_numpy(source[split]["images"][()]), 32))
            assert table.volumes.dtype == torch.float16 and table.saliency.dtype == torch.float32
            # The file is in bfloat16 on CPUs that have it (8 bits, layer by layer), else only its volumes are rounded, to float16.
            close, saliency_close = (5e-2, 5e-2) if autocast_gains(CPU) else (2e-3, 1e-4)
            torch.testing.assert_close(table.volumes.float(), volumes, rtol=close, atol=close / 2)
            torch.testing.assert_close(table.saliency, activation_saliency(volumes), rtol=saliency_close, atol=saliency_close)
            np.testing.assert_array_equal(table.labels, source[split]["labels"][()])
            np.testing.assert_array_equal(table.boxes, source[split]["boxes"][()])
            assert table.labels.dtype == table.boxes.dtype == torch.int64
    with h5py.File(path) as file:
        assert file.attrs["complete"] and all(data.fletcher32 for group in file.values() for data in group.values())


def test_a_picture_that_is_looked_at_has_the_volumes_that_precomputing_stored(made):
    scenes, backbone, features = made
    with open_scenes(scenes) as file, open_features(features) as stored:
        image, expected = torch.from_numpy(file.split("test").read(0, 1)), stored.maps("test", slice(0, 1))[1][0]
    found = maps_of_image(image, "a", [saliency_model("activation")], load_backbone(backbone))["activation"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # in another precision they are further apart


@pytest.fixture
def loud(monkeypatch):
    """An activation model whose activations float16 cannot hold."""
    room = sys.modules["hsal_cli.vision.backbone"]
    real = room.fused

    def louder(model):
        faster = real(model)
        forward = faster.forward
        faster.forward = lambda images: forward(images) * 1e6
        return faster

    monkeypatch.setattr(room, "fused", louder)


@pytest.mark.usefixtures("loud")
def test_volumes_beyond_half_precision_are_clipped_and_their_saliency_is_not(made, tmp_path):
    with open_features(run(made, tmp_path / "f.h5")) as features:
        table = features.table("test")
    assert table.volumes.isfinite().all() and table.volumes.max() == 65504
    assert table.saliency.max() > 65504**2


@pytest.mark.usefixtures("loud", "small_chunks")
@pytest.mark.parametrize("stops", [(), (2,), (6, 1)])
def test_what_float16_cannot_hold_is_counted_and_warned_of_however_often_it_was_interrupted(made, tmp_path, stops):
    out, heard = tmp_path / "f.h5", Heard()
    for stop_after in stops:
        with pytest.raises(Interrupted):
            run(made, out, Heard(stop_after))
    run(made, out, heard)
    with open_features(out) as features:
        counts = {split: int((features.table(split).volumes == 65504).sum()) for split in features.splits}
        assert {split: features.cut_off(split) for split in features.splits} == counts and all(counts.values())
        share = sum(counts.values()) / sum(features.table(split).volumes.numel() for split in features.splits)
    warned = [line for line in heard.warned if "cut off" in line]
    assert len(warned) == 1 and f"{sum(counts.values()):,} activations ({share:.2%})" in warned[0] and "65,504" in warned[0]
    assert any("were cut off" in note for note in check_path(out).notes)


def test_nothing_is_warned_of_where_nothing_is_cut_off(made, tmp_path):
    heard = Heard()
    run(made, tmp_path / "f.h5", heard)
    with open_features(tmp_path / "f.h5") as features:
        assert [features.cut_off(split) for split in features.splits] == [0, 0]
    assert not [line for line in heard.warned if "cut off" in line]


def test_a_backbone_that_gives_nan_is_refused_by_name(made, tmp_path):
    backbone = write_backbone(tmp_path / "b", poison=float("nan"))
    with pytest.raises(FileError, match=f"{backbone} gives volumes that are not finite"):
        run((made[0], backbone, None), tmp_path / "f.h5")
    assert not (tmp_path / "f.h5").exists()


def test_the_size_is_announced_before_the_work_and_the_file_is_about_that_large(made, tmp_path):
    scenes, backbone, _ = made
    heard = Heard()
    run(made, tmp_path / "f.h5", heard)
    todo = plan(scenes, backbone, tmp_path / "g.h5", PrecomputeSettings())
    assert todo.images == TRAIN + TEST and not todo.exists
    assert heard.said[0] == f"{TRAIN + TEST} images -> {todo.size / 1e9:.2f} GB at {tmp_path / 'f.h5'}"
    stored = sum(values.nbytes for values in contents(tmp_path / "f.h5").values())
    assert todo.size == stored


@pytest.mark.parametrize("stop_after", [1, 3, 5, 6, 7])
def test_an_interrupted_run_continues_to_the_same_file(made, tmp_path, small_chunks, stop_after):
    out = tmp_path / "f.h5"
    with pytest.raises(Interrupted) as caught:
        run(made, out, Heard(stop_after))
    assert "run the same command again" in caught.value.hint and caught.value.exit_code == 130
    assert not out.exists()
    heard = Heard()
    run(made, out, heard)
    assert heard.done == sum([4, 4, 4, 4, 4, 3, 4, 1][:stop_after])  # batches of 4: 23 images of train, 5 of test
    assert heard.done + sum(heard.advances) == TRAIN + TEST
    assert any("continuing" in line for line in heard.said)
    assert_same(out, made[2])
    assert os.listdir(tmp_path) == ["f.h5"]


def test_it_continues_from_every_interruption_with_another_batch_size(made, tmp_path, small_chunks):
    out = tmp_path / "f.h5"
    for batch_size in (4, 5, 3, 7):
        with pytest.raises(Interrupted):
            run(made, out, Heard(stop_after=1), batch_size=batch_size)
    run(made, out)
    a, b = contents(out), contents(made[2])
    for name in a:
        np.testing.assert_allclose(a[name].astype(float), b[name].astype(float), rtol=2e-3, atol=1e-3)


def test_features_that_are_there_are_left_alone(made, tmp_path):
    out = tmp_path / "f.h5"
    run(made, out)
    before = out.stat().st_mtime_ns
    heard = Heard()
    run(made, out, heard)
    assert out.stat().st_mtime_ns == before and not heard.advances
    assert "already" in heard.said[-1]
    run(made, out, heard, overwrite=True)
    assert sum(heard.advances) == TRAIN + TEST
    assert_same(out, made[2])


@pytest.mark.parametrize("stale", ["scene file", "backbone"])
def test_features_of_other_origin_are_refused_by_name_and_replaced_only_on_request(made, tmp_path, stale):
    scenes, backbone, features = made
    out = Path(shutil.copy(features, tmp_path / "f.h5"))
    if stale == "scene file":
        made = (write_scenes(tmp_path / "s.h5", seed=1), backbone, features)
    else:
        made = (scenes, write_backbone(tmp_path / "b", seed=1), features)
    with pytest.raises(FileError, match=f"another {stale}") as caught:
        run(made, out)
    assert str(out) in caught.value.message and "--overwrite" in caught.value.hint
    assert_same(out, features)
    run(made, out, overwrite=True)
    with open_features(out) as found:
        check_match(found, None, load_backbone(made[1]).digest)
    assert not np.array_equal(contents(out)["train/volumes"], contents(features)["train/volumes"])


def test_check_match_names_what_is_stale(made):
    with open_features(made[2]) as features:
        check_match(features)
        check_match(features, features.scenes_digest, features.backbone_digest)
        for digests, words in ((("0" * 64, None), "scene file"), ((None, "0" * 64), "backbone")):
            with pytest.raises(FileError, match=f"another {words}: digest .*, not 000000000000") as caught:
                check_match(features, *digests)
            assert "hsal precompute --overwrite" in caught.value.hint


@pytest.mark.parametrize("content", ["text", "scenes", "folder"])
def test_what_is_no_feature_file_is_never_replaced(made, tmp_path, content):
    out = tmp_path / "f.h5"
    if content == "folder":
        out.mkdir()
    elif content == "text":
        out.write_text("my thesis")
    else:
        shutil.copy(made[0], out)
    with pytest.raises(UsageError, match="not a feature file"):
        run(made, out, overwrite=True)
    assert out.is_dir() or out.stat().st_size > 0


def test_too_small_a_disk_is_refused_before_the_work(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(FileError, match="no room"):
        run(made, tmp_path / "f.h5")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_is_an_error_of_two_lines_and_the_run_continues_afterwards(made, tmp_path, small_chunks):
    out = tmp_path / "f.h5"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, hard))
    try:
        with pytest.raises(FileError, match="cannot write"):
            run(made, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists()
    run(made, out)
    assert_same(out, made[2])


@pytest.fixture(scope="module")
def killed(made, tmp_path_factory) -> Path:
    """The partial file of a run that saved after every batch and was killed (SIGKILL) after its fifth, before counting it."""
    code = """
import os, signal, sys
from pathlib import Path
import torch
from hsal_cli.upkeep.check import check_path
from hsal_cli.features import writer as feature_writer
from hsal_cli.features.precompute import precompute
from hsal_cli.features.settings import PrecomputeSettings
feature_writer.BLOCK_BYTES, feature_writer.SAVE_EVERY_S = 3 * 1024, -1
left, write = 4, feature_writer.FeatureWriter._write
def writing(*item):
    global left
    write(*item)
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
feature_writer.FeatureWriter._write = writing
scenes, backbone, out = map(Path, sys.argv[1:])
precompute(scenes, backbone, out, PrecomputeSettings(batch_size=4), torch.device("cpu"))
"""
    out = tmp_path_factory.mktemp("killed") / "f.h5"
    done = subprocess.run([sys.executable, "-c", code, made[0], made[1], out], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    return out.with_name("f.h5.partial")


@pytest.mark.parametrize("damage", ["none", "cut off", "overwritten", "zeros counted"])
def test_a_killed_run_leaves_no_feature_file_and_only_sound_rows_are_kept(made, killed, tmp_path, small_chunks, damage):
    out, partial = tmp_path / "f.h5", Path(shutil.copy(killed, tmp_path))
    with pytest.raises(FileError, match="not complete"):
        open_features(partial)
    data = bytearray(partial.read_bytes())
    if damage == "cut off":
        partial.write_bytes(data[: len(data) // 2])
    elif damage == "overwritten":
        volumes = contents(made[2])["train/volumes"]
        place = data.find(volumes[0].tobytes())
        data[place : place + 8] = b"\0" * 8
        partial.write_bytes(data)
    elif damage == "zeros counted":
        with h5py.File(partial, "r+") as file:
            file["train"].attrs["done"] = TRAIN
    heard = Heard()
    run(made, out, heard)
    assert_same(out, made[2])
    assert heard.done == (12 if damage == "none" else 0)
    assert any("starting over" in line for line in heard.said) == (damage != "none")
    assert os.listdir(tmp_path) == ["f.h5"]


def test_a_partial_file_of_other_scenes_is_begun_anew(made, tmp_path, small_chunks):
    out = tmp_path / "f.h5"
    with pytest.raises(Interrupted):
        run((write_scenes(tmp_path / "s.h5", seed=1), made[1], None), out, Heard(stop_after=3))
    heard = Heard()
    run(made, out, heard)
    assert any("belongs to other scenes" in line and "starting over" in line for line in heard.said)
    assert_same(out, made[2])


def test_a_file_that_another_process_writes_is_left_to_it(made, tmp_path):
    partial = tmp_path / "f.h5.partial"
    with partial.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # as HDF5 does while it writes
        with pytest.raises(FileError, match="is being written by another process"):
            run(made, tmp_path / "f.h5")
    assert partial.exists()


def test_a_scene_file_without_boxes_gives_features_without_boxes(made, tmp_path):
    scenes = write_scenes(tmp_path / "s.h5", boxes=False)
    with open_features(run((scenes, made[1], None), tmp_path / "f.h5")) as features:
        assert features.table("train").boxes is None
