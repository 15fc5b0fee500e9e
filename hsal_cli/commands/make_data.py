"""`hsal make-data`: composes a scene file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import DryRun, Json, Overwrite, Workers, check_out, one_of, options
from hsal_cli.errors import UsageError
from hsal_cli.scenes.settings import DATASETS, SceneSettings
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.scenes.scene_file import SceneFile

PREVIEWED = 24  # images on the contact sheet

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
    if preview is not None:
        _check_preview(preview, overwrite)
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
        if preview is not None:
            _draw_preview(scenes, preview)
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
    if preview is not None:
        console.print_line(f"Contact sheet in {preview}")


def _check_preview(preview: Path, overwrite: bool) -> None:
    if preview.suffix.lower() != ".png":
        raise UsageError(f"preview = {preview} is not a PNG file", "give --preview a name that ends in .png")
    if preview.is_dir() or (preview.exists() and not overwrite):
        raise UsageError(f"{preview} exists", "add --overwrite to replace it, or name another file with --preview")


def _draw_preview(scenes: SceneFile, preview: Path) -> None:
    from hsal_cli.files import whole
    from hsal_cli.pictures.contact_sheet import contact_sheet

    split = scenes.split(scenes.splits[0])
    shown = min(PREVIEWED, len(split))
    boxes = None if split.boxes is None else split.boxes[:shown]
    with whole(preview) as temporary:
        contact_sheet(split.read(0, shown), split.labels[:shown], boxes, scenes.classes).save(temporary, format="PNG")
