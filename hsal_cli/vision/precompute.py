"""Precomputing: the features of a scene file by a backbone, so that training never runs the ResNet again.

Reading, the forward pass and writing run side by side: images are read ahead in one thread and features written behind in another.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli.console import SILENT, Reporter
from hsal_cli.errors import FileError, UsageError
from hsal_cli.files import FORMAT_VERSION, cannot_write, digest_of, format_of
from hsal_cli.scenes.scene_file import SceneFile, SceneSplit, open_scenes
from hsal_cli.settings import as_dict
from hsal_cli.vision.backbone import CHANNELS, LoadedBackbone, fused, load_backbone
from hsal_cli.vision.devices import autocast_gains, fitting, forward_context
from hsal_cli.vision.feature_file import FORMAT, check_match, open_features
from hsal_cli.vision.feature_writer import FeatureWriter, Origin, features_to_fill
from hsal_cli.vision.images import to_input
from hsal_cli.vision.saliency import activation_saliency
from hsal_cli.vision.settings import PrecomputeSettings

AGAIN = "run the same command again to continue"
AHEAD = 4  # batches read ahead of the forward pass
LARGEST_HALF = torch.finfo(torch.float16).max


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a precomputation would write.

    Attributes:
        images: over all splits.
        size: of the feature file, bytes.
        volume_shape: (C, h, w).
        digest: of the feature file.
        exists: whether it is there already.
    """

    images: int
    size: int
    volume_shape: tuple[int, int, int]
    digest: str
    exists: bool


def precompute(
    scenes: Path,
    backbone: Path,
    out: Path,
    settings: PrecomputeSettings,
    device: torch.device,
    reporter: Reporter = SILENT,
    overwrite: bool = False,
) -> Path:
    """Computes volumes and saliency maps of all splits of a scene file; continues an interrupted run of the same inputs.

    Args:
        scenes: the scene file.
        backbone: a run of `hsal finetune`, or one of its checkpoints.
        out: the feature file. One of the same scenes and backbone is left as it is.
        settings: how.
        device: where to compute.
        reporter: told the size before the work starts.
        overwrite: replace a feature file of other scenes or another backbone, and make one of the same anew.

    Returns:
        `out`.

    Raises:
        FileError: an input is unusable, `out` holds other features, or it cannot be written (the disk is too small, say).
        UsageError: `out` is no place for a feature file.
        Interrupted: the reporter was asked to stop; what is done is kept for the next run.
    """
    loaded = load_backbone(backbone, device=device)
    if loaded.note:
        reporter.warn(loaded.note)
    with open_scenes(scenes) as source:
        todo = _plan(source, loaded, out, overwrite)
        if todo.exists:
            reporter.say(f"{out} holds these features already")
            return out
        reporter.say(f"{todo.images:,} images -> {todo.size / 1e9:.2f} GB at {out}")
        _check_room(out, todo.size)
        config = {
            **as_dict(settings),
            "scenes": str(scenes),
            "backbone": str(backbone),
            "precision": "bfloat16" if autocast_gains(device) else "float32",
            "scenes_config": source.config,
        }
        origin = Origin(source, loaded.path, loaded.digest, todo.volume_shape, loaded.model.input_size, todo.digest, config)
        with fitting(device, settings.batch_size), features_to_fill(out, origin, settings.batch_size, reporter) as (writer, starts):
            _fill(writer, starts, source, loaded, settings.batch_size, device, reporter)
    return out


def plan(scenes: Path, backbone: Path, out: Path, overwrite: bool = False) -> Plan:
    """What `precompute` would write; it raises what `precompute` would refuse, and writes nothing."""
    loaded = load_backbone(backbone)
    with open_scenes(scenes) as source:
        return _plan(source, loaded, out, overwrite)


def _plan(scenes: SceneFile, backbone: LoadedBackbone, out: Path, overwrite: bool) -> Plan:
    side = backbone.model.resolution
    splits = [scenes.split(name) for name in scenes.splits]
    size = 0
    for split in splits:
        copied = split.labels.nbytes + (0 if split.boxes is None else split.boxes.nbytes)
        size += len(split) * side * side * (2 * CHANNELS + 4) + copied
    digest = digest_of({"scenes": scenes.digest, "backbone": backbone.digest, "format_version": FORMAT_VERSION})
    exists = out.exists() and _is_there(out, digest, scenes, backbone, overwrite)
    return Plan(sum(map(len, splits)), size, (CHANNELS, side, side), digest, exists)


def _is_there(out: Path, digest: str, scenes: SceneFile, backbone: LoadedBackbone, overwrite: bool) -> bool:
    """Whether `out` holds these features; refuses anything else than features, and other features unless they may be replaced."""
    if format_of(out) != FORMAT:
        raise UsageError(f"{out} exists and is not a feature file, so it is not replaced", "name another file with --out")
    if overwrite:
        return False
    try:
        with open_features(out) as features:
            check_match(features, scenes.digest, backbone.digest)
            same = features.digest == digest
    except FileError as error:
        raise FileError(error.message, "replace it with --overwrite, or name another file with --out") from error
    if not same:
        raise FileError(f"{out} was made by another version of hsal", "replace it with --overwrite, or name another file with --out")
    return True


def _check_room(out: Path, size: int) -> None:
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free + (partial.stat().st_size if partial.is_file() else 0)
    except OSError as error:
        raise cannot_write(out, error) from error
    if free < size * 1.02:  # HDF5 needs a little for itself
        raise FileError(
            f"no room for {out}: it needs {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
            "free some space, name another disk with --out, or make fewer images",
        )


def _fill(
    writer: FeatureWriter,
    starts: dict[str, int],
    scenes: SceneFile,
    backbone: LoadedBackbone,
    batch_size: int,
    device: torch.device,
    reporter: Reporter,
) -> None:
    model = fused(backbone.model)
    total = sum(len(scenes.split(name)) for name in scenes.splits)
    with reporter.track("precompute", total, "images", sum(starts.values())) as advance, torch.inference_mode():
        for name in scenes.splits:
            for start, images in _batches(scenes.split(name), starts[name], batch_size, device):
                reporter.check_stop(AGAIN)
                images = images.to(device, non_blocking=True)
                with forward_context(device):
                    volumes = model(to_input(images, model.input_size)).float()
                saliency = activation_saliency(volumes)
                writer.put(name, start, volumes.clamp_(max=LARGEST_HALF).half().contiguous(), saliency)
                advance(len(images))


def _batches(split: SceneSplit, first: int, size: int, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Batches of images from row `first` on, read ahead in the background so that the forward pass never waits for the disk."""

    def read(start: int) -> Tensor:
        images = torch.from_numpy(split.read(start, min(start + size, len(split))))
        return images.pin_memory() if device.type == "cuda" else images

    starts = range(first, len(split), size)
    with ThreadPoolExecutor(1) as reader:
        ahead = [reader.submit(read, start) for start in starts[:AHEAD]]
        try:
            for place, start in enumerate(starts):
                images = ahead.pop(0).result()
                if place + AHEAD < len(starts):
                    ahead.append(reader.submit(read, starts[place + AHEAD]))
                yield start, images
        finally:
            for future in ahead:
                future.cancel()
