"""hsal reproduce."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, about, begin, size
from hsal_cli.commands.options import Config, Device, DryRun, Json, Preset, backbone_in, numbers_in, options, recipe_for, settings_for
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.settings import EvalSettings

if TYPE_CHECKING:
    import torch

    from hsal_cli.bench.estimate import Work
    from hsal_cli.evaluation.examples import ChosenExample
    from hsal_cli.experiments.grid import Grid, GridRun, Step

MOST_SEEDS = 100
PANELS = {
    "The grid": "datasets objectives seeds epochs backbone",
    "Settings": "preset config",
    "Where": "device yes",
    "Output": "out dry_run json",
}
EXAMPLES = """Examples:

  hsal reproduce --dry-run
      each step with its time and disk

  hsal reproduce --datasets mnist-multiset --objectives rl,count --preset quick --out runs/quick

  hsal reproduce --seeds 0-2,multiset=0 --epochs rl=4,multiset=2
      objectives with seeds and epochs of their own
"""
WORDS = {"done": "there", "resume": "begun: would go on", "missing": "would be made", "odd": "cannot be read: passed over"}


@options(panels=PANELS)
def reproduce(
    datasets: Annotated[str, typer.Option("--datasets", help="Data sets, each at data/NAME.h5, made if missing.")] = (
        "mnist-set,mnist-multiset"
    ),
    objectives: Annotated[str, typer.Option("--objectives", help="Objectives of hsal train.")] = "rl,cross-entropy,multiset",
    seeds: Annotated[
        str, typer.Option("--seeds", help="Seeds of the policies, such as 0-2 or 0,7; or of single objectives: 0-2,multiset=0.")
    ] = "0-2",
    epochs: Annotated[
        Optional[str], typer.Option("--epochs", help="Epochs of objectives, such as rl=5,multiset=2.", show_default="as the settings say")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and of the report.")] = Path("runs/reproduce"),
    backbone: Annotated[
        Optional[Path],
        typer.Option(
            "--backbone", help="Fine-tuned run for all.", show_default="the newest in runs/, made if missing", callback=backbone_in
        ),
    ] = None,
    device: Device = "auto",
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Reproduce Table 1: run whatever is missing of a grid of data sets, objectives and seeds, and write a report folder."""
    from hsal_cli.experiments.grid import Grid, plan

    settled = [word for name, value in (("preset", preset), ("config", config)) if value is not None for word in (f"--{name}", str(value))]
    shared, own = parse_own_seeds(seeds, objectives)
    grid = Grid(
        parse_names("--datasets", datasets),
        parse_names("--objectives", objectives),
        shared,
        out,
        recipe_for(preset, config),
        settings_for(EvalSettings, preset, config),
        backbone,
        options=tuple(settled),
        epochs=parse_epochs(epochs, objectives) if epochs is not None else {},
        own_seeds=own,
    )
    from hsal_cli.bench.estimate import of_grid, seconds_of
    from hsal_cli.vision.devices import choose_device

    steps, chosen, reporter = plan(grid), choose_device(device), console.TerminalReporter()
    works = of_grid(grid, steps, chosen)
    if dry_run:
        _show_plan(steps, works, seconds_of(works, grid.recipe, chosen, None, reporter), json)
        return
    begin(lambda: works, yes, grid.recipe, chosen, reporter)
    typed = ["hsal", "reproduce", "--datasets", datasets, "--objectives", objectives, "--seeds", seeds, "--out", str(out)]
    typed += [] if epochs is None else ["--epochs", epochs]
    typed += [] if backbone is None else ["--backbone", str(backbone)]
    summary = _run(grid, steps, shlex.join([*typed, *settled]), chosen)
    if json:
        console.print_json(summary)
    else:
        _show(summary, out / "report")
    if any(run["failure"] for run in summary["runs"]):
        raise typer.Exit(1)


def _run(grid: Grid, steps: list[Step], command: str, device: torch.device) -> dict[str, Any]:
    from hsal_cli.experiments.grid_report import write_report
    from hsal_cli.experiments.grid_run import provenance, run_grid
    from hsal_cli.storage.documents import refuse_foreign_results

    refuse_foreign_results(grid.out / "report" / "summary.json", "table", grid.out / "report" / "summary.md")
    reporter = console.TerminalReporter()
    done = sum(step.state == "done" for step in steps)
    reporter.say(f"{len(steps)} steps, {done} of them done before")
    with console.stopping(reporter):
        runs = run_grid(grid, device, reporter)
        reporter.say("choosing test images, and writing the report")
        examples = _examples(grid, runs, device, reporter)
        commands = [step.command for step in steps if step.what.split(" ")[0] in ("data", "backbone", "features")]
        return write_report(grid.out / "report", runs, {"commands": commands, **provenance(grid)}, examples, command)


