"""hsal sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Device, DryRun, Json, options
from hsal_cli.commands.policies import RunOption, load, policy_run
from hsal_cli.experiments.settings import SweepSettings
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.experiments.sweep import SceneRecipe
    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.vision.backbone import LoadedBackbone


@options(settings=SweepSettings)
def sweep(
    settings: SweepSettings,
    *,
    run: RunOption = None,
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
        Optional[Path], typer.Option("--backbone", help="The fine-tuned run behind them.", show_default="as the policy noted, or in runs/")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder for the results.", show_default="sweep in the run")] = None,
    device: Device = "auto",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Test a policy on scenes unlike its own: more, smaller, fainter or touching digits, clutter; and vary its glimpses."""
    from hsal_cli.experiments.sweep import conditions, recipe_of, shifts
    from hsal_cli.experiments.sweep_report import TITLES, table, write_report
    from hsal_cli.storage.documents import refuse_foreign_results
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    with console.stopping(reporter):
        place = policy_run(run, chosen, reporter)
        loaded = load(place, chosen, reporter)
        source = data or Path(loaded.meta.features)
        recipe = recipe_of(source, settings.images)
        out = out or place / "sweep"
        if dry_run:
            todo = [f"{condition.part}: {condition.value}" for condition in conditions(recipe, settings.part_names, reporter)]
            console.print_json({"out": str(out), "conditions": todo, "settings": as_dict(settings)})
            return
        refuse_foreign_results(out / "sweep.json", "parts", out / "sweep.md", out / "sweep.png")
        found = shifts(loaded, _backbone(backbone, loaded, chosen), recipe, settings, out, chosen, reporter)
        found |= _trained(place, loaded, backbone, recipe, scenes, settings, out, chosen, reporter)
    typed: dict[str, Any] = {"run": place, "data": data, "scenes": scenes, "backbone": backbone, "out": out, "parts": settings.parts}
    typed |= {"images": settings.images, "budgets": "-".join(map(str, settings.budgets)), "epochs": settings.epochs}
    words = [word for name, value in typed.items() if value is not None for word in (f"--{name}", str(value))]
    document = {
        "command": shlex.join(["hsal", "sweep", *words]),
        "run": str(place),
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


def _backbone(path: Path | None, loaded: LoadedPolicy, device: Any) -> LoadedBackbone:
    from hsal_cli.models.load import find_backbone

    return find_backbone(loaded, device, path)


def _trained(
    run: Path,
    loaded: LoadedPolicy,
    backbone: Path | None,
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

    wanted = [part for part in settings.part_names if part in ("glimpses", "saliency")]
    if not wanted:
        return {}
    bench = bench_for(loaded, run, recipe.file, _backbone(backbone, loaded, device), settings, out, device, reporter)
    found = {}
    for part in wanted:
        if part == "glimpses":
            found[part] = glimpse_budgets(bench, settings.budgets)
            continue
        with open_features(recipe.file) as file:
            noted = Path(file.config.scenes or "unknown")
        found[part] = saliency_models(bench, scenes or noted)
    return found
