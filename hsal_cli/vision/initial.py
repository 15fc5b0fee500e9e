"""The weights that fine-tuning starts from: ImageNet's, a file's, another run's, or random ones."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hsal_cli.errors import FileError
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.storage import checkpoints
from hsal_cli.vision.architectures import IMAGENET, RESNETS
from hsal_cli.vision.backbone import MAKE_HINT, ActivationModel, torchvision_resnet
from hsal_cli.vision.timm_networks import imagenet_weights, trunk_weights
from hsal_cli.vision.weights import CannotDownload, cached_download, read_weights


def initial_weights(model: ActivationModel, choice: str, reporter: Reporter = SILENT) -> str:
    """Gives a new activation model the weights that fine-tuning starts from.

    A classifier for other classes is left out of a weights file, and said; everything else must fit.

    Args:
        model: freshly made, so that "none" leaves it as it is.
        choice: "auto" (ImageNet's where they are installed, cached or can be downloaded, else random, with a warning), "imagenet", "none"
            (random), a file: .pth or .safetensors, in torchvision's layout or timm's; a folder that `hsal export` wrote; or a run, of which
            the best weights are taken.
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
        _copy_weights(model, _weights_at(source), source, reporter)
        return f"file:{source.name}"
    try:
        if model.arch not in RESNETS:
            model.trunk.load_state_dict(imagenet_weights(model.arch, reporter))
            return "imagenet"
        source = cached_download(imagenet_url(model.arch), reporter)
    except CannotDownload as error:
        if choice == "imagenet":
            raise
        reporter.warn(
            f"no ImageNet weights: {error.message}. Starting from RANDOM weights. {IMAGENET}; --weights FILE names others, none wants these"
        )
        return "random"
    _copy_weights(model, read_weights(source), source, reporter)
    return "imagenet"


def imagenet_url(arch: str) -> str:
    """Where torchvision keeps the ImageNet weights of a network."""
    names = {"resnet34": "ResNet34_Weights", "resnet18": "ResNet18_Weights"}
    return getattr(torchvision_resnet(), names[arch]).IMAGENET1K_V1.url


def _weights_at(source: Path) -> dict[str, Tensor]:
    """Those of a weights file, of a backbone's run, or of a checkpoint of one."""
    if not any((source / part).exists() for part in (checkpoints.MANIFEST, "checkpoints")):
        return read_weights(source)
    checkpoint = checkpoints.load_from(source, "best", MAKE_HINT)
    if checkpoint.kind != "backbone":
        raise FileError(f"{source} is of kind {checkpoint.kind}, not backbone", MAKE_HINT)
    return checkpoint.weights


def _copy_weights(model: ActivationModel, weights: dict[str, Tensor], source: Path, reporter: Reporter) -> None:
    own = model.state_dict()
    if model.arch not in RESNETS and not own.keys() & weights.keys():  # not ours, so timm's
        model.trunk.load_state_dict(trunk_weights(model.arch, weights))
        reporter.say(f"starting from the weights in {source}")
        return
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
