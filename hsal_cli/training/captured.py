"""A training step as one CUDA graph: its launches are recorded once and played back for every batch after that, at the cost of a few.

What a step reads that changes from one to the next stands in tensors that stay where they are; whatever else the host decides is decided
once. So a step may be captured that has one length, waits for nothing, and draws from a generator on the device that is begun anew by its
seed before each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from hsal_cli import distributed

WARM = 3  # steps taken as they are before one is captured: they lay out constants, the optimiser's state, and cuBLAS's workspaces
Said = dict[str, Tensor]


class Graph(Protocol):
    """Launches on a device, recorded."""

    def warm(self) -> contextlib.AbstractContextManager[None]:
        """A block that is run as it is, where a capture will run."""

    def capture(self) -> contextlib.AbstractContextManager[None]:
        """A block whose launches are recorded, and not made."""

    def replay(self) -> None:
        """Makes them."""


class CudaGraph:
    """A `Graph` on the NVIDIA GPU in use.

    Args:
        generator: that the block draws from.
    """

    def __init__(self, generator: torch.Generator):
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        self._graph.register_generator_state(generator)

    @contextlib.contextmanager
    def warm(self) -> Iterator[None]:
        # On a stream of its own: what autograd remembers of the usual one would be an error in a capture.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def capture(self) -> contextlib.AbstractContextManager[None]:
        return torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local")

    def replay(self) -> None:
        self._graph.replay()


def graph_on(device: torch.device) -> Callable[[torch.Generator], Graph] | None:
    """Makes graphs on a device; None where there are none, or where several workers exchange gradients in the middle of a step."""
    return CudaGraph if device.type == "cuda" and distributed.current().size == 1 else None


class Captured:
    """A step, captured at its fourth call.

    Attributes:
        replayed: how many calls were played back.

    Args:
        graph: to capture it in.
    """

    def __init__(self, graph: Graph):
        self._graph, self._warmed, self._inputs, self.replayed = graph, 0, (), 0
        self._names: list[str] = []

    def __call__(self, step: Callable[..., Said], inputs: tuple[Tensor, ...]) -> Said:
        """What the step says of these inputs.

        Args:
            step: of such inputs, to scalars of one type; the same one each time, which allocates its gradients anew.
            inputs: of the same shapes each time, on the device.

        Raises:
            RuntimeError: it cannot be captured. Nothing has been changed by this call.
        """
        if self._warmed < WARM:
            self._warmed += 1
            with self._graph.warm():
                return step(*inputs)
        if not self._inputs:
            held = tuple(part.clone() for part in inputs)
            with self._graph.capture():
                said = step(*held)
                self._names, self._said = list(said), torch.stack(list(said.values()))
            self._inputs = held
        torch._foreach_copy_(self._inputs, inputs)
        self._graph.replay()
        self.replayed += 1
        return dict(zip(self._names, self._said.clone().unbind(), strict=True))  # the next one is written over it
