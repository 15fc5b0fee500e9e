"""Looking at images: a greedy roll-out of a policy on pictures.

A direct baseline (`train --objective count` or `set`) names what is in pictures here too, and looks nowhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.models.seen import Look, LookStep
from hsal_cli.policy.episode import Episode, with_shift
from hsal_cli.policy.hsal import HSAL

if TYPE_CHECKING:
    from PIL.Image import Image

    from hsal_cli.scenes.street.frames import Finder
    from hsal_cli.vision.backbone import LoadedBackbone

BATCH = 64  # images a forward pass
AT_ONCE = 32_000_000  # px of image files that are in memory at once, unless one has more
STOP = "stop"  # what the label that ends an episode is called


def look(
    images: Sequence[torch.Tensor],
    backbone: LoadedBackbone,
    policy: LoadedPolicy,
    max_steps: int | None = None,
    names: Sequence[str | Path] | None = None,
    places: Sequence[str] | None = None,
    finder: Finder | None = None,
) -> list[Look]:
    """Shows images to a policy, or to a direct baseline.

    Args:
        images: uint8 tensors (H, W), (H, W, 3) or (1, H, W, 3), of any size.
        backbone: the one the policy was trained with (see `load.find_backbone`), on the same device.
        policy: a loaded policy.
        max_steps: cap on meta-steps; None: the policy's.
        names: one an image; None: their numbers from 1.
        places: where each image stands, "SPLIT/ROW" in a scene file, by which maps from files are found; None: the names.
        finder: finds the region of each image that the policy is shown; None: it is shown the whole image.

    Raises:
        UsageError: the meta-steps of a direct baseline, which takes none, are to be capped or stopped; or the cap or the probability of
            stop is out of range.
    """
    from PIL import Image

    from hsal_cli.vision.images import to_input

    if not isinstance(policy.policy, HSAL) and (max_steps, policy.stop_threshold) != (None, None):
        raise UsageError("a direct baseline takes no steps, so there are none to cap or to stop", "leave the cap and the threshold out")
    if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
        raise UsageError(f"there is no cap of {max_steps!r} meta-steps", "take a whole number from 1 on")
    if policy.stop_threshold is not None and not 0 <= policy.stop_threshold <= 1:
        raise UsageError(f"stop cannot have a probability of {policy.stop_threshold!r}", "take a threshold from 0 to 1")
    device = next(policy.policy.parameters()).device
    pad = policy.meta.fit == "pad"  # as the images of training were
    called = [str(number + 1) for number in range(len(images))] if names is None else [str(name) for name in names]
    standing = called if places is None else places
    looks = []
    for start in range(0, len(images), BATCH):
        whole = [as_rgb(image) for image in images[start : start + BATCH]]
        frames: list[Any] = [None] * len(whole)
        shown = whole
        if finder is not None:
            frames = [frame for _, frame in finder([Image.fromarray(picture.numpy()) for picture in whole])]
            shown = [picture[y0:y1, x0:x1] for picture, (x0, y0, x1, y1) in zip(whole, frames, strict=True)]
        batch, within = zip(*(padded(picture) if pad else (picture, None) for picture in shown), strict=True)
        part = slice(start, start + BATCH)
        with torch.inference_mode():
            inputs = torch.cat([to_input(picture[None].to(device), backbone.model.input_size) for picture in batch])
            if isinstance(policy.policy, HSAL):
                found = _rolled_out(policy.policy, policy, backbone, inputs, batch, max_steps, called[part], standing[part])
            else:
                counts = policy.policy.predict(backbone.volumes(inputs)).tolist()
                every = [dict(zip(policy.classes, row, strict=True)) for row in counts]
                parts = zip(called[part], batch, every, strict=True)
                found = [Look(name, picture.numpy(), [], math.nan, counts=named) for name, picture, named in parts]
        for place, seen in enumerate(found):
            seen = dataclasses.replace(seen, within=within[place])
            looks.append(seen if frames[place] is None else _in_whole(seen, whole[place].numpy(), frames[place]))
    return looks


def _rolled_out(
    policy: HSAL,
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    inputs: torch.Tensor,
    batch: Sequence[torch.Tensor],
    max_steps: int | None,
    names: Sequence[str],
    places: Sequence[str],
) -> list[Look]:
    """The looks of a policy at a batch of pictures (H, W, 3), which `inputs` (B, 3, s, s) are made of; the rest as in `look`."""
    from hsal_cli.features.saliency.models import saliency_model, seen_by_saliency

    saliency, closer = saliency_model(loaded.meta.saliency), None
    if policy.variant.glimpse == "window":  # computed where it looks alone
        volumes, closer = backbone.first_look(inputs)
    else:
        volumes = backbone.volumes(inputs)
    # One by one: pictures may differ in size.
    pictures = zip(batch, seen_by_saliency(volumes, backbone.model)[:, None], places, strict=True)
    maps = torch.cat([saliency(picture[None].to(inputs.device), volume, [place]) for picture, volume, place in pictures])
    episode = policy(volumes, maps, choose=loaded.choose, max_steps=max_steps or loaded.max_steps, closer=closer)
    unlike, temperature = loaded.trust.unlike(volumes[:, : policy.channels], maps), loaded.trust.temperature
    looks = []
    for place, (name, picture) in enumerate(zip(names, batch, strict=True)):
        seen = look_at(episode, place, name, picture.numpy(), loaded.classes, temperature, policy.variant.reads)
        looks.append(dataclasses.replace(seen, unlike=unlike[place]))
    return looks


def look_at_files(
    paths: Sequence[Path], backbone: LoadedBackbone, policy: LoadedPolicy, max_steps: int | None = None, finder: Finder | None = None
) -> Iterator[tuple[Path, Look | HsalError]]:
    """Shows image files to a policy, a few at a time, so that there may be any number of them.

    Args:
        paths, backbone, policy, max_steps: as in `look`.
        finder: as in `look`.

    Yields:
        (path, look) in the order of the paths; in place of the look of a file that cannot be read, the error.
    """
    from hsal_cli.vision.images import from_pil

    for part in _read(paths):
        whole = [(path, image) for path, image in part if not isinstance(image, HsalError)]
        shown = [from_pil(image) for _, image in whole]
        looks = iter(look(shown, backbone, policy, max_steps, [path for path, _ in whole], finder=finder))
        for path, image in part:
            yield path, image if isinstance(image, HsalError) else next(looks)


def _read(paths: Sequence[Path]) -> Iterator[list[tuple[Path, Image | HsalError]]]:
    """Image files, or what is wrong with them, as many at a time as a forward pass takes and memory holds."""
    from hsal_cli.vision.images import read_image

    part: list[tuple[Path, Image | HsalError]] = []
    pixels = 0
    for path in paths:
        try:
            image = read_image(path)
            pixels += image.width * image.height
            part.append((path, image))
        except HsalError as error:
            part.append((path, error))
        if len(part) == BATCH or pixels >= AT_ONCE:
            yield part
            part, pixels = [], 0
    if part:
        yield part


def _in_whole(seen: Look, image: np.ndarray, frame: tuple[int, int, int, int]) -> Look:
    """The look at a frame that was cut out of an image, and perhaps padded, as one at the whole image."""
    (height, width), (left, top) = seen.image.shape[:2], (seen.within or (0, 0))[:2]
    corner = frame[0] - left, frame[1] - top
    return dataclasses.replace(seen, image=image, region=(*corner, corner[0] + width, corner[1] + height), within=None)


def look_at_scenes(
    scenes: Path, split: str, rows: Sequence[int], backbone: LoadedBackbone, policy: LoadedPolicy, max_steps: int | None = None
) -> list[tuple[Look, list[str]]]:
    """Shows images of a scene file to a policy.

    Returns:
        (look, names of the true labels) for each row.

    Raises:
        FileError: the file is unusable or has no such split, or the policy takes saliency maps from files made for other scenes.
        UsageError: it has no such row.
    """
    from hsal_cli.features.settings import kind_in
    from hsal_cli.scenes.scene_file import open_scenes

    with open_scenes(scenes) as file:
        if split not in file.splits:
            raise FileError(f"{scenes} has no split {split}", f"take one of: {', '.join(file.splits)}")
        saliency = policy.meta.saliency
        if kind_in(saliency) == "file" and file.digest != policy.meta.scenes_digest:
            raise FileError(f"the policy takes its maps from {saliency}, made for other scenes than {scenes}", "name its own scene file")
        part = file.split(split)
        wrong = [row for row in rows if not 0 <= row < len(part)]
        if wrong:
            raise UsageError(f"{scenes} has no row {wrong[0]} in split {split}", f"take rows from 0 to {len(part) - 1}")
        images = [torch.from_numpy(part.read(row, row + 1)) for row in rows]
        truths = [[file.classes[label] for label in part.labels[row] if label >= 0] for row in rows]
    images = [image if image.dim() == 4 else image[0] for image in images]
    names, places = [f"{split} image {row}" for row in rows], [f"{split}/{row}" for row in rows]
    return list(zip(look(images, backbone, policy, max_steps, names, places), truths, strict=True))


def look_at(
    episode: Episode, place: int, name: str, image: np.ndarray, classes: list[str], temperature: float = 1.0, reads: int = 1
) -> Look:
    """The part of an episode that one image (uint8 (H, W, 3)), at a place in the batch, has.

    Args:
        classes: K names.
        temperature: that probabilities are taken at.
        reads: see `LookStep`.
    """
    from hsal_cli.vision.devices import on_host

    scores = with_shift(episode.logits[:, place], episode.stop_shift[:, place]).detach()
    probabilities = on_host((scores / temperature).softmax(-1))  # (T, K+1)
    width = episode.masks.shape[-1]
    names = [*classes, STOP]
    steps = []
    for step in range(int(episode.lengths[place])):
        label = int(episode.labels[step, place])
        parts = (episode.masks, episode.priority, episode.saliency, episode.gaussians)
        mask, priority, saliency, gaussians = (on_host(part[step, place]).numpy() for part in parts)
        cells = [divmod(cell, width) for cell in episode.glimpses[step, place].tolist()]
        sure = list(zip(names, probabilities[step].tolist(), strict=True))
        steps.append(LookStep(names[label], sure[label][1], cells, mask, priority, saliency, gaussians, sure, reads))
    stopped = label == len(classes)
    return Look(name, image, steps[:-1] if stopped else steps, sure[-1][1], steps[-1] if stopped else None)


def padded(picture: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int, int] | None]:
    """A picture (H, W, 3) in the middle of a square of its mean colour, as `gather.fitted` pads it, and where; None: it is one itself."""
    height, width = picture.shape[:2]
    side = max(height, width)
    if height == width:
        return picture, None
    square = picture.float().mean((0, 1)).round().to(picture.dtype).expand(side, side, 3).clone()
    left, top = (side - width) // 2, (side - height) // 2
    square[top : top + height, left : left + width] = picture
    return square, (left, top, left + width, top + height)


def as_rgb(image: torch.Tensor) -> torch.Tensor:
    """A picture (H, W), (H, W, 3) or (1, H, W, 3) as (H, W, 3) on the CPU; grey is repeated."""
    image = image.cpu()
    image = image[0] if image.dim() == 4 else image
    return image.unsqueeze(-1).expand(-1, -1, 3) if image.dim() == 2 else image
