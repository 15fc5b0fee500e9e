"""What is in a file of ours: a scene file or a feature file, in figures and as measures that can be drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hsal_cli.errors import FileError
from hsal_cli.features.table import FORMAT as FEATURES
from hsal_cli.features.table import open_features
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.scenes.summary import Measures, measure, summary
from hsal_cli.storage.hdf5 import format_of, open_any
from hsal_cli.upkeep.feature_summary import feature_summary


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
    """Looks into a scene file or a feature file.

    Raises:
        FileError: missing, neither of the two, or damaged.
    """
    hint = "name a scene file, a feature file, or the folder of a run"
    if not path.is_file():
        raise FileError(f"{path} is missing", "check the path")
    if not h5py.is_hdf5(path):
        raise FileError(f"{path} is not an HDF5 file", hint)
    found = format_of(path)
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
