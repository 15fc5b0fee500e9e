"""The GRU cell of both controllers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GRU(nn.GRUCell):
    """torch's GRU cell, which skips the hidden state's matrix product where that state is zero.

    With the controller's state reset at each meta-step that is one product in three at k = 2, forward and backward.
    """

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            x: (B, inputs).
            state: (B, hidden), or None for zeros.

        Returns:
            (B, hidden).
        """
        if state is not None:
            return super().forward(x, state)
        reset, update, new = F.linear(x, self.weight_ih, self.bias_ih).chunk(3, 1)
        hidden_reset, hidden_update, hidden_new = self.bias_hh.chunk(3)
        candidate = torch.tanh(new + torch.sigmoid(reset + hidden_reset) * hidden_new)
        return (1 - torch.sigmoid(update + hidden_update)) * candidate
