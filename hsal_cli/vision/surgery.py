"""Changes to the modules of a network, which one pass through it finds: strides taken out, norms folded into convolutions."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from hsal_cli.errors import UsageError
from hsal_cli.vision.architectures import LITE0, RESNETS, TIMM

if TYPE_CHECKING:
    from hsal_cli.vision.backbone import ActivationModel

M = TypeVar("M", bound=nn.Module)
PROBED = 64  # px; the side of an image that a network is tried out on


def probe(model: nn.Module) -> Tensor:
    """The volume of a picture that needs no random numbers."""
    weight = next(model.parameters())
    values = torch.linspace(-2, 2, 3 * PROBED**2, dtype=weight.dtype, device=weight.device)
    with torch.inference_mode():
        return model(values.sin().view(1, 3, PROBED, PROBED))


def twin(model: M) -> M:
    """A copy of a network's modules that holds the same weights, not copies of them: to be changed in its modules alone."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


@contextlib.contextmanager
def watched(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], hear: Any) -> Any:
    """Calls hear(module, inputs, output) of every module of a kind that works in the block, with the model in evaluation mode."""
    training = model.training
    hooks = [module.register_forward_hook(hear) for module in model.modules() if isinstance(module, kind)]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def set_stride(model: ActivationModel, now: int, wanted: int, dilate: bool) -> None:
    """Takes strides out of the last convolutions that have one, until a volume's cells lie `wanted` px apart instead of `now`.

    Raises:
        UsageError: the network strides by other means, or less, or takes images of one size alone.
    """
    if now == wanted and model.arch in RESNETS:
        return
    places: dict[nn.Conv2d, tuple[int, int]] = {}  # how many px apart each convolution's inputs and outputs lie

    def hear(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        places[conv] = PROBED // inputs[0].shape[-1], PROBED // output.shape[-1]

    try:
        with watched(model, nn.Conv2d, hear):
            probe(model)
        for conv, (before, after) in places.items():
            if after > max(before, wanted):
                conv.stride = (max(1, wanted // before),) * 2
            # Only the convolution that held the stride still reads cells at the old distance.
            if dilate and before > wanted and conv.kernel_size != (1, 1):
                conv.dilation = tuple(reach * before // wanted for reach in conv.dilation)
                conv.padding = tuple(side * before // wanted for side in conv.padding)
        with watched(model, nn.Conv2d, lambda *_: None):
            found = probe(model).shape[-1]
    except (RuntimeError, TypeError, AssertionError):  # such as maps that no longer fit where branches meet
        found = 0
    if found != PROBED // wanted:
        way = "" if now == wanted else f"take an input_size of {now * model.resolution}, or "
        raise UsageError(
            f"{model.arch} cannot give cells {wanted} px apart of images of any size (its own lie {now} px apart)",
            f"{way}take a convolutional network, such as --arch {TIMM}{LITE0}",
        )


def fused(model: ActivationModel) -> ActivationModel:
    """A copy for inference whose BatchNorms are folded into the convolutions before them: the same up to rounding, 8% faster on a CPU.

    Which norm follows which convolution is seen from a pass through the network. One whose volume changes by it is left as it is.
    """
    plain = twin(model).eval()
    model = twin(plain)
    heard: list[tuple[nn.Module, Tensor, Tensor]] = []
    with watched(model, (nn.Conv2d, nn.BatchNorm2d), lambda module, inputs, output: heard.append((module, inputs[0], output))):
        wanted = probe(model)
    names = {module: name for name, module in model.named_modules()}
    made = {id(output): module for module, _, output in heard if isinstance(module, nn.Conv2d)}
    calls = [module for module, _, _ in heard]
    norms: dict[nn.Module, list[nn.Module | None]] = {}  # what each was given by, at each call
    for norm, given, _ in heard:
        if isinstance(norm, nn.BatchNorm2d):
            norms.setdefault(norm, []).append(made.get(id(given)))
    for norm, before in norms.items():
        conv = before[0]
        if conv is not None and set(before) == {conv} and calls.count(conv) == len(before):
            _replace(model, names[conv], _folded(conv, norm))
            _replace(model, names[norm], nn.Sequential(*norm.children()))  # timm's norms hold the activation; torch's hold nothing
    changed = bool((probe(model) - wanted).abs().max() > 1e-3 * wanted.abs().max())  # false of values that are not finite, too
    return (plain if changed else model).to(memory_format=torch.channels_last)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that gives what the norm behind it gave; torch's fuse_conv_bn_eval would copy the weights once more."""
    made = twin(conv)
    made.weight, made.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return made


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
