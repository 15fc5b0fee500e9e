"""Does a saliency map lead to every object? A winner-take-all walk with nothing learned, as many steps as an image has objects.

    python docs/walk.py data/a.features.h5 data/a.fine.features.h5

prints, for each file's test images and each width of inhibition, the share of objects with a step in their box, of steps in no box, and of
images whose objects were all visited.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from hsal_cli.evaluation.attention import cells_inside
from hsal_cli.features.table import open_features
from hsal_cli.policy.maps import gaussian_masks, highest_cell, inhibit, min_max
from hsal_cli.policy.variant import DEFAULT

WIDTHS = (1.0, 1.5, 2.0, 2.5)

print("| features | cells | inhibition_width | objects visited | steps beside them | all of an image |\n|---|---|---|---|---|---|")
for path in map(Path, sys.argv[1:]):
    with open_features(path) as file:
        table = file.table("test")
    height, width = cells = tuple(table.saliency.shape[1:])
    inside = (
        torch.from_numpy(cells_inside(table.boxes.numpy().astype(np.float64), table.image_size, cells)) & (table.labels >= 0)[..., None]
    )
    counts, beta = (table.labels >= 0).sum(1), sum(DEFAULT.on_map(height * width).beta) / 2
    for times in WIDTHS:
        saliency = min_max(table.saliency.sqrt(), 1e-6)
        visited, beside = torch.zeros(table.labels.shape, dtype=torch.bool), torch.zeros(len(table))
        for step in range(int(counts.max())):
            place, active = highest_cell(saliency), step < counts
            ones = torch.ones(len(table), 1)
            mask = gaussian_masks(torch.cat([ones, beta * ones, beta * ones, place], 1)[:, None], height, width, (times,))[0]
            cell = saliency.flatten(1).argmax(1, keepdim=True)
            hit = inside.gather(2, cell[:, None].expand(-1, inside.shape[1], -1))[..., 0]
            visited |= hit & active[:, None]
            beside += ~hit.any(1) & active
            saliency = inhibit(saliency, mask, cell, True)
        shares = visited.sum() / counts.sum(), beside.sum() / counts.sum(), (visited.sum(1) == counts).float().mean()
        print(f"| `{path.name}` | {height} x {width} | {times:g} | " + " | ".join(f"{float(share):.3f}" for share in shares) + " |")
