"""Saliency models: where an image stands out, a map of as many cells as the volume has (section 3, "Saliency Model").

The paper's is the activation model's own activity. Section 5.2 names its limits, so others can take its place: Itti, Koch and Niebur's
(itti.py), the spectral residual (spectral.py), a centre prior, maps from files (files.py), and a user's own (`register_saliency`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.features.saliency.cells import to_cells
from hsal_cli.features.settings import SALIENCY_MODELS, saliency_kind
from hsal_cli.registry import T, digest_of_part
from hsal_cli.vision.devices import on_host
from hsal_cli.vision.images import to_input

if TYPE_CHECKING:
    import numpy as np

    from hsal_cli.vision.backbone import ActivationModel, LoadedBackbone

PAPER_SIDE = 7  # cells along a side of the paper's maps
CENTER_SPREAD = 0.25  # standard deviation of the centre prior, in sides of the image


class SaliencyModel(Protocol):
    """What every saliency model is.

    Attributes:
        name: how `--saliency` spells it.
        digest: tells models apart: the name, or for files "file:" and a sha256 of what they hold. Features carry it.
    """

    name: str

    @property
    def digest(self) -> str: ...

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        """Raw saliency maps, which the policy scales to [0, 1] itself.

        Args:
            images: uint8 (B, H, W) or (B, H, W, 3).
            volumes: (B, C, h, w), their activations, on the same device.
            names: of each image: "SPLIT/ROW" in a scene file, else its path; only maps from files look at it.

        Returns:
            (B, h, w) float32, >= 0.

        Raises:
            FileError: a map from a file is missing or unusable.
        """


def saliency_model(name: str) -> SaliencyModel:
    """The saliency model of a `--saliency` value.

    Raises:
        UsageError: there is none of that name.
        FileError: file:PATH, and nothing is there.
    """
    kind = saliency_kind(name)
    if kind == "itti":
        from hsal_cli.features.saliency.itti import IttiSaliency

        return IttiSaliency()
    if kind == "spectral-residual":
        from hsal_cli.features.saliency.spectral import SpectralResidual

        return SpectralResidual()
    if kind == "file":
        from hsal_cli.features.saliency.files import FileSaliency

        return FileSaliency(Path(name.partition(":")[2]).expanduser())
    if kind in ("center", "activation"):
        return CenterPrior() if kind == "center" else ActivationSaliency()
    return OwnSaliency(kind, SALIENCY_MODELS.get(kind))


def register_saliency(name: str) -> Callable[[T], T]:
    """A decorator that makes a saliency model of your own known to `--saliency NAME`, and to everything that takes such a name.

    It stands over a function `(images, volumes) -> maps`, or over a class whose instances are called so and which is made without
    arguments, once:
        images: uint8 (B, H, W) or (B, H, W, 3).
        volumes: float (B, C, h, w), the activation model's volumes of these images, on the same device.
        maps: (B, rows, columns), at least 0; of any size, since they are averaged over the h x w cells.

    On the command line the file that it stands in is named by HSAL_PLUGINS, or its package has an entry point in the group
    `hsal.saliency`. Features remember a digest of that file, so that those of another version of it are refused.

    Args:
        name: lower-case letters, digits, - and _.

    Raises:
        UsageError: another kind of name, or one that hsal has itself.
    """
    return SALIENCY_MODELS.register(name)


def activation_saliency(volumes: Tensor) -> Tensor:
    """The raw saliency maps (B, h, w), float32, >= 0, of volumes (B, C, h, w): F(V) = sum_c V_c^2 (section 5, "Implementation Details").

    Summed in float32, since squares of half-precision activations overflow.
    """
    return volumes.float().square().sum(dim=1)


def seen_by_saliency(volumes: Tensor, model: ActivationModel) -> Tensor:
    """What a saliency model is shown of a model's volumes (B, C + fine, h, w): themselves, (B, C, h, w), or their finer stage,
    (B, fine / 4, 2h, 2w), float32, as active as the volume is.

    An earlier stage answers to any edge, and to a background as to an object: it tells where within a cell something is, not whether.
    So its energy, smoothed over cells, is made that of the volume.
    """
    volume, behind = volumes[:, : model.channels], volumes[:, model.channels :]
    if not model.fine or model.fine_side != 2:
        return volume
    stage = F.pixel_shuffle(behind, 2).float()
    own = F.avg_pool2d(activation_saliency(stage)[:, None], 2)
    wanted, own = (F.interpolate(part, scale_factor=2, mode="bilinear") for part in (activation_saliency(volume)[:, None], own))
    return stage * (wanted / own.clamp(min=torch.finfo(own.dtype).eps)).sqrt()


class ActivationSaliency:
    """The paper's model: how active the activation model is at each cell."""

    name = digest = "activation"

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        return activation_saliency(volumes)


class CenterPrior:
    """The control that looks at no image: a Gaussian in the middle, where photographers put things."""

    name = digest = "center"

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        down, across = (
            torch.exp(-(((torch.arange(cells, device=volumes.device) + 0.5) / cells - 0.5) ** 2) / (2 * CENTER_SPREAD**2))
            for cells in volumes.shape[2:]
        )
        return (down[:, None] * across).expand(len(volumes), -1, -1).contiguous()


class OwnSaliency:
    """A model that was registered under a name, a function or a class, as a `SaliencyModel`."""

    def __init__(self, name: str, part: Any):
        self.name = name
        self.digest = f"{name}:{digest_of_part(part)}"
        made: Any = part() if inspect.isclass(part) else part
        self._model: Callable[[Tensor, Tensor], Tensor] = made

    def __call__(self, images: Tensor, volumes: Tensor, names: Sequence[str]) -> Tensor:
        maps = self._model(images, volumes)
        if not isinstance(maps, Tensor) or maps.dim() != 3 or len(maps) != len(images) or 0 in maps.shape:
            found = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else f"type {type(maps).__name__}"
            raise UsageError(f"saliency model {self.name} gave maps of {found}", f"return a tensor ({len(images)}, rows, columns)")
        maps = maps.float()
        if not maps.isfinite().all() or maps.min() < 0:
            raise UsageError(f"saliency model {self.name} gave values that are negative or not finite", "return numbers from 0 up")
        height, width = volumes.shape[2:]
        return (maps if maps.shape[1:] == (height, width) else to_cells(maps, (height, width))).to(volumes.device)


def maps_of_image(
    image: Tensor, name: str, models: Sequence[SaliencyModel], backbone: LoadedBackbone | None = None
) -> dict[str, np.ndarray]:
    """The maps of one picture, uint8 (1, H, W, 3) of any size and of that path, by several models.

    Args:
        backbone: the activation model, whose cells all maps have; None: 7 x 7 cells, and no "activation" among the models.

    Returns:
        Name of the model -> (h, w) float64, raw.
    """
    if backbone is None:
        volumes = torch.zeros(1, 1, PAPER_SIDE, PAPER_SIDE)
    else:
        image = image.to(next(backbone.model.parameters()).device)
        volumes = backbone.volumes(to_input(image, backbone.model.input_size))
    return {model.name: on_host(model(image, volumes, [name])[0]).numpy() for model in models}
