"""hsal eval."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.options import Config, Device, Json, Preset, options, recipe_for
from hsal_cli.commands.policies import PretrainedOption, RunOption, load, load_with_backbone, meant
from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.settings import PrecomputeSettings, kind_in
from hsal_cli.runs.settings import DIRECT

if TYPE_CHECKING:
    from hsal_cli.bench.estimate import Work
    from hsal_cli.experiments.pipeline import Recipe
    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.models.shipped import Result


PANELS = {
    "What": "run pretrained data split fixations",
    "How": "batch_size sample max_steps stop_threshold looking resamples seed preset config",
    "Where": "device yes",
    "Output": "out json",
}
EXAMPLES = """Examples:

  hsal eval
      the newest run on its own test images, else the pretrained policy

  hsal eval --pretrained mnist-set
      the figures of a policy that comes with hsal, anew

  hsal eval --run runs/mine-rl --data data/other.h5
      another scene file; its features are computed first
"""


@options(settings=EvalSettings, panels=PANELS)
def eval_(
    settings: EvalSettings,
    *,
    run: RunOption = None,
    pretrained: PretrainedOption = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Feature file, or scene file whose features are computed if missing.",
            show_default="what the policy was trained on; with --pretrained the one scene file in data/, else data/DATASET.h5",
        ),
    ] = None,
    fixations: Annotated[
        Optional[Path],
        typer.Option(
            "--fixations",
            metavar="DIR",
            help="Instead: does it look where people do? Images with recorded fixations, laid out as MIT1003 or SALICON.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", help="JSON file to write.", show_default="eval.json in the run, for other data eval.NAME.json"),
    ] = None,
    device: Device = "auto",
    yes: Yes = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Evaluate a policy: multiset metrics with 95% intervals, attention scores, localization, and trivial baselines.

    With --pretrained a scene file is enough: its features are computed on the way and not kept.
    """
    from hsal_cli.evaluation.files import evaluate_file
    from hsal_cli.experiments.pipeline import only_scenes
    from hsal_cli.runs.documents import Evaluation
    from hsal_cli.runs.run import EVALUATED, Run
    from hsal_cli.storage.atomic import write_sealed
    from hsal_cli.storage.documents import refuse_foreign_results
    from hsal_cli.typed import checked
    from hsal_cli.vision.devices import choose_device

    if out is not None:
        refuse_foreign_results(out, "exact_match" if fixations is None else "auc_judd")
    reporter = console.TerminalReporter()
    if fixations is not None:
        if data is not None:
            raise UsageError(f"--data {data} and --fixations {fixations} exclude each other", "leave --data out")
        return _by_fixations(fixations, run, pretrained, device, out, json, reporter)
    chosen = choose_device(device)
    target, recipe = out, recipe_for(preset, config)
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        place, pretrained = meant(run, pretrained, reporter, (EVALUATED,), data=data or only_scenes())
        if place is None:
            found, stated = _evaluate_shipped(str(pretrained), data or only_scenes(), settings, recipe, chosen, yes, reporter)
        else:
            loaded = load(place, chosen, reporter, counts=True)
            features = _features(data, settings.split, loaded, recipe, chosen, yes, reporter)
            own = Run(place) if out is None and (place / "status.json").is_file() else None
            if own is not None:
                _ = own.config  # a config.json that cannot be read is said before the work, not after it
            found = evaluate_file(loaded, features, settings, chosen, reporter)
            target = out if own is None else own.place_for(checked(found, Evaluation))
    if not distributed.asked().leads:
        return
    if target is not None:
        found = write_sealed(target, found)
    if json:
        console.print_json(found)
        return
    for title, columns, rows in tables(found):
        console.print_table(title, columns, rows)
    for note in notes(found):
        console.print_line(note)
    if place is None:
        console.print_line(_stated(found, stated))
    if target is not None:
        looks = found["objective"] not in DIRECT
        following = f"hsal visualize IMAGE --run {place}" if looks else f"hsal predict FOLDER --csv counts.csv --run {place}"
        console.print_line(f"written to {target}" + (f"   next: {following}" if place else ""))


