"""hsal finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.options import Config, Device, DryRun, Given, Json, Overwrite, Preset, Resume, check_resumed, options, settings_for
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.settings import as_dict


@options(settings=FinetuneSettings)
def finetune(
    settings: FinetuneSettings,
    *,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Scene file, of single objects or of several, made if missing; with --resume: where the run's own is now.",
            show_default="data/mnist-single.h5",
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run directory to make.", show_default="runs/finetune")] = None,
    resume: Resume = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
    given: Given,
) -> None:
    """Fine-tune the activation model, a ResNet-34 or what --arch names, on single objects where there are such images."""
    from hsal_cli.experiments.pipeline import SINGLE, ensure_scenes
    from hsal_cli.finetuning.finetune import finetune as finetune_run
    from hsal_cli.runs import run as runs
    from hsal_cli.scenes.settings import SceneSettings
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    settled = {"data": str(data or SINGLE), "finetune": as_dict(settings)}
    if resume is not None:
        settled = check_resumed(resume, "backbone", out, given, ("full_images",), finetune=settings).raw
    if dry_run:
        console.print_json({"out": str(resume or out or runs.fresh_path("finetune")), "device": str(chosen), **settled})
        return
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        distributed.agree(resume=resume is not None, finetune=settled["finetune"])
        scenes, target = data or SINGLE, distributed.broadcast(lambda: resume or out or runs.fresh_path("finetune"))
        if resume is None:
            ensure_scenes(scenes, settings_for(SceneSettings, preset, config), reporter)
            run = finetune_run(scenes, target, settings, chosen, reporter, overwrite)
        else:
            more = settings.full_images if "full_images" in given["finetune"] else None
            run = finetune_run(scenes, target, settings, chosen, reporter, resume=True, moved=data, full_images=more)
    status = run.status
    if json:
        console.print_json({"run": str(run.path), **status.accuracies})
        return
    test = "" if status.test_accuracy is None else f", on test images {status.test_accuracy:.2%}"
    console.print_line(f"accuracy on held-out images {status.accuracy or 0:.2%}{test}")
    console.print_line(f"run: {run.path}")
