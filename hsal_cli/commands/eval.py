"""hsal eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Config, Device, Json, Preset, options
from hsal_cli.commands.policies import RunOption, load, policy_run
from hsal_cli.errors import FileError
from hsal_cli.evaluation.settings import EvalSettings


@options(settings=EvalSettings)
def eval_(
    settings: EvalSettings,
    *,
    run: RunOption = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Feature file, or scene file whose features are computed if missing.",
            show_default="the features that the policy was trained on",
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="JSON file to write.", show_default="eval.json in the run")] = None,
    device: Device = "auto",
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Evaluate a policy: multiset metrics with 95% intervals, attention scores, localization, and trivial baselines."""
    from hsal_cli.evaluation.evaluate import evaluate_file
    from hsal_cli.files import write_sealed
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    with console.stopping(reporter):
        place = policy_run(run, chosen, reporter, preset, config)
        loaded = load(place, chosen, reporter)
        features = _features(data, loaded.meta, chosen, reporter)
        found = evaluate_file(loaded, features, settings, chosen, reporter)
    target = out or (place / "eval.json" if (place / "status.json").is_file() else None)
    if target is not None:
        found = write_sealed(target, found)
    if json:
        console.print_json(found)
        return
    for title, columns, rows in tables(found):
        console.print_table(title, columns, rows)
    if target is not None:
        console.print_line(f"written to {target}   next: hsal visualize IMAGE --run {place}")


def _features(data: Path | None, meta: dict[str, Any], device: Any, reporter: console.Reporter) -> Path:
    """The feature file that is meant; for a scene file its features by the policy's own backbone, computed if missing."""
    import h5py

    from hsal_cli.files import format_of

    if data is None:
        recorded = Path(meta["features"])
        if not recorded.is_file():
            raise FileError(f"the features the policy was trained on are not at {recorded}", "name a scene or feature file with --data")
        return recorded
    if not data.is_file():
        raise FileError(f"{data} is missing", "make it with: hsal make-data")
    if not h5py.is_hdf5(data):
        raise FileError(f"{data} is not an HDF5 file", "make one with: hsal make-data")
    if format_of(data) != "hsal-scenes":
        return data
    from hsal_cli.evaluation.loading import find_backbone
    from hsal_cli.learning.pipeline import ensure_features

    return ensure_features(data, find_backbone(meta).path, reporter, device)


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """An evaluation as tables for the terminal: (title, columns, rows) each."""
    interval = found["ci95"]
    how = f"{found['sample']} sampled roll-outs an image" if found["sample"] else "greedy"
    main = [
        [text, number(found[name]), " to ".join(map(number, interval[name])) if name in interval else ""]
        for name, text in (
            ("exact_match", "exact match (0-1)"),
            ("macro_f1", "macro F1"),
            ("macro_precision", "macro precision"),
            ("macro_recall", "macro recall"),
            ("micro_f1", "micro F1"),
            ("micro_precision", "micro precision"),
            ("micro_recall", "micro recall"),
            ("example_f1", "example F1"),
            ("cardinality_error", "cardinality error, objects"),
        )
    ]
    title = f"{found['dataset']}, {found['split']} split, {found['examples']:,} images, {how}"
    made = [(title, ["metric", "value", "95% interval"], main)]
    compared = {"this policy": found, **found.get("baselines", {})}
    if len(compared) > 1:
        rows = [[name.replace("_", " "), number(scores["exact_match"]), number(scores["macro_f1"])] for name, scores in compared.items()]
        made.append(("Against predictors that never look", ["predictor", "exact match", "macro F1"], rows))
    salient = found["attn_saliency"]
    rows = [["raw scale, as in the paper", number(salient["raw"], 1), "", ""]]
    rows += [["normalised map", *(number(salient[name]) for name in ("normalized", "random", "best"))]]
    made.append(("attn_saliency", ["scale", "glimpses", "random cells", "k highest cells"], rows))
    if "localization" in found:
        made.append(_localization(found["localization"]))
    rows = [
        [count, f"{part['examples']:,}", number(part["exact_match"]), number(part["macro_f1"])] for count, part in found["by_count"].items()
    ]
    made.append(("By number of objects", ["objects", "images", "exact match", "macro F1"], rows))
    rows = [
        [name, f"{part['support']:,}", number(part["precision"]), number(part["recall"]), number(part["f1"])]
        for name, part in found["by_class"].items()
    ]
    made.append(("By class", ["class", "objects", "precision", "recall", "F1"], rows))
    return made


def _localization(local: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [["glimpses on the object (glimpse_hit)", number(local.get("glimpse_hit"))]]
    rows += [[f"  {text}", number(local[name])] for name, text in (("random", "a random cell"), ("center", "the middle cell"))]
    rows += [["  the maximum of the saliency map", number(local["saliency"])]]
    rows += [["mask on the object (mask_mass)", number(local["mask_mass"])], ["  the object's share of the area", number(local["area"])]]
    rows += [["objects visited exactly once", number(local.get("digits_once"))]]
    rows += [["meta-steps that visit an object again", number(local.get("repeat_visits"))]]
    return "Localization, at meta-steps that name a label rightly", ["score", "share"], rows


def number(value: float | None, decimals: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{decimals}f}"
