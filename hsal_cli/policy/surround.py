"""What lies around a glimpse: not in the paper, whose glimpse is one column of the volume (section 3); see `--glimpse-size`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NARROWED = 64  # numbers that a neighbouring column is narrowed to; 128 named digits no better


class Surround(nn.Module):
    """Encodes the columns around a glimpsed cell: each narrowed by one linear map, then all side by side by another.

    Args:
        size: side of the square of cells that a glimpse reads, odd, at least 3.
        channels: channels of the volume, C.
        height, width: cells of the maps.
        encode: width of the controller's input encoding.
    """

    def __init__(self, size: int, channels: int, height: int, width: int, encode: int) -> None:
        super().__init__()
        cells, inside = neighbours(size, height, width)
        self.register_buffer("cells", cells, persistent=False)
        self.register_buffer("inside", inside, persistent=False)
        self.narrow = nn.Linear(channels, NARROWED, bias=False)
        self.encode = nn.Linear(NARROWED * cells.shape[1], encode, bias=False)

    def forward(self, volumes: Tensor, cell: Tensor) -> Tensor:
        """What is added to the controller's encoded input.

        Args:
            volumes: (B, C, h * w).
            cell: (B,) the glimpsed cells, row * w + column, from 0.

        Returns:
            (B, encode).
        """
        around = self.cells[cell]  # (B, n)
        columns = volumes.gather(2, around[:, None].expand(-1, volumes.shape[1], -1))
        narrowed = self.narrow(columns.transpose(1, 2)) * self.inside[cell][..., None]
        return self.encode(narrowed.flatten(1))


def neighbours(size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The cells around each cell of a map.

    Args:
        size: side of the square around a cell, odd.
        height, width: cells of the map.

    Returns:
        int64 (h * w, size^2 - 1), the cells of the square but the middle one, row by row; and (h * w, size^2 - 1), 1 for those on the map,
        0 for those that lie off it, which stand as cell 0.
    """
    reach = torch.arange(size) - size // 2
    down, across = torch.meshgrid(reach, reach, indexing="ij")
    other = (down != 0) | (across != 0)
    rows, columns = (cell[:, None] for cell in torch.unravel_index(torch.arange(height * width), (height, width)))
    rows, columns = rows + down[other], columns + across[other]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, 0), inside.float()
