"""The direct baseline: a convolutional classifier that reads from the volume how often each class occurs, without looking anywhere.

It is what a user would otherwise pick: it knows the same volumes and the same label multisets as HSAL, and names no place.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 128  # channels of its convolutions: about 0.8 million parameters on volumes of 512 channels
DROPOUT = 0.3
SHARPNESS = 4.0  # of the scores around what is expected, before anything is learned


def expected_counts(layer: nn.Linear, volumes: Tensor) -> Tensor:
    """How many objects of each class every cell expects, (B, h, w, K) > 0; cells without evidence expect one among them all.

    Args:
        layer: from a cell's channels to its evidence for each class.
        volumes: (B, C, h, w).
    """
    return expected(layer(volumes.permute(0, 2, 3, 1)).float())


def expected(evidence: Tensor) -> Tensor:
    """What cells with this evidence expect, both (B, h, w, K); see `expected_counts`."""
    return F.softplus(evidence - math.log(evidence[0, ..., 0].numel()))


class CountClassifier(nn.Module):
    """Two 3x3 convolutions, the mean and the maximum over the cells, and for each class a softmax over its count.

    The mean carries how much of a class there is, the maximum whether there is any. Where the backbone has learned counts already, what its
    cells expect is added up too, and the score of a count falls with the square of its distance from that sum.

    Args:
        classes: K.
        volume_shape: (C, h, w) of the volumes.
        most: largest count of one class that can be told, at least 1.
        volume_scale: standard deviation of the volumes of the training split; they are divided by it. Stored with the weights.
        hidden: channels of both convolutions.
        expecting: channels, the first ones, of which each cell makes what it expects (see `expect`); 0: none do.
    """

    def __init__(
        self,
        classes: int,
        volume_shape: tuple[int, int, int],
        most: int,
        volume_scale: float = 1.0,
        hidden: int = HIDDEN,
        expecting: int = 0,
    ) -> None:
        super().__init__()
        self.classes, self.volume_shape, self.most, self.hidden, self.expecting = classes, tuple(volume_shape), most, hidden, expecting
        self.near = nn.Conv2d(volume_shape[0], hidden, 3, padding=1, bias=False)
        self.near_norm = nn.BatchNorm2d(hidden)
        self.wide = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.wide_norm = nn.BatchNorm2d(hidden)
        self.counts = nn.Linear(self.features, classes * (most + 1))
        if expecting:
            self.cells = nn.Linear(expecting, classes)
            self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.register_buffer("volume_scale", torch.tensor(float(volume_scale)))

    def expect(self, weight: Tensor, bias: Tensor) -> None:
        """Starts from a backbone's own linear layer: its counts, rounded, are what is named before anything is learned."""
        self.cells.load_state_dict({"weight": weight, "bias": bias})
        nn.init.zeros_(self.counts.weight)
        nn.init.zeros_(self.counts.bias)

    @property
    def features(self) -> int:
        """What its linear layer reads of an image."""
        return 2 * self.hidden

    def forward(self, volumes: Tensor, kept: Tensor | None = None) -> Tensor:
        """Volumes to logits of the counts.

        Args:
            volumes: (B, C, h, w), raw, of any float type.
            kept: (B, features) what dropout multiplies the features by, 0 or 1 / (1 - DROPOUT); None: nothing is dropped.

        Returns:
            (B, K, most + 1): of class c occurring 0, 1 ... `most` times.
        """
        volumes = volumes.to(self.volume_scale.dtype)
        x = volumes / self.volume_scale
        x = F.relu(self.near_norm(self.near(x)))
        x = F.relu(self.wide_norm(self.wide(x)))
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (B, 2 * hidden)
        if kept is not None:
            pooled = pooled * kept
        scores = self.counts(pooled).unflatten(1, (self.classes, self.most + 1))
        if not self.expecting:
            return scores
        expected = expected_counts(self.cells, volumes[:, : self.expecting]).sum((1, 2))
        return scores - self.sharpness * (torch.arange(self.most + 1, device=scores.device) - expected[..., None]).square()

    def predict(self, volumes: Tensor) -> Tensor:
        """The likeliest count of each class, (B, K) int64; of equals, the smallest."""
        return self(volumes).argmax(dim=-1)