def _by_fixations(
    folder: Path, run: Path | None, pretrained: str | None, device: str, out: Path | None, json: bool, reporter: console.Reporter
) -> None:
    from hsal_cli.evaluation.fixations import MAPS, fixated_images, fixation_scores
    from hsal_cli.storage.atomic import write_sealed

    fixated_images(folder)  # says what is wrong with it before anything is loaded
    with console.stopping(reporter):
        found = fixation_scores(folder, *load_with_backbone(run, device, reporter, pretrained), reporter)
    if out is not None:
        found = write_sealed(out, found)
    if json:
        console.print_json(found)
        return
    words = {"masks": "covert masks", "glimpses": "glimpses", "saliency": "the saliency map", "center": "the middle, whatever is shown"}
    rows = [[words[name], number(found["nss"][name]), number(found["auc_judd"][name])] for name in MAPS]
    title = f"Where people look: {found['fixations']:,} fixations on {found['images']:,} images; chance is 0 and 0.5"
    console.print_table(title, ["map", "NSS", "AUC-Judd"], rows)


def _evaluate_shipped(
    name: str, data: Path | None, settings: EvalSettings, recipe: Recipe, device: Any, yes: bool, reporter: console.Reporter
) -> tuple[dict[str, Any], Result | None]:
    """Evaluates a policy that comes with hsal, on a scene file or on features by its backbone; adds `pretrained` and `stated`.

    Returns:
        (found, what the manifest states of it).
    """
    from hsal_cli.bench.estimate import making_scenes, scoring
    from hsal_cli.evaluation.files import evaluate_file, evaluate_scenes
    from hsal_cli.experiments.pipeline import DATA, check_makeable, ensure_scenes
    from hsal_cli.models.shipped import load_shipped

    shipped = load_shipped(name, device, counts=True)
    source = data or DATA / f"{shipped.dataset}.h5"
    made = PrecomputeSettings(saliency=shipped.policy.meta.saliency, resolution=shipped.backbone.refined)
    recipe = dataclasses.replace(recipe, precompute=made)
    check_makeable(source)

    def works() -> list[Work]:
        return [*making_scenes(source, recipe.scenes, asked=True), scoring(source, recipe.scenes, settings, made.resolution)]

    if data is None or _is_scene_file(source):
        begin(works, yes, recipe, device, reporter, shipped.backbone.path)
        ensure_scenes(source, recipe.scenes, reporter)
        found = evaluate_scenes(shipped.policy, shipped.backbone, source, settings, device, reporter)
    else:
        found = evaluate_file(shipped.policy, source, settings, device, reporter)
    stated = shipped.stated.result
    return {**found, "pretrained": shipped.name, "stated": stated and stated.raw}, stated


def _stated(found: dict[str, Any], stated: Result | None) -> str:
    """What the manifest says of a pretrained policy, beside what was found; why the two differ, where that is known."""
    if stated is None or stated.exact_match is None or stated.macro_f1 is None:
        return f"{found['pretrained']}: no figures are stated"
    where = f"{stated.dataset}, {stated.split} split, {stated.examples or 0:,} images"
    figures = [
        f"{text} {then:.4f}, here {found[name]:.4f}"
        for name, text, then in (("exact_match", "exact match", stated.exact_match), ("macro_f1", "macro F1", stated.macro_f1))
    ]
    return f"{found['pretrained']}: stated for {where}: {'; '.join(figures)}{_unlike(found)}"


def _unlike(found: dict[str, Any]) -> str:
    """What is known of the images that were scored, if not those of the stated figures: another frame, or digits that are drawn."""
    from hsal_cli.scenes.scene_file import open_scenes

    if found["frame"] != found["trained_frame"]:
        return f" (the stated figures are of frame {found['trained_frame']}, these of frame {found['frame']}: they do not compare)"

    if "scenes" not in found:
        return ""
    with open_scenes(Path(found["scenes"])) as file:
        drawn = file.config.get("digits") == "strokes"
    return " (the digits here are drawn by pen strokes, those of the stated figures are MNIST's)" if drawn else ""


