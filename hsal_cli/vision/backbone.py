"""The activation model, whose last feature maps are the volume V (section 3, "Activation Model"): a ResNet, or any network of timm.

A ResNet's parameters carry torchvision's names, so its weight files load as they are, and ours load there.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.vision.architectures import CHANNELS, RESNETS, check_architecture
from hsal_cli.vision.devices import forward_context
from hsal_cli.vision.images import MEAN, STD
from hsal_cli.vision.surgery import fused, probe, set_stride, watched
from hsal_cli.vision.timm_networks import normalisation, trunk_of

STRIDES = (32, 16, 8)
# Resolutions: the network's own cells, with a finer stage behind each; or cells of a first look at half the size, with a closer one behind.
FINE, WINDOW, DOUBLE, DOUBLE_FINE = "fine", "window", "double", "double-fine"
ACROSS = 2  # cells along a side of a window
MAKE_HINT = "make one with: hsal finetune"


def torchvision_resnet() -> ModuleType:
    """torchvision's module of ResNets.

    Raises:
        HsalError: torchvision is missing, or was built for another torch (its compiled operators are then not found).
    """
    try:
        import torchvision.models.resnet as resnet
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise HsalError(
            f"torch {_version('torch')} and torchvision {_version('torchvision')} do not match: {str(error).splitlines()[0]}",
            "install both together from one place: pip install --force-reinstall torch torchvision",
        ) from error
    return resnet


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


class _ReachedError(Exception):
    """A forward pass has come as far as it is wanted."""


class ActivationModel(nn.Module):
    """A network whose last feature maps are the volume.

    Where `input_size / resolution` is below the network's own stride, the last stages keep their resolution: their stride becomes 1.
    Dilated, the convolutions behind it reach as much further, so that every weight sees the image at the scale it was trained for: at every
    second cell (every fourth at stride 8) the volume is that of the strided network. Not dilated, a cell sees less of its neighbours, which
    suits a network that is trained from random weights: objects side by side mix less.

    Args:
        arch: "resnet34", "resnet18" or "timm:NAME". A network of timm is given images normalised as its weights know them, and a 1x1
            convolution, norm and ReLU behind it; where it has as many channels as wanted, the ReLU alone.
        classes: outputs of the linear classifier that fine-tuning trains.
        input_size: side of the square input that the model is meant for, px.
        resolution: cells along a side of the volume at that input; input_size / resolution is 32, 16 or 8.
        dilate: whether convolutions behind a removed stride are dilated.
        channels: of the volume; a ResNet has 512.

    Attributes:
        channels: of the volume, or of the first look.
        fine: channels behind those: of the finer stage that `with_finer_stage` puts there, or of the windows of `with_windows`; 0: none.
        fine_side: cells of the finer stage along a side of one of the volume; 1: windows.

    Raises:
        UsageError: no such network, or it cannot have that stride or those channels.
        HsalError: torchvision does not fit torch, or timm is not installed.
    """

    channels = CHANNELS
    _frozen: tuple[str, ...] = ()  # names of the layers that are not trained

    def __init__(self, arch: str, classes: int, input_size: int = 224, resolution: int = 7, dilate: bool = True, channels: int = CHANNELS):
        super().__init__()
        check_architecture(arch, channels)
        if input_size not in [stride * resolution for stride in STRIDES]:
            sizes = ", ".join(str(stride * resolution) for stride in STRIDES)
            raise UsageError(
                f"input_size = {input_size} px cannot give {resolution} x {resolution} cells", f"take an input_size of {sizes}"
            )
        self.arch, self.classes, self.input_size, self.resolution, self.channels = arch, classes, input_size, resolution, channels
        self.stride = input_size // resolution
        if arch in RESNETS:
            resnet = getattr(torchvision_resnet(), arch)(weights=None, num_classes=classes)
            self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
            self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
            self.fc = resnet.fc
            own = 32
        else:
            self.trunk = trunk_of(arch)
            width, own = self.trunk.feature_info.channels()[0], self.trunk.feature_info.reduction()[0]
            brought = (nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)) if width != channels else ()
            self.neck = nn.Sequential(*brought, nn.ReLU())
            self.fc = nn.Linear(channels, classes)
            # Stored with the weights, which hold whatever a later timm says.
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(arch))
            self.register_buffer("scale", torch.tensor(STD).view(3, 1, 1) / std)
            self.register_buffer("shift", (torch.tensor(MEAN).view(3, 1, 1) - mean) / std)
        self.fine, self.fine_side, self._finer_stage = 0, 2, ""
        set_stride(self, own, self.stride, dilate)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images to volumes, the activations after the last ReLU.

        Args:
            images: (B, 3, s, s), normalised as `images.to_input` does; any s that is a multiple of the stride.

        Returns:
            (B, C + fine, s / stride, s / stride), >= 0 in the first C channels; behind them, of each cell, the 2 x 2 cells of the finer
            stage, as `pixel_unshuffle` orders them, or its window.
        """
        if not self.fine:
            return self._volume(images)
        if self.windows:
            first = self.first_look(images)
            count, cells = len(images), first[0, 0].numel()
            rows, places = torch.arange(count).repeat_interleave(cells), torch.arange(cells).repeat(count)
            closer = self.look_closer(images, rows.to(images.device), places.to(images.device))
            return torch.cat([first, closer.view(count, *first.shape[2:], -1).permute(0, 3, 1, 2)], 1)
        stage: list[Tensor] = []
        hook = self.get_submodule(self._finer_stage).register_forward_hook(lambda module, inputs, output: stage.append(output))
        try:
            volume = self._volume(images)
        finally:
            hook.remove()
        return torch.cat([volume, F.pixel_unshuffle(stage[0], 2)], 1)

    @property
    def windows(self) -> bool:
        """Whether what is behind the first look is windows."""
        return self.fine > 0 and self.fine_side == 1

    def first_look(self, images: Tensor) -> Tensor:
        """Whole images at half their size, by the stage that then has as many cells as the volume (`with_windows`): (B, C, h, w)."""
        seen: list[Tensor] = []

        def reached(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append(output)
            raise _ReachedError  # what lies behind the stage is not computed, whatever the network is made of

        hook = self.get_submodule(self._finer_stage).register_forward_hook(reached)
        try:
            self._volume(F.avg_pool2d(images, 2))
        except _ReachedError:
            pass
        finally:
            hook.remove()
        return seen[0]

    def look_closer(self, images: Tensor, rows: Tensor, cells: Tensor) -> Tensor:
        """Windows of images (B, 3, s, s) around cells (n,) of those at rows (n,), through the whole network; its mean column, (n, fine).

        A window is `ACROSS` cells wide; past the border the image goes on as it ends.
        """
        around = F.pad(images, ((ACROSS - 1) * self.stride // 2,) * 4, mode="replicate")
        every = around.unfold(2, ACROSS * self.stride, self.stride).unfold(3, ACROSS * self.stride, self.stride)  # (B, 3, h, w, side, side)
        width = every.shape[3]
        return self._volume(every[rows, :, cells // width, cells % width]).mean((2, 3))

    def freeze(self, share: float) -> None:
        """A share of the convolutions, the first ones of a pass, keeps its weights, and the norms among them also their statistics."""
        layers: list[nn.Module] = []
        with watched(self, (nn.Conv2d, nn.BatchNorm2d), lambda module, *_: layers.append(module)):
            probe(self)
        convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        kept = convolutions[round(share * len(convolutions)) :]
        frozen = layers[: layers.index(kept[0])] if kept else layers
        for layer in layers:
            layer.requires_grad_(layer not in frozen)
        self._frozen = tuple(name for name, module in self.named_modules() if module in frozen)

    def train(self, mode: bool = True) -> Self:
        """As every module's, but for what is frozen, which stays as in evaluation."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self

    def _volume(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        if self.arch not in RESNETS:
            return self.neck(self.trunk(x * self.scale + self.shift)[-1])
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def classify(self, images: Tensor, regions: Tensor | None = None) -> Tensor:
        """Images to class logits: the volume's mean over the cells of a full image, and one linear layer.

        A crop, or a region, counts as a full image that is silent around it, so that all of them are on one scale.

        Args:
            images: (B, 3, s, s), as in `forward`.
            regions: (B, M, h, w), weights in [0, 1] of the cells that belong to each of M objects; None where one object has them all.

        Returns:
            (B, classes); with regions (B, M, classes).
        """
        return self.name(self.forward(images), regions)

    def name(self, volumes: Tensor, regions: Tensor | None = None) -> Tensor:
        """Volumes (B, C, h, w) to class logits, as `classify` does."""
        summed = volumes.sum(dim=(2, 3)) if regions is None else torch.einsum("bmhw,bchw->bmc", regions.to(volumes.dtype), volumes)
        return self.fc(summed / self.resolution**2)


@dataclasses.dataclass(frozen=True)
class BackboneMeta:
    """The "meta" of a checkpoint of a backbone.

    Attributes:
        arch: the network, as `ActivationModel` takes it.
        input_size: side of its images, px.
        resolution: cells along a side of its volumes.
        classes: names of the classes.
        dilate: whether a removed stride became dilation.
        weights: what it started from, such as imagenet.
        scenes_digest: of the scene file that it was trained on.
        channels: of its volumes.
    """

    arch: str
    input_size: int
    resolution: int
    classes: list[str]
    dilate: bool = True  # older checkpoints had no choice
    weights: str = ""
    scenes_digest: str | None = None
    channels: int = CHANNELS

    def __post_init__(self) -> None:
        check_architecture(self.arch, self.channels)
        if not self.classes or self.resolution < 1 or self.channels < 1:
            raise UsageError("there are no classes, or no cells", "train again")


class Windows:
    """The windows of images (B, 3, s, s), each computed when it is first asked for.

    Attributes:
        computed: how many there were.
    """

    def __init__(self, model: ActivationModel, images: Tensor):
        self._model, self._images, self._known = model, images, {}
        self.computed = 0

    def __call__(self, rows: Tensor | slice, cells: Tensor) -> Tensor:
        """Of the images at rows (n,), the window around a cell (n,) of each: (n, fine)."""
        places = list(zip(torch.arange(len(self._images))[rows].tolist(), cells.tolist(), strict=True))
        new = [place for place in dict.fromkeys(places) if place not in self._known]
        if new:
            of_rows, of_cells = (torch.tensor(part, device=cells.device) for part in zip(*new, strict=True))
            with torch.inference_mode(), forward_context(cells.device):
                found = self._model.look_closer(self._images, of_rows, of_cells).float()
            self._known |= dict(zip(new, found, strict=True))
            self.computed += len(new)
        return torch.stack([self._known[place] for place in places])


@dataclasses.dataclass(frozen=True)
class LoadedBackbone:
    """A fine-tuned activation model.

    Attributes:
        model: in evaluation mode, on the device asked for.
        meta: what its checkpoint says of it.
        digest: sha256 of its weights; by it features name their backbone.
        path: the checkpoint's folder.
        note: which damaged checkpoint was passed over, else "".
    """

    model: ActivationModel
    meta: BackboneMeta
    digest: str
    path: Path
    note: str = ""

    @functools.cached_property
    def for_inference(self) -> ActivationModel:
        """The model with its BatchNorms folded, made when it is first asked for, which takes a fraction of a second."""
        return fused(self.model)

    def volumes(self, images: Tensor) -> Tensor:
        """The one way from images to volumes, whoever asks: BatchNorms folded, in the precision that gains here (see `forward_context`).

        Args:
            images: (B, 3, s, s), as `images.to_input` gives them, on the model's device.

        Returns:
            (B, C + fine, h, w) float32, without gradients.
        """
        model = self.for_inference  # not made in the block, where it would be tried out in half precision
        with torch.inference_mode(), forward_context(images.device):
            return model(images).float()

    def first_look(self, images: Tensor) -> tuple[Tensor, Windows]:
        """What `volumes` gives without its windows, and those, to be computed where they are looked at."""
        model = self.for_inference
        with torch.inference_mode(), forward_context(images.device):
            return model.first_look(images).float(), Windows(model, images)

    @property
    def refined(self) -> str | None:
        """The `precompute --resolution` that gives this model's volumes; None where they are the fine-tuned network's own."""
        side = self.model.resolution
        twice = self.model.input_size > self.meta.input_size
        if self.model.fine:
            return WINDOW if self.model.windows else DOUBLE_FINE if twice else FINE
        if twice:
            return DOUBLE
        return None if side == self.meta.resolution else str(side)


def load_backbone(path: Path, which: str = "best", device: torch.device | str = "cpu") -> LoadedBackbone:
    """Loads a fine-tuned activation model.

    Args:
        path: a run folder, or the folder of one checkpoint.
        which: "best" or "last", for a run folder.
        device: where the model goes.

    Raises:
        FileError: missing, damaged, not a backbone, or weights that do not fit what the checkpoint says of itself.
    """
    if not path.is_dir():
        raise FileError(f"there is no backbone at {path}: {'it is not a folder' if path.exists() else 'it is missing'}", MAKE_HINT)
    checkpoint = checkpoints.load_from(path, which, MAKE_HINT)
    model = backbone_of(checkpoint).to(device=device, memory_format=torch.channels_last).eval()
    return LoadedBackbone(model, backbone_meta(checkpoint), checkpoint.digest, checkpoint.path, checkpoint.note)


def backbone_meta(checkpoint: Checkpoint) -> BackboneMeta:
    """What a checkpoint says of the backbone that it holds.

    Raises:
        FileError: it is of another kind, or a value of its meta is missing or cannot be used.
    """
    if checkpoint.kind != "backbone":
        raise FileError(f"{checkpoint.path} is a checkpoint of kind {checkpoint.kind}, not backbone", MAKE_HINT)
    return checkpoints.meta_of(checkpoint, BackboneMeta, MAKE_HINT)


def backbone_of(checkpoint: Checkpoint) -> ActivationModel:
    """The activation model that a checkpoint holds, on the CPU.

    Raises:
        FileError: not a backbone, or weights that do not fit what the checkpoint says of itself; names the first that differ.
    """
    meta = backbone_meta(checkpoint)
    torchvision_resnet()  # imported before, not under, the meta device
    # No random numbers, and of a ResNet no time, spent on weights that are replaced at once; networks of timm may compute buffers.
    apart = torch.device("meta") if meta.arch in RESNETS else torch.random.fork_rng(devices=[])
    try:
        with apart:
            model = ActivationModel(meta.arch, len(meta.classes), meta.input_size, meta.resolution, meta.dilate, meta.channels)
    except UsageError as error:  # a size that no stride gives
        raise FileError(f"{checkpoint.path / checkpoints.MANIFEST}: meta: {error.message}", MAKE_HINT) from error
    differing = checkpoints.differences(model.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit its settings: {differing}", MAKE_HINT)
    model.load_state_dict(checkpoint.weights, assign=True)
    return model
