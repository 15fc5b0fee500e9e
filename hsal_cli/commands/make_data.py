"""`hsal make-data`: makes a scene file; each data set is a command of its own, with the options that belong to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from hsal_cli import console
from hsal_cli.commands.options import DryRun, Json, Overwrite, Workers, check_out, options
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.scenes.settings import RECIPES, FolderSettings, SceneSettings, StreetSettings, SvhnSettings
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.scenes.readers.labels import Notes
    from hsal_cli.scenes.scene_file import SceneFile

PREVIEWED = 24  # images on the contact sheet
SHOWN = 3  # examples of a reason for which images were left out
ABOUT = {
    "mnist-multiset": "MNIST Multiset: 1 to 4 digits with clutter, labels may repeat (section 5).",
    "mnist-set": "MNIST Set: the same, labels differ.",
    "mnist-single": "One digit an image, for fine-tuning.",
    "multiset": "The same as mnist-multiset for any IDX set: Fashion-MNIST, KMNIST, EMNIST, glyphs of your own.",
    "set": "The same as mnist-set for any IDX set.",
    "single": "The same as mnist-single for any IDX set.",
}

Out = Annotated[Optional[Path], typer.Option("--out", help="The scene file to write.", show_default="data/NAME.h5")]
Preview = Annotated[
    Optional[Path], typer.Option("--preview", help="Also draw a contact sheet, a PNG, with boxes and labels.", show_default=False)
]


class NameAnywhere(TyperGroup):
    """A group of commands whose name may stand behind options too, as in `hsal make-data --train 9 mnist-set`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-"):
            for place, word in enumerate(args):
                if word in self.commands:
                    args = [word, *args[:place], *args[place + 1 :]]
                    break
        return super().parse_args(ctx, args)


make_data = typer.Typer(
    cls=NameAnywhere, no_args_is_help=True, help="Make a data set: images, label multisets and boxes in one scene file."
)


def _composed(name: str) -> Callable[..., None]:
    """The command that composes a data set of glyphs."""

    @options(settings=SceneSettings)
    def compose(
        settings: SceneSettings,
        out: Out = None,
        workers: Workers = None,
        preview: Preview = None,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        json: Json = False,
    ) -> None:
        def make(target: Path, reporter: console.Reporter) -> dict[str, Any]:
            from hsal_cli.scenes.make import make_dataset

            make_dataset(name, settings, target, workers, reporter)
            return {}

        plan = f"compose {settings.train:,} training and {settings.test:,} test images of {name}"
        _make(name, settings, make, plan, out, preview, overwrite, dry_run, json)

    return compose


for _name in RECIPES:
    make_data.command(_name, help=ABOUT[_name])(_composed(_name))


