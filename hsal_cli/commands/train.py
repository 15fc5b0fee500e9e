"""hsal train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Config, Device, DryRun, Json, Overwrite, Preset, check_resumed, options, recipe_for, settings_for
from hsal_cli.learning.settings import TrainSettings
from hsal_cli.policy.settings import PolicySettings
from hsal_cli.settings import as_dict
from hsal_cli.vision.settings import SALIENCY_HELP, PrecomputeSettings, saliency_kind


@options(settings=TrainSettings, policy=PolicySettings)
def train(
    settings: TrainSettings,
    policy: PolicySettings,
    *,
    data: Annotated[Path, typer.Option("--data", help="Scene file, whose features are computed if missing, or a feature file.")] = Path(
        "data/mnist-multiset.h5"
    ),
    backbone: Annotated[
        Optional[Path], typer.Option("--backbone", help="Fine-tuned run.", show_default="the newest in runs/, made if missing")
    ] = None,
    saliency: Annotated[
        Optional[str], typer.Option("--saliency", help=SALIENCY_HELP, show_default="activation, or that of the feature file")
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Run directory to make.", show_default="runs/DATA-OBJECTIVE")] = None,
    resume: Annotated[Optional[Path], typer.Option("--resume", help="Go on with this run.", show_default=False)] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Train the hierarchical attention policy: by REINFORCE, cross-entropy or the multiset loss.

    With --objective count, train the direct baseline instead: a convolutional classifier of how often each class occurs.
    """
    from hsal_cli.learning import runs
    from hsal_cli.learning.pipeline import ensure_policy_data
    from hsal_cli.learning.train_policy import train_policy
    from hsal_cli.vision.devices import choose_device

    reporter = console.TerminalReporter()
    chosen = choose_device(device)
    precompute = settings_for(PrecomputeSettings, preset, config, saliency=saliency)
    name = data.name.removesuffix(".h5").removesuffix(".features")
    if saliency_kind(precompute.saliency) != "activation" and name == data.name.removesuffix(".h5"):
        name += f"-{saliency_kind(precompute.saliency)}"
    target = resume or out or runs.fresh_path(f"{name}-{settings.objective}")
    settled = {"data": str(data), "train": as_dict(settings), "policy": as_dict(policy)}
    if resume is not None:
        settled = check_resumed(resume, out, train=settings, policy=policy)
    if dry_run:
        console.print_json({"out": str(target), "device": str(chosen), **settled})
        return
    with console.stopping(reporter):
        if resume is None:
            recipe = recipe_for(preset, config, train=settings, policy=policy, precompute=precompute)
            features, backbone = ensure_policy_data(data, backbone, recipe, chosen, reporter, saliency)
        else:
            features = data
        run = train_policy(features, target, policy, settings, chosen, reporter, overwrite, resume is not None, backbone)
    best = run.status["exact_match"]
    if json:
        console.print_json({"run": str(run.path), "exact_match": best})
        return
    console.print_line(f"best exact match on held-out images {best:.4f}")
    console.print_line(f"run: {run.path}   next: hsal eval --run {run.path}")
