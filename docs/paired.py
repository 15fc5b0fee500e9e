"""The difference of two settings' exact match on the same test images, with its 95% interval (paired bootstrap over images).

python docs/paired.py runs/a data/a.features.h5 runs/b data/b.features.h5

Of several seeds, with commas between them, the n-th of one setting beside the n-th of the other: the interval over images is that of their
mean, and beside it stands the interval over seeds (Student's t).

python docs/paired.py runs/a.0,runs/a.1,runs/a.2 data/a.features.h5 runs/b.0,runs/b.1,runs/b.2 data/b.features.h5
"""

import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

from hsal_cli.evaluation.evaluate import answers
from hsal_cli.evaluation.metrics import label_counts
from hsal_cli.features.table import open_features
from hsal_cli.models.load import load_model


def right(runs: str, features: str) -> tuple[np.ndarray, np.ndarray]:
    """Of each run and test image whether the run names all of it and nothing else, (S, N) float64; and the true counts, (N, K)."""
    with open_features(Path(features)) as file:
        table = file.table("test")
    found = []
    for run in runs.split(","):
        loaded = load_model(Path(run))
        true = label_counts(table.labels, len(loaded.classes))
        found.append((answers(loaded.policy, table, loaded.max_steps)[0] == true).all(1))
    return np.stack(found).astype(float), true


(one, truth), (other, truth_of_other) = right(*sys.argv[1:3]), right(*sys.argv[3:5])
if not np.array_equal(truth, truth_of_other):
    sys.exit("the two were shown different test images")
if len(one) != len(other):
    sys.exit(f"{len(one)} seeds of one, {len(other)} of the other: name as many of each, in the same order")
less, seeds = one - other, len(one)
draws = np.random.default_rng(0).integers(less.shape[1], size=(1000, less.shape[1]))
low, high = np.percentile(less.mean(0)[draws].mean(1), (2.5, 97.5))
print(f"{one.mean():.3f} less {other.mean():.3f}: {less.mean():.3f} ({low:.3f} to {high:.3f} over images)")
if seeds > 1:
    spread = t.ppf(0.975, seeds - 1) * less.mean(1).std(ddof=1) / seeds**0.5
    print(f"± {spread:.3f} over seeds: {', '.join(f'{seed:.3f}' for seed in less.mean(1))}")
