"""`hsal make-data`: makes a scene file; each data set is a command of its own, with the options that belong to it."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.groups import Command, Group
from hsal_cli.commands.options import Config, DryRun, Json, Overwrite, Preset, Workers, check_out, options, recipe_for
from hsal_cli.commands.policies import LOOKING, check_look, look_known
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.features.settings import LookSettings
from hsal_cli.scenes.settings import RECIPES, FolderSettings, SceneSettings, StreetSettings, SvhnSettings, settings_of
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.bench.estimate import Work
    from hsal_cli.scenes.readers.labels import Notes
    from hsal_cli.scenes.scene_file import SceneFile
    from hsal_cli.scenes.street.frames import Finder

PREVIEWED = 24  # images on the contact sheet
FEW = {"composed": 100_000, "other": 1_500}  # images that take under five minutes on any machine: digits are small, photographs are not
SHOWN = 3  # examples of a reason for which images were left out
OUTPUT = "out preview overwrite dry_run json"
FRAME = {"The frame": LOOKING.replace("frame", "frame frame_jitter")}
COMPOSED = {
    "How many": "train test count image_size seed",
    "Digits": "digit_size digits mnist_dir classes class_names transpose",
    "Placing": "placement clutter clutter_size",
    "Settings": "preset config workers yes",
    "Output": OUTPUT,
}
STREET = {
    "Images": "train test image_size svhn_labels typefaces seed",
    **FRAME,
    "Settings": "preset config workers yes",
    "Output": OUTPUT,
}
SVHN = {
    "Images": "svhn_dir download url train test extra image_size fit",
    **FRAME,
    "Settings": "preset config yes",
    "Output": OUTPUT,
}
FOLDER = {
    "Images and labels": "images labels labels_format classes boxes",
    "Train and test": "test_share test_list test_images test_labels seed",
    "Size": "image_size fit",
    **FRAME,
    "Settings": "preset config yes",
    "Output": OUTPUT,
}
EXAMPLES = {
    "mnist-multiset": "hsal make-data mnist-multiset --train 6000 --test 1000 --preview digits.png",
    "mnist-set": "hsal make-data mnist-set --count 2-3",
    "mnist-search": "hsal make-data mnist-search --preview sheet.png",
    "mnist-single": "hsal make-data mnist-single --train 240000 --seed 5 --out data/more.h5",
    "multiset": "hsal make-data multiset --mnist-dir fashion --out data/clothes.h5",
    "set": "hsal make-data set --mnist-dir emnist/emnist-letters --classes a,b,c --out data/abc.h5",
    "single": "hsal make-data single --mnist-dir fashion --out data/one-garment.h5",
    "street-numbers": "hsal make-data street-numbers --train 6000 --test 1500 --preview sheet.png",
    "svhn-multiset": "hsal make-data svhn-multiset --svhn-dir data/svhn",
    "folder": "hsal make-data folder --images photos --labels labels.csv --out data/mine.h5 --preview sheet.png",
}
ABOUT = {
    "mnist-multiset": "MNIST Multiset: 1 to 4 digits with clutter, labels may repeat (section 5).",
    "mnist-set": "MNIST Set: the same, labels differ.",
    "mnist-single": "One digit an image, for fine-tuning.",
    "mnist-search": "Visual search: 6 to 10 digits of 28 to 48 px in images of 224 px, labels may repeat.",
    "multiset": "The same as mnist-multiset for any IDX set: Fashion-MNIST, KMNIST, EMNIST, glyphs of your own.",
    "set": "The same as mnist-set for any IDX set.",
    "single": "The same as mnist-single for any IDX set.",
    "street-numbers": "Synthetic street numbers in colour, a stand-in for SVHN.",
    "svhn-multiset": "SVHN, format 1, from its folders or archives: house numbers as multisets of digits (section 5).",
    "folder": "Your own images and labels: CSV, JSONL, COCO JSON, YOLO text files or Pascal VOC XML; docs/own-images.md.",
}
Out = Annotated[Optional[Path], typer.Option("--out", help="The scene file to write.", show_default="data/NAME.h5")]
Preview = Annotated[
    Optional[Path], typer.Option("--preview", help="Also draw a contact sheet, a PNG, with boxes and labels.", show_default=False)
]


@dataclasses.dataclass(frozen=True)
class Tools:
    """What makers take beside their settings, those that need it; `finder` finds frames, and `notes` hears what was left out."""

    workers: int | None
    reporter: console.Reporter
    finder: Finder | None
    notes: Notes


Making = Callable[[Any, Path, Tools], dict[str, Any]]
"""makes(settings, out, tools) writes the scene file -> what joins the report"""


class NameAnywhere(Group):
    """A group of commands whose name may stand behind options too, as in `hsal make-data --train 9 mnist-set`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("-"):
            for place, word in enumerate(args):
                if word in self.commands:
                    args = [word, *args[:place], *args[place + 1 :]]
                    break
        return super().parse_args(ctx, args)


