"""The activation model: torchvision's ResNet up to layer4, whose output is the volume V (section 3, "Activation Model").

The parameters carry torchvision's names, so its weight files load as they are, and ours load there.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.vision.devices import forward_context
from hsal_cli.vision.weights import CannotDownload, cached_download, read_weights

ARCHITECTURES = ("resnet34", "resnet18")
CHANNELS = 512  # of layer4's output, in both
STRIDES = (32, 16, 8)
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


class ActivationModel(nn.Module):
    """A ResNet whose last convolutional activations are the volume.

    Where `input_size / resolution` is below 32, the last stages keep their resolution: their stride becomes 1. Dilated, the convolutions
    behind it reach as much further, so that every weight sees the image at the scale it was trained for; at every second cell
    (every fourth at stride 8) the volume is that of the strided network. Not dilated, a cell sees less of its neighbours, which
    suits a network that is trained from random weights: objects side by side mix less.

    Args:
        arch: "resnet34" or "resnet18".
        classes: outputs of the linear classifier that fine-tuning trains.
        input_size: side of the square input that the model is meant for, px.
        resolution: cells along a side of the volume at that input; input_size / resolution is 32, 16 or 8.
        dilate: whether convolutions behind a removed stride are dilated.

    Raises:
        UsageError: no such network, or no such stride.
        HsalError: torchvision does not fit torch.
    """

    def __init__(self, arch: str, classes: int, input_size: int = 224, resolution: int = 7, dilate: bool = True):
        super().__init__()
        if arch not in ARCHITECTURES:
            raise UsageError(f"there is no activation model {arch!r}", f"take one of: {', '.join(ARCHITECTURES)}")
        if input_size not in [stride * resolution for stride in STRIDES]:
            sizes = ", ".join(str(stride * resolution) for stride in STRIDES)
            raise UsageError(
                f"input_size = {input_size} px cannot give {resolution} x {resolution} cells", f"take an input_size of {sizes}"
            )
        self.arch, self.classes, self.input_size, self.resolution = arch, classes, input_size, resolution
        self.stride = input_size // resolution
        resnet = getattr(torchvision_resnet(), arch)(weights=None, num_classes=classes)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.fc = resnet.fc
        dilation = 1
        for stage in {32: (), 16: (self.layer4,), 8: (self.layer3, self.layer4)}[self.stride]:
            dilation = _keep_resolution(stage, dilation, dilate)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Images to volumes, the activations after layer4's ReLU.

        Args:
            images: (B, 3, s, s), normalised as `images.to_input` does; any s that is a multiple of the stride.

        Returns:
            (B, 512, s / stride, s / stride), >= 0.
        """
        x = images.contiguous(memory_format=torch.channels_last)
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
        """Volumes (B, 512, h, w) to class logits, as `classify` does."""
        summed = volumes.sum(dim=(2, 3)) if regions is None else torch.einsum("bmhw,bchw->bmc", regions.to(volumes.dtype), volumes)
        return self.fc(summed / self.resolution**2)


def _keep_resolution(stage: nn.Sequential, dilation: int, dilate: bool) -> int:
    """Takes the stride out of a stage whose input is dilated already; returns the dilation behind it."""
    for place, block in enumerate(stage):
        for name, conv in block.named_modules():
            if not isinstance(conv, nn.Conv2d):
                continue
            conv.stride = (1, 1)
            if dilate and conv.kernel_size == (3, 3):
                # Only the convolution that held the stride still reads cells at the old distance.
                reach = dilation if (place, name) == (0, "conv1") else 2 * dilation
                conv.dilation = conv.padding = (reach, reach)
    return 2 * dilation


def finer(model: ActivationModel, resolution: int) -> ActivationModel:
    """A copy with finer volumes from the same weights and images, without training (`precompute --resolution`).

    The last strides of the residual stages are taken out, and every convolution behind one is dilated, so that each weight sees the image
    at the scale it was trained for: at every second cell (every fourth, with two strides out) the volume is that of `model`.

    Args:
        model: the trained network.
        resolution: cells along a side of the new volume; as many as the model's own returns the model itself.

    Raises:
        UsageError: the model cannot give so many cells.
    """
    if resolution == model.resolution:
        return model
    strided = [stage for stage in (model.layer2, model.layer3, model.layer4) if stage[0].conv1.stride == (2, 2)]
    possible = [model.resolution * 2**taken for taken in range(1, len(strided) + 1)]
    if resolution not in possible:
        raise UsageError(
            f"resolution = {resolution} is not to be had from a backbone of {model.resolution} x {model.resolution} cells",
            f"take one of: {', '.join(map(str, [model.resolution, *possible]))}",
        )
    model = copy.deepcopy(model)
    stages = [stage for stage in (model.layer2, model.layer3, model.layer4) if stage[0].conv1.stride == (2, 2)]
    last = stages[-(possible.index(resolution) + 1) :]
    dilation = 1
    for stage in (model.layer2, model.layer3, model.layer4):
        for block in stage:
            for conv in (module for module in block.modules() if isinstance(module, nn.Conv2d)):
                if conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = (conv.dilation[0] * dilation,) * 2
                if stage in last and conv.stride == (2, 2):
                    conv.stride = (1, 1)
                    if conv is block.conv1:
                        dilation *= 2
    model.stride //= resolution // model.resolution
    model.resolution = resolution
    return model


