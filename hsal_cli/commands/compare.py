"""hsal compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Json
from hsal_cli.errors import FileError, HsalError, UsageError

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
    """Put evaluated runs side by side, with the trivial baselines of their data and the settings in which they differ.

    A run of `hsal finetune --objects counts` may be among them: it counts by itself, end to end.
    """
    from hsal_cli.runs.documents import predictor
    from hsal_cli.runs.record import evaluations

    found = evaluations(runs, data, console.TerminalReporter(), lambda path: _stated(path, data))
    if json:
        console.print_json([{"run": str(run), **document.raw} for run, document in found])
        return
    rows = [[str(run), document.objective or "-", *_scores(document)] for run, document in found]
    first = found[0][1]
    for name, scores in next((document.baselines for _, document in found if document.baselines), {}).items():
        rows.append([predictor(name), "", f"{scores.exact_match:.3f}", "", f"{scores.macro_f1:.3f}", "", "", "", ""])
    columns = ["run", "objective", "exact match", "95% interval", "macro F1", "glimpse_hit", "mask_mass", "parameters", "MFLOP"]
    known = [place for place in range(len(columns)) if any(row[place] not in ("", "-") for row in rows)]
    title, shown = f"{first.dataset}, {first.split} split, {first.examples:,} images", [columns[place] for place in known]
    console.print_table(title, shown, [[row[place] for place in known] for row in rows])
    if "MFLOP" in shown:
        console.print_line("MFLOP: million floating-point operations an image, the policy's of all, the backbone's included")
    for line in _apart([run for run, _ in found]):
        console.print_line(line)


def _stated(path: Path, data: str | None) -> Evaluation | None:
    """What is stated of a policy that comes with hsal, or of an exported one; None: the path is neither, but a run, or nothing.

    Args:
        data: the name of the data set that it must be on; None: any.

    Raises:
        FileError: such a folder is damaged or holds several policies, none of which is meant, or it states nothing on these data; or the
            path is but a name, and that of nothing.
    """
    from hsal_cli.models.shipped import stated_evaluation

    exported = ((path if path.is_dir() else path.parent) / "manifest.json").is_file()
    if (path / "status.json").is_file() or not (exported or (len(path.parts) == 1 and not path.is_dir())):
        return None
    try:
        found = stated_evaluation(str(path))
    except UsageError as error:
        message = error.message if exported else f"{path} is neither a run nor a policy that comes with hsal"
        raise FileError(message, error.hint if exported else f"name a run, or {error.hint}") from error
    if data not in (None, found.dataset):
        raise FileError(f"{path} states no scores on {data}, but on {found.dataset}", "leave --data out, or this policy")
    return found


def _apart(runs: list[Path]) -> list[str]:
    """A line for each setting in which the runs differ; a dash for those whose settings are not known, as of exported policies."""
    from hsal_cli.runs.record import differing, read_record

    held: list[dict[str, Any]] = []
    for run in runs:
        try:
            held.append(read_record(run).flat)
        except HsalError:
            held.append({})
    trained = [each for each in held if "train.objective" in each]  # on features
    policies = [each for each in trained if "variant.mask" in each]  # baselines have no variant to differ in
    told = ((trained, ("train.", "saliency", "backbone_digest", "init_from")), (policies, ("variant.",)))
    names = [name for some, begin in told for name in differing(some) if name.startswith(begin) and all(name in each for each in some)]
    return [f"{name}: {', '.join(str(each.get(name, '-'))[:24] for each in held)}" for name in names]


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
