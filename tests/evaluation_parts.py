"""Tiny policies, tables and feature files that the evaluation tests share."""

import json
from pathlib import Path

import h5py
import numpy as np
import torch

from hsal_cli.features.table import FeatureTable
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import Variant
from hsal_cli.settings import as_dict
from hsal_cli.storage.checkpoints import write_checkpoint
from hsal_cli.storage.hdf5 import seal, stamp

NAMES = ["cat", "dog", "owl"]
SHAPE, SIZE = (4, 3, 3), (30, 60)  # volume C, h, w; image H, W in px
SMALL = Variant(
    beta=(0.1, 1.0),
    cells=9,
    reach=9 / 7,
    controller_state="carry",  # random weights then name more of the labels
    meta_encode=6,
    meta_hidden=6,
    controller_encode=8,
    controller_hidden=8,
    location_hidden=4,
    gaussians=2,
)


def small_policy(seed=0, shape=SHAPE, settings=SMALL) -> HSAL:
    """A policy with random weights that names all labels, and stop, every now and then."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = HSAL(settings, len(NAMES), shape, volume_scale=2.0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.normal_(0, 0.1 if name.startswith("stop_head.") else 0.8)
    return policy.eval()


def small_table(count=23, seed=0, boxes=True, shape=SHAPE) -> FeatureTable:
    """Random volumes with 1 to 3 labels an image."""
    generator = torch.Generator().manual_seed(seed)
    volumes = (3 * torch.rand(count, *shape, generator=generator)).half()
    sizes = torch.randint(1, 4, (count, 1), generator=generator)
    labels = torch.where(torch.arange(3) < sizes, torch.randint(0, len(NAMES), (count, 3), generator=generator), -1)
    corner = torch.stack([torch.randint(0, 40, (count, 3), generator=generator), torch.randint(0, 15, (count, 3), generator=generator)], -1)
    placed = torch.cat([corner, corner + torch.randint(8, 15, (count, 3, 2), generator=generator)], -1)
    placed[labels < 0] = -1
    return FeatureTable(volumes, volumes.float().square().sum(1), labels, placed if boxes else None, SIZE)


def write_features(
    path: Path,
    tables: dict[str, FeatureTable],
    backbone_digest="b" * 64,
    classes=NAMES,
    scenes_digest="s" * 64,
    config=None,
    digest="f" * 64,
) -> Path:
    """A feature file in the documented form."""
    with h5py.File(path, "w") as file:
        stamp(file, "hsal-features", config or {})
        file.attrs.update(classes=json.dumps(classes), backbone_digest=backbone_digest, scenes_digest=scenes_digest)
        file.attrs.update(image_size=SIZE, input_size=96, volume_shape=next(iter(tables.values())).volumes.shape[1:])
        file.attrs["fine"] = next(iter(tables.values())).fine
        for name, table in tables.items():
            group = file.create_group(name)
            group.attrs["image_size"] = SIZE
            group["volumes"], group["saliency"] = table.volumes.numpy(), table.saliency.numpy()
            group["labels"] = table.labels.numpy().astype(np.int16)
            if table.boxes is not None:
                group["boxes"] = table.boxes.numpy().astype(np.int16)
        seal(file, digest)
    return path


def policy_meta(policy: HSAL, **more) -> dict:
    """A policy checkpoint's meta as training writes it."""
    return {
        "kind": "policy",
        "variant": as_dict(policy.variant),
        "classes": NAMES,
        "volume_shape": list(policy.volume_shape),
        "volume_scale": float(policy.volume_scale),
        "max_labels": 3,
        "objective": "rl",
        "backbone_digest": "b" * 64,
        "backbone": None,
        "features": "features.h5",
        **more,
    }


def write_run(path: Path, policy: HSAL, **meta) -> Path:
    """A finished policy run."""
    write_checkpoint(path / "checkpoints" / "epoch-1", policy.state_dict(), None, policy_meta(policy, **meta))
    (path / "checkpoints" / "index.json").write_text(json.dumps({"last": "epoch-1", "best": "epoch-1"}))
    (path / "status.json").write_text(json.dumps({"kind": "policy", "state": "finished", "updated": "2025"}))
    return path