def fused(model: ActivationModel) -> ActivationModel:
    """A copy for inference whose BatchNorms are folded into the convolutions before them: the same up to rounding, 8% faster on a CPU."""
    model = copy.deepcopy(model).eval()
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    model.conv1, model.bn1 = fuse_conv_bn_eval(model.conv1, model.bn1), nn.Identity()
    for block in blocks:
        block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
        block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
        if block.downsample is not None:
            block.downsample = nn.Sequential(fuse_conv_bn_eval(*block.downsample))
    return model.to(memory_format=torch.channels_last)


def initial_weights(model: ActivationModel, choice: str, reporter: Reporter = SILENT) -> str:
    """Gives a new activation model the weights that fine-tuning starts from.

    A classifier for other classes is left out of a weights file, and said; everything else must fit.

    Args:
        model: freshly made, so that "none" leaves it as it is.
        choice: "auto" (ImageNet's where they are cached or can be downloaded, else random, with a warning), "imagenet", "none" (random),
            a file: .pth or .safetensors, in torchvision's layout; a folder that `hsal export` wrote; or a run, of which the best weights
            are taken.
        reporter: told what was used.

    Returns:
        What was used: "imagenet", "random" or "file:NAME".

    Raises:
        HsalError: "imagenet" is neither cached nor to be had.
        FileError: the file is missing, damaged or of another network.
    """
    if choice == "none":
        return "random"
    if choice not in ("auto", "imagenet"):
        source = Path(choice)
        is_run = (source / "checkpoints").is_dir()
        _copy_weights(model, checkpoints.load_from(source, "best", MAKE_HINT).weights if is_run else read_weights(source), source, reporter)
        return f"file:{source.name}"
    try:
        source = cached_download(imagenet_url(model.arch), reporter)
    except CannotDownload as error:
        if choice == "imagenet":
            raise
        reporter.warn(
            f"no ImageNet weights: {error.message}. Starting from RANDOM weights; --weights FILE names others, --weights none wants these"
        )
        return "random"
    _copy_weights(model, read_weights(source), source, reporter)
    return "imagenet"


def imagenet_url(arch: str) -> str:
    """Where torchvision keeps the ImageNet weights of a network."""
    names = {"resnet34": "ResNet34_Weights", "resnet18": "ResNet18_Weights"}
    return getattr(torchvision_resnet(), names[arch]).IMAGENET1K_V1.url


def _copy_weights(model: ActivationModel, weights: dict[str, Tensor], source: Path, reporter: Reporter) -> None:
    own = model.state_dict()
    classifier = [name for name in own if name.startswith("fc.")]
    if any(name not in weights or weights[name].shape != own[name].shape for name in classifier):
        weights = {name: tensor for name, tensor in weights.items() if name not in classifier}
        reporter.say(f"the classifier of {source.name} is for other classes and is left out; ours starts from random weights")
    else:
        classifier = []
    faults = [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    # Old files of torchvision do not count batches, and nothing here reads the count.
    faults += [f"{name} is missing" for name in own if name not in weights and name not in classifier and "num_batches" not in name]
    faults += [f"{name} is unknown" for name in weights if name not in own]
    faults = faults or [f"{name} is not finite" for name, tensor in weights.items() if not tensor.isfinite().all()]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise FileError(
            f"{source} does not hold the weights of {model.arch}: {'; '.join(faults[:3])}{more}",
            "choose the --arch of the file, or another file; --weights none starts from random weights",
        )
    model.load_state_dict(weights, strict=False)
    reporter.say(f"starting from the weights in {source}")


@dataclasses.dataclass(frozen=True)
class BackboneMeta:
    """The "meta" of a checkpoint of a backbone.

    Attributes:
        arch: the network.
        input_size: side of its images, px.
        resolution: cells along a side of its volumes.
        classes: names of the classes.
        dilate: whether a removed stride became dilation.
        weights: what it started from, such as imagenet.
        scenes_digest: of the scene file that it was trained on.
    """

    arch: Literal["resnet34", "resnet18"]
    input_size: int
    resolution: int
    classes: list[str]
    dilate: bool = True  # older checkpoints had no choice
    weights: str = ""
    scenes_digest: str | None = None

    def __post_init__(self) -> None:
        if not self.classes or self.resolution < 1:
            raise UsageError("there are no classes, or no cells", "train again")


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
    def _fused(self) -> ActivationModel:
        return fused(self.model)

    def volumes(self, images: Tensor) -> Tensor:
        """The one way from images to volumes, whoever asks: BatchNorms folded, in the precision that gains here (see `forward_context`).

        Args:
            images: (B, 3, s, s), as `images.to_input` gives them, on the model's device.

        Returns:
            (B, 512, h, w) float32, without gradients.
        """
        with torch.inference_mode(), forward_context(images.device):
            return self._fused(images).float()

    @property
    def refined(self) -> str | None:
        """The `precompute --resolution` that gives this model's volumes; None where they are the fine-tuned network's own."""
        side = self.model.resolution
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
    try:
        with torch.device("meta"):  # no time, and no random numbers, spent on weights that are replaced at once
            model = ActivationModel(meta.arch, len(meta.classes), meta.input_size, meta.resolution, meta.dilate)
    except UsageError as error:  # a size that no stride gives
        raise FileError(f"{checkpoint.path / checkpoints.MANIFEST}: meta: {error.message}", MAKE_HINT) from error
    differing = checkpoints.differences(model.state_dict(), checkpoint.weights)
    if differing:
        raise FileError(f"the weights of {checkpoint.path} do not fit its settings: {differing}", MAKE_HINT)
    model.load_state_dict(checkpoint.weights, assign=True)
    return model
