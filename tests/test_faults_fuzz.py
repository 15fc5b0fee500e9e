"""Any byte changed or cut off, of every kind of file that hsal reads: an HsalError or the same content, never wrong data."""

import dataclasses
import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from fault_parts import InterruptedWriting, contents, evaluation, fill_features, small_run, small_scenes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from idx_files import idx_bytes
from learning_parts import assert_equal
from PIL import Image
from safetensors.torch import save_file

from hsal_cli.commands.options import known_tables
from hsal_cli.errors import HsalError
from hsal_cli.features.table import open_features
from hsal_cli.runs.documents import read_evaluation
from hsal_cli.runs.run import Run
from hsal_cli.scenes.digits.idx import read_idx
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.settings import check_tables, read_tables
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.upkeep.check import check_path
from hsal_cli.vision.images import MOST_PIXELS, read_image
from hsal_cli.vision.weights import read_weights


def read_scenes(path: Path) -> Any:
    with open_scenes(path) as scenes:
        splits = {name: scenes.split(name) for name in scenes.splits}
        held = {name: [split.read(0, len(split)), split.labels, split.boxes] for name, split in splits.items()}
        return {"splits": held, "classes": scenes.classes, "config": scenes.config, "digest": scenes.digest}


def read_features(path: Path) -> Any:
    with open_features(path) as file:
        tables = {name: file.table(name) for name in file.splits}
        held = {name: [table.volumes, table.saliency, table.labels, table.boxes, table.image_size] for name, table in tables.items()}
        origin = [file.digest, file.backbone_digest, file.scenes_digest, file.input_size]
        return {"splits": held, "classes": file.classes, "origin": origin}


def go_on_with_partial(path: Path) -> Any:
    """What comes of a partial feature file that is gone on with; it may have to begin anew."""
    shutil.copy(path.parent.parent / "s.h5", path.parent / "s.h5")
    fill_features(path.parent / "s.h5", path.parent / "t.features.h5")
    found = contents(path.parent / "t.features.h5"), read_features(path.parent / "t.features.h5")
    (path.parent / "t.features.h5").unlink()
    return found


def read_checkpoint(path: Path) -> Any:
    found = checkpoints.load(path.parent.parent, "last")
    return [found.path.name, found.weights, found.state, found.meta]


def read_status(path: Path) -> Any:
    run = Run(path.parent)
    # A change in the name of the key that holds the digest leaves it as one more key.
    return dataclasses.asdict(run.status if path.name == "status.json" else run.config) | {"raw": None}


def read_rows(path: Path) -> Any:
    """The rows of a run that `hsal check` finds sound."""
    report = check_path(path.parent)
    if not report.ok:
        raise HsalError(report.faults[0], "")
    return Run(path.parent).rows()


def read_scores(path: Path) -> Any:
    return dataclasses.asdict(read_evaluation(path, "hsal eval")) | {"raw": None}


def read_settings(path: Path) -> Any:
    check_tables(read_tables(None, path), known_tables())


def read_picture(path: Path) -> Any:
    picture = read_image(path)
    assert picture.mode == "RGB" and 0 < picture.width * picture.height <= MOST_PIXELS


def read_tensors(path: Path) -> Any:
    assert all(isinstance(tensor, torch.Tensor) for tensor in read_weights(path).values())


