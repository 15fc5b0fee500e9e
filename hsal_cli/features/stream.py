"""Features that do not fit into memory: training reads them in windows, each a random choice of blocks of the file, mixed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.features.table import BLOCK_ROWS, FeatureFile, FeatureRows, FeatureTable, open_features

SHARE = 0.6  # of the memory that is free, unless a budget is given
HELD = 2  # windows: one that is being trained on, one that is read ahead
MEMORY = Path("/proc/meminfo")


def window_rows(file: FeatureFile, split: str, budget: float | None) -> int:
    """How many rows a window has where a split does not fit into memory; 0 where it does, and is better read once.

    Args:
        budget: GB for the features; None: a share of the memory that is free, divided among the processes that torchrun has started here.

    Raises:
        UsageError: the budget is too small for two windows of one block.
    """
    channels, height, width = file.volume_shape
    row = 2 * channels * height * width + 4 * math.prod(file.map_shape)
    free = _free_memory() if budget is None else budget * 1e9
    if free is None or file.rows(split) * row <= free:
        return 0
    blocks = int(free / (HELD * BLOCK_ROWS * row))
    if not blocks:
        least = HELD * BLOCK_ROWS * row / 1e9
        raise UsageError(
            f"memory_budget = {free / 1e9:.3g} GB is too little for these features", f"give --memory-budget at least {least:.3g}"
        )
    return blocks * BLOCK_ROWS


def _free_memory() -> float | None:
    """Bytes; None where the system does not tell, as outside Linux."""
    try:
        lines = MEMORY.read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return SHARE * free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class FeatureStream(FeatureRows):
    """Features of a split of a file: labels and boxes are in memory, and of the rest the windows of so many rows that are asked for.

    `select` takes the rows of an order that `shuffled` gave, which lie in one window or in two that follow each other. To be closed.
    """

    def __init__(self, path: Path, split: str, window: int):
        self._file = file = open_features(path)
        self._split, self._blocks, self.fine = split, window // BLOCK_ROWS, file.fine
        self.labels, self.boxes, self.image_size = file.labels(split), file.boxes(split), file.size_of(split)
        self._windows: list[Tensor] = []  # the blocks of each
        self._window_of = torch.zeros(0, dtype=torch.long)  # of each block
        self._held: dict[int, Future[tuple[Tensor, Tensor, Tensor]]] = {}
        self._reader = ThreadPoolExecutor(1, "feature-stream")

    def close(self) -> None:
        """Ends the reading ahead, and closes the file."""
        self._reader.shutdown(cancel_futures=True)
        self._held.clear()
        self._file.close()

    def parts(self) -> Iterator[Tensor]:
        for block in range(-(-len(self) // BLOCK_ROWS)):
            yield self._block(block)[0]

    def shuffled(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """An order in which the rows of a window's blocks are mixed, and the windows are random; it depends on their size too."""
        count = -(-len(self) // BLOCK_ROWS)
        self._windows = list(torch.randperm(count, generator=generator).split(self._blocks))
        self._window_of = torch.zeros(count, dtype=torch.long)
        for number, blocks in enumerate(self._windows):
            self._window_of[blocks] = number
        self._held.clear()
        mixed = rows[torch.randperm(len(rows), generator=generator)]
        return mixed[self._window_of[mixed // BLOCK_ROWS].argsort(stable=True)]

    def select(self, rows: Tensor) -> FeatureTable:
        windows = self._window_of[rows // BLOCK_ROWS]
        first, last = (int(windows.min()), int(windows.max())) if len(rows) else (0, -1)
        volumes, saliency = self._room(len(rows))
        for number in range(first, last + 1):
            for done in [held for held in self._held if held < number]:
                del self._held[done]
            places = (windows == number).nonzero()[:, 0]
            known, some_volumes, some_saliency = self._ask(number).result()
            found = torch.searchsorted(known, rows[places])
            volumes[places], saliency[places] = some_volumes[found], some_saliency[found]
        if len(self._held) < HELD and last + 1 < len(self._windows) and last >= 0:
            self._ask(last + 1)
        boxes = None if self.boxes is None else self.boxes[rows]
        return FeatureTable(volumes, saliency, self.labels[rows], boxes, self.image_size, self.fine)

    def _ask(self, number: int) -> Future[tuple[Tensor, Tensor, Tensor]]:
        if number not in self._held:
            self._held[number] = self._reader.submit(self._read, self._windows[number].sort().values)
        return self._held[number]

    def _read(self, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, volumes, saliency) of a window, in the order of the file; filled in place, for joining parts would need twice the room."""
        rows = (blocks[:, None] * BLOCK_ROWS + torch.arange(BLOCK_ROWS)).flatten()
        rows = rows[rows < len(self)]
        volumes, saliency = self._room(len(rows))
        place = 0
        for block in blocks.tolist():
            some = self._block(block)
            end = place + len(some[0])
            volumes[place:end], saliency[place:end] = some
            place = end
        return rows, volumes, saliency

    def _block(self, block: int) -> tuple[Tensor, Tensor]:
        return self._file.maps(self._split, slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS))

    def _room(self, rows: int) -> tuple[Tensor, Tensor]:
        channels, height, width = self._file.volume_shape
        return torch.empty(rows, channels, height, width, dtype=torch.float16), torch.empty(rows, *self._file.map_shape)