def _features(
    data: Path | None, split: str, loaded: LoadedPolicy, recipe: Recipe, device: Any, yes: bool, reporter: console.Reporter
) -> Path:
    """The feature file that is meant; for a scene file its features by the policy's own backbone, computed if missing."""
    meta = loaded.meta
    if data is None:
        recorded = Path(meta.features)
        if not recorded.is_file():
            raise FileError(f"the features the policy was trained on are not at {recorded}", "name a scene or feature file with --data")
        return recorded
    if not _is_scene_file(data):
        return data
    from hsal_cli.bench.estimate import feature_work, images_of
    from hsal_cli.evaluation.files import check_scenes
    from hsal_cli.experiments.pipeline import ensure_features
    from hsal_cli.features.settings import features_path
    from hsal_cli.models.load import find_backbone

    check_scenes(data, loaded, split)
    saliency = meta.saliency
    if kind_in(saliency) == "file":  # the maps of other scenes are not where those of the training scenes are
        found = features_path(data, saliency)
        if not found.is_file():
            raise FileError(
                f"the policy was trained on {saliency}, and {found} is missing",
                f"make it with the maps of these scenes: hsal precompute --data {data} --saliency file:PATH",
            )
        return found
    backbone = find_backbone(loaded)
    settings = PrecomputeSettings(saliency=saliency, resolution=backbone.refined)

    def works() -> list[Work]:
        images = sum(images_of(data, recipe.scenes).values())
        return feature_work(
            features_path(data, saliency, backbone.refined), images, backbone.model.resolution, settings.resolution, asked=True
        )

    begin(works, yes, dataclasses.replace(recipe, precompute=settings), device, reporter, backbone.path)
    return ensure_features(data, backbone.path, reporter, device, settings)


def _is_scene_file(data: Path) -> bool:
    """Whether an HDF5 file holds scenes; what else it may be is for its reader to say."""
    from hsal_cli.experiments.pipeline import way_to
    from hsal_cli.storage.hdf5 import format_told

    return format_told(data, "name a scene or feature file with --data", way_to(data)) == "hsal-scenes"


def tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """An evaluation as tables for the terminal: (title, columns, rows) each."""
    from hsal_cli.runs.documents import predictor

    interval = found["ci95"]
    how = f"{found['sample']} sampled roll-outs an image" if found["sample"] else "greedy"
    what = {"count": "count classifier", "set": "set predictor"}.get(found.get("objective"), "policy")
    if found.get("objective") in DIRECT:
        how = f"{what}, {found['parameters']:,} parameters"
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
    frame = "" if found.get("frame", "image") == "image" else f"frame {found['frame']}, "
    title = f"{found['dataset']}, {found['split']} split, {found['examples']:,} images, {frame}{how}"
    made = [(title, ["metric", "value", "95% interval"], main)]
    compared = {f"this {what}": found, **found.get("baselines", {})}
    if len(compared) > 1:
        rows = [[predictor(name), number(scores["exact_match"]), number(scores["macro_f1"])] for name, scores in compared.items()]
        made.append(("Against predictors that never look", ["predictor", "exact match", "macro F1"], rows))
    salient = found["attn_saliency"]
    if salient["raw"] is not None:  # a count classifier takes no glimpses
        rows = [["raw scale, as in the paper", number(salient["raw"], 1), "", ""]]
        rows += [["map scaled to 0 to 1", *(number(salient[name]) for name in ("normalized", "random", "best"))]]
        made.append(("Saliency where the glimpses fall (attn_saliency)", ["scale", "glimpses", "random cells", "k highest cells"], rows))
    if "localization" in found:
        made.append(_localization(found["localization"]))
    if "calibration" in found:  # a count classifier makes no choices
        made.append(_reliability(found["calibration"]))
    if "looking" in found:
        made.append(_looking(found["looking"]))
    made.append(_work(found["flops"], what))
    rows = [
        [count, f"{part['examples']:,}", number(part["exact_match"]), number(part["macro_f1"])] for count, part in found["by_count"].items()
    ]
    made.append(("By number of objects", ["objects", "images", "exact match", "macro F1"], rows))
    rows = [
        [name, f"{part['support']:,}", *(number(part[score] if part["support"] else None) for score in ("precision", "recall", "f1"))]
        for name, part in found["by_class"].items()
    ]
    made.append(("By class", ["class", "objects", "precision", "recall", "F1"], rows))
    return made


