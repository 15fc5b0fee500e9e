"""The public face as a user's type checker sees it: `make lint` checks this file, and nothing runs it."""

from collections.abc import Callable
from typing import assert_type

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hsal_cli as hsal


def names_an_image() -> list[str]:
    model = hsal.load("mnist-multiset", device="cpu")
    assert_type(model, hsal.Model)
    seen = model("image.png")
    assert_type(seen, hsal.Look)
    assert_type(model([np.zeros((20, 20), np.uint8), "image.png"]), list[hsal.Look])
    parts: list[nn.Module] = [model.policy, model.backbone]
    assert_type(seen.steps[0], hsal.LookStep)
    arrays: list[np.ndarray] = [seen.probabilities, seen.glimpses, seen.masks, seen.priority, seen.saliency]
    assert parts and arrays
    return seen.labels


def reads_scenes_and_features() -> None:
    scene = hsal.Scenes("scenes.h5", split="test")[0]
    assert_type(scene, hsal.Scene)
    assert_type(scene.labels, Tensor)
    digits = hsal.MultisetDigits(None, train=False, count=(1, 4), unique=True, digits="strokes")
    assert_type(digits[0].boxes, Tensor)
    assert_type(hsal.Features("features.h5")[0], hsal.FeatureRow)
    DataLoader(digits, batch_size=4, num_workers=2)


def takes_parts_apart(policy: hsal.HSAL, episode: hsal.Episode, attention: hsal.GaussianAttention) -> Tensor:
    counts: np.ndarray = hsal.metrics.label_counts(episode.labels.T, policy.classes)
    found = hsal.metrics.multiset_metrics(counts, counts, [str(label) for label in range(policy.classes)])
    float(found["exact_match"])  # plain JSON types
    gaussians: Tensor = attention(episode.logits, episode.saliency)
    return gaussians


@hsal.register_saliency("typed-example")
def brightness(images: Tensor, volumes: Tensor) -> Tensor:
    return images.float()


@hsal.register_reward("typed-example")
def nothing(remaining: Tensor, labels: Tensor) -> Tensor:
    return remaining.float()


kept: Callable[[Tensor, Tensor], Tensor] = brightness  # a decorator gives back what it was put over


def says_what_is_wrong(error: hsal.HsalError) -> tuple[str, str]:
    return error.message, error.hint
