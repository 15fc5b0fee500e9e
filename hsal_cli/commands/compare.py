"""hsal compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json
from hsal_cli.errors import HsalError, UsageError

if TYPE_CHECKING:
    from hsal_cli.runs.documents import Evaluation


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Evaluated runs, and exported policies, as --pretrained takes them.", show_default=False)
    ],
    data: Annotated[
        Optional[str],
        typer.Option(
            "--data", metavar="NAME", help="Scores on another data set, as eval --data NAME.h5 left them.", show_default="their own"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Put evaluated runs side by side, with the trivial baselines of their data and the settings in which they differ."""
    from hsal_cli.runs.documents import predictor
    from hsal_cli.runs.record import evaluations

    found = evaluations(runs, data, console.TerminalReporter(), _stated)
    if json:
        console.print_json([{"run": str(run), **document.raw} for run, document in found])
        return
    rows = [[document.objective or "-", *_scores(document), str(run)] for run, document in found]
    first = found[0][1]
    for name, scores in next((document.baselines for _, document in found if document.baselines), {}).items():
        rows.append([predictor(name), f"{scores.exact_match:.3f}", "", f"{scores.macro_f1:.3f}", "", "", "", "", ""])
    title = f"{first.dataset}, {first.split} split, {first.examples:,} images"
    scores = ["exact match", "95% interval", "macro F1", "glimpse_hit", "mask_mass", "parameters", "MFLOP"]
    console.print_table(title, ["objective", *scores, "run"], rows)
    if any(_work(document.flops) != "-" for _, document in found):
        console.print_line("MFLOP: million floating-point operations an image, the policy's of all, the backbone's included")
    for line in _apart([run for run, _ in found]):
        console.print_line(line)


def _stated(path: Path) -> Evaluation | None:
    """What is stated of a policy that comes with hsal, or of an exported one; None: the path is neither."""
    from hsal_cli.models.shipped import named_in, stated_evaluation

    if named_in(path) is None and (path.is_dir() or len(path.parts) > 1):
        return None
    try:
        return stated_evaluation(str(path))
    except UsageError:  # no such name: as a run it is missing too, which is then said
        return None


def _apart(runs: list[Path]) -> list[str]:
    """A line for each setting in which the runs differ, where all of them can be read and have it."""
    from hsal_cli.runs.record import differing, read_record

    try:
        held = [read_record(run).flat for run in runs]
    except HsalError:
        return []
    names = [name for name in differing(held) if name.startswith(("train.", "variant.")) and all(name in each for each in held)]
    return [f"{name}: {', '.join(str(each[name]) for each in held)}" for name in names]


def _scores(document: Evaluation) -> list[str]:
    local = document.localization or {}
    low, high = document.ci95.exact_match
    shown = [local.get(name) for name in ("glimpse_hit", "mask_mass")]
    return [
        f"{document.exact_match:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{document.macro_f1:.3f}",
        *("-" if value is None else f"{value:.3f}" for value in shown),
        "-" if document.parameters is None else f"{document.parameters:,}",
        _work(document.flops),
    ]


def _work(flops: dict[str, float | None]) -> str:
    """Of an image, the policy's part and all of it."""
    whole, own = (flops.get(part) for part in ("image", "policy"))
    return "-" if whole is None or own is None else f"{own / 1e6:,.0f} of {whole / 1e6:,.0f}"