app = typer.Typer(cls=NameAnywhere, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def make_data() -> None:
    """Make a data set: images, label multisets and boxes in one scene file."""


def _add(name: str, kind: type, panels: dict[str, str], make: Making, plan: str) -> None:
    """Adds the command that makes a data set.

    Args:
        kind: its settings.
        panels: as in `options`; --workers and those of a first look are options of those commands alone whose panels name them.
        plan: what it would do, behind "Would", with the settings put in.
    """

    def command(
        settings: Any,
        out: Out = None,
        workers: Workers = None,
        preview: Preview = None,
        yes: Yes = False,
        overwrite: Overwrite = False,
        dry_run: DryRun = False,
        json: Json = False,
        preset: Preset = None,
        config: Config = None,
        looks: LookSettings = LookSettings(),
    ) -> None:
        target = out or Path("data") / f"{name}.h5"
        check_out(target, overwrite, "hsal-scenes")
        if preview is not None:
            _check_preview(preview, overwrite)
        if isinstance(settings, FolderSettings):
            settings.check_named()
        frame = getattr(settings, "frame", "image")
        check_look(frame, looks)
        if frame == "found" and looks.look is None:
            raise UsageError("frame = found, but no network is named that looks first", f"add --look {look_known()}")
        if dry_run:
            report = {"dry_run": True, "dataset": name, "out": str(target), "settings": as_dict(settings)}
            console.print_json(report) if json else console.print_line(f"Would {plan.format(**vars(settings))} into {target}")
            return
        reporter = console.TerminalReporter()
        from hsal_cli.scenes.readers.labels import Notes

        finder = None
        if frame == "found" and looks.look is not None:
            from hsal_cli.models.model import finder_of

            finder = finder_of(Path(looks.look).expanduser(), looks)
        tools = Tools(workers, reporter, finder, Notes())
        with console.stopping(reporter):
            _begin(settings, target, yes, preset, config, tools)
        _make(name, settings, target, make, tools, preview, json)

    kinds = {"settings": kind, "looks": LookSettings} if FRAME.items() <= panels.items() else {"settings": kind}
    left = tuple({"workers", "yes", "looks"}.difference(" ".join(panels.values()).split(), kinds))
    decorated = options(panels=panels, leave_out=left, **kinds)(command)
    app.command(name, cls=Command, help=ABOUT[name], epilog=f"Example: {EXAMPLES[name]}")(decorated)


def _begin(settings: Any, out: Path, yes: bool, preset: str | None, config: Path | None, tools: Tools) -> None:
    """Says how long making takes, if it takes long; few images are made without loading what would measure it."""
    composed = isinstance(settings, SceneSettings)
    if isinstance(settings, FolderSettings):
        from hsal_cli.scenes.readers.names import files_below

        folders = [Path(folder).expanduser() for folder in (settings.images, settings.test_images) if folder]
        count = sum(1 for folder in folders for _ in files_below(folder))
    else:
        count = sum(FEW["other"] + 1 if most is None else most for most in (settings.train, settings.test))  # of SVHN, None is all
    if count <= FEW["composed" if composed else "other"]:
        return

    def works() -> list[Work]:
        from hsal_cli.bench import data_sets
        from hsal_cli.bench.estimate import composing

        if composed:
            return [composing(out, settings)]
        if isinstance(settings, StreetSettings):
            return [data_sets.painting(out, settings, tools.workers, tools.finder)]
        try:
            read = data_sets.reading if isinstance(settings, FolderSettings) else data_sets.reading_svhn
            return [read(out, settings, tools.finder)]
        except HsalError:  # what is wrong with the images is for making to say
            return []

    from hsal_cli.vision.devices import choose_device

    begin(works, yes, recipe_for(preset, config), choose_device("cpu"), tools.reporter)


def _compose(name: str) -> Making:
    def make(settings: SceneSettings, out: Path, tools: Tools) -> dict[str, Any]:
        from hsal_cli.scenes.make import make_dataset

        make_dataset(name, settings, out, tools.workers, tools.reporter)
        return {}

    return make


def _paint(settings: StreetSettings, out: Path, tools: Tools) -> dict[str, Any]:
    from hsal_cli.scenes.street.street import make_street_numbers

    make_street_numbers(settings, out, tools.workers, tools.reporter, tools.finder)
    return {}


def _svhn(settings: SvhnSettings, out: Path, tools: Tools) -> dict[str, Any]:
    from hsal_cli.scenes.street.svhn import make_svhn
    from hsal_cli.vision.images import read_image

    return {"skipped": make_svhn(settings, out, read_image, tools.reporter, tools.finder)}


def _folder(settings: FolderSettings, out: Path, tools: Tools) -> dict[str, Any]:
    from hsal_cli.scenes.folder import make_from_folder
    from hsal_cli.vision.images import FORMATS, read_image

    make_from_folder(settings, out, read_image, FORMATS, tools.reporter, tools.notes, tools.finder)
    return {"skipped": tools.notes.skipped, "notes": tools.notes.remarks}


for _name in RECIPES:
    _add(_name, settings_of(_name), COMPOSED, _compose(_name), f"compose {{train:,}} training and {{test:,}} test images of {_name}")
_add("street-numbers", StreetSettings, STREET, _paint, "paint {train:,} training and {test:,} test images of street numbers")
_add("svhn-multiset", SvhnSettings, SVHN, _svhn, "read SVHN from {svhn_dir}")
_add("folder", FolderSettings, FOLDER, _folder, "read the images in {images} with the labels in {labels}")


def _make(name: str, settings: Any, out: Path, make: Making, tools: Tools, preview: Path | None, json: bool) -> None:
    """Makes a scene file, and says what is in it, and what was skipped and taken for granted, also with an error."""
    notes, reporter, start = tools.notes, tools.reporter, time.monotonic()
    try:
        with console.stopping(reporter):
            more = make(settings, out, tools)
    except HsalError as error:
        if isinstance(settings, FolderSettings) and json:
            console.print_json({"error": error.message, "hint": error.hint, "skipped": notes.skipped, "notes": notes.remarks})
        else:
            _tell(notes.skipped, notes.remarks, reporter.say)
        raise
    seconds = time.monotonic() - start
    from hsal_cli.scenes.scene_file import open_scenes
    from hsal_cli.scenes.summary import classes_told, mistyped

    with open_scenes(out) as scenes:
        if preview is not None:
            _draw_preview(scenes, preview)
        counts = {split: len(scenes.split(split)) for split in scenes.splits}
        report = {
            "dataset": name,
            "out": str(out),
            "images": counts,
            "classes": scenes.classes,
            **{
                key: scenes.config[key]
                for key in ("digits", "mnist_dir", "svhn_labels", "svhn_dir", "frame", "found")
                if key in scenes.config
            },
            "boxes": all(scenes.split(split).boxes is not None for split in scenes.splits),
            "digest": scenes.digest,
            "bytes": out.stat().st_size,
            "seconds": round(seconds, 3),
            "preview": None if preview is None else str(preview),
            **more,
        }
        told = ""
        if name == "folder":
            report["objects"] = {split: _objects(scenes, split) for split in counts}
            report["mistyped"] = mistyped(report["objects"])
            told = classes_told(report["objects"], report["mistyped"])
    if "test" not in counts:
        way = "--test-share, --test-list or --test-images choose some" if hasattr(settings, "test_share") else "--test N makes some"
        reporter.warn(f"{out} has no test images, so hsal eval has nothing to score there: {way}")
    if json:
        console.print_json(report)
        return
    words = " and ".join(f"{count:,} {split}" for split, count in counts.items())
    console.print_line(f"{words} images in {out} ({report['bytes'] / 1e6:,.0f} MB, {console.clock(seconds)})")
    for split in counts:
        if lie := report.get("found", {}).get(split):
            console.print_line(
                f"{split}: the region's IoU with the union of the boxes is {lie['iou']:.3f} on average, above 0.5 in "
                f"{lie['iou_above_half']:.1%} of images; all objects lie in the frame in {lie['all_inside']:.1%}"
            )
    _tell(report.get("skipped", []), report.get("notes", []), console.print_line)
    if told:
        console.print_line(told)
    if preview is not None:
        console.print_line(f"Contact sheet in {preview}")


def _objects(scenes: SceneFile, split: str) -> dict[str, int]:
    """How many objects of each class a split has."""
    labels = scenes.split(split).labels
    counted = Counter(labels[labels >= 0].tolist())
    return {name: counted[place] for place, name in enumerate(scenes.classes)}


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
