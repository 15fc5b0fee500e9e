"""hsal train."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.options import (
    Config,
    Device,
    DryRun,
    Given,
    Json,
    Overwrite,
    Preset,
    Resume,
    backbone_in,
    check_resumed,
    options,
    recipe_for,
    settings_for,
    variant_for,
    variant_given,
)
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.features.settings import SALIENCY_HELP, PrecomputeSettings, holds_features, saliency_kind
from hsal_cli.policy.variant import VARIANTS, what_set_takes
from hsal_cli.runs.settings import DIRECT, FEW_IMAGES, REWARDS, TrainSettings
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.settings import as_dict

PANELS = {
    "What": "data objective task reward backbone saliency init_from resume",
    "How long": "epochs batch_size learning_rate schedule mirror label_entropy clip validation seed",
    "Variant": "variant set_ preset config",
    "Where": "device memory_budget deterministic yes",
    "Output": "out overwrite dry_run json",
}
EXAMPLES = """Examples:

hsal train --objective rl --seed 1 --out runs/rl-1

hsal train --data data/mine.h5 --variant paper --set gradient=expected --epochs 20
"""


@options(settings=TrainSettings, panels=PANELS)
def train(
    settings: TrainSettings,
    *,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Scene file, whose features are computed if missing, or a feature file; with --resume: where the run's own are now.",
            show_default="the one scene file in data/, else data/mnist-multiset.h5",
        ),
    ] = None,
    backbone: Annotated[
        Optional[Path],
        typer.Option("--backbone", help="Fine-tuned run.", show_default="the newest in runs/, made if missing", callback=backbone_in),
    ] = None,
    saliency: Annotated[
        Optional[str], typer.Option("--saliency", help=SALIENCY_HELP, show_default="activation, or that of the feature file")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run directory to make.", show_default="runs/DATA-OBJECTIVE")] = None,
    variant: Annotated[
        Optional[str],
        typer.Option(
            "--variant",
            help=f"The policy: {', '.join(VARIANTS)}. paper: section 3 and appendix A to the letter; default: a mask at the "
            "maximum of S_t, and glimpses at a finer stage (section 5.2); columns: a learned mask, and glimpses at the volume; fixed-mask: "
            "those, and a mask that learns nothing.",
            show_default="default",
        ),
    ] = None,
    set_: Annotated[
        Optional[list[str]],
        typer.Option("--set", metavar="NAME=VALUE", help=f"Change one value of it; repeatable. {what_set_takes()}.", show_default=False),
    ] = None,
    resume: Resume = None,
    init_from: Annotated[
        Optional[Path],
        typer.Option("--init-from", help="Start a new run from the weights of this run or checkpoint.", show_default=False),
    ] = None,
    memory_budget: Annotated[
        Optional[float],
        typer.Option(
            "--memory-budget",
            min=0.001,
            help="GB that the features may take in each process; where they are larger, they are read again in every epoch.",
            show_default="60% of what is free",
        ),
    ] = None,
    device: Device = "auto",
    yes: Yes = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
    given: Given,
) -> None:
    """Train the hierarchical attention policy: by policy gradient, cross-entropy or the multiset loss.

    With --objective count or set, train a direct baseline instead, which looks nowhere: a convolutional classifier of how often each
    class occurs, or a transformer that names all objects at once, as DETR does.
    """
    from hsal_cli.bench.estimate import before_a_policy, images_of
    from hsal_cli.experiments.pipeline import DEFAULT_SCENES, ensure_policy_data, features_path, made_from_a_folder, only_scenes
    from hsal_cli.runs import run as runs
    from hsal_cli.training.train import resume as go_on
    from hsal_cli.training.train import train as train_policy
    from hsal_cli.training.verdicts import problems
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    REWARDS.check(settings.rewarded)
    scenes = data or only_scenes() or DEFAULT_SCENES
    precompute = settings_for(PrecomputeSettings, preset, config, saliency=saliency)
    name = scenes.name.removesuffix(".h5").removesuffix(".features")
    if saliency_kind(precompute.saliency) != "activation" and name == scenes.name.removesuffix(".h5"):
        name += f"-{saliency_kind(precompute.saliency)}"
    texts = set_ or []
    if settings.objective in DIRECT and (variant or texts):
        given_too = f"--variant {variant}" if variant else f"--set {texts[0]}"
        raise UsageError(f"objective {settings.objective} trains no policy, so {given_too} says nothing", "leave --variant and --set out")
    chosen_variant = variant_for(preset, config, variant, texts)
    few = ""
    with contextlib.suppress(HsalError):  # what is wrong with the file is for training to say
        if resume is None:
            images, own = images_of(scenes, SceneSettings()).get("train", 0), made_from_a_folder(scenes)
            settings = settings.suited(images, given["train"], own)
            if own and images < FEW_IMAGES:
                precompute = precompute.for_few(settings.mirror)
                few = f"{images:,} images are few: {precompute.views} views of each are shown ([precompute] views = 1 in a --config: one)"
    settled = {"data": str(scenes), "train": as_dict(settings), "variant": as_dict(chosen_variant, asked=True)}
    if resume is not None:
        _check_alone(resume, {"--backbone": backbone, "--init-from": init_from, "--saliency": saliency, "--memory-budget": memory_budget})
        given["variant"] = variant_given(preset, config, variant, texts)
        held = check_resumed(resume, runs.EVALUATED, out, given, ("epochs",), train=settings, variant=chosen_variant)
        settled = held.raw
    if dry_run:
        target = resume or out or runs.fresh_path(f"{name}-{settings.objective}")
        console.print_json({"out": str(target), "device": str(chosen), **settled})
        return
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        distributed.agree(
            resume=resume is not None, features=holds_features(scenes), train=settled["train"], variant=settled.get("variant")
        )
        target = distributed.broadcast(lambda: resume or out or runs.fresh_path(f"{name}-{settings.objective}"))
        if resume is None:
            recipe = recipe_for(preset, config, train=settings, variant=chosen_variant, precompute=precompute)
            if few and not holds_features(scenes):
                reporter.say(few)
            begin(lambda: before_a_policy(scenes, backbone, recipe, chosen), yes, recipe, chosen, reporter)
            features, backbone = ensure_policy_data(scenes, backbone, recipe, chosen, reporter, saliency)
            extra = {"overwrite": overwrite, "backbone": backbone, "init_from": init_from, "memory": memory_budget}
            run = train_policy(features, target, chosen_variant, settings, chosen, reporter, **extra)
        else:
            trained_on = held.saliency
            moved = data if data is None or holds_features(data) else features_path(data, trained_on)
            epochs = settings.epochs if "epochs" in given["train"] else None
            run = go_on(target, chosen, reporter, features=moved, epochs=epochs)
    for said in problems(run.path):
        reporter.warn(said)
    best = run.status.exact_match
    if json:
        console.print_json({"run": str(run.path), "exact_match": best})
        return
    console.print_line(f"best exact match on held-out images {best:.4f}")
    console.print_line(f"run: {run.path}   next: hsal eval --run {run.path}")


def _check_alone(resume: Path, given: dict[str, Path | str | float | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} {value} and --resume {resume} exclude each other", f"leave {option} out, or train a new run")
