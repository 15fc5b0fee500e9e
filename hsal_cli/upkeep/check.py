"""Checking what hsal has written: scene files, feature files, runs and checkpoints, from the first byte to the last."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hsal_cli.features.settings import CALLED
from hsal_cli.features.table import FORMAT as FEATURES
from hsal_cli.features.table import FeatureFile, features_digest, finite_rows, open_features
from hsal_cli.models.shipped import check_files, is_export, read_manifest
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.scenes.scene_file import FORMAT as SCENES
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import MANIFEST
from hsal_cli.storage.files import named, regular
from hsal_cli.storage.hdf5 import format_of, open_any, opened, reading
from hsal_cli.upkeep.check_run import Report, check_run, load_as_described

BLOCK = 512  # rows read at a time
STOPPED_HINT = "run the same command again"


def check_paths(paths: Sequence[Path], reporter: Reporter = SILENT) -> Iterator[Report]:
    """Checks files and folders, one after the other; a fault in one does not keep the others from being checked.

    Args:
        paths: scene files, feature files, runs, checkpoints, exported models, or folders that hold such things, which are all checked.

    Yields:
        One report for each thing found; Interrupted where a signal asked to stop.
    """
    for path in paths:
        inside = _ours_in(path) if path.is_dir() and not _is_ours(path) else []
        for place in inside or [path]:
            reporter.check_stop(STOPPED_HINT)
            yield check_path(place, reporter)


def check_path(path: Path, reporter: Reporter = SILENT) -> Report:
    """Checks one file, run or checkpoint."""
    report = Report(path)
    with report.noting():
        if not path.exists():
            report.fault("it is missing")
        elif path.is_dir():
            _check_folder(path, report)
        else:
            _check_file(path, report, reporter)
    return report


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or (folder / "status.json").is_file() or (folder / "config.json").is_file()


def _ours_in(folder: Path) -> list[Path]:
    """The runs, checkpoints and HDF5 files that lie directly in a folder."""
    found = [place for place in folder.iterdir() if not place.name.startswith(".")]
    return sorted(place for place in found if (_is_ours(place) if place.is_dir() else place.name.endswith((".h5", ".h5.partial"))))


def _check_export(path: Path, report: Report) -> None:
    report.kind = "exported models"
    manifest = read_manifest(path)
    for name, entry in manifest.parts.items():
        with report.noting():
            check_files(named(path, name, a_folder=True), entry.sha256)
            load_as_described(checkpoints.read_checkpoint(path / name), report)
    report.summary = ", ".join(manifest.parts)


def _check_folder(path: Path, report: Report) -> None:
    if is_export(path):
        _check_export(path, report)
    elif (path / MANIFEST).is_file():
        report.kind = "checkpoint"
        checkpoint = checkpoints.read_checkpoint(path)
        load_as_described(checkpoint, report)
        report.summary = f"of a {checkpoint.kind}, {len(checkpoint.weights)} tensors"
        if checkpoint.state is None:
            report.notes.append("holds weights only; a training cannot go on from it")
    elif _is_ours(path):
        check_run(path, report)
    else:
        report.fault("it is a folder with nothing of hsal in it")


def _check_file(path: Path, report: Report, reporter: Reporter) -> None:
    if not h5py.is_hdf5(regular(path)):
        inside = path.parent.name == "checkpoints" or (path.parent / MANIFEST).is_file() or (path.parent / "status.json").is_file()
        report.fault(f"it is part of {path.parent}; check that" if inside else "it is not an HDF5 file, or its first bytes are damaged")
        return
    kind = format_of(path)
    if kind == SCENES:
        report.kind = "scene file"
        _check_scenes(path, report, reporter)
    elif kind == FEATURES and path.name.endswith(".partial"):
        report.kind = "partial feature file"
        _check_partial(path, report)
    elif kind == FEATURES:
        report.kind = "feature file"
        _check_features(path, report, reporter)
    else:
        open_any(path, "").close()  # says why, where it cannot be opened
        report.fault(f"its format is {kind or 'not given, or cannot be read'}; hsal writes {SCENES} and {FEATURES}")


def _check_scenes(path: Path, report: Report, reporter: Reporter) -> None:
    with open_scenes(path) as scenes, _progress(reporter, path, len(scenes)) as advance:
        computed = scenes.computed_digest(advance)  # reads everything, so that HDF5 compares its own checksums too
        if scenes.noted_digest is None:
            report.notes.append("its writer noted no digest; that its content is as it was written cannot be told")
        elif scenes.noted_digest != computed:
            report.fault(f"its content has digest {computed[:12]}, its writer noted {scenes.noted_digest[:12]}")
        parts = []
        for name in scenes.splits:
            split = scenes.split(name)
            _note_missing(report, name, scenes.classes, split.labels)
            height, width = split.image_size
            parts.append(f"{len(split):,} {name} images of {width}x{height} px")
        report.summary = f"{' and '.join(parts)}, {len(scenes.classes)} classes"


def _check_features(path: Path, report: Report, reporter: Reporter) -> None:
    with open_features(path) as features, _progress(reporter, path, len(features)) as advance:
        made_from = features.scenes_digest, features.backbone_digest, features.saliency_digest
        # Cells that were asked for count where the backbone has fewer of its own, which is not told here.
        asked = features.config.raw.get("resolution")
        sides = (asked,) if asked in CALLED else (None, features.volume_shape[1]) if asked else (None,)
        if features.digest not in [features_digest(*made_from, side, features.config.views, features.config.mirror) for side in sides]:
            report.fault("its digest is not that of the scene file, the backbone and the saliency model that it names")
        for name in features.splits:
            _check_feature_split(features, name, report, advance, reporter)
        shape = "x".join(map(str, features.volume_shape))
        counts = " and ".join(f"{len(features.labels(name)):,} {name}" for name in features.splits)
        report.summary = f"{counts} volumes of {shape}, {len(features.classes)} classes, backbone {features.backbone_digest[:12]}"


def _check_feature_split(features: FeatureFile, name: str, report: Report, advance: Any, reporter: Reporter) -> None:
    labels = features.labels(name)
    _note_missing(report, name, features.classes, labels.numpy())
    if features.cut_off(name):
        report.notes.append(f"{features.cut_off(name):,} activations of {name} were cut off at what float16 holds")
    for start in range(0, len(labels), BLOCK):
        reporter.check_stop(STOPPED_HINT)
        table = features.table(name, slice(start, min(start + BLOCK, len(labels))))
        for part, values in (("volumes", table.volumes.numpy()), ("saliency", table.saliency.numpy())):
            finite = finite_rows(values)
            if not finite.all():
                report.fault(f"{name}: row {start + int(finite.argmin())} of {part} has values that are not finite")
                return
        advance(len(table))


def _check_partial(path: Path, report: Report) -> None:
    with reading(path, "its description", ""), opened(path) as file:
        done = sum(int(group.attrs["done"]) for group in file.values())
        total = sum(len(group["labels"]) for group in file.values())
    report.fault(f"{done:,} of {total:,} images are computed; `hsal precompute` with the same options goes on")


def _note_missing(report: Report, split: str, classes: list[str], labels: np.ndarray) -> None:
    missing = [classes[place] for place in sorted(set(range(len(classes))) - set(np.unique(labels).tolist()))]
    if missing:
        report.notes.append(f"no {split} image holds {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")


@contextlib.contextmanager
def _progress(reporter: Reporter, path: Path, total: int) -> Iterator[Any]:
    with reporter.track(f"checking {path.name}", total, "images") as advance:

        def counted(images: int) -> None:
            advance(images)
            reporter.check_stop(STOPPED_HINT)

        yield counted


def to_json(report: Report) -> dict[str, Any]:
    """A report as plain JSON types."""
    return {**dataclasses.asdict(report), "path": str(report.path), "ok": report.ok}
