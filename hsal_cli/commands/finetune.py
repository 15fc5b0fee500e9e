"""hsal finetune."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.options import Config, Device, DryRun, Given, Json, Overwrite, Preset, Resume, check_resumed, options, recipe_for
from hsal_cli.runs.settings import FinetuneSettings
from hsal_cli.settings import as_dict

PANELS = {
    "What": "data objects resume",
    "The network": "arch weights frozen channels input_size resolution dilate",
    "How long": "mode crop_images full_images epoch_images batch_size learning_rate weight_decay validation seed",
    "Views": "crowd background augment mirror",
    "Settings": "preset config",
    "Where": "device yes",
    "Output": "out overwrite dry_run json",
}
ACCURACY = {  # by how images teach
    "single": "the share of objects that are named rightly",
    "crops": "the share of objects that are named rightly, from their own cells of the full image",
    "counts": "how far counted and true multiset overlap, the smaller counts over the larger ones, mean over images",
    "random-label": "the share of images whose named label is one of theirs",
}
EXAMPLES = """Examples:

  hsal finetune --preset quick
      minutes on two cores

  hsal finetune --data data/mine.h5 --weights imagenet --full-images 5000

  hsal finetune --resume runs/finetune --full-images 72000
      goes on for longer
"""


@options(settings=FinetuneSettings, panels=PANELS)
def finetune(
    settings: FinetuneSettings,
    *,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Scene file, of single objects or of several, made if missing; with --resume: where the run's own is now.",
            show_default="the one scene file in data/ if it is your own, else data/mnist-single.h5",
        ),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run directory to make.", show_default="runs/finetune")] = None,
    resume: Resume = None,
    device: Device = "auto",
    yes: Yes = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
    given: Given,
) -> None:
    """Fine-tune the activation model, a ResNet-34 or what --arch names, on single objects where there are such images."""
    from hsal_cli.bench.estimate import before_a_backbone
    from hsal_cli.experiments.pipeline import backbone_scenes, ensure_scenes, only_scenes
    from hsal_cli.finetuning.finetune import WHOLE_IMAGES, settled_for, way_of
    from hsal_cli.finetuning.finetune import finetune as finetune_run
    from hsal_cli.runs import run as runs
    from hsal_cli.training.verdicts import problems
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    scenes = data or backbone_scenes(only_scenes())
    settled = {"data": str(scenes), "finetune": as_dict(settings)}
    if resume is not None:
        settled = check_resumed(resume, "backbone", out, given, ("full_images",), finetune=settings).raw
    elif dry_run:
        settled["finetune"] = as_dict(settled_for(scenes, settings, chosen))
    if dry_run:
        console.print_json({"out": str(resume or out or runs.fresh_path("finetune")), "device": str(chosen), **settled})
        return
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        distributed.agree(resume=resume is not None, finetune=settled["finetune"])
        target = distributed.broadcast(lambda: resume or out or runs.fresh_path("finetune"))
        if resume is None:
            recipe = recipe_for(preset, config, finetune=settings)
            works = partial(before_a_backbone, scenes, recipe, chosen)
            begin(works, yes, recipe, chosen, reporter)
            ensure_scenes(scenes, recipe.scenes, reporter)
            uncropped = settings.mode == "full" or way_of(scenes, settings.objects) in WHOLE_IMAGES
            if "crop_images" in given["finetune"] and uncropped:
                reporter.warn(
                    f"--crop-images {settings.crop_images} has no effect: these images are shown in full; --full-images says how many"
                )
            run = finetune_run(scenes, target, settings, chosen, reporter, overwrite)
        else:
            more = settings.full_images if "full_images" in given["finetune"] else None
            run = finetune_run(scenes, target, settings, chosen, reporter, resume=True, moved=data, full_images=more)
    for said in problems(run.path):
        reporter.warn(said)
    status = run.status
    if json:
        console.print_json({"run": str(run.path), **status.accuracies})
        return
    test = "" if status.test_accuracy is None else f", on test images {status.test_accuracy:.2%}"
    console.print_line(f"accuracy on held-out images {status.accuracy or 0:.2%}{test}")
    if (run.path / runs.EVALUATIONS["best"]).is_file():
        own = run.evaluation()
        low, high = own.ci95.exact_match
        exact = f"exact match {own.exact_match:.3f} ({low:.3f} to {high:.3f})"
        console.print_line(f"its own counts, with no policy, on {own.examples:,} test images: {exact}, macro-F1 {own.macro_f1:.3f}")
        console.print_line(f"beside others: hsal compare {run.path} RUN...")
    held = data or Path(run.config.scenes)
    way = way_of(held, run.config.finetune.objects) if held.exists() else "single"
    console.print_line(f"accuracy: {ACCURACY[way]}")
    following = f"hsal train --data {held} --backbone {run.path}"
    if way == "single":  # single objects are for the backbone alone
        following = f"hsal train --backbone {run.path}"
    console.print_line(f"run: {run.path}   next: {following}{' --objective count' * (way == 'counts')}")
    if way == "counts":
        console.print_line(f"that one counts alone; one that tells where it looks: {following}")
