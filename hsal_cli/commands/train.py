"""hsal train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.options import (
    Config,
    Device,
    DryRun,
    Given,
    Json,
    Overwrite,
    Preset,
    Resume,
    check_resumed,
    options,
    recipe_for,
    settings_for,
)
from hsal_cli.errors import UsageError
from hsal_cli.features.settings import SALIENCY_HELP, PrecomputeSettings, saliency_kind
from hsal_cli.policy.settings import PolicySettings
from hsal_cli.settings import as_dict
from hsal_cli.training.settings import REWARDS, TrainSettings


@options(settings=TrainSettings, policy=PolicySettings)
def train(
    settings: TrainSettings,
    policy: PolicySettings,
    *,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Scene file, whose features are computed if missing, or a feature file; with --resume: where the run's own are now.",
            show_default="data/mnist-multiset.h5",
        ),
    ] = None,
    backbone: Annotated[
        Optional[Path], typer.Option("--backbone", help="Fine-tuned run.", show_default="the newest in runs/, made if missing")
    ] = None,
    saliency: Annotated[
        Optional[str], typer.Option("--saliency", help=SALIENCY_HELP, show_default="activation, or that of the feature file")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run directory to make.", show_default="runs/DATA-OBJECTIVE")] = None,
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
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
    given: Given,
) -> None:
    """Train the hierarchical attention policy: by REINFORCE, cross-entropy or the multiset loss.

    With --objective count, train the direct baseline instead: a convolutional classifier of how often each class occurs.
    """
    from hsal_cli.experiments.pipeline import DEFAULT_SCENES, ensure_policy_data, features_path
    from hsal_cli.runs import run as runs
    from hsal_cli.training.train import train_policy
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    REWARDS.check(settings.rewarded)
    scenes = data or DEFAULT_SCENES
    precompute = settings_for(PrecomputeSettings, preset, config, saliency=saliency)
    name = scenes.name.removesuffix(".h5").removesuffix(".features")
    if saliency_kind(precompute.saliency) != "activation" and name == scenes.name.removesuffix(".h5"):
        name += f"-{saliency_kind(precompute.saliency)}"
    policy = policy if resume else policy.for_training(settings.objective, settings.stop)
    settled = {"data": str(scenes), "train": as_dict(settings), "policy": as_dict(policy)}
    if resume is not None:
        _check_alone(resume, {"--backbone": backbone, "--init-from": init_from, "--saliency": saliency, "--memory-budget": memory_budget})
        settled = check_resumed(resume, out, given, ("epochs",), train=settings, policy=policy)
    if dry_run:
        target = resume or out or runs.fresh_path(f"{name}-{settings.objective}")
        console.print_json({"out": str(target), "device": str(chosen), **settled})
        return
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        target = distributed.broadcast(lambda: resume or out or runs.fresh_path(f"{name}-{settings.objective}"))
        if resume is None:
            recipe = recipe_for(preset, config, train=settings, policy=policy, precompute=precompute)
            features, backbone = ensure_policy_data(scenes, backbone, recipe, chosen, reporter, saliency)
            extra = {"backbone": backbone, "init_from": init_from, "memory": memory_budget}
            run = train_policy(features, target, policy, settings, chosen, reporter, overwrite, **extra)
        else:
            trained_on = settled.get("saliency", "activation")
            moved = data if data is None or data.name.endswith(".features.h5") else features_path(data, trained_on)
            epochs = settings.epochs if "epochs" in given["train"] else None
            run = train_policy(scenes, target, policy, settings, chosen, reporter, resume=True, moved=moved, epochs=epochs)
    best = run.status["exact_match"]
    if json:
        console.print_json({"run": str(run.path), "exact_match": best})
        return
    console.print_line(f"best exact match on held-out images {best:.4f}")
    console.print_line(f"run: {run.path}   next: hsal eval --run {run.path}")


def _check_alone(resume: Path, given: dict[str, Path | str | float | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} {value} and --resume {resume} exclude each other", f"leave {option} out, or train a new run")
