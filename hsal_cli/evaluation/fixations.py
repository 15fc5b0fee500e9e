"""Does it look where people look? NSS and AUC-Judd of covert masks and overt glimpses, against recorded fixations.

Measures as in Bylinskii et al., "What do different evaluation metrics tell us about saliency models?" (2018). Two layouts are read:
    MIT1003   ALLSTIMULI/NAME.jpeg           ALLFIXATIONMAPS/NAME_fixPts.jpg, white where somebody fixated
    SALICON   images/SPLIT/NAME.jpg          fixations/SPLIT/NAME.mat, "gaze" of each observer with (x, y) in px from 1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hsal_cli.errors import FileError, first_line
from hsal_cli.features.saliency.models import CenterPrior
from hsal_cli.models.load import LoadedPolicy
from hsal_cli.models.look import look_at_files
from hsal_cli.models.seen import Look
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.vision.backbone import LoadedBackbone
from hsal_cli.vision.images import read_image

LAYOUTS = (("ALLSTIMULI", "ALLFIXATIONMAPS", "_fixPts.*"), ("images", "fixations", ".mat"))
HINT = "name a folder laid out as MIT1003 (ALLSTIMULI, ALLFIXATIONMAPS) or SALICON (images, fixations): docs/studies.md"
WHITE = 128  # of 255; the points are stored as JPEG
MAPS = ("masks", "glimpses", "saliency", "center")


def fixated_images(folder: Path) -> list[tuple[Path, Path]]:
    """The images of a folder that have fixations, with the files that hold those, by name.

    Raises:
        FileError: there is none.
    """
    found = []
    for images, fixations, ending in LAYOUTS:
        for path in sorted((folder / images).rglob("*")):
            beside = (folder / fixations / path.relative_to(folder / images)).parent
            found += [(path, points) for points in sorted(beside.glob(path.stem + ending)) if path.is_file()][:1]
    if not found:
        raise FileError(f"{folder} holds no images with fixations", HINT)
    return found


def read_fixations(path: Path) -> np.ndarray:
    """Fixated pixels (n, 2), column and row from 0, of a file in either layout; FileError: it cannot be read, or holds none."""
    if path.suffix != ".mat":
        rows, columns = np.nonzero(np.asarray(read_image(path).convert("L")) >= WHITE)
        points = np.stack([columns, rows], 1)
    else:
        from scipy.io import loadmat

        try:
            gaze = loadmat(path)["gaze"]
            points = np.concatenate([np.reshape(one["fixations"], (-1, 2)) for one in gaze.ravel()]).astype(np.int64) - 1
        except Exception as error:  # scipy raises almost anything of a file that is none
            raise FileError(f"{path} cannot be read as fixations: {first_line(error)}", HINT) from error
    if not len(points):
        raise FileError(f"{path} holds no fixation", HINT)
    return points


def nss(saliency: np.ndarray, points: np.ndarray) -> float:
    """Normalized scanpath saliency: the mean of a map (H, W), standardized, at fixated pixels (n, 2); 0 of a constant map."""
    spread = saliency.std()
    return float((saliency[points[:, 1], points[:, 0]].mean() - saliency.mean()) / spread) if spread > 0 else 0.0


def auc_judd(saliency: np.ndarray, points: np.ndarray) -> float:
    """Area under the curve of hits (fixated pixels above a value) over false alarms (others above it), a threshold at each fixation.

    Args:
        saliency: (H, W); on equal values half counts.
        points: (n, 2), column and row.
    """
    seen = np.zeros(saliency.shape, dtype=bool)
    seen[points[:, 1], points[:, 0]] = True
    fixated, others = saliency[seen], np.sort(saliency[~seen])
    below = np.searchsorted(others, fixated, "left") + np.searchsorted(others, fixated, "right")
    return float(below.mean() / (2 * len(others))) if len(others) else 0.5


def maps_of(seen: Look) -> dict[str, np.ndarray]:
    """A look as maps (H, W) of the image: the highest mask at each place, Gaussians a cell wide at the glimpses, and two controls."""
    steps = [*seen.steps, *([seen.end] if seen.end and not seen.steps else [])]
    cells = steps[0].saliency.shape
    rows, columns = np.indices(cells)
    looked = [np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2) for step in steps for row, column in step.glimpses]
    center = CenterPrior()(torch.zeros(1), torch.zeros(1, 1, *cells), [""])[0].numpy()
    found = {"masks": np.max([step.mask for step in steps], 0), "glimpses": np.sum([np.zeros(cells), *looked], 0)}
    stacked = torch.from_numpy(np.stack([*found.values(), steps[0].saliency, center]))
    large = F.interpolate(stacked[None], seen.image.shape[:2], mode="bilinear")[0].numpy()
    if seen.within is not None:  # of a padded picture, the picture alone
        left, top, right, bottom = seen.within
        large = large[:, top:bottom, left:right]
    return dict(zip(MAPS, large, strict=True))


def fixation_scores(folder: Path, policy: LoadedPolicy, backbone: LoadedBackbone, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Shows the images of a folder to a policy and scores where it looks by where people did.

    Returns:
        `images`, `fixations`, and `nss` and `auc_judd` of each of `MAPS`, means over the images: higher is closer to people; 0 and 0.5 is
        chance, and `center` what is had without looking at the image.

    Raises:
        FileError: a file cannot be read, or points lie outside their image.
    """
    pairs = dict(fixated_images(folder))
    every: dict[str, list[list[float]]] = {"nss": [], "auc_judd": []}
    count = 0
    with reporter.track("fixations", len(pairs), "images") as advance:
        for path, seen in _looks(list(pairs), policy, backbone):
            points = read_fixations(pairs[path])
            maps = maps_of(seen)
            height, width = maps["masks"].shape
            if points.min() < 0 or (points >= (width, height)).any():
                raise FileError(f"{pairs[path]} has fixations outside of {path}, which has {width} x {height} px", HINT)
            count += len(points)
            every["nss"].append([nss(maps[name], points) for name in MAPS])
            every["auc_judd"].append([auc_judd(maps[name], points) for name in MAPS])
            advance(1)
            reporter.check_stop("run the same command again")
    means = {score: dict(zip(MAPS, np.mean(rows, 0).tolist(), strict=True)) for score, rows in every.items()}
    return {"images": len(pairs), "fixations": count, **means}


def _looks(paths: list[Path], policy: LoadedPolicy, backbone: LoadedBackbone) -> Iterator[tuple[Path, Look]]:
    for path, seen in look_at_files(paths, backbone, policy):
        if not isinstance(seen, Look):
            raise seen
        yield path, seen
