"""What a feature file holds: the size of its activations, and how well its saliency maps single out the objects (section 3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.evaluation.attention import cells_inside
from hsal_cli.features.table import MADE_BY, FeatureFile

MOST = 2_000  # images that are read; a whole split may be gigabytes


def feature_summary(file: FeatureFile, split: str) -> tuple[dict[str, Any], np.ndarray]:
    """Measures the first images of a split.

    Returns:
        figures: plain JSON types: `rows` that were read · `volumes` (`mean`, `std`, `max`, `zero`: share of activations that are 0) ·
            `saliency` (`mean`, `min`, `max`, raw scale; and where boxes are known `peak_on_object`: share of maps whose maximum lies in
            an object's box, beside `area_on_object`: share of all cells that do; of the images that have an object, None if none has).
        mean_map: (h, w) the mean of the maps, each min-max to [0, 1].

    Raises:
        FileError: the split is empty, or its data does not fit its checksums.
    """
    table = file.table(split, slice(0, MOST))
    if not len(table):
        raise FileError(f"split {split} of {file.path} holds no image", f"make it again with: {MADE_BY} --overwrite")
    volumes, maps = table.volumes.numpy(), table.saliency.numpy().astype(np.float64)
    total = volumes.sum(dtype=np.float64)
    square = sum(np.square(part, dtype=np.float64).sum() for part in np.array_split(volumes, max(1, len(volumes) // 64)))
    mean = total / max(volumes.size, 1)
    low, high = (edge(maps, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
    scaled = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)
    saliency: dict[str, Any] = {"mean": float(maps.mean()), "min": float(maps.min()), "max": float(maps.max())}
    if table.boxes is not None:
        labels = table.labels.numpy()
        inside = cells_inside(table.boxes.numpy().astype(np.float64), table.image_size, maps.shape[1:]) & (labels >= 0)[..., None]
        has_object = (labels >= 0).any(axis=1)
        on_object = inside.any(axis=1)[has_object]  # (rows, h*w)
        peaks = maps.reshape(len(maps), -1).argmax(axis=1)[has_object]
        saliency["peak_on_object"] = float(on_object[np.arange(len(peaks)), peaks].mean()) if len(peaks) else None
        saliency["area_on_object"] = float(on_object.mean()) if len(peaks) else None
    figures = {
        "rows": len(maps),
        "volumes": {
            "mean": float(mean),
            "std": float(np.sqrt(max(square / max(volumes.size, 1) - mean**2, 0))),
            "max": float(volumes.max()),
            "zero": float((volumes == 0).mean()),
        },
        "saliency": saliency,
    }
    return figures, scaled.mean(axis=0)
