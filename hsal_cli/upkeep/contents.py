"""What is in a file of ours: a scene file or a feature file, in figures and as measures that can be drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.evaluation.attention import cells_inside
from hsal_cli.features.table import FORMAT as FEATURES
from hsal_cli.features.table import MADE_BY, FeatureFile, open_features
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.summary import Measures, measure, summary
from hsal_cli.storage.hdf5 import format_told, open_any

MOST = 2_000  # images whose features are read; a whole split may be gigabytes


@dataclasses.dataclass(frozen=True)
class Contents:
    """A file, looked into.

    Attributes:
        document: plain JSON types: `file`, `format`, `bytes`, `digest`, `classes`, `splits`: name -> `scenes.summary.summary`, for
            features with `volumes` and `saliency` (see `feature_summary`), and `config`; for features also `volume_shape`, `input_size`,
            `backbone_digest`, `scenes_digest`.
        measures: split -> its measures.
        saliency: (h, w) mean saliency map of the first split, for features.
    """

    document: dict[str, Any]
    measures: dict[str, Measures]
    saliency: np.ndarray | None = None


def look_into(path: Path) -> Contents:
    """Looks into a scene file or a feature file; FileError where it is missing, neither of the two, or damaged."""
    hint = "name a scene file, a feature file, or the folder of a run"
    found = format_told(path, hint)
    if found == SCENES:
        return _scenes(path)
    if found == FEATURES:
        return _features(path)
    open_any(path, hint).close()  # says why, where it cannot be opened
    raise FileError(f"{path} is neither a scene file nor a feature file: its format is {found or 'not given'}", hint)


def _scenes(path: Path) -> Contents:
    with open_scenes(path) as file:
        parts = {name: file.split(name) for name in file.splits}
        measures = {name: measure(part.labels, part.boxes, len(file.classes), part.image_size) for name, part in parts.items()}
        document = {
            **_head(path, SCENES, file.digest, file.classes),
            "splits": {
                name: {**summary(found, file.classes), "channels": 3 if parts[name].images.ndim == 4 else 1}
                for name, found in measures.items()
            },
            "config": file.config,
        }
    return Contents(document, measures)


def _features(path: Path) -> Contents:
    measures, splits, mean_map = {}, {}, None
    with open_features(path) as file:
        for name in file.splits:
            labels, boxes = file.labels(name).numpy(), file.boxes(name)
            measures[name] = measure(labels, None if boxes is None else boxes.numpy(), len(file.classes), file.size_of(name))
            figures, own_map = feature_summary(file, name)
            mean_map = own_map if mean_map is None else mean_map
            splits[name] = {**summary(measures[name], file.classes), **figures}
        document = {
            **_head(path, FEATURES, file.digest, file.classes),
            "volume_shape": list(file.volume_shape),
            "input_size": file.input_size,
            "backbone_digest": file.backbone_digest,
            "scenes_digest": file.scenes_digest,
            "splits": splits,
            "config": file.config.raw,
        }
    return Contents(document, measures, mean_map)


def _head(path: Path, kind: str, digest: str, classes: list[str]) -> dict[str, Any]:
    return {"file": str(path), "format": kind, "bytes": path.stat().st_size, "digest": digest, "classes": classes}


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
