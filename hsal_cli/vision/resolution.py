"""How fine volumes are: fewer strides, or a finer stage behind the volume (`hsal precompute --resolution`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from hsal_cli.errors import UsageError
from hsal_cli.vision.backbone import DOUBLE, DOUBLE_FINE, FINE, WINDOW, ActivationModel, LoadedBackbone
from hsal_cli.vision.surgery import PROBED, probe, set_stride, twin, watched


def finer(model: ActivationModel, resolution: int) -> ActivationModel:
    """A copy with finer volumes from the same weights and images, without training (`precompute --resolution`).

    The last strides are taken out, and every convolution behind one is dilated, so that each weight sees the image at the scale it was
    trained for: at every second cell (every fourth, with two strides out) the volume is that of `model`. The first of those cells is the
    first one; with TensorFlow's padding, as in timm's tf_ networks, it is the second. Networks that average whole maps, such as
    squeeze-and-excitation, give it about.

    Args:
        model: the trained network.
        resolution: cells along a side of the new volume; as many as the model's own returns the model itself.

    Raises:
        UsageError: the model cannot give so many cells.
    """
    if resolution == model.resolution:
        return model
    possible = [model.resolution * times for times in (2, 4, 8) if model.stride // times >= 4]
    if resolution not in possible:
        raise UsageError(
            f"resolution = {resolution} is not to be had from a backbone of {model.resolution} x {model.resolution} cells",
            f"take one of: {', '.join(map(str, [model.resolution, *possible]))}",
        )
    model = twin(model)
    before, model.stride = model.stride, model.input_size // resolution
    set_stride(model, before, model.stride, dilate=True)
    model.resolution = resolution
    return model


def with_finer_stage(model: ActivationModel) -> ActivationModel:
    """A copy that gives, behind each column of the volume, what the last stage of twice its cells has there (`--resolution fine`).

    Section 5.2: "lower-level activations at attended areas". The volume itself stays as it is. A stage is what no block that goes from
    twice to once the cells has within: of a ResNet layer3, or layer2 where layer4 keeps its resolution.

    Raises:
        UsageError: no stage has twice the cells.
    """
    model = twin(model)
    names = {module: name for name, module in model.named_modules()}
    cells, found, halving = PROBED // model.stride, [], []

    def hear(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        before, after = (side.shape[-1] if isinstance(side, Tensor) and side.dim() == 4 else 0 for side in (*inputs[:1], output))
        if after == 2 * cells:
            found.append((names[module], output.shape[1]))
        elif before == 2 * cells and after == cells:
            halving.append(names[module] + ".")

    with watched(model, nn.Module, hear):
        probe(model)
    stages = [stage for stage in found if not stage[0].startswith(tuple(halving))]
    if not stages:
        raise UsageError(
            f"{model.arch} has no stage of {2 * model.resolution} x {2 * model.resolution} cells",
            "take the volume alone: hsal precompute --resolution own, and hsal train --variant columns",
        )
    model._finer_stage, channels = stages[-1]
    model.fine = 4 * channels
    return model


def with_windows(model: ActivationModel) -> ActivationModel:
    """A copy that looks twice (`--resolution window`): at whole images of half the size, by an early stage, and closer at each cell.

    The first look is the stage of `with_finer_stage`, which at half the size has as many cells as the volume; the closer one a window of
    the image at its full size, through the whole network. So what a glimpse reads is not computed before it is looked at.

    Raises:
        UsageError: no stage has twice the cells.
    """
    model = with_finer_stage(model)
    model.channels, model.fine, model.fine_side = model.fine // 4, model.channels, 1
    return model


def at_twice_the_size(model: ActivationModel) -> ActivationModel:
    """A copy that sees images at twice the size, by the same strides, so that there are twice the cells (`--resolution double`).

    Objects in it are as large in px as they were in training where they are half as large in the image.
    """
    model = twin(model)
    model.input_size, model.resolution = 2 * model.input_size, 2 * model.resolution
    return model


def at_resolution(backbone: LoadedBackbone, resolution: str | None) -> LoadedBackbone:
    """A backbone with the volumes of `precompute --resolution`, a number of cells or a name; None or "own": its own."""
    if resolution in (None, "own"):
        return backbone
    if resolution == DOUBLE_FINE:
        return at_resolution(at_resolution(backbone, DOUBLE), FINE)
    made = {FINE: with_finer_stage, WINDOW: with_windows, DOUBLE: at_twice_the_size}.get(resolution)
    return dataclasses.replace(backbone, model=made(backbone.model) if made else finer(backbone.model, int(resolution)))


def giving(backbone: LoadedBackbone, shape: tuple[int, int, int], input_size: int | None) -> LoadedBackbone:
    """A backbone whose volumes have the shape (C, h, w) of those that a policy was trained on, of images of that size, px, where known."""
    if input_size == 2 * backbone.model.input_size:
        return at_resolution(backbone, DOUBLE if shape[0] == backbone.model.channels else DOUBLE_FINE)
    if shape[0] == backbone.model.channels:
        return at_resolution(backbone, str(shape[1]))
    finest = at_resolution(backbone, FINE)
    if shape[0] == finest.model.channels + finest.model.fine:
        return finest
    closer = at_resolution(backbone, WINDOW)
    return closer if shape[0] == closer.model.channels + closer.model.fine else finest
