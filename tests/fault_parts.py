"""Small scene files, feature files, runs and recipes that the tests of faults share."""

import contextlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from hsal_cli.features.writer import Origin, features_to_fill
from hsal_cli.runs import run as runs
from hsal_cli.scenes.scene_file import open_scenes, write_scenes
from hsal_cli.storage import checkpoints

CLASSES = ["one", "two", "thrée [3]"]
SHAPE = (4, 2, 3)
SETTINGS = """
[make-data]
train = 30
test = 8
digits = "mnist"
mnist_dir = "digits"
count = [1, 2]
image_size = 60
digit_size = [20, 28]

[finetune]
input_size = 32
crop_images = 48
full_images = 16
epoch_images = 24
batch_size = 8
validation = 6
mode = "crops"
crowd = 1

[precompute]
batch_size = 4

[variant]
gaussians = 2
meta_encode = 8
meta_hidden = 8
controller_encode = 8
controller_hidden = 8
location_hidden = 8

[train]
epochs = 2
batch_size = 8

[eval]
resamples = 20
"""


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit that no look at the free space shows, as a quota is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiling, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python 3.11 takes the cut-off file of a module for whole
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiling


def small_scenes(path: Path, train: int = 7, test: int = 3, seed: int = 0) -> Path:
    """A scene file by hsal's own writer: images of 12x10 px with one or two labels."""
    draw = np.random.default_rng(seed)
    with write_scenes(path, {"seed": seed, "dataset": "toy"}, CLASSES) as writer:
        for name, count in (("train", train), ("test", test)):
            labels = np.stack([np.arange(count) % 3, np.where(np.arange(count) % 2, draw.integers(0, 3, count), -1)], 1).astype(np.int16)
            boxes = np.where(labels[..., None] >= 0, np.array([1, 2, 5, 9]), -1).astype(np.int16)
            images = draw.integers(0, 256, (count, 12, 10), dtype=np.uint8)
            writer.write_split(name, iter([(images, labels, boxes)]), images.shape)
    return path


def fill_features(scenes: Path, out: Path, stop_after: int | None = None, batch: int = 2) -> None:
    """Writes features of a scene file by hsal's own writer; volumes depend on the row alone. Stops after some batches if asked to."""
    from hsal_cli.features.table import features_digest
    from hsal_cli.progress import SILENT

    with open_scenes(scenes) as source:
        digest = features_digest(source.digest, "b" * 64)
        origin = Origin(source, Path("backbone"), "b" * 64, SHAPE, 0, 2, 64, "activation", "activation", digest, {"batch_size": batch})
        done = 0
        with features_to_fill(out, origin, batch, SILENT) as writer:
            for name in source.splits:
                for start in range(writer.starts[name], len(source.split(name)), batch):
                    rows = torch.arange(start, min(start + batch, len(source.split(name))))
                    volumes = (rows[:, None] * 100 + torch.arange(24)).view(-1, *SHAPE).half() / 64 + (name == "test")
                    writer.put(name, start, volumes.contiguous(), volumes.float().square().sum(1))
                    done += 1
                    if done == stop_after:
                        raise InterruptedWriting


class InterruptedWriting(Exception):
    """Stands for whatever ends a writer early."""


def contents(path: Path) -> dict[str, np.ndarray]:
    """All data of an HDF5 file."""
    with h5py.File(path, "r") as file:
        return {f"{split}/{name}": data[()] for split, group in file.items() for name, data in group.items()}


def small_run(path: Path, epochs: int = 3) -> runs.Run:
    """A finished policy run of a policy of a few weights, as `hsal train` leaves it."""
    from evaluation_parts import policy_meta, small_policy

    policy = small_policy()
    digests = {"features_digest": "f" * 64, "scenes_digest": "5" * 64, "backbone_digest": "b" * 64}
    config = {"features": "f.h5", "backbone": None, "variant": policy_meta(policy)["variant"], "train": {"epochs": epochs}, **digests}
    run = runs.create(path, "policy", config)
    rows = []
    for epoch in range(1, epochs + 1):
        rows = [*rows, {"epoch": epoch, "loss": 1 / epoch, "exact_match": epoch / 10}]
        state = {"progress": {"epoch": epoch, "step": 0, "rows": rows}, "task": {"generator": torch.arange(epoch)}}
        name = f"epoch-{epoch:05d}-step-{0:07d}"
        checkpoints.save(run.checkpoints, name, policy.state_dict(), state, {**policy_meta(policy), **digests, "epoch": epoch}, best=True)
    run.write_rows(rows)
    run.set_status("finished", exact_match=rows[-1]["exact_match"])
    return run


def evaluation(**more: object) -> dict[str, object]:
    """What eval.json holds, as `hsal eval` writes it but for its longer parts."""
    intervals = {"exact_match": [0.4, 0.6], "macro_f1": [0.5, 0.7]}
    scores = {"exact_match": 0.5, "macro_f1": 0.6}
    return {
        "dataset": "toy",
        "split": "test",
        "examples": 40,
        **scores,
        "ci95": intervals,
        "baselines": {"count_only": scores},
        "by_count": {"1": {**scores, "examples": 40}},
        "localization": {"glimpse_hit": 0.5, "mask_mass": None},
        "attn_saliency": {"raw": 1.5},
        "cardinality_error": 0.1,
        "sample": 0,
        "max_steps": 5,
        "features": "f.h5",
        "checkpoint": "run/checkpoints/epoch-00003-step-0000000",
        "objective": "rl",
        "parameters": 100,
        "saliency": "activation",
        **more,
    }


def flip(path: Path, place: int, mask: int = 0xFF) -> None:
    """Changes one byte of a file; `place` may be negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(data)


def flip_inside(path: Path, wanted: bytes) -> None:
    """Changes one byte in the middle of some bytes wherever they stand in a file: HDF5 leaves old copies of attributes behind."""
    data = path.read_bytes()
    assert wanted in data
    middle = len(wanted) // 2
    path.write_bytes(data.replace(wanted, wanted[:middle] + bytes([wanted[middle] ^ 1]) + wanted[middle + 1 :]))


def left_behind(folder: Path) -> list[str]:
    """Temporary files in a folder and below."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".lock")))


def edit_json(path: Path, **changes: object) -> None:
    """Changes values in a JSON file, as somebody with an editor would."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
