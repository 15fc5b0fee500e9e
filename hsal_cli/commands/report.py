"""hsal report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Device, Json
from hsal_cli.errors import FileError, UsageError


def report(
    runs: Annotated[list[Path], typer.Argument(help="Runs of hsal train or hsal finetune.", show_default=False)],
    out: Annotated[
        Optional[Path],
        typer.Option("--out", help="Folder for the page and its pictures.", show_default="RUN/plots, for several runs report/"),
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option(
            "--data",
            help="Feature file or scene file that holds the test images.",
            show_default="the features that each policy was trained on, and the scene file that they name",
        ),
    ] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write a page on how training went: curves, verdicts in words, confusion of labels, and images that show what was learned."""
    from hsal_cli.report.report_page import check_folder, write_report
    from hsal_cli.report.run_report import compose
    from hsal_cli.report.tested import gallery, look_at_runs
    from hsal_cli.runs.record import best_of, groups, read_record, read_some
    from hsal_cli.vision.devices import choose_device

    places = [run.resolve() for run in runs]
    if len(set(places)) < len(places):
        raise UsageError(f"{next(run for run in runs if places.count(run.resolve()) > 1)} is named twice", "name each run once")
    reporter = console.TerminalReporter()
    records = read_some(read_record, runs, reporter)
    folder = out or (runs[0] / "plots" if len(runs) == 1 else Path("report"))
    check_folder(folder)
    chosen = choose_device(device)
    with console.stopping(reporter):
        tested, left_out = look_at_runs([record for record in records if record.kind == "policy"], data, chosen, reporter)
        shown = None
        if tested:
            best = best_of([record for record in records if record.path in tested]).path
            try:
                shown = best, gallery(tested[best], data, device=chosen)
            except FileError as error:
                left_out.append(f"{best}: the gallery, because {error.message}")
        left_out += [f"{record.path}: its scores, because {record.note}" for record in records if record.note]
        page, document = compose(groups(records), tested, shown, left_out)
        reporter.check_stop("run the same command again")
        target = write_report(page, document, folder)
    if json:
        console.print_json({**document, "page": str(target)})
        return
    for run in document["runs"]:
        for verdict in run["verdicts"]:
            console.print_line(f"{run['run']}: {verdict['kind']}: {verdict['text']}")
    for line in left_out:
        reporter.warn(f"left out: {line}")
    console.print_line(f"report: {target}")