def _examples(grid: Grid, runs: list[GridRun], device: torch.device, reporter: console.Reporter) -> dict[str, list[ChosenExample]]:
    """Test images chosen by rule, for the first run of each data set that is a policy, and not a classifier that takes no steps."""
    from hsal_cli.evaluation.examples import choose_examples
    from hsal_cli.models.load import load_policy

    found: dict[str, list[ChosenExample]] = {}
    shown: set[str] = set()
    for run in runs:
        takes_steps = run.evaluation is not None and run.evaluation.get("max_steps") is not None
        if takes_steps and run.dataset not in shown:
            shown.add(run.dataset)
            loaded, scenes = load_policy(Path(run.path), "best", device), grid.scenes(run.dataset)
            split, size = grid.evaluation.split, grid.evaluation.batch_size
            found[run.name] = choose_examples(loaded, grid.features(run.dataset), scenes, split, size, device, reporter)
    return found


def parse_names(option: str, text: str) -> tuple[str, ...]:
    """Names written as "a,b", each once.

    Raises:
        UsageError: there is none, or one that could not be a file's name.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or any("/" in name or name.startswith(".") for name in names):
        raise UsageError(f"{option} {text!r} is not a list of names", f"write names as in {option} a,b")
    return names


def parse_epochs(text: str, objectives: str) -> dict[str, int]:
    """Epochs of objectives, written as "rl=5,multiset=2".

    Raises:
        UsageError: it is not written so, or names an objective that is not among `objectives`, a list as in `--objectives`.
    """
    known, found = parse_names("--objectives", objectives), {}
    for part in parse_names("--epochs", text):
        name, _, number = (word.strip() for word in part.partition("="))
        if name not in known or not number.isdecimal() or int(number) < 1:
            raise UsageError(
                f"--epochs {text} does not give objectives their epochs", f"write --epochs {known[0]}=5, of {', '.join(known)}"
            )
        found[name] = int(number)
    return found


def parse_own_seeds(text: str, objectives: str) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """Seeds written as "0-2", or with those of single objectives behind them: "0-2,multiset=0,1".

    Returns:
        The seeds of all objectives but those with their own, and those of these.

    Raises:
        UsageError: it is not written so, names an objective that is not among `objectives`, or leaves one without seeds.
    """
    known, shared, own = parse_names("--objectives", objectives), [], {}
    into = shared
    for part in text.split(","):
        name, equals, first = part.partition("=")
        if equals:
            if name.strip() not in known:
                raise UsageError(f"--seeds {text} names {name.strip() or 'no objective'}", f"take of: {', '.join(known)}")
            into = own.setdefault(name.strip(), [])
        into.append(first if equals else part)
    if not shared and set(own) != set(known):
        raise UsageError(f"--seeds {text} leaves objectives without seeds", f"write seeds for all of them first: --seeds 0-2,{text}")
    return parse_seeds(",".join(shared)) if shared else (), {name: parse_seeds(",".join(parts)) for name, parts in own.items()}


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds written as "0-2,7", each once.

    Raises:
        UsageError: it is not written so, or there are more than 100.
    """
    too_many = f"are more than {MOST_SEEDS}", "take fewer seeds"
    return tuple(dict.fromkeys(numbers_in("--seeds", text, "seeds", "0-2 or 0,7", MOST_SEEDS, too_many)))


def _show_plan(steps: list[Step], works: list[Work], seconds: list[float], json: bool) -> None:
    """The steps, with what those that are not done will take: estimates from a short measurement, one after the other."""
    if json:
        plan = [
            {"step": step.what, "path": str(step.path), "state": step.state, "command": step.command, "seconds": took, "bytes": work.bytes}
            for step, work, took in zip(steps, works, seconds, strict=True)
        ]
        console.print_json({"dry_run": True, "steps": plan})
        return
    rows = [
        [step.what, WORDS[step.state], about(took) if took else "", size(work.bytes), str(step.path)]
        for step, work, took in zip(steps, works, seconds, strict=True)
    ]
    todo = sum(step.state != "done" for step in steps)
    console.print_table(f"{todo} of {len(steps)} steps to do", ["step", "state", "takes about", "disk", "path"], rows)
    total, disk = sum(seconds), sum(work.bytes for work in works)
    if todo:
        console.print_line(f"all of it: about {about(total)}, {size(disk)}, as fast as this machine was in a short measurement just now")


def _show(summary: dict[str, Any], folder: Path) -> None:
    from hsal_cli.experiments.grid_report import shown_score

    rows = []
    for row in summary["table"]:
        paper, scores, last = row["paper"] or {}, row["scores"], row["last_scores"] or {}
        cells = [row["dataset"], row["objective"]]
        for name in ("macro_f1", "exact_match"):
            cells += [shown_score(scores.get(name)), shown_score(last.get(name)), f"{paper[name]:.3f}" if name in paper else "-"]
        rows.append([*cells, *(shown_score(scores.get(name)) for name in ("glimpse_hit", "mask_mass"))])
    columns = ["data set", "objective", "macro F1", "last epoch", "paper", "exact match", "last epoch", "paper", "glimpse_hit", "mask_mass"]
    console.print_table("Table 1, reproduced: scores after the epoch that was best on held-out images, and after the last", columns, rows)
    console.print_line(f"report: {folder / 'summary.md'}")
    for name in summary["pictures"]:
        console.print_line(f"picture: {folder / name}")
