"""`hsal make-data`: composes a scene file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import DryRun, Json, Overwrite, Workers, check_out, one_of, options
from hsal_cli.scenes.settings import DATASETS, SceneSettings
from hsal_cli.settings import as_dict

Name = Annotated[one_of(DATASETS), typer.Argument(help="The data set.", show_default=False)]
Out = Annotated[Optional[Path], typer.Option("--out", help="The scene file to write.", show_default="data/NAME.h5")]
Preview = Annotated[
    Optional[Path], typer.Option("--preview", help="Also draw a contact sheet, a PNG, with boxes and labels.", show_default=False)
]


@options(settings=SceneSettings)
def make_data(
    name: Name,
    settings: SceneSettings,
    out: Out = None,
    workers: Workers = None,
    preview: Preview = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compose images of several digits with clutter: MNIST Set, MNIST Multiset, or one digit an image (section 5)."""
    name = str(name)
    out = out or Path("data") / f"{name}.h5"
    check_out(out, overwrite, "hsal-scenes")
    if dry_run:
        plan = {"dry_run": True, "dataset": name, "out": str(out), "settings": as_dict(settings)}
        text = f"Would compose {settings.train:,} training and {settings.test:,} test images of {name} into {out}"
        console.print_json(plan) if json else console.print_line(text)
        return
    from hsal_cli.scenes.make import make_dataset
    from hsal_cli.scenes.scene_file import open_scenes

    reporter = console.TerminalReporter()
    start = time.monotonic()
    with console.stopping(reporter):
        make_dataset(name, settings, out, workers, reporter)
    seconds = time.monotonic() - start
    with open_scenes(out) as scenes:
        counts = {split: len(scenes.split(split)) for split in scenes.splits}
        report = {
            "dataset": name,
            "out": str(out),
            "images": counts,
            "classes": scenes.classes,
            "digits": scenes.config["digits"],
            "mnist_dir": scenes.config["mnist_dir"],
            "digest": scenes.digest,
            "bytes": out.stat().st_size,
            "seconds": round(seconds, 3),
            "preview": None if preview is None else str(preview),
        }
    if json:
        console.print_json(report)
        return
    words = " and ".join(f"{count:,} {split}" for split, count in counts.items())
    console.print_line(f"{words} images in {out} ({report['bytes'] / 1e6:,.0f} MB, {console.clock(seconds)})")
