"""Tiny runs on one backbone, as the tests of exporting and of --pretrained share them."""

import hashlib
import importlib
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from evaluation_parts import NAMES, SMALL, policy_meta, small_policy
from torch import nn
from typer.testing import CliRunner

from hsal_cli.errors import HsalError
from hsal_cli.main import app
from hsal_cli.settings import as_dict
from hsal_cli.storage.checkpoints import write_checkpoint
from hsal_cli.storage.hdf5 import seal, stamp
from hsal_cli.vision.backbone import ActivationModel

SHAPE = (512, 3, 3)
SCENES = {"scenes": "toy.h5", "scenes_digest": "5" * 64, "weights_used": "random"}
COMMAND = "/some/where/bin/hsal train --data /some/where/data/toy.features.h5 --out=/some/where/runs/rl --epochs 3 --seed 7"


class TinyModel(ActivationModel):
    """A backbone of a few kilobytes in place of the ResNet, so that nothing here waits for its weights."""

    def __init__(self, arch: str, classes: int, input_size: int = 96, resolution: int = 3, dilate: bool = True, channels: int = 512):
        nn.Module.__init__(self)
        self.arch, self.classes, self.input_size, self.resolution = arch, classes, input_size, resolution
        self.fine, self.fine_side = 0, 2
        self.conv1, self.bn1 = nn.Conv2d(3, SHAPE[0], 1), nn.BatchNorm2d(SHAPE[0])
        self.fc = nn.Linear(SHAPE[0], classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv1(nn.functional.adaptive_avg_pool2d(images, self.resolution))).relu()


def use_tiny_backbone(monkeypatch) -> None:
    """Wherever a backbone is loaded, a tiny one is meant."""
    importlib.import_module("hsal_cli.finetuning.finetune")  # imported later, it would keep the tiny one
    monkeypatch.setattr("hsal_cli.vision.backbone.ActivationModel", TinyModel)
    monkeypatch.setattr("hsal_cli.bench.shop.ActivationModel", TinyModel)
    monkeypatch.setattr("hsal_cli.vision.backbone.fused", lambda model: model)


def write_status(run: Path, kind: str, seed: int, command: str, **status) -> None:
    table = "train" if kind == "policy" else "finetune"
    data = (
        {"features": "/some/where/toy.features.h5", "features_digest": "f" * 64, "variant": as_dict(SMALL)} if kind == "policy" else SCENES
    )
    (run / "config.json").write_text(json.dumps({table: {"seed": seed}, **data}))
    (run / "command.txt").write_text(command + "\n")
    (run / "status.json").write_text(json.dumps({"format": "hsal-run", "kind": kind, "state": "finished", "updated": "2025", **status}))


def write_backbone(run: Path, seed: int = 0) -> str:
    """A backbone run; gives the digest of its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyModel("resnet18", len(NAMES))
    meta = {
        "kind": "backbone",
        "arch": "resnet18",
        "input_size": 96,
        "resolution": 3,
        "dilate": False,
        "classes": NAMES,
        "weights": "random",
    }
    folder = run / "checkpoints" / "epoch-1"
    write_checkpoint(folder, model.state_dict(), None, meta)
    write_status(
        run, "backbone", 5, "/some/where/hsal_cli/__main__.py finetune --weights /some/where/w.pth", accuracy=0.98, test_accuracy=0.97
    )
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def write_policy(
    run: Path, backbone_digest: str, objective: str = "rl", seed: int = 0, evaluated: bool = True, frame: str = "image"
) -> Path:
    """A finished policy run on that backbone, evaluated on mnist-toy."""
    policy = small_policy(seed, SHAPE, SMALL)
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] -= 3  # so that something is named
    more = {
        "objective": objective,
        "backbone_digest": backbone_digest,
        "backbone": "runs/finetune",
        "features": "/some/where/toy.features.h5",
        "frame": frame,
    }
    folder = run / "checkpoints" / "epoch-1"
    write_checkpoint(folder, policy.state_dict(), None, policy_meta(policy, **more))
    (run / "checkpoints" / "index.json").write_text(json.dumps({"last": "epoch-1", "best": "epoch-1"}))
    write_status(run, "policy", 7, COMMAND)
    if evaluated:
        found = {
            "dataset": "mnist-toy",
            "split": "test",
            "examples": 40,
            "exact_match": 0.75,
            "macro_f1": 0.875,
            "ci95": {"exact_match": [0.7, 0.8], "macro_f1": [0.8, 0.9]},
            "localization": {"glimpse_hit": 0.5, "mask_mass": None, "random": 0.1},
            "objective": objective,
            "checkpoint": str(folder),
            "features": "/some/where/toy.features.h5",
        }
        (run / "eval.json").write_text(json.dumps(found))
    return run


def write_scenes(path: Path, images: int = 41, classes: list[str] = NAMES, boxed: bool = True) -> Path:
    """A scene file, as anyone may write one."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        stamp(file, "hsal-scenes", {})
        file.attrs["classes"] = json.dumps(classes)
        for split, count in (("train", 5), ("test", images)):
            labels = generator.integers(0, len(NAMES), (count, 2)).astype(np.int16)
            labels[::3, 1] = -1
            boxes = np.tile(np.array([2, 3, 20, 25], np.int16), (count, 2, 1))
            boxes[labels < 0] = -1
            file[f"{split}/images"] = generator.integers(0, 256, (count, 30, 40), dtype=np.uint8)
            file[f"{split}/labels"] = labels
            if boxed:
                file[f"{split}/boxes"] = boxes
        seal(file, "5" * 64)
    return path


def call(*words: object, code: int = 0):
    """Runs a command, which must end with this code; what hsal refused is its `error`."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(found.exception, HsalError):
        assert found.exception.exit_code == code, found.exception
        found.error = found.exception
    else:
        assert found.exit_code == code, (found.output, found.exception)
    return found
