"""Precomputing: the features of a scene file by a backbone, so that training never runs the ResNet again.

Reading, the forward pass and writing run side by side: images are read ahead in one thread and features written behind in another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli import distributed
from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.features.saliency.models import SaliencyModel, saliency_model, seen_by_saliency
from hsal_cli.features.settings import CALLED, PrecomputeSettings
from hsal_cli.features.table import FORMAT, FeatureFile, check_match, features_digest, map_shape, open_features
from hsal_cli.features.views import ViewedScenes, Views
from hsal_cli.features.writer import FeatureWriter, Origin, features_to_fill, partial_of
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.gather import in_order
from hsal_cli.scenes.scene_file import SceneFile, SceneSplit, open_scenes
from hsal_cli.settings import as_dict
from hsal_cli.storage.atomic import cannot_write
from hsal_cli.storage.hdf5 import format_of
from hsal_cli.vision.backbone import ActivationModel, LoadedBackbone, load_backbone
from hsal_cli.vision.devices import autocast_gains, choose_device, fitting, say_if_busy
from hsal_cli.vision.images import to_input
from hsal_cli.vision.resolution import at_resolution

AGAIN = "run the same command again to continue"
DEFAULTS = PrecomputeSettings()
AHEAD = 4  # batches read ahead of the forward pass
LARGEST_HALF = torch.finfo(torch.float16).max


@dataclasses.dataclass(frozen=True)
class PrecomputePlan:
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
    settings: PrecomputeSettings = DEFAULTS,
    device: torch.device | str = "auto",
    reporter: Reporter = SILENT,
    overwrite: bool = False,
    volumes_from: Path | None = None,
) -> Path:
    """Computes volumes and saliency maps of all splits of a scene file; continues an interrupted run of the same inputs.

    Several workers take batches in turn, and worker 0 writes.

    Args:
        scenes: the scene file.
        backbone: a run of `hsal finetune`, or one of its checkpoints.
        out: the feature file. One of the same scenes and backbone is left as it is.
        settings: how.
        device: where to compute; a name as `--device` takes it, or a torch device.
        reporter: told the size before the work starts.
        overwrite: replace a feature file of other scenes, another backbone or saliency model, and make one of the same anew.
        volumes_from: a feature file of the same scenes and backbone with another saliency model, whose volumes are copied.

    Returns:
        `out`.

    Raises:
        FileError: an input is unusable, `out` holds other features, or it cannot be written (the disk is too small, say).
        UsageError: `out` is no place for a feature file.
        Interrupted: the reporter was asked to stop; what is done is kept for the next run.
    """
    device = choose_device(device)
    loaded = at_resolution(load_backbone(backbone, device=device), settings.resolution)
    if loaded.note:
        reporter.warn(loaded.note)
    saliency = saliency_model(settings.saliency)
    with contextlib.ExitStack() as stack:
        source = _with_views(stack.enter_context(open_scenes(scenes)), settings)
        todo = _plan(source, loaded, saliency, out, overwrite, settings)
        asked = {**as_dict(settings), "out": str(out), "overwrite": overwrite, "volumes_from": volumes_from and str(volumes_from)}
        distributed.agree(features_digest=todo.digest, scenes_digest=source.digest, precompute=asked, features_are_there=todo.exists)
        if todo.exists:
            reporter.say(f"{out} holds these features already")
            return out
        say_if_busy(device, reporter)
        reporter.say(f"{todo.images:,} images -> {todo.size / 1e9:.2f} GB at {out}")
        distributed.broadcast(lambda: _check_room(out, todo.size))
        config = {
            **as_dict(settings),
            "scenes": str(scenes),
            "backbone": str(backbone),
            "precision": "bfloat16" if autocast_gains(device) else "float32",
            "scenes_config": source.config,
        }
        shape = todo.volume_shape, loaded.model.fine, loaded.model.fine_side
        made_from = loaded.path, loaded.digest, *shape, loaded.model.input_size, saliency.name, saliency.digest
        origin = Origin(source, *made_from, todo.digest, config)
        volumes = stack.enter_context(_volumes_of(volumes_from, source, loaded, saliency, out)) if volumes_from else None
        stack.enter_context(fitting(device, settings.batch_size))
        with contextlib.ExitStack() as filling:
            to_fill = features_to_fill(out, origin, settings.batch_size, reporter)
            writer = filling.enter_context(to_fill) if distributed.current().leads else None
            starts = distributed.broadcast(lambda: writer.starts)
            _fill(writer, starts, source, loaded, saliency, volumes, settings.batch_size, device, reporter)
    distributed.broadcast(lambda: _warn_of_cut_off(out, reporter))
    return out


def _warn_of_cut_off(out: Path, reporter: Reporter) -> None:
    with open_features(out) as file:
        count = sum(map(file.cut_off, file.splits))
        share = count / max(1, len(file) * math.prod(file.volume_shape))
    if count:
        reporter.warn(
            f"{count:,} activations ({share:.2%}) of {out} were above {LARGEST_HALF:,.0f}, the most that float16 holds, and are cut off: "
            "columns lose what tells them apart; fine-tune the backbone at a lower --learning-rate, so that its activations stay small"
        )


def plan(scenes: Path, backbone: Path, out: Path, settings: PrecomputeSettings, overwrite: bool = False) -> PrecomputePlan:
    """What `precompute` would write; it raises what `precompute` would refuse, and writes nothing."""
    loaded = at_resolution(load_backbone(backbone), settings.resolution)
    with open_scenes(scenes) as source:
        return _plan(_with_views(source, settings), loaded, saliency_model(settings.saliency), out, overwrite, settings)


def _with_views(scenes: SceneFile, settings: PrecomputeSettings) -> SceneFile | ViewedScenes:
    return ViewedScenes(scenes, settings.views, settings.mirror) if (settings.views or 1) > 1 else scenes


def made_finer(backbone: LoadedBackbone) -> int | str | None:
    """What `features_digest` is told of a backbone's resolution."""
    return backbone.model.resolution if backbone.refined not in (None, *CALLED) else backbone.refined


