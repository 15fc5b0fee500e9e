"""A trained policy, or a direct baseline, with the backbone that it was trained on, to be called with images: what `hsal.load` gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.features.settings import LookSettings
from hsal_cli.models.load import LoadedPolicy, find_backbone, load_model
from hsal_cli.models.look import look
from hsal_cli.models.seen import Look
from hsal_cli.models.shipped import BACKBONE, LOOK, load_shipped, look_beside, named_in, part_of
from hsal_cli.policy.hsal import HSAL
from hsal_cli.vision.backbone import ActivationModel, LoadedBackbone, load_backbone
from hsal_cli.vision.devices import choose_device
from hsal_cli.vision.images import from_pil, read_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from hsal_cli.scenes.street.frames import Finder

    Picture: TypeAlias = str | Path | Image | np.ndarray[Any, Any] | Tensor
    Several: TypeAlias = list[Any] | tuple[Any, ...]  # of pictures


@dataclasses.dataclass(frozen=True)
class Model:
    """Names every object in an image, repeats included, and tells where it looked; a direct baseline looks nowhere.

    Attributes:
        loaded: the policy, or direct baseline, as it was stored, with what its checkpoint says of it.
        activation: the backbone as it was stored.
        finder: finds the region of an image that the policy sees, enlarged; None: it sees the whole image.
    """

    loaded: LoadedPolicy = dataclasses.field(repr=False)
    activation: LoadedBackbone = dataclasses.field(repr=False)
    finder: Finder | None = None

    @property
    def policy(self) -> HSAL:
        """The policy, an `nn.Module`: volumes (B, C, h, w) and saliency maps (B, h, w) in, an `Episode` out.

        Raises:
            UsageError: it is a direct baseline.
        """
        policy = self.loaded.policy
        if not isinstance(policy, HSAL):
            raise UsageError("a direct baseline has no policy", "its network, an nn.Module, is model.loaded.policy")
        return policy

    @property
    def backbone(self) -> ActivationModel:
        """The activation model, an `nn.Module`: normalised images (B, 3, s, s) in, volumes (B, C, h, w) out."""
        return self.activation.model

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.loaded.classes

    @overload
    def __call__(self, images: Picture, max_steps: int | None = None, stop_threshold: float | None = None) -> Look: ...
    @overload
    def __call__(self, images: Several, max_steps: int | None = None, stop_threshold: float | None = None) -> list[Look]: ...
    def __call__(self, images: Picture | Several, max_steps: int | None = None, stop_threshold: float | None = None) -> Look | list[Look]:
        """Shows images to the policy, which names the likeliest label at each meta-step until it names stop, or to a direct baseline.

        Args:
            images: a path, a PIL image, or a uint8 array or tensor (H, W), (H, W, 1) or (H, W, 3), of any size; or a list of such.
            max_steps: cap on meta-steps; None: most labels seen in training plus 2.
            stop_threshold: stop is named once its probability, in [0, 1], exceeds this; None: where it is likelier than each label.

        Returns:
            What it did with the image; for a list, one such result an image.

        Raises:
            UsageError: something else than an image, or a direct baseline, which takes no meta-steps, is to cap or to stop them.
            FileError: an image that cannot be read.
        """
        pictures = images if isinstance(images, (list, tuple)) else [images]
        names = [str(one) if isinstance(one, (str, Path)) else str(number) for number, one in enumerate(pictures, 1)]
        loaded = dataclasses.replace(self.loaded, stop_threshold=stop_threshold)
        found = look([_pixels(one) for one in pictures], self.activation, loaded, max_steps, names, finder=self.finder)
        return found if isinstance(images, (list, tuple)) else found[0]


def load(name: str | Path, device: str = "auto", frame: str | None = None, look: str | Path | None = None) -> Model:
    """Loads a trained policy, or a direct baseline (`train --objective count` or `set`), with its backbone; every file is verified.

    Args:
        name: a run of `hsal train`, or one of its checkpoints; a folder that `hsal export` wrote, or FOLDER/NAME for one policy of several
            in it; or the name of a policy that comes with hsal, such as "mnist-multiset".
        device: auto (a GPU where there is one), cpu, cuda, cuda:N or mps.
        frame: what it sees of an image: "image", the whole of it; "found", the region that a first look finds, enlarged; None: what it was
            trained on, "found" also where that was the number, cut out by its boxes.
        look: the network that looks first: a run, a checkpoint or an exported folder; None: the one that came with the policy, else its
            own backbone.

    Raises:
        UsageError: there is no such policy, no such device, or no such frame.
        FileError: a file is missing or damaged, or the backbone is nowhere.
    """
    place, exported = Path(name).expanduser(), named_in(name)
    chosen, first = choose_device(device), LookSettings(look=None if look is None else str(look))
    if exported is None and place.is_dir():
        loaded = load_model(place, device=chosen)
        return framed(loaded, find_backbone(loaded, chosen), frame, first)
    shipped = load_shipped(exported or str(name), chosen, counts=True)
    return framed(shipped.policy, shipped.backbone, frame, first)


def framed(loaded: LoadedPolicy, backbone: LoadedBackbone, frame: str | None, first: LookSettings | None = None) -> Model:
    """A policy that sees of an image what `load` says.

    Args:
        first: how a first look finds a region. Where no network is named, it is the one that came with the policy, else its backbone.

    Raises:
        UsageError: there is no such frame; FileError: the network that looks first is nowhere, or damaged.
    """
    if frame not in (None, "image", "found"):
        raise UsageError(f"there is no frame {frame!r}", "take image or found")
    if not sees_a_part(loaded, frame):
        return Model(loaded, backbone)
    first = first or LookSettings()
    place = look_beside(loaded.checkpoint.path) if first.look is None else Path(first.look).expanduser()
    return Model(loaded, backbone, finder_of(place, first, backbone))


def sees_a_part(loaded: LoadedPolicy, frame: str | None) -> bool:
    """Whether a policy is shown the region that a first look finds in an image: where that is asked for, or what it was trained on."""
    return frame == "found" or (frame is None and loaded.meta.frame != "image")


def finder_of(place: Path | None, first: LookSettings, own: LoadedBackbone | None = None) -> Finder:
    """What finds the region of an image.

    Args:
        place: the network that looks: a run, a checkpoint, or a folder that `hsal export` wrote; None: `own`.
        first: how.
        own: the backbone of a policy, on whose device the other looks too; None: on a GPU where there is one.
    """
    from hsal_cli.features.two_looks import TwoLooks

    if place is None:
        assert own is not None
        return TwoLooks(own, first)
    device = choose_device("auto") if own is None else own.model.fc.weight.device
    return TwoLooks(load_backbone(part_of(place, LOOK, BACKBONE), device=device), first)


def _pixels(image: Any) -> Tensor:
    """uint8 (H, W) or (H, W, 3)."""
    if isinstance(image, (str, Path)):
        return from_pil(read_image(Path(image)))[0]
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.array(image)) if image.dtype == np.uint8 else image
    elif hasattr(image, "convert"):
        return from_pil(image)[0]
    shape = tuple(getattr(image, "shape", ()))
    if isinstance(image, Tensor) and len(shape) == 3 and shape[2] == 1:  # a grey image of `Scenes`
        image, shape = image[..., 0], shape[:2]
    if (
        not isinstance(image, Tensor)
        or image.dtype != torch.uint8
        or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))
        or 0 in shape
    ):
        what = f"{image.dtype} of shape {shape}" if shape else type(image).__name__
        raise UsageError(f"an image of type {what} cannot be shown to a policy", "give a path, a PIL image, or uint8 (H, W) or (H, W, 3)")
    return image
