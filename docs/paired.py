"""The difference of two runs' exact match on the same test images, with its 95% interval (paired bootstrap over images).

python docs/paired.py runs/a data/a.features.h5 runs/b data/b.features.h5
"""

import sys
from pathlib import Path

import numpy as np

from hsal_cli.evaluation.evaluate import roll_outs
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.features.table import open_features
from hsal_cli.models.load import load_policy


def right(run: str, features: str) -> np.ndarray:
    """Of each test image whether the run names all of it and nothing else, (N,) float64."""
    loaded = load_policy(Path(run))
    with open_features(Path(features)) as file:
        table = file.table("test")
    answers = roll_outs(loaded.policy, table, loaded.max_steps, 256)
    counts = [[label_counts(labels, len(loaded.classes)) for labels in (seen.labels.T, part.labels)] for part, seen in answers]
    return np.concatenate([(named == true).all(1) for named, true in counts]).astype(float)


one, other = right(*sys.argv[1:3]), right(*sys.argv[3:5])
draws = np.random.default_rng(0).integers(len(one), size=(1000, len(one)))
low, high = np.percentile((one - other)[draws].mean(1), (2.5, 97.5))
print(f"{one.mean():.3f} less {other.mean():.3f}: {(one - other).mean():.3f} ({low:.3f} to {high:.3f})")
