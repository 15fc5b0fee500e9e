"""Both controllers (section 3, figures 8 and 11).

The meta-controller places the covert attention mask, once a meta-step:
    x_t = [S_t, y_{t-1}],   e_t = W_encode x_t,   h_t = GRU(e_t, h_{t-1}),   M_t = attn(h_t)
The controller takes k overt glimpses, then names a label:
    x_i = [P_t, y_{t-1}, a_{i-1}, g_{i-1}],   e_i = W_encode x_i,   h_i = GRU(e_i, h_{i-1})
    s_i = W_location h_i for i <= k,  W_class h_i for i = k + 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.maps import GaussianAttention, column, gaussian_mask, highest_cell
from hsal_cli.policy.variant import Variant


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


class MetaController(nn.Module):
    """The learned meta-controller.

    Args:
        variant: as it is on the map.
        labels: width of the label memory, K + 1.
        height, width: cells of the maps.
    """

    def __init__(self, variant: Variant, labels: int, height: int, width: int) -> None:
        super().__init__()
        self.encode = nn.Linear(height * width + labels, variant.meta_encode)
        self.gru = GRU(variant.meta_encode, variant.meta_hidden)
        reach = variant.reach if variant.mask == "anchored" else None
        self.attention = GaussianAttention(
            variant.meta_hidden, variant.gaussians, height, width, variant.beta, reach, variant.aspect, variant.shape == "elliptic"
        )

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One meta-step.

        Args:
            saliency: (B, h, w), S_t.
            memory: (B, K + 1), y_{t-1}.
            state: (B, hidden), h_{t-1}, or None for zeros.

        Returns:
            M_t (B, h, w), its Gaussians (B, G, 5), and h_t.
        """
        state = self.gru(self.encode(torch.cat([saliency.flatten(1), memory], 1)), state)
        gaussians = self.attention(state, saliency)
        return gaussian_mask(gaussians, *saliency.shape[1:]), gaussians, state


class WinnerTakeAll(nn.Module):
    """The control that learns nothing: one Gaussian of a fixed width at the maximum of S_t, as in Itti's model.

    Args:
        variant: as it is on the map; the width is the middle of its `beta`, the height that times its `aspect`.
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        low, high = variant.beta
        self.beta = (low + high) / 2
        self.aspect = variant.aspect

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """One meta-step; arguments and results as of `MetaController`, with G = 1. The state stays as it is."""
        alpha = saliency.new_ones(len(saliency), 1)
        beta = self.beta * alpha
        gaussians = torch.cat([alpha, beta / self.aspect**2, beta, highest_cell(saliency)], 1)[:, None]  # (B, 1, 5)
        return gaussian_mask(gaussians, *saliency.shape[1:]), gaussians, state


PRIORITY_WEIGHT = 10.0  # a cell of half the highest priority starts at e^-5 of its probability
Pick = Callable[[Tensor], Tensor]
"""pick(location logits (n, h * w)) -> cells (n,)"""


@dataclasses.dataclass(frozen=True)
class ControllerStep:
    """The outcome of the k + 1 controller steps of one meta-step."""

    logits: Tensor  # (B, K + 1)
    glimpses: Tensor  # (B, k) cells
    location_logits: Tensor  # (B, k, h * w)
    values: Tensor  # (B, k + 1)
    state: Tensor  # (B, hidden), h_{k+1}


class Controller(nn.Module):
    """The recurrent controller and its three heads.

    W_encode is kept in three parts, so that [P_t, y_{t-1}] is encoded once a meta-step and a_{i-1}, one-hot, is a look-up.

    Args:
        variant: as it is on the map.
        labels: K + 1.
        volume_shape: (C, h, w) of the volumes.
    """

    def __init__(self, variant: Variant, labels: int, volume_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = volume_shape
        cells = height * width
        self.glimpses = variant.glimpses
        self.sees_priority = variant.location_input == "priority"
        encode, hidden = variant.controller_encode, variant.controller_hidden
        # The largest norm that a state in [-1, 1] can have, so that the few cells of the priority map are not lost beside it. Measured:
        # glimpses land where saliency is highest after 60 updates; without it, 1,200 were not enough.
        self.priority_gain = hidden**0.5
        self.encode_context = nn.Linear(cells + labels, encode)
        self.encode_location = nn.Embedding(cells, encode)
        self.encode_glimpse = nn.Linear(channels, encode, bias=False)
        # The three are parts of one layer, so they start as torch starts a layer of all its inputs.
        bound = (cells + labels + cells + channels) ** -0.5
        for part in (self.encode_context.weight, self.encode_context.bias, self.encode_location.weight, self.encode_glimpse.weight):
            nn.init.uniform_(part, -bound, bound)
        self.gru = GRU(encode, hidden)
        self.location = nn.Sequential(
            nn.Linear(hidden + (cells if self.sees_priority else 0), variant.location_hidden),
            nn.ReLU(),
            nn.Linear(variant.location_hidden, cells),
        )
        # Added to the scores, P_t lets the head start where priority is highest and learn when to depart from it. Measured: read through
        # the MLP alone, the head settles on cells of priority 0.84 and its entropy falls to 0.05 before it finds better ones.
        self.priority_weight = nn.Parameter(torch.tensor(PRIORITY_WEIGHT)) if self.sees_priority else None
        self.label = nn.Linear(hidden, labels)
        self.value = nn.Linear(hidden, 1)

    def forward(
        self, priority: Tensor, memory: Tensor, glimpse: Tensor, volumes: Tensor, scale: Tensor, state: Tensor | None, pick: Pick
    ) -> ControllerStep:
        """The k + 1 controller steps of one meta-step.

        Args:
            priority: (B, h, w), P_t.
            memory: (B, K + 1), y_{t-1}.
            glimpse: (B, C), g_0.
            volumes: (B, C, h * w), as stored.
            scale: what their columns are divided by.
            state: (B, hidden), the last state of the meta-step before, or None for zeros.
            pick: takes a cell for each row of location logits (B, h * w).
        """
        context = self.encode_context(torch.cat([priority.flatten(1), memory], 1))
        states, cells, scores = [], [], []
        for i in range(self.glimpses + 1):
            encoded = context + self.encode_glimpse(glimpse)
            if i > 0:
                encoded = encoded + self.encode_location(cells[-1])
            state = self.gru(encoded, state)
            # Detached, as appendix A says: the rewards of glimpses and the baseline's error train their heads alone.
            known = state.detach()
            states.append(known)
            if i < self.glimpses:
                scores.append(self._location_scores(known, priority))
                cells.append(pick(scores[-1].detach()))
                glimpse = column(volumes, cells[-1]) / scale
        size = len(state)
        return ControllerStep(
            logits=self.label(state),
            glimpses=torch.stack(cells, 1) if cells else state.new_zeros((size, 0), dtype=torch.long),
            location_logits=torch.stack(scores, 1) if scores else state.new_zeros((size, 0, priority[0].numel())),
            values=self.value(torch.stack(states, 1)).squeeze(2),
            state=state,
        )

    def _location_scores(self, known: Tensor, priority: Tensor) -> Tensor:
        """Scores (B, h * w) of the cells for the next glimpse, from the state (B, hidden) and P_t (B, h, w), detached."""
        if not self.sees_priority:
            return self.location(known)
        priority = priority.detach().flatten(1)
        scores = self.location(torch.cat([known, self.priority_gain * priority], 1))
        return scores + self.priority_weight * priority
