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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsal_cli.policy.maps import GaussianAttention, cells_above, column, highest_cell, patches, zeros
from hsal_cli.policy.shared import Linear, linear
from hsal_cli.policy.variant import Variant

aten = torch.ops.aten


class GRU(nn.GRUCell):
    """torch's GRU cell, which on a CPU skips the hidden state's matrix product where that state is zero.

    With the controller's state reset at each meta-step that is one product in three at k = 2, forward and backward.
    """

    def forward(self, x: Tensor, state: Tensor | None = None, linear: Linear = linear) -> Tensor:
        """One step.

        Args:
            x: (B, inputs).
            state: (B, hidden), or None for zeros.
            linear: multiplies by the weights.

        Returns:
            (B, hidden).
        """
        fused = x.device.type not in ("cpu", "mps")
        if fused and state is None:  # there a product costs less than the launches that would go without
            state = zeros(len(x), self.hidden_size, x)
        gates = linear(x, self.weight_ih, self.bias_ih)
        hidden_gates = self.bias_hh if state is None else linear(state, self.weight_hh, self.bias_hh)
        # What torch's own cell calls on a GPU: one kernel in place of ten, and one backward.
        return aten._thnn_fused_gru_cell(gates, hidden_gates, state)[0] if fused else _Gates.apply(gates, hidden_gates, state)


