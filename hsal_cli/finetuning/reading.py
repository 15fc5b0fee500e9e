"""Reading what fine-tuning learns from, and in which way it teaches (`objects.KINDS`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hsal_cli.errors import FileError, UsageError
from hsal_cli.finetuning.objects import KINDS, Objects, Scenes
from hsal_cli.scenes.scene_file import open_scenes


def read_objects(scenes: Path, split: str, way: str, most: int | None = None) -> Objects:
    """Reads a split of a scene file, or its first images, to be learned from in one of the ways of `way_of`.

    Raises:
        FileError: there is no such split, or it does not fit the way.
    """
    with open_scenes(scenes) as file:
        part = file.split(split)
        stop = len(part) if most is None else min(most, len(part))
        labels, boxes = part.labels[:stop], part.boxes
        if way == "single":
            _check_alone(scenes, split, labels)
        if way == "crops" and boxes is None:
            raise FileError(f"{scenes}: {split} has no boxes", "take --objects counts")
        corners = None if boxes is None else torch.from_numpy(boxes[:stop].astype(np.float32))
        multisets = torch.from_numpy(labels.astype(np.int64))
        if way == "single" and corners is not None and bool((corners[..., 2] <= corners[..., 0])[multisets >= 0].any()):
            corners = None
        return KINDS[way].of(Scenes(torch.from_numpy(part.read(0, stop)), multisets, corners, len(file.classes)))


def way_of(scenes: Path, wanted: str) -> str:
    """How images teach: "single", "crops", "random-label" or "counts".

    Args:
        scenes: the scene file.
        wanted: `FinetuneSettings.objects`; auto takes what the file allows: single objects, boxes, counts.

    Raises:
        UsageError: crops are wanted where there are no boxes; FileError: there is no training split, or no object in
            it; or single objects are wanted of images that hold none or several.
    """
    with open_scenes(scenes) as file:
        if "train" not in file.splits:
            raise FileError(f"{scenes} has no split train", "make it with: hsal make-data mnist-single")
        boxes = file.split("train").boxes is not None
        labels = {name: file.split(name).labels for name in ("train", "test") if name in file.splits}
    if not (labels["train"] >= 0).any():
        raise FileError(
            f"{scenes}: no image of train holds an object, so there is nothing to learn",
            "take scenes with objects, such as by: hsal make-data mnist-single",
        )
    if wanted == "single":  # the test split is read when all is trained
        for name, each in labels.items():
            _check_alone(scenes, name, each)
    if wanted == "crops" and not boxes:
        raise UsageError(f"objects = crops, but {scenes} has no boxes", "take --objects counts or --objects random-label")
    alone = all(bool(((each >= 0).sum(axis=1) == 1).all()) for each in labels.values())
    return wanted if wanted != "auto" else "single" if alone else "crops" if boxes else "counts"


def _check_alone(scenes: Path, split: str, labels: np.ndarray) -> None:
    """Refuses labels (N, L) of images of none or several objects, naming the first such image."""
    objects = (labels >= 0).sum(axis=1)
    if (objects != 1).any():
        row = int((objects != 1).argmax())
        raise FileError(
            f"{scenes}: image {row} of {split} holds {objects[row]} objects; --objects single takes one",
            "make such images with: hsal make-data mnist-single, or learn from none or several: --objects auto",
        )
