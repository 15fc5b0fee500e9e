"""Saliency models: where an image stands out, a map of as many cells as the volume has (section 3, "Saliency Model").

The paper's is the activation model's own activity. Section 5.2 names its limits, so others can take its place: Itti, Koch and Niebur's
(`saliency_itti`), the spectral residual (`saliency_spectral`), a centre prior, and maps from files (`saliency_files`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from hsal_cli.features.settings import saliency_kind
from hsal_cli.vision.images import to_input

if TYPE_CHECKING:
    import numpy as np

    from hsal_cli.vision.backbone import LoadedBackbone

PAPER_SIDE = 7  # cells along a side of the paper's maps
CENTER_SPREAD = 0.25  # standard deviation of the centre prior, in sides of the image


class SaliencyModel(Protocol):
    """What every saliency model is.

    Attributes:
        name: how `--saliency` spells it.
        digest: tells models apart: the name, or for files "file:" and a sha256 of what they hold. Features carry it.
    """

    name: str
    digest: str

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
    return CenterPrior() if kind == "center" else ActivationSaliency()


def activation_saliency(volumes: Tensor) -> Tensor:
    """The raw saliency map of each volume, F(V) = sum_c V_c^2 (section 5, "Implementation Details").

    Args:
        volumes: (B, C, h, w), any float type.

    Returns:
        (B, h, w) float32, >= 0; summed in float32, since squares of half-precision activations overflow.
    """
    return volumes.float().square().sum(dim=1)


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


def maps_of_image(
    image: Tensor, name: str, models: Sequence[SaliencyModel], backbone: LoadedBackbone | None = None
) -> dict[str, np.ndarray]:
    """The maps of one picture by several models.

    Args:
        image: uint8 (1, H, W, 3), of any size.
        name: its path.
        models: which.
        backbone: the activation model, whose cells all maps have; None: 7 x 7 cells, and no "activation" among the models.

    Returns:
        Name of the model -> (h, w) float64, raw.
    """
    if backbone is None:
        volumes = torch.zeros(1, 1, PAPER_SIDE, PAPER_SIDE)
    else:
        image = image.to(next(backbone.model.parameters()).device)
        with torch.inference_mode():
            volumes = backbone.model(to_input(image, backbone.model.input_size)).float()
    return {model.name: model(image, volumes, [name])[0].double().cpu().numpy() for model in models}
