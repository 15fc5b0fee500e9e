"""hsal visualize."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, paced
from hsal_cli.commands.options import Device, Images, Json, numbers_in, options
from hsal_cli.commands.policies import (
    LOOKING,
    FrameOption,
    PretrainedOption,
    RunOption,
    check_look,
    images_in,
    load_with_backbone,
    look_known,
    looks,
    model_for,
    warned,
)
from hsal_cli.commands.predict import MaxSteps, StopThreshold, words
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.features.settings import LookSettings
from hsal_cli.settings import nearest
from hsal_cli.words import brief

if TYPE_CHECKING:
    from hsal_cli.models.model import Model
    from hsal_cli.models.seen import Look

ENDING = ".hsal.png"
OURS = (ENDING, ".hsal.gif")  # images that hsal writes beside those it is shown
PICTURES = (".png", ".svg", ".pdf")
KEYS = {**dict.fromkeys(PICTURES, "picture"), ".gif": "animation", ".html": "replay"}  # of a document on stdout
NO_FOLDERS = (*KEYS, ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".eps", ".ps", ".htm", ".json", ".csv", ".h5")
MOST_ROWS = 50  # in one picture
PANELS = {
    "What": "images data split rows labels run pretrained",
    "Also": "gif html",
    "The frame": LOOKING,
    "How": "max_steps stop_threshold device yes",
    "Output": "out json",
}
EXAMPLES = """Examples:

  hsal visualize image.png --gif --html
      the picture, the episode played, and a page to step through it

  hsal visualize image.png --labels 3,3,8,9 --out figure.svg
      for a paper: text is text; .pdf likewise, as pixels

  hsal visualize --data data/mnist-multiset.h5 --rows 0-2,17
"""


@options(panels=PANELS, leave_out=("preset", "config"), first=LookSettings)
def visualize(
    first: LookSettings,
    images: Images = None,  # type: ignore[assignment]
    run: RunOption = None,
    pretrained: PretrainedOption = None,
    frame: FrameOption = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", help="Folder for the pictures, or for one a .png, .svg or .pdf file.", show_default="IMAGE.hsal.png beside each image"
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
    gif: Annotated[bool, typer.Option("--gif", help="Also an animation that plays the episode, IMAGE.hsal.gif.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Also a replay to step through in a browser, IMAGE.hsal.html: one file, no network.")
    ] = False,
    max_steps: MaxSteps = None,
    stop_threshold: StopThreshold = None,
    device: Device = "auto",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Draw where the policy looked in images: glimpses, saliency, covert mask and priority map at each meta-step."""
    from hsal_cli.models.seen import to_json

    picture = out.suffix.lower() if out is not None and out.suffix.lower() in PICTURES and not out.is_dir() else ".png"
    kinds = tuple(kind for kind, wanted in ((picture, True), (".gif", gif), (".html", html)) if wanted)
    reporter = console.TerminalReporter()
    images = images_in(images or [])
    if data is not None:
        if images or labels is not None:
            raise UsageError("--data goes without images and without --labels", "name either images or a scene file")
        check_look("image", first)
        if frame == "found":
            raise UsageError(
                f"--frame {frame} takes images as they are, and those of {data} are cut and resized already",
                f"name image files, or cut the scene file so: hsal make-data street-numbers --frame found --look {look_known()}",
            )
        target = targets([Path(data.name)], out, kinds)[0]
        too_many = "asks for {} images in one picture", f"ask for at most {MOST_ROWS}"
        wanted_rows = numbers_in("--rows", rows, "rows", "0-2,17", MOST_ROWS, too_many)
        _scenes(data, split, wanted_rows, run, target, kinds, max_steps, device, json, reporter, pretrained, stop_threshold)
        return
    if not images:
        raise UsageError("there is no image to look at", "hsal visualize image.png, or hsal visualize --data data/mnist-multiset.h5")
    # Pictures of ours lie beside the images and would be met again by a second `hsal visualize *.png`.
    wanted = [path for path in images if not path.name.endswith(OURS)]
    if len(wanted) < len(images):
        reporter.warn(f"passing over {len(images) - len(wanted)} pictures that hsal made ({', '.join(f'*{ending}' for ending in OURS)})")
    if not wanted:
        raise UsageError("there is no image left to look at", f"name images whose names do not end in {' or '.join(OURS)}")
    truth = None if labels is None else [label.strip() for label in labels.split(",") if label.strip()]
    if truth is not None and len(wanted) > 1:
        raise UsageError(f"--labels goes with one image, not with {len(wanted)}", "call hsal visualize once an image")
    places = targets(wanted, out, kinds)
    documents, failed = [], False

    def model_of() -> Model:
        model = model_for(run, device, reporter, pretrained, frame, first, stop_threshold)
        _check_known(truth or [], model.classes)
        return model

    with console.stopping(reporter):
        shown = looks(wanted, model_of, max_steps, reporter)
        for number, (path, found) in enumerate(paced(shown, len(wanted), yes, reporter)):
            try:
                if isinstance(found, HsalError):
                    raise found
                made = _draw([found], [truth], places[number], kinds)
                if json:
                    documents.append({**to_json(found), **made})
                else:
                    console.print_line(f"{path}: {words(found.labels)}   {'   '.join(made.values())}")
            except HsalError as error:
                failed = True
                console.print_error(error.message, error.hint)
            reporter.check_stop("run the same command again")
    if json:
        console.print_json(documents)
    if failed:
        raise typer.Exit(1)


