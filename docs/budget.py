"""Exact match against FLOPs an image, of runs at every number of glimpses and at thresholds of stop; the curve as a PNG.

    python docs/budget.py curve.png runs/window runs/full runs/count

Each run is evaluated on the test images of its own features. A policy takes k = 0 to 4 glimpses a meta-step, whatever it was trained with,
as far as they save or cost work (windows), and at its own k names stop at thresholds; a direct baseline is one point.
"""

import dataclasses
import sys
from pathlib import Path

from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.load import LoadedPolicy, load_model
from hsal_cli.pictures.charts.panels import Curves, draw_panels
from hsal_cli.policy.hsal import HSAL

GLIMPSES, THRESHOLDS = range(5), (0.05, 0.2, 0.5, 0.8, 0.95)


def point(loaded: LoadedPolicy, threshold: float | None = None) -> tuple[float, float, float | None]:
    """GFLOP an image, exact match, and at how many cells an image was looked at."""
    settings = EvalSettings(looking=0, resamples=2, stop_threshold=threshold)
    found = evaluate_file(loaded, Path(loaded.meta.features), settings)
    return found["flops"]["image"] / 1e9, found["exact_match"], found["cells_looked_at"]


target, *runs = map(Path, sys.argv[1:])
series = {}
print("| run | glimpses | stop threshold | cells looked at | MFLOP an image | exact match |\n|---|---|---|---|---|---|")
for run in runs:
    loaded = load_model(run)
    own = loaded.policy.variant.glimpses if isinstance(loaded.policy, HSAL) else None
    ways = {f"{run.name}: thresholds": [(own, threshold) for threshold in THRESHOLDS]} if own is not None else {run.name: [(None, None)]}
    if own is not None:
        closer = loaded.policy.variant.glimpse == "window"
        ways[f"{run.name}: glimpses" if closer else run.name] = [(k, None) for k in (GLIMPSES if closer else (own,))]
    for name, points in ways.items():
        curve = []
        for k, threshold in points:
            if k is not None:
                loaded.policy.controller.glimpses = k
                loaded.policy.variant = dataclasses.replace(loaded.policy.variant, glimpses=k)
            work, right, cells = point(loaded, threshold)
            curve.append((work, right))
            shown = ["" if value is None else f"{value:g}" for value in (k, threshold)] + ["" if cells is None else f"{cells:.1f}"]
            print(f"| {run.name} | {' | '.join(shown)} | {1e3 * work:.0f} | {right:.3f} |", flush=True)
        series[name] = [sorted(curve)]
panel = Curves("What looking costs, and what it names", "GFLOP an image, the whole pipeline", "exact match", series)
target.write_bytes(draw_panels([panel], size=(5.0, 3.6)))
