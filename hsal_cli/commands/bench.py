"""hsal bench."""

from __future__ import annotations

from typing import Any

from hsal_cli import console
from hsal_cli.bench.settings import BenchSettings
from hsal_cli.commands.options import Config, Device, Json, Preset, options, recipe_for, settings_for


@options(settings=BenchSettings)
def bench(
    settings: BenchSettings,
    *,
    device: Device = "auto",
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Time each stage on this machine beside the floor that the machine itself sets; nothing is left behind.

    Written to the system's folder for temporary files (TMPDIR). The sizes are those that the commands have by default, or by --preset.
    """
    from hsal_cli.bench.bench import bench as run
    from hsal_cli.evaluation.settings import EvalSettings
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    recipe, evaluation = recipe_for(preset, config), settings_for(EvalSettings, preset, config)
    with console.stopping(reporter):
        document = run(settings, recipe, evaluation, chosen, reporter)
    if json:
        console.print_json(document)
        return
    rows = [
        [
            stage["stage"],
            _speed(stage["rate"], stage["unit"]),
            _speed(stage["floor"], stage["unit"]),
            f"{stage['ratio']:.2f}",
            stage["goal"],
            "yes" if stage["reached"] else "no",
        ]
        for stage in document["stages"]
    ]
    title = f"hsal bench on {document['device']}, {document['cores']} cores, {document['threads']} threads, torch {document['torch']}"
    console.print_table(title, ["stage", "speed", "floor", "ratio", "goal", "reached"], rows)
    for stage in document["stages"]:
        console.print_line(f"Floor of {stage['stage']}: {stage['floor_is']}.")
    _warn_of_load(document, reporter)


def _speed(rate: float, unit: str) -> str:
    """A rate for people: a command's calls are told in seconds."""
    return f"{1 / rate:.2f} s" if unit == "calls/s" else f"{rate:,.0f} {unit}"


def _warn_of_load(document: dict[str, Any], reporter: console.Reporter) -> None:
    load, cores = document["load"], document["cores"]
    if load is not None and load > 0.5 * cores:
        reporter.warn(
            f"the machine was busy (load {load:.1f} on {cores} cores): ratios may be off, and goals in seconds are not met fairly"
        )