def _plan(
    scenes: SceneFile | ViewedScenes,
    backbone: LoadedBackbone,
    saliency: SaliencyModel,
    out: Path,
    overwrite: bool,
    settings: PrecomputeSettings,
) -> PrecomputePlan:
    channels, side = backbone.model.channels + backbone.model.fine, backbone.model.resolution
    splits = [scenes.split(name) for name in scenes.splits]
    size = 0
    for split in splits:
        copied = split.labels.nbytes + (0 if split.boxes is None else split.boxes.nbytes)
        cells = math.prod(map_shape((channels, side, side), backbone.model.fine, backbone.model.fine_side))
        size += len(split) * (2 * channels * side * side + 4 * cells) + copied
    digest = features_digest(scenes.digest, backbone.digest, saliency.digest, made_finer(backbone), settings.views, settings.mirror)
    exists = out.exists() and _is_there(out, digest, scenes, backbone, saliency, overwrite, settings.views or 1)
    return PrecomputePlan(sum(map(len, splits)), size, (channels, side, side), digest, exists)


def _is_there(
    out: Path,
    digest: str,
    scenes: SceneFile | ViewedScenes,
    backbone: LoadedBackbone,
    saliency: SaliencyModel,
    overwrite: bool,
    views: int,
) -> bool:
    """Whether `out` holds these features; refuses anything else than features, and other features unless they may be replaced."""
    if format_of(out) != FORMAT:
        raise UsageError(f"{out} exists and is not a feature file, so it is not replaced", "name another file with --out")
    if overwrite:
        return False
    try:
        with open_features(out) as features:
            check_match(features, scenes.digest, backbone.digest, saliency.digest)
            same, held = features.digest == digest, features.config.views or 1
    except FileError as error:
        raise FileError(error.message, "replace it with --overwrite, or name another file with --out") from error
    if not same:
        other = f"holds {held} views of each training image, not {views}"
        if held == views:
            other = "was made by another version of hsal" if views == 1 else "holds views made with the other value of --mirror"
        raise FileError(f"{out} {other}", "replace it with --overwrite, or name another file with --out")
    return True


def _check_room(out: Path, size: int) -> None:
    partial = partial_of(out)
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


