"""A second direct rival: a transformer decoder that names a set of objects in parallel, after DETR (Carion et al., ECCV 2020).

Learned queries attend to the cells of the volume, and each names one class or nothing; training pairs queries with labels by the cheapest
assignment (the Hungarian method), as DETR does. It knows the same volumes and label multisets as HSAL, and no boxes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128  # of its tokens: about 0.6 million parameters on volumes of 512 channels
LAYERS, HEADS = 2, 8
NOTHING = 0.5  # weight of a query that should name nothing (DETR, of 100 queries: 0.1)


class SetPredictor(nn.Module):
    """A volume to a class, or nothing, for each of its queries.

    Args:
        classes: K.
        volume_shape: (C, h, w) of the volumes.
        queries: Q, how many objects can be named, at least 1.
        volume_scale: standard deviation of the volumes of the training split; they are divided by it. Stored with the weights.
        hidden: width of the tokens, a multiple of 8.
    """

    def __init__(
        self, classes: int, volume_shape: tuple[int, int, int], queries: int, volume_scale: float = 1.0, hidden: int = WIDTH
    ) -> None:
        super().__init__()
        self.classes, self.volume_shape, self.queries, self.hidden = classes, tuple(volume_shape), queries, hidden
        channels, height, width = volume_shape
        self.project = nn.Linear(channels, hidden)
        self.place = nn.Parameter(torch.randn(height * width, hidden) * 0.02)
        self.query = nn.Parameter(torch.randn(queries, hidden))
        layer = nn.TransformerDecoderLayer(hidden, HEADS, 4 * hidden, dropout=0.0, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(hidden))
        self.label = nn.Linear(hidden, classes + 1)
        self.register_buffer("volume_scale", torch.tensor(float(volume_scale)))

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (B, C, h, w), raw, of any float type, to logits (B, Q, K + 1); the last class is nothing."""
        cells = volumes.to(self.volume_scale.dtype).flatten(2).transpose(1, 2) / self.volume_scale  # (B, h * w, C)
        return self.label(self.decoder(self.query.expand(len(volumes), -1, -1), self.project(cells) + self.place))

    def predict(self, volumes: Tensor) -> Tensor:
        """How many queries name each class, (B, K) int64."""
        return F.one_hot(self(volumes).argmax(dim=-1), self.classes + 1).sum(dim=1)[:, : self.classes]


def set_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """DETR's loss without boxes, summed over the batch: cross-entropy of each query to the label it is paired with, or to nothing.

    Args:
        logits: (B, Q, K + 1).
        labels: (B, L), padded with -1; of an image with more than Q labels, some stay unpaired.
    """
    from scipy.optimize import linear_sum_assignment

    nothing = logits.shape[2] - 1
    targets = torch.full(logits.shape[:2], nothing)
    costs = -logits.detach().float().softmax(-1).cpu().numpy()
    for row, named in enumerate(labels.cpu().tolist()):
        named = [label for label in named if label >= 0]
        queries, places = linear_sum_assignment(costs[row][:, named])
        targets[row, queries] = torch.tensor(named, dtype=torch.long)[places]
    weights = torch.ones(nothing + 1, device=logits.device, dtype=logits.dtype)
    weights[nothing] = NOTHING
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().to(logits.device), weights, reduction="sum")
