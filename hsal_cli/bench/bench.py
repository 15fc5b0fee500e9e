"""The benchmark: every stage that is asked for, one after the other, in a temporary folder."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from hsal_cli.bench.settings import BenchSettings
from hsal_cli.bench.shop import Shop
from hsal_cli.bench.stages import MAKERS
from hsal_cli.bench.timing import STOPPED_HINT, measure
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import Recipe
from hsal_cli.progress import SILENT, Reporter
from hsal_cli.threads import cores


def bench(
    settings: BenchSettings, recipe: Recipe, evaluation: EvalSettings, device: torch.device, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """Times the stages; everything is written to a temporary folder, which is removed.

    Args:
        settings: which stages, and for how long.
        recipe, evaluation: the settings of the steps that are timed.
        device: where to compute.
        reporter: progress, in laps.

    Returns:
        `device`, `cores`, `threads`, `torch`, `load` (processes that wanted a core before anything was timed, None where unknown) and
        `stages`, each with `stage`, `rate`, `unit`, `floor`, `ratio` (rate / floor), `floor_is`, `goal` and `reached`, `rates` and
        `floors` (those of each lap, whose medians `rate` and `floor` are).

    Raises:
        HsalError: a stage cannot run; Interrupted: a signal asked to stop.
    """
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "stages": [],
    }

    names = settings.stage_names
    with tempfile.TemporaryDirectory(prefix="hsal-bench-") as folder:
        shop = Shop(recipe, Path(folder), device, reporter)
        with reporter.track("bench", 2 * settings.laps * len(names), "laps") as advance:
            for name in names:
                reporter.check_stop(STOPPED_HINT)
                stage = MAKERS[name](shop, settings.seconds, evaluation)
                rates, floors = measure(stage, settings.seconds, settings.laps, reporter, lambda n, name=name: advance(n, name))
                rate, floor = statistics.median(rates), statistics.median(floors)
                found = {"stage": name, "rate": rate, "unit": stage.unit, "floor": floor, "ratio": rate / floor, "floor_is": stage.floor_is}
                found |= {"goal": stage.goal, "reached": stage.reached(rate, floor), "rates": rates, "floors": floors}
                document["stages"].append(found)
                del stage
                gc.collect()  # networks and batches that closures hold in circles, before the next stage is timed
    return document
