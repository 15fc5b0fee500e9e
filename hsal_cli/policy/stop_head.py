"""What tells when all is named: a second head for stop, which reads what saliency there was and what is left of it.

Not in the paper, whose controller names stop like a label, from its state (section 3). P_t is scaled to [0, 1], so that the state does
not know whether it is shown an object or the faint rim of one; and S_t alone does not tell a rim from a neighbour that inhibition of
return has reached. Beside S_0, the map before the first meta-step, it does. See `Variant.stop_input`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.variant import PAPER_CELLS

CHANNELS = 32  # of each of the two layers


class StopHead(nn.Module):
    """Two layers of 3 x 3 convolutions over the maps, the maximum of each channel over the cells, and a linear layer.

    It starts at 0, which leaves stop to the controller's state, and takes maps of any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv2d(3, CHANNELS, 3)
        self.far = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.score = nn.Linear(CHANNELS, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, first: Tensor, saliency: Tensor, priority: Tensor) -> Tensor:
        """What is added to the score of stop; no gradient flows back into the maps.

        Args:
            first: (B, h, w), S_0.
            saliency: (B, h, w), S_t.
            priority: (B, h, w), P_t.

        Returns:
            (B,).
        """
        # Channels last: with that, and ReLU in place, a CPU takes three quarters of the time.
        maps = torch.stack([first, saliency, priority], 3).detach().permute(0, 3, 1, 2)
        # On a finer map the taps stand further apart, so that they reach as far over the image as on the paper's.
        apart = max(1, round((maps.shape[2] * maps.shape[3] / PAPER_CELLS) ** 0.5))
        for layer in (self.near, self.far):
            maps = F.conv2d(maps, layer.weight, layer.bias, padding=apart, dilation=apart).relu_()
        return self.score(maps.amax((2, 3))).squeeze(1)