def notes(found: dict[str, Any]) -> list[str]:
    """What a reader of the tables may stumble over, and what follows from them."""
    from hsal_cli.evaluation.looking import verdicts

    seen, trained = found.get("frame", "image"), found.get("trained_frame", "image")
    about = [f"these images have frame {seen}, those of training have frame {trained}"] if seen != trained else []
    if found["attn_saliency"]["raw"] is None:
        return about
    scale = (
        "attn_saliency: the mean of the saliency map at the cells of the glimpses. Its raw scale is a sum of squared activations of this "
        "backbone, so only figures of one backbone compare; scaled to 0 to 1 it compares with random cells and the k highest ones."
    )
    return [*about, scale, *(verdicts(found["looking"]) if "looking" in found else ())]


def _localization(local: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [["glimpses on the object (glimpse_hit)", number(local.get("glimpse_hit"))]]
    rows += [[f"  {text}", number(local[name])] for name, text in (("random", "a random cell"), ("center", "the middle cell"))]
    rows += [["  the maximum of the saliency map", number(local["saliency"])]]
    rows += [["  the best cell, as far as a cell's centre lies on the object", number(local["reachable"])]]
    rows += [["mask on the object (mask_mass)", number(local["mask_mass"])], ["  the object's share of the area", number(local["area"])]]
    rows += [["objects visited exactly once", number(local.get("digits_once"))]]
    rows += [["meta-steps that visit an object again", number(local.get("repeat_visits"))]]
    return "Localization, at meta-steps that name a label rightly", ["score", "share"], rows


def _reliability(found: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """The reliability diagram: where a policy is as sure as it is right, the two last columns agree."""
    rows = [
        [f"{part['low']:.1f} to {part['high']:.1f}", f"{part['choices']:,}", number(part["confidence"]), number(part["right"])]
        for part in found["bins"]
        if part["choices"]
    ]
    errors = number(found["ece"], 4), number(found["ece_at_1"], 4)
    title = f"Reliability of its choices: calibration error {errors[0]} at temperature {found['temperature']:.2f}, {errors[1]} at 1"
    if found["unlike"] is not None:
        title += f"; {found['unlike']:.2%} of the images are unlike those of training"
    return title, ["probability", "choices", "mean", "share right"], rows


def _looking(looking: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    rows = [["as it looks", number(looking["exact_match"]), "", ""]]
    for part, text in (("glimpses", "glimpses"), ("masks", "mask")):
        for way, found in looking[part].items():
            rows.append(
                [f"{text}: {way}", number(found["exact_match"]), number(found["lost"]), " to ".join(map(number, found["lost_ci95"]))]
            )
    one_cell = looking.get("one_cell")
    title = f"Does it matter where it looks? {looking['images']:,} images"
    title += "" if one_cell is None else f"; all glimpses on one cell in {one_cell:.1%} of the meta-steps"
    return title, ["instead", "exact match", "lost", "95% interval"], rows


def _work(flops: dict[str, float | None], what: str) -> tuple[str, list[str], list[list[str]]]:
    parts = {"looks": "looks that find the frame", "backbone": "backbone", "windows": "windows looked at"}
    parts |= {"policy": "policy, of the meta-steps it took" if what == "policy" else what, "image": "in all"}
    rows = [
        [text, number(None if flops.get(name) is None else flops[name] / 1e6, 1)] for name, text in parts.items() if flops.get(name) != 0
    ]
    return "Work an image, floating-point operations", ["part", "MFLOP"], rows


def number(value: float | None, decimals: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "-" if value is None else f"{value:.{decimals}f}"