def read_glyphs(path: Path) -> Any:
    assert read_idx(path, 3).ndim == 3


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    small_scenes(folder / "s.h5")
    fill_features(folder / "s.h5", folder / "f.features.h5")
    for name, killed in (("stopped", False), ("killed", True)):
        (folder / name).mkdir()
        shutil.copy(folder / "s.h5", folder / name)
        with pytest.raises(InterruptedWriting):
            fill_features(folder / name / "s.h5", folder / name / "t.features.h5", stop_after=3)
        (folder / name / "s.h5").unlink()
        with h5py.File(folder / name / "t.features.h5.partial", "r+") as file:
            file.attrs["open"] = killed
    small_run(folder / "run")
    write_sealed(folder / "eval.json", evaluation())
    draw = np.random.default_rng(0)
    glyphs = idx_bytes(draw.integers(0, 256, (3, 28, 28), dtype=np.uint8))
    (folder / "glyphs").write_bytes(glyphs)
    (folder / "glyphs.gz").write_bytes(gzip.compress(glyphs))
    picture = Image.fromarray(draw.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    for ending in ("png", "jpg", "gif", "tiff", "bmp", "webp"):
        picture.save(folder / f"p.{ending}")
    weights = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
    save_file(weights, folder / "w.safetensors")
    torch.save(weights, folder / "w.pth")
    (folder / "s.toml").write_text('[train]\nepochs = 3\nlearning_rate = 0.01\nobjective = "rl"\n\n[variant]\nbeta = [1.5, 2.0]\n')
    return folder


# name of the kind -> (file, what reads it, whether what it reads must then be the same; files without checksums cannot promise that)
LAST = "run/checkpoints/epoch-00003-step-0000000"
KINDS: dict[str, tuple[str, Callable[[Path], Any], bool]] = {
    "scene file": ("s.h5", read_scenes, True),
    "feature file": ("f.features.h5", read_features, True),
    "partial feature file, writer stopped": ("stopped/t.features.h5.partial", go_on_with_partial, True),
    "partial feature file, writer killed": ("killed/t.features.h5.partial", go_on_with_partial, True),
    "checkpoint: weights": (f"{LAST}/weights.safetensors", read_checkpoint, True),
    "checkpoint: state": (f"{LAST}/state.pt", read_checkpoint, True),
    "checkpoint: manifest": (f"{LAST}/manifest.json", read_checkpoint, True),
    "config.json": ("run/config.json", read_status, True),
    "status.json": ("run/status.json", read_status, True),
    "metrics.jsonl": ("run/metrics.jsonl", read_rows, True),
    "eval.json": ("eval.json", read_scores, True),
    "IDX, gzipped": ("glyphs.gz", lambda path: read_idx(path, 3), True),
    "IDX": ("glyphs", read_glyphs, False),
    "settings (TOML)": ("s.toml", read_settings, False),
    "weights .safetensors": ("w.safetensors", read_tensors, False),
    "weights .pth": ("w.pth", read_tensors, False),
    "picture PNG": ("p.png", read_picture, False),
    "picture JPEG": ("p.jpg", read_picture, False),
    "picture GIF": ("p.gif", read_picture, False),
    "picture TIFF": ("p.tiff", read_picture, False),
    "picture BMP": ("p.bmp", read_picture, False),
    "picture WebP": ("p.webp", read_picture, False),
}
# What the checkpoint before the damaged one holds is good too: `load` says that it took it.
SPARE = "epoch-00002-step-0000000"


def fuzz(kind: str, files: Path, cases: int) -> None:
    name, read, exact = KINDS[kind]
    with tempfile.TemporaryDirectory() as place:
        for source in files.iterdir():
            shutil.copytree(source, Path(place) / source.name) if source.is_dir() else shutil.copy(source, place)
        path = Path(place) / name
        sound = path.read_bytes()
        wanted = read(path) if exact else None
        if "partial" in kind:
            path.write_bytes(sound)

        @settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def damaged(data: st.DataObject) -> None:
            spot = data.draw(st.integers(0, len(sound) - 1))
            if data.draw(st.integers(0, 3)) == 0:
                path.write_bytes(sound[:spot])
            else:
                mask = data.draw(st.integers(1, 255))
                path.write_bytes(sound[:spot] + bytes([sound[spot] ^ mask]) + sound[spot + 1 :])
            try:
                found = read(path)
            except HsalError as error:
                assert error.message and "\\n" not in error.hint
                return
            if exact and not (kind.startswith("checkpoint") and found[0] == SPARE):
                assert_same(found, wanted)

        damaged()


def assert_same(found: Any, wanted: Any) -> None:
    """Equal to the last bit, arrays and tensors in nested containers included."""
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            assert_same(*pair)
    else:
        assert_equal(found, wanted)


@pytest.mark.fault("fuzz", "any byte changed or the file cut anywhere: an HsalError or the same content", tried=30)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_rightly(kind: str, files: Path) -> None:
    fuzz(kind, files, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.fault("fuzz", "any byte changed or the file cut anywhere: an HsalError or the same content", tried=500)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_rightly_500_times(kind: str, files: Path) -> None:
    fuzz(kind, files, 500)


def test_a_damaged_index_of_checkpoints_never_names_a_wrong_best_one_silently(files: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(files / "run", tmp_path / "run")) / "checkpoints"
    best = json.loads((root / "index.json").read_text())["best"]
    sound = (root / "index.json").read_bytes()
    for place in range(len(sound)):
        data = bytearray(sound)
        data[place] ^= 1
        (root / "index.json").write_bytes(data)
        found = checkpoints.load(root, "best")
        assert found.path.name == best or found.note


def test_the_picture_that_fuzzing_starts_from_is_read(files: Path) -> None:
    stream = io.BytesIO((files / "p.png").read_bytes())
    assert read_image(files / "p.png").tobytes() == Image.open(stream).convert("RGB").tobytes()