@make_data.command("street-numbers")
@options(settings=StreetSettings)
def street_numbers(
    settings: StreetSettings,
    out: Out = None,
    workers: Workers = None,
    preview: Preview = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Synthetic street numbers in colour, a stand-in for SVHN."""

    def make(target: Path, reporter: console.Reporter) -> dict[str, Any]:
        from hsal_cli.scenes.street.street import make_street_numbers

        make_street_numbers(settings, target, workers, reporter)
        return {}

    plan = f"paint {settings.train:,} training and {settings.test:,} test images of street numbers"
    _make("street-numbers", settings, make, plan, out, preview, overwrite, dry_run, json)


@make_data.command("svhn-multiset")
@options(settings=SvhnSettings)
def svhn_multiset(
    settings: SvhnSettings,
    out: Out = None,
    preview: Preview = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """SVHN, format 1, from its folders or archives: house numbers as multisets of digits (section 5)."""

    def make(target: Path, reporter: console.Reporter) -> dict[str, Any]:
        from hsal_cli.scenes.street.svhn import make_svhn
        from hsal_cli.vision.images import read_image

        return {"skipped": make_svhn(settings, target, read_image, reporter)}

    _make("svhn-multiset", settings, make, f"read SVHN from {settings.svhn_dir}", out, preview, overwrite, dry_run, json)


@make_data.command("folder")
@options(settings=FolderSettings)
def folder(
    settings: FolderSettings,
    out: Out = None,
    preview: Preview = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Your own images and labels: CSV, JSONL, COCO JSON, YOLO text files or Pascal VOC XML; docs/own-images.md."""

    from hsal_cli.scenes.readers.labels import Notes

    notes = Notes()

    def make(target: Path, reporter: console.Reporter) -> dict[str, Any]:
        from hsal_cli.scenes.folder import make_from_folder
        from hsal_cli.vision.images import FORMATS, read_image

        make_from_folder(settings, target, read_image, FORMATS, reporter, notes)
        return {"skipped": notes.skipped, "notes": notes.remarks}

    settings.check_named()
    plan = f"read the images in {settings.images} with the labels in {settings.labels}"
    _make("folder", settings, make, plan, out, preview, overwrite, dry_run, json, notes)


def _make(
    name: str,
    settings: Any,
    make: Callable[[Path, console.Reporter], dict[str, Any]],
    plan: str,
    out: Path | None,
    preview: Path | None,
    overwrite: bool,
    dry_run: bool,
    json: bool,
    notes: Notes | None = None,
) -> None:
    """What all data sets have in common: refusing, the dry run, the words and the contact sheet at the end.

    Args:
        make: writes the scene file; what it returns joins the report.
        plan: what it would do, behind "Would".
        notes: what `make` skips and takes for granted, which is told with its error, too.
    """
    out = out or Path("data") / f"{name}.h5"
    check_out(out, overwrite, "hsal-scenes")
    if preview is not None:
        _check_preview(preview, overwrite)
    if dry_run:
        report = {"dry_run": True, "dataset": name, "out": str(out), "settings": as_dict(settings)}
        console.print_json(report) if json else console.print_line(f"Would {plan} into {out}")
        return
    reporter = console.TerminalReporter()
    start = time.monotonic()
    try:
        with console.stopping(reporter):
            more = make(out, reporter)
    except HsalError as error:
        if notes is not None and json:
            console.print_json({"error": error.message, "hint": error.hint, "skipped": notes.skipped, "notes": notes.remarks})
        elif notes is not None:
            _tell(notes.skipped, notes.remarks, reporter.say)
        raise
    seconds = time.monotonic() - start
    from hsal_cli.scenes.scene_file import open_scenes

    with open_scenes(out) as scenes:
        if preview is not None:
            _draw_preview(scenes, preview)
        counts = {split: len(scenes.split(split)) for split in scenes.splits}
        report = {
            "dataset": name,
            "out": str(out),
            "images": counts,
            "classes": scenes.classes,
            **{key: scenes.config[key] for key in ("digits", "mnist_dir", "svhn_labels", "svhn_dir", "frame") if key in scenes.config},
            "boxes": all(scenes.split(split).boxes is not None for split in scenes.splits),
            "digest": scenes.digest,
            "bytes": out.stat().st_size,
            "seconds": round(seconds, 3),
            "preview": None if preview is None else str(preview),
            **more,
        }
    if "test" not in counts:
        way = "--test-share, --test-list or --test-images choose some" if hasattr(settings, "test_share") else "--test N makes some"
        reporter.warn(f"{out} has no test images, so hsal eval has nothing to score there: {way}")
    if json:
        console.print_json(report)
        return
    words = " and ".join(f"{count:,} {split}" for split, count in counts.items())
    console.print_line(f"{words} images in {out} ({report['bytes'] / 1e6:,.0f} MB, {console.clock(seconds)})")
    _tell(report.get("skipped", []), report.get("notes", []), console.print_line)
    if preview is not None:
        console.print_line(f"Contact sheet in {preview}")


def _tell(skipped: list[dict[str, str]], remarks: list[str], say: Callable[[str], None]) -> None:
    """Says what was left out, a line a reason with the first examples, and what was taken for granted."""
    reasons: dict[str, list[str]] = {}
    for row in skipped:
        reasons.setdefault(row["reason"], []).append(row["what"])
    for reason, what in reasons.items():
        more = f" and {len(what) - SHOWN:,} more" if len(what) > SHOWN else ""
        say(f"Skipped {len(what):,}: {reason}: {', '.join(what[:SHOWN])}{more}")
    for remark in remarks:
        say(f"Note: {remark}")


def _check_preview(preview: Path, overwrite: bool) -> None:
    from hsal_cli.storage.files import refuse_foreign

    if preview.suffix.lower() != ".png":
        raise UsageError(f"preview = {preview} is not a PNG file", "give --preview a name that ends in .png")
    if preview.is_dir() or (preview.exists() and not overwrite):
        raise UsageError(f"{preview} exists", "add --overwrite to replace it, or name another file with --preview")
    refuse_foreign(preview)


def _draw_preview(scenes: SceneFile, preview: Path) -> None:
    from hsal_cli.pictures.contact_sheet import contact_sheet
    from hsal_cli.pictures.writing import write_picture

    split = scenes.split(scenes.splits[0])
    shown = min(PREVIEWED, len(split))
    boxes = None if split.boxes is None else split.boxes[:shown]
    write_picture(contact_sheet(split.read(0, shown), split.labels[:shown], boxes, scenes.classes), preview)