@contextlib.contextmanager
def _volumes_of(features: Path, scenes: SceneFile, backbone: LoadedBackbone, saliency: SaliencyModel, out: Path) -> Iterator[FeatureFile]:
    """Opens the feature file whose volumes are to be copied."""
    if saliency.name == "activation":
        raise UsageError("saliency = activation is computed from unrounded volumes, not from a file's", "leave --volumes-from out")
    if features.resolve() == out.resolve():
        raise UsageError(f"volumes_from = {features} is the file to write", "name another file with --out")
    with open_features(features) as file:
        check_match(file, scenes.digest, backbone.digest)
        model = backbone.model
        found = file.volume_shape, file.input_size
        wanted = (model.channels + model.fine, model.resolution, model.resolution), model.input_size
        if found != wanted:
            (shape, size), (own, own_size) = (("x".join(map(str, shape)), size) for shape, size in (found, wanted))
            raise FileError(
                f"the volumes of {features} are {shape} at {size} px, those to be written {own} at {own_size} px",
                "give the --resolution that they were computed with, or leave --volumes-from out",
            )
        yield file


def _fill(
    writer: FeatureWriter | None,
    starts: dict[str, int],
    scenes: SceneFile | ViewedScenes,
    backbone: LoadedBackbone,
    saliency: SaliencyModel,
    copied: FeatureFile | None,
    batch_size: int,
    device: torch.device,
    reporter: Reporter,
) -> None:
    """Computes what is missing: this worker every so many-th batch, cut where a single process would cut it. Worker 0 has the writer."""
    own, _ = distributed.current(), backbone.for_inference  # made before the clock of the progress runs
    with reporter.track("precompute", len(scenes), "images", sum(starts.values())) as advance, torch.inference_mode():
        for name, first in starts.items():
            split = scenes.split(name)
            batches = [range(start, min(start + batch_size, len(split))) for start in range(first, len(split), batch_size)]
            read = _read_ahead(split, batches[own.rank :: own.size], device)
            for place in range(0, len(batches), own.size):
                if signal := distributed.all_reduce_max(reporter.stop_signal):
                    raise Interrupted("stopped on request", AGAIN, signal)
                together = batches[place : place + own.size]
                found = None
                if own.rank < len(together):
                    rows, images = together[own.rank], next(read).to(device, non_blocking=True)
                    if copied is None:
                        volumes = backbone.volumes(to_input(images, backbone.model.input_size))
                    else:
                        volumes = copied.maps(name, slice(rows.start, rows.stop))[0].to(device)
                    found = as_features(images, volumes, backbone.model, saliency, [f"{name}/{row}" for row in rows])
                for rows, parts in zip(together, distributed.gather(found, list(map(len, together))), strict=False):
                    writer.put(name, rows.start, *parts)
                advance(sum(map(len, together)))


def as_features(
    images: Tensor, volumes: Tensor, model: ActivationModel, saliency: SaliencyModel, names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Volumes (B, C + fine, h, w) of any float type, which are overwritten, and raw saliency maps as the feature file holds them.

    Args:
        images: uint8 (B, H, W) or (B, H, W, 3).
        model: gave the volumes.
        names: of each image, for the saliency model.

    Returns:
        volumes: float16 (B, C + fine, h, w), contiguous; saliency: float32 (B, h, w), with a finer stage (B, 2h, 2w), of
            activations before they were rounded.
    """
    # Volumes that are not finite are refused by the maps they give; a model that does not read them must show them too.
    maps = saliency(images, seen_by_saliency(volumes, model), names) + 0 * volumes.amax((1, 2, 3)).float()[:, None, None]
    return volumes.clamp_(max=LARGEST_HALF).half().contiguous(), maps


def _read_ahead(split: SceneSplit | Views, batches: Sequence[range], device: torch.device) -> Iterator[Tensor]:
    """The images of batches, read in the background so that the forward pass never waits for the disk."""

    def read(rows: range) -> Tensor:
        images = torch.from_numpy(split.read(rows.start, rows.stop))
        return images.pin_memory() if device.type == "cuda" else images

    with ThreadPoolExecutor(1) as reader:
        yield from in_order(reader, read, batches, AHEAD)