class _Gates(torch.autograd.Function):
    """The cell behind its matrix products. Autograd would keep, and go through, three times as many tensors.

    r = sigmoid(a_r + b_r),   z = sigmoid(a_z + b_z),   n = tanh(a_n + r b_n),   h' = n + z (h - n)
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
        """a (B, 3 hidden), b the same or (3 hidden,), state (B, hidden) or None for zeros."""
        hidden = a.shape[1] // 3
        (a_rz, a_n), (b_rz, b_n) = a.split([2 * hidden, hidden], 1), b.split([2 * hidden, hidden], -1)
        r, z = (a_rz + b_rz).sigmoid_().chunk(2, 1)
        n = torch.addcmul(a_n, r, b_n).tanh_()
        ctx.save_for_backward(r, z, n, b_n, state)
        return torch.addcmul(n, n, z, value=-1) if state is None else torch.addcmul(n, state - n, z)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        r, z, n, b_n, state = ctx.saved_tensors
        by_a = above.new_empty(len(above), 3 * r.shape[1])
        by_rz, (by_r, by_z, by_n) = by_a[:, : 2 * r.shape[1]], by_a.chunk(3, 1)
        aten.tanh_backward(torch.addcmul(above, above, z, value=-1), n, grad_input=by_n)
        aten.sigmoid_backward((-n if state is None else state - n).mul_(above), z, grad_input=by_z)
        aten.sigmoid_backward(by_n * b_n, r, grad_input=by_r)
        if b_n.dim() == 1:
            return by_a, torch.cat([by_rz.sum(0), (by_n * r).sum(0)]), None if state is None else above * z
        return by_a, torch.cat([by_rz, by_n * r], 1), None if state is None else above * z


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
        self.attention = GaussianAttention(variant.meta_hidden, variant.gaussians, height, width, variant.beta, reach, variant.aspect)

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None, linear: Linear = linear) -> tuple[Tensor, Tensor | None]:
        """One meta-step.

        Args:
            saliency: (B, h, w), S_t.
            memory: (B, K + 1), y_{t-1}.
            state: (B, hidden), h_{t-1}, or None for zeros.
            linear: multiplies by the weights.

        Returns:
            The Gaussians (B, G, 5) whose mixture is M_t, and h_t.
        """
        encoded = linear(torch.cat([saliency.flatten(1), memory], 1), self.encode.weight, self.encode.bias)
        state = self.gru(encoded, state, linear)
        return self.attention(state, saliency, linear), state


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

    def forward(self, saliency: Tensor, memory: Tensor, state: Tensor | None, linear: Linear = linear) -> tuple[Tensor, Tensor | None]:
        """One meta-step; arguments and results as of `MetaController`, with G = 1. The state stays as it is."""
        alpha = saliency.new_ones(len(saliency), 1)
        beta = self.beta * alpha
        return torch.cat([alpha, beta / self.aspect**2, beta, highest_cell(saliency)], 1)[:, None], state  # (B, 1, 5)


PRIORITY_WEIGHT = 10.0  # a cell of half the highest priority starts at e^-5 of its probability
PRIORITY_UNIT = 30.0  # of that weight where it is learned from 0: it then comes to the other's start within some hundred steps of Adam
TAKEN = -1e4  # score of a cell that was looked at: its probability is 0, and 0 times its logarithm still a number
Pick = Callable[[Tensor], Tensor]
"""pick(location logits (n, h * w)) -> cells (n,)"""

Seen = Tensor | Callable[[Tensor], Tensor]
"""What glimpses read at each cell, (n, cells, C), or seen(cells (n,)) -> (n, C)"""

Closer = Callable[[Tensor | slice, Tensor], Tensor]
"""closer(rows (n,) of the batch, cells (n,)) -> (n, C)"""


@dataclasses.dataclass(frozen=True)
class ControllerStep:
    """The outcome of the k + 1 controller steps of one meta-step; scores carry no gradient (see `Controller.heads`)."""

    logits: Tensor  # (B, K + 1)
    glimpses: Tensor  # (B, k) cells
    location_logits: list[Tensor]  # k of (B, h * w)
    states: Tensor  # (B, k + 1, hidden), h_1 to h_{k+1}, detached
    state: Tensor  # (B, hidden), h_{k+1}


class Controller(nn.Module):
    """The recurrent controller and its three heads.

    W_encode is kept in three parts, so that [P_t, y_{t-1}] is encoded once a meta-step and a_{i-1}, one-hot, is a look-up.

    Args:
        variant: as it is on the map.
        labels: K + 1.
        channels: C of the volumes, without those of a finer stage.
        height, width: cells of the maps.
    """

    def __init__(self, variant: Variant, labels: int, channels: int, height: int, width: int) -> None:
        super().__init__()
        cells = height * width
        self.glimpses = variant.glimpses
        self.sees_priority = variant.location_input == "priority"
        self.apart = variant.glimpses_apart == "yes"
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
        # A fine glimpse takes the place of a column; normalised, for its stage is on a scale of its own.
        looks_finer = variant.glimpse != "column"
        self.fine_norm = self.encode_fine = None
        finer = variant.fine > 0 and variant.fine_side == 2
        reads = cells_above(height, width) if finer else None  # at each cell of the map; None: what is there
        if looks_finer:
            reads = patches(height, width) if finer else None
            numbers_read = variant.fine if reads is None else variant.fine // 4 * reads.shape[1]
            self.fine_norm, self.encode_fine = nn.LayerNorm(numbers_read), nn.Linear(numbers_read, channels)
        self.register_buffer("reads", reads, persistent=False)
        self.gru = GRU(encode, hidden)
        self.location = nn.Sequential(
            nn.Linear(hidden + (cells if self.sees_priority else 0), variant.location_hidden),
            nn.ReLU(),
            nn.Linear(variant.location_hidden, cells),
        )
        # Added to the scores, P_t lets the head start where priority is highest and learn when to depart from it. Measured: read through
        # the MLP alone, the head settles on cells of priority 0.84 and its entropy falls to 0.05 before it finds better ones.
        # For fine glimpses it is learned from 0 on, so that an untrained policy looks anywhere.
        self.priority_unit, start = (PRIORITY_UNIT, 0.0) if looks_finer else (1.0, PRIORITY_WEIGHT)
        self.priority_weight = nn.Parameter(torch.tensor(start)) if self.sees_priority else None
        self.label = nn.Linear(hidden, labels)
        self.value = nn.Linear(hidden, 1)

    def forward(
        self,
        priority: Tensor,
        memory: Tensor,
        glimpse: Tensor,
        seen: Seen,
        state: Tensor | None,
        pick: Pick,
        linear: Linear = linear,
        rows: Tensor | None = None,
    ) -> ControllerStep:
        """The k + 1 controller steps of one meta-step.

        Args:
            priority: (B, h, w), P_t.
            memory: (B, K + 1), y_{t-1}.
            glimpse: (B, C), g_0.
            seen: (B, h * w, C), what a glimpse reads at each cell; fine: as `finer_columns` gives it, of any float type; or
                computes that of a cell (B,). With `rows` of any number of examples.
            state: (B, hidden), the last state of the meta-step before, or None for zeros.
            pick: takes a cell for each row of location logits (B, h * w).
            linear: multiplies by the weights.
            rows: (B,), whose part of `seen` each example reads; None: they are in the same order.
        """
        context = linear(torch.cat([priority.flatten(1), memory], 1), self.encode_context.weight, self.encode_context.bias)
        with torch.no_grad():
            shown = self._shown(priority)
        states, cells, scores = [], [], []
        for i in range(self.glimpses + 1):
            encoded = linear(glimpse, self.encode_glimpse.weight, context)
            if i > 0:
                encoded = linear(cells[-1], self.encode_location.weight, encoded)
            state = self.gru(encoded, state, linear)
            # Detached, as appendix A says: the rewards of glimpses and the baseline's error train their heads alone.
            states.append(state.detach())
            if i < self.glimpses:
                with torch.no_grad():
                    scores.append(self._without(self._location_scores(states[-1], shown), cells))
                cells.append(pick(scores[-1]))
                read = cells[-1] if self.reads is None else self.reads[cells[-1]]
                glimpse = column(seen, read, rows) if isinstance(seen, Tensor) else seen(read)
                if self.fine_norm is not None and self.encode_fine is not None:
                    glimpse = self.fine_norm(glimpse.to(priority.dtype))
                    glimpse = F.relu(linear(glimpse, self.encode_fine.weight, self.encode_fine.bias))
        size = len(state)
        return ControllerStep(
            logits=self.label(states[-1]).detach(),
            glimpses=torch.stack(cells, 1) if cells else state.new_zeros((size, 0), dtype=torch.long),
            location_logits=scores,
            states=torch.stack(states, 1),
            state=state,
        )

    def heads(self, states: Tensor, state: Tensor, priority: Tensor, glimpses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three heads, for any number n of meta-steps at once: no state waits for what they say, only for what is chosen by it.

        Args:
            states: (n, k + 1, hidden), detached.
            state: (n, hidden), the last of them, not detached.
            priority: (n, h, w), P_t.
            glimpses: (n, k), the cells chosen.

        Returns:
            Label logits (n, K + 1), location logits (n, k, h * w) and values (n, k + 1).
        """
        looking, shown = states[:, : self.glimpses].flatten(0, 1), self._shown(priority)
        if shown is not None:
            shown = (*(part[:, None].expand(-1, self.glimpses, -1).flatten(0, 1) for part in shown[:2]), shown[2])
        location_logits = self._location_scores(looking, shown).view(len(state), self.glimpses, priority[0].numel())
        if self.apart and self.glimpses > 1:
            each = [self._without(scores, list(glimpses.unbind(1)[:i])) for i, scores in enumerate(location_logits.unbind(1))]
            location_logits = torch.stack(each, 1)
        return self.label(state), location_logits, self.value(states).squeeze(2)

    def _shown(self, priority: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What P_t (B, h, w), detached, adds to the location head's hidden layer and to its scores, and the weights of that layer for the
        state; None where it does not see P_t.
        """
        if not self.sees_priority:
            return None
        first, _, last = self.location
        priority = priority.detach().flatten(1)
        of_state, of_priority = first.weight.split([first.in_features - priority.shape[1], priority.shape[1]], 1)
        hidden = torch.addmm(first.bias, priority, of_priority.t(), alpha=self.priority_gain)
        return hidden, torch.addcmul(last.bias, priority, self.priority_weight, value=self.priority_unit), of_state

    def _without(self, scores: Tensor, taken: list[Tensor]) -> Tensor:
        """Scores (n, h * w), where glimpses are kept apart without the cells (n,) that this meta-step has looked at."""
        return scores.scatter(1, torch.stack(taken, 1), TAKEN) if self.apart and taken else scores

    def _location_scores(self, known: Tensor, shown: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """Scores (B, h * w) of the cells for the next glimpse, from the state (B, hidden), detached, and P_t (see `_shown`)."""
        if shown is None:
            return self.location(known)
        hidden = torch.addmm(shown[0], known, shown[2].t()).relu_()
        return torch.addmm(shown[1], hidden, self.location[2].weight.t())
