"""The direct baseline: a convolutional classifier that reads from the volume how often each class occurs, without looking anywhere.

It is what a user would otherwise pick: it knows the same volumes and the same label multisets as HSAL, and names no place.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 128  # channels of its convolutions: about 0.8 million parameters on volumes of 512 channels
DROPOUT = 0.3


class CountClassifier(nn.Module):
    """Two 3x3 convolutions, the mean and the maximum over the cells, and for each class a softmax over its count.

    The mean carries how much of a class there is, the maximum whether there is any.

    Args:
        classes: K.
        volume_shape: (C, h, w) of the volumes.
        most: largest count of one class that can be told, at least 1.
        volume_scale: standard deviation of the volumes of the training split; they are divided by it. Stored with the weights.
        hidden: channels of both convolutions.
    """

    def __init__(
        self, classes: int, volume_shape: tuple[int, int, int], most: int, volume_scale: float = 1.0, hidden: int = HIDDEN
    ) -> None:
        super().__init__()
        self.classes, self.volume_shape, self.most, self.hidden = classes, tuple(volume_shape), most, hidden
        self.near = nn.Conv2d(volume_shape[0], hidden, 3, padding=1, bias=False)
        self.near_norm = nn.BatchNorm2d(hidden)
        self.wide = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.wide_norm = nn.BatchNorm2d(hidden)
        self.counts = nn.Linear(self.features, classes * (most + 1))
        self.register_buffer("volume_scale", torch.tensor(float(volume_scale)))

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
        x = volumes.to(self.volume_scale.dtype) / self.volume_scale
        x = F.relu(self.near_norm(self.near(x)))
        x = F.relu(self.wide_norm(self.wide(x)))
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # (B, 2 * hidden)
        if kept is not None:
            pooled = pooled * kept
        return self.counts(pooled).unflatten(1, (self.classes, self.most + 1))

    def predict(self, volumes: Tensor) -> Tensor:
        """The likeliest count of each class, (B, K) int64; of equals, the smallest."""
        return self(volumes).argmax(dim=-1)
