"""hsal sweep."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.options import Config, Device, DryRun, Json, Preset, backbone_in, options, recipe_for
from hsal_cli.commands.policies import PretrainedOption, RunOption, load, meant
from hsal_cli.errors import UsageError
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.scenes.settings import RECIPES, settings_of
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.experiments.sweep import SceneRecipe
    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.vision.backbone import LoadedBackbone


PANELS = {
    "What": "run pretrained parts images data scenes backbone",
    "Short runs": "budgets epochs",
    "Settings": "preset config",
    "Where": "device yes",
    "Output": "out dry_run json",
}
EXAMPLES = """Examples:

  hsal sweep
      the newest run, else the policy that comes with hsal

  hsal sweep --run runs/mnist-multiset-rl --parts count,size --images 500

  hsal sweep --parts glimpses --budgets 0-3 --epochs 2
      trains four short runs on the features of the newest run
"""
TRAINED = ("glimpses", "saliency")  # parts that train short runs


@options(settings=SweepSettings, panels=PANELS)
def sweep(
    settings: SweepSettings,
    *,
    run: RunOption = None,
    pretrained: PretrainedOption = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Feature file the policy was trained on; without the parts that train, a scene file will do.",
            show_default="as the policy noted",
        ),
    ] = None,
    scenes: Annotated[
        Optional[Path],
        typer.Option("--scenes", help="Scene file of those features, for the part saliency.", show_default="as the features noted"),
    ] = None,
    backbone: Annotated[
        Optional[Path],
        typer.Option(
            "--backbone", help="The fine-tuned run behind them.", show_default="as the policy noted, or in runs/", callback=backbone_in
        ),
    ] = None,
    out: Annotated[
        Optional[Path], typer.Option("--out", help="Folder for the results.", show_default="sweep in the run, with --pretrained here")
    ] = None,
    device: Device = "auto",
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Test a policy on scenes unlike its own: more, smaller, fainter or touching digits, clutter; and vary its glimpses."""
    from hsal_cli.bench.estimate import sweeping
    from hsal_cli.experiments.sweep import SceneRecipe, conditions, recipe_of, shifts
    from hsal_cli.experiments.sweep_report import TITLES, table, write_report
    from hsal_cli.models.load import find_backbone
    from hsal_cli.models.shipped import load_shipped
    from hsal_cli.storage.documents import refuse_foreign_results
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    with console.stopping(reporter):
        place, named = meant(run, pretrained, reporter)
        shipped = None if named is None else load_shipped(named, chosen)
        loaded = shipped.policy if shipped else load(place, chosen, reporter)
        source = data or Path(loaded.meta.features)
        if shipped and data is None:
            left = [part for part in settings.part_names if part not in TRAINED]
            if left != settings.part_names:
                reporter.warn(f"{named} came without features to train on, so {' and '.join(TRAINED)} are left out")
            settings = dataclasses.replace(settings, parts=",".join(left) or "count")
        by_name = shipped is not None and data is None and shipped.dataset in RECIPES
        if shipped and data is None and not by_name:
            raise UsageError(
                f"a sweep varies the scenes that a policy was trained on, and {named} came without its own",
                f"name their features: hsal sweep --pretrained {named} --data FEATURES.h5",
            )
        recipe = (
            SceneRecipe(shipped.dataset, settings_of(shipped.dataset)(train=0, test=settings.images), source)
            if shipped and by_name
            else recipe_of(source, settings.images)
        )
        out = out or (place or Path()) / "sweep"
        todo = list(conditions(recipe, settings.part_names, reporter))
        if dry_run:
            said = [f"{condition.part}: {condition.value}" for condition in todo]
            console.print_json({"out": str(out), "conditions": said, "settings": as_dict(settings)})
            return
        refuse_foreign_results(out / "sweep.json", "parts", out / "sweep.md", out / "sweep.png")
        seen = shipped.backbone if shipped and backbone is None else find_backbone(loaded, chosen, backbone)
        made = PrecomputeSettings(saliency=loaded.meta.saliency, resolution=seen.refined)
        steps = dataclasses.replace(recipe_for(preset, config), scenes=recipe.scenes, precompute=made)
        begin(lambda: sweeping(settings, len(todo), source, steps), yes, steps, chosen, reporter, seen.path)
        found = shifts(loaded, seen, recipe, settings, out, chosen, reporter)
        found |= _trained(place, loaded, seen, recipe, scenes, settings, out, chosen, reporter)
    typed: dict[str, Any] = {"run": place, "pretrained": named, "data": data, "scenes": scenes, "backbone": backbone, "out": out}
    typed |= {
        "parts": settings.parts,
        "images": settings.images,
        "budgets": "-".join(map(str, settings.budgets)),
        "epochs": settings.epochs,
    }
    words = [word for name, value in typed.items() if value is not None for word in (f"--{name}", str(value))]
    document = {
        "command": shlex.join(["hsal", "sweep", *words]),
        "run": str(place or named),
        "data": str(source),
        "settings": as_dict(settings),
        "parts": found,
    }
    write_report(out, document)
    if json:
        console.print_json(document)
        return
    for part, rows in found.items():
        console.print_table(TITLES[part], *table(rows))
    console.print_line(f"written to {out / 'sweep.md'}, with sweep.json beside it")


def _trained(
    run: Path | None,
    loaded: LoadedPolicy,
    backbone: LoadedBackbone,
    recipe: SceneRecipe,
    scenes: Path | None,
    settings: SweepSettings,
    out: Path,
    device: Any,
    reporter: console.Reporter,
) -> dict[str, list[dict[str, Any]]]:
    """The parts that train short runs."""
    from hsal_cli.experiments.sweep_trained import bench_for, glimpse_budgets, saliency_models
    from hsal_cli.features.table import open_features

    wanted = [part for part in settings.part_names if part in TRAINED]
    if not wanted:
        return {}
    bench = bench_for(loaded, run or Path(), recipe.file, backbone, settings, out, device, reporter)
    found = {}
    for part in wanted:
        if part == "glimpses":
            found[part] = glimpse_budgets(bench, settings.budgets)
            continue
        with open_features(recipe.file) as file:
            noted = Path(file.config.scenes or "unknown")
        found[part] = saliency_models(bench, scenes or noted)
    return found
