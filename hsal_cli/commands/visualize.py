"""hsal visualize."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.options import Device, Json
from hsal_cli.commands.policies import LookRunOption, PretrainedOption, load_with_backbone, looks
from hsal_cli.commands.predict import MaxSteps, words
from hsal_cli.errors import FileError, HsalError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from hsal_cli.evaluation.look import Look

ENDING = ".hsal.png"
MOST_ROWS = 50  # in one picture
ACROSS = 3  # trajectories beside each other


def visualize(
    images: Annotated[
        Optional[list[Path]], typer.Argument(help="Images in any format that Pillow reads, of any size.", show_default=False)
    ] = None,
    run: LookRunOption = None,
    pretrained: PretrainedOption = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", help="Folder for the pictures, or for one image a .png file.", show_default="IMAGE.hsal.png beside each image"
        ),
    ] = None,
    labels: Annotated[
        Optional[str], typer.Option("--labels", help="What is in the image, such as 3,5,5, to mark hits and misses.", show_default=False)
    ] = None,
    data: Annotated[
        Optional[Path],
        typer.Option("--data", help="Instead of images: a scene file, whose images go into one picture.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="With --data: the split.")] = "test",
    rows: Annotated[str, typer.Option("--rows", help="With --data: which images, such as 0-2,17.")] = "0-2",
    max_steps: MaxSteps = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw where the policy looked in images: glimpses, saliency, covert mask and priority map at each meta-step."""
    reporter = console.TerminalReporter()
    images = images or []
    if data is not None:
        if images or labels is not None:
            raise UsageError("--data goes without images and without --labels", "name either images or a scene file")
        _scenes(data, split, parse_rows(rows), run, out, max_steps, device, json, reporter, pretrained)
        return
    if not images:
        raise UsageError("there is no image to look at", "hsal visualize image.png, or hsal visualize --data data/mnist-multiset.h5")
    # Pictures of ours lie beside the images and would be met again by a second `hsal visualize *.png`.
    wanted = [path for path in images if not path.name.endswith(ENDING)]
    if len(wanted) < len(images):
        reporter.warn(f"passing over {len(images) - len(wanted)} pictures that hsal made (*{ENDING})")
    if not wanted:
        raise UsageError("there is no image left to look at", f"name images whose names do not end in {ENDING}")
    truth = None if labels is None else [label.strip() for label in labels.split(",") if label.strip()]
    if truth is not None and len(wanted) > 1:
        raise UsageError(f"--labels goes with one image, not with {len(wanted)}", "call hsal visualize once an image")
    places = targets(wanted, out)
    documents, failed = [], False
    with console.stopping(reporter):
        for number, (path, found) in enumerate(looks(wanted, run, device, max_steps, reporter, pretrained)):
            try:
                if isinstance(found, HsalError):
                    raise found
                documents.append(_draw(found, truth, places[number], json))
                if not json:
                    console.print_line(f"{path}: {words(found.labels)}   {targets[number]}")
            except HsalError as error:
                failed = True
                console.print_error(error.message, error.hint)
            reporter.check_stop("run the same command again")
    if json:
        console.print_json(documents)
    if failed:
        raise typer.Exit(1)


def parse_rows(text: str) -> list[int]:
    """Row numbers written as "0-2,17".

    Raises:
        UsageError: it is not written so.
    """
    rows: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit() or int(last or first) < int(first):
            raise UsageError(f"--rows {text} is not a list of rows", "write rows as 0-2,17")
        rows.extend(range(int(first), int(last or first) + 1))
    if len(rows) > MOST_ROWS:
        raise UsageError(f"--rows {text} asks for {len(rows)} images in one picture", f"ask for at most {MOST_ROWS}")
    return rows


def _scenes(
    data: Path,
    split: str,
    rows: list[int],
    run: Path | None,
    out: Path | None,
    max_steps: int | None,
    device: str,
    json: bool,
    reporter: console.Reporter,
    pretrained: str | None,
) -> None:
    """Draws images of a scene file, whose labels are known, into one picture."""
    from hsal_cli.evaluation.look import look_at_scenes, to_json
    from hsal_cli.pictures.trajectory import trajectories

    loaded, backbone = load_with_backbone(run, device, reporter, pretrained)
    found = look_at_scenes(data, split, rows, backbone, loaded, max_steps)
    target = out or Path(data.stem + ENDING)
    write(trajectories([look for look, _ in found], [truth for _, truth in found], columns=min(len(found), ACROSS)), target)
    if json:
        console.print_json([{**to_json(look), "true_labels": truth, "picture": str(target)} for look, truth in found])
        return
    for look, truth in found:
        console.print_line(f"{look.name}: {words(look.labels)}   true: {words(truth)}")
    console.print_line(str(target))


def _draw(look: Look, truth: list[str] | None, target: Path, json: bool) -> dict[str, Any] | None:
    from hsal_cli.evaluation.look import to_json
    from hsal_cli.pictures.trajectory import draw_trajectory

    write(draw_trajectory(look, truth), target)
    return {**to_json(look), "picture": str(target)} if json else None


def write(picture: Image, target: Path) -> None:
    """Writes a picture; replaces one that hsal made, nothing else."""
    from hsal_cli.pictures.writing import is_ours, write_picture

    if target.exists() and not is_ours(target):
        raise FileError(f"{target} exists and was not made by hsal, so it is not replaced", "name another place with --out")
    write_picture(picture, target)


def targets(images: list[Path], out: Path | None, ending: str = ENDING) -> list[Path]:
    """Where each picture goes; images that differ in their endings alone keep them, so that no picture replaces another."""
    if out is not None and out.suffix.lower() == ".png":
        if len(images) > 1:
            raise UsageError(f"--out {out} is one file, for {len(images)} images", "name a folder with --out")
        return [out]
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is neither a folder nor a .png file", "name another place with --out")
    places = [(out if out is not None else path.parent) / (path.stem + ending) for path in images]
    often = Counter(places)
    places = [place.with_name(path.name + ending) if often[place] > 1 else place for path, place in zip(images, places, strict=True)]
    twice = next((place for place, count in Counter(places).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"the pictures of two images would both be {twice}", "rename one, or run the command once for each folder")
    return places