def _check_known(truth: Sequence[str], known: list[str]) -> None:
    """Refuses true labels that the policy cannot name."""
    strange = next((label for label in truth if label not in known), None)
    if strange is None:
        return
    parts = strange.split()
    wrong = f"--labels: the policy has no class {brief(strange)!r}"
    if len(parts) > 1 and set(parts) <= set(known):
        raise UsageError(wrong, f"write commas between them: --labels {','.join(parts)}")
    raise UsageError(f"{wrong}{nearest(strange, known)}", f"it has {', '.join(map(brief, known))}")


def _scenes(
    data: Path,
    split: str,
    rows: list[int],
    run: Path | None,
    target: Path,
    kinds: Sequence[str],
    max_steps: int | None,
    device: str,
    json: bool,
    reporter: console.Reporter,
    pretrained: str | None,
    stop_threshold: float | None,
) -> None:
    """Draws images of a scene file, whose labels are known, into one picture, one animation and one replay."""
    from hsal_cli.models.look import look_at_scenes
    from hsal_cli.models.seen import to_json

    loaded, backbone = load_with_backbone(run, device, reporter, pretrained, stop_threshold)
    found = look_at_scenes(data, split, rows, backbone, loaded, max_steps)
    list(warned([(seen.name, seen) for seen, _ in found], reporter))
    made = _draw([look for look, _ in found], [truth for _, truth in found], target, kinds)
    if json:
        console.print_json([{**to_json(look), "true_labels": truth, **made} for look, truth in found])
        return
    for look, truth in found:
        console.print_line(f"{look.name}: {words(look.labels)}   true: {words(truth)}")
    console.print_line("   ".join(made.values()))


def _draw(looks_: Sequence[Look], truths: Sequence[list[str] | None], target: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Writes the picture, and what else is wanted beside it; none is written if one would replace what hsal did not make.

    Returns:
        What is where, by the words of KEYS.
    """
    from hsal_cli.pictures.film import film
    from hsal_cli.pictures.replay import replay_page
    from hsal_cli.pictures.trajectory import draw_trajectories, trajectories
    from hsal_cli.pictures.vector import Vector, pdf
    from hsal_cli.pictures.writing import encoded, write_bytes
    from hsal_cli.storage.files import refuse_foreign

    places = {kind: target.with_suffix(kind) for kind in kinds}
    for place in places.values():
        refuse_foreign(place)
    drawn = {
        ".png": lambda: encoded(trajectories(looks_, truths)),
        ".svg": lambda: draw_trajectories(Vector, looks_, truths).svg(),
        ".pdf": lambda: pdf(trajectories(looks_, truths)),
        ".gif": lambda: film(looks_, truths),
        ".html": lambda: replay_page(looks_, truths).encode(),
    }
    for kind, place in places.items():
        write_bytes(drawn[kind](), place)
    return {KEYS[kind]: str(place) for kind, place in places.items()}


def targets(images: list[Path], out: Path | None, kinds: Sequence[str], ending: str = ENDING) -> list[Path]:
    """Where each picture goes; images that differ in their endings alone keep them, so that no picture replaces another.

    Args:
        images: what is drawn.
        out: a folder, or for one image a file of one of the kinds, whose name the others share; None: beside each image.
        kinds: the endings of what is written; the first one is the picture's.
        ending: put behind the image's name, with .png at its end.
    """
    if out is not None and out.suffix.lower() in kinds and not out.is_dir():
        if len(images) > 1:
            raise UsageError(f"--out {out} is one file, for {len(images)} images", "name a folder with --out")
        return [out if out.suffix.lower() == kinds[0] else out.with_suffix(kinds[0])]
    if out is not None and (out.suffix.lower() in NO_FOLDERS or out.exists()) and not out.is_dir():
        raise UsageError(f"--out {out} is neither a folder nor a {' or '.join(kinds)} file", "name another place with --out")
    places = [(out if out is not None else path.parent) / (path.stem + ending) for path in images]
    often = Counter(places)
    places = [place.with_name(path.name + ending) if often[place] > 1 else place for path, place in zip(images, places, strict=True)]
    twice = next((place for place, count in Counter(places).items() if count > 1), None)
    if twice is not None:
        raise UsageError(f"the pictures of two images would both be {twice}", "rename one, or run the command once for each folder")
    return places
