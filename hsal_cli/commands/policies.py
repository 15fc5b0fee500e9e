"""What eval, sweep, visualize and predict share: the run or pretrained policy that is meant, and a policy with its backbone for images."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional, TypeVar

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.options import one_of
from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.progress import SILENT
from hsal_cli.settings import as_dict

if TYPE_CHECKING:
    from hsal_cli.features.settings import LookSettings
    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.models.model import Model
    from hsal_cli.models.seen import Look
    from hsal_cli.runs.documents import Kind
    from hsal_cli.vision.backbone import LoadedBackbone

Name = TypeVar("Name")
WARNED = 3  # images whose warnings are told one by one
RunOption = Annotated[
    Optional[Path],
    typer.Option(
        "--run",
        help="Run of a trained policy, or one of its checkpoints.",
        show_default="the newest in runs/, else the pretrained mnist-multiset",
    ),
]
LOOKING = "frame look zooms first_threshold zoom_threshold groups"  # options that say what is seen of an image
FrameOption = Annotated[
    Optional[one_of(("image", "found"))],
    typer.Option(
        "--frame",
        help="What the policy sees: image, the whole of it; found: the region that a first look finds, enlarged. --look names the network "
        "that looks first; else it is the one that came with the policy, or the policy's own.",
        show_default="what it was trained on; found also for the number",
    ),
]
PretrainedOption = Annotated[
    Optional[str],
    typer.Option(
        "--pretrained",
        metavar="NAME",
        help="Instead of a run, a policy that comes with hsal: DATASET.OBJECTIVE, or DATASET alone for its rl policy.",
        show_default=False,
    ),
]


def meant(
    run: Path | None,
    pretrained: str | None,
    reporter: console.Reporter,
    kinds: Sequence[Kind | tuple[Kind, ...]] = ("policy",),
    data: Path | None = None,
) -> tuple[Path | None, str | None]:
    """The policy that is meant: one that is named, else the newest finished run, else the one that comes with hsal. None is trained.

    Args:
        kinds: of the run: the newest of the first of them that there is; "count" is a direct baseline's.
        data: the scenes it will be shown, if that is known: a policy that comes with hsal for a data set of their name is preferred.

    Returns:
        A run, or the name of a pretrained policy; the other is None.

    Raises:
        UsageError: both are named; FileError: there is no run where one is named, or neither a run nor a policy that came with hsal.
    """
    from hsal_cli.models.shipped import DEFAULT, OBJECTIVE, exports_in, own_folder, read_manifest
    from hsal_cli.runs import run as runs

    if run is not None and pretrained is not None:
        raise UsageError(f"--run {run} and --pretrained {pretrained} exclude each other", "leave one of them out")
    if run is not None and not run.is_dir():
        raise FileError(f"there is no run at {run}", "train one with: hsal train")
    if run is None and pretrained is None:
        for kind in kinds:
            first = kind == kinds[0]
            newest = distributed.broadcast(functools.partial(runs.newest, kind, reporter=reporter if first else SILENT))
            if newest is not None:
                if not first:
                    reporter.say(f"there is no trained policy in runs/: using {newest.path}, which counts and looks nowhere")
                return newest.path, None
        folder = own_folder()
        if folder is None:
            raise FileError("there is no trained policy in runs/, and this hsal came without any", "train one with: hsal train")
        known = {name for place in exports_in(folder) for name in read_manifest(place).policies}
        fits = data is not None and f"{data.stem}.{OBJECTIVE}" in known
        pretrained = data.stem if data is not None and fits else DEFAULT
        reporter.say(f"there is no trained policy in runs/: using the pretrained {pretrained}")
    return run, pretrained


def load(run: Path, device: object, reporter: console.Reporter, counts: bool = False) -> LoadedPolicy:
    """Loads the best policy of a run; a damaged checkpoint that was passed over is said.

    Args:
        counts: whether a count classifier, which takes no glimpses, will do too.
    """
    from hsal_cli.models.load import load_model, load_policy

    loaded = (load_model if counts else load_policy)(run, "best", device)
    if loaded.checkpoint.note:
        reporter.warn(loaded.checkpoint.note)
    return loaded


def images_in(paths: Sequence[Path]) -> list[Path]:
    """The images that are named, and of a folder all in it, at any depth, in the order of their names.

    Raises:
        FileError: a folder holds none.
    """
    from hsal_cli.scenes.readers.names import Pictures
    from hsal_cli.vision.images import FORMATS

    return [image for path in paths for image in (Pictures(path, FORMATS).paths if path.is_dir() else [path])]


def looks(
    images: Sequence[Path], model_of: Callable[[], Model], max_steps: int | None, reporter: console.Reporter
) -> Iterator[tuple[Path, Look | HsalError]]:
    """Shows images to a policy (see `look.look_at_files`), which is loaded only where one of them is there.

    Args:
        model_of: loads it, as `model_for` does.
    """
    from hsal_cli.models.look import look_at_files
    from hsal_cli.vision.images import read_image

    if not any(path.is_file() for path in images):
        for path in images:
            try:
                read_image(path)
            except HsalError as error:
                yield path, error
        return
    model = model_of()
    yield from warned(look_at_files(images, model.activation, model.loaded, max_steps, model.finder), reporter)


def warned(shown: Iterable[tuple[Name, Look | HsalError]], reporter: console.Reporter) -> Iterator[tuple[Name, Look | HsalError]]:
    """Passes looks on, and says why each may be wrong: of the first images one by one, of all others together at the end."""
    images, capped, unlike, reasons = 0, 0, 0, Counter[str]()
    for name, found in shown:
        whys = [] if isinstance(found, HsalError) else found.warnings
        images += bool(whys)
        if images <= WARNED:
            for why in whys:
                reporter.warn(f"{name}: {why}")
        elif not isinstance(found, HsalError):
            capped, unlike = capped + found.capped, unlike + bool(found.unlike)
            reasons.update(found.unlike)
        yield name, found
    if images > WARNED:
        how = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        said = [f"unlike the images of training {unlike:,} ({how})"] * bool(unlike)
        said += [f"the cap of meta-steps came before stop {capped:,}"] * bool(capped)
        reporter.warn(f"and {images - WARNED:,} more: {'; '.join(said)}; --json has the warnings of each image")


def check_look(frame: str, first: LookSettings) -> None:
    """Refuses what says how a first look finds a region, where none is to be found."""
    changed = [(name, value) for name, value in as_dict(first).items() if frame != "found" and value != as_dict(type(first)())[name]]
    for name, value in changed:
        option = f"--{name.replace('_', '-')}"
        raise UsageError(f"{option} {value} is of frames that are found, but frame = {frame}", f"add --frame found, or leave {option} out")


def look_known() -> str:
    """A network that looks first, for a hint: the one that came with hsal, else a run as it would be called."""
    from hsal_cli.models.shipped import LOOK, exports_in, own_folder, read_manifest

    folder = own_folder()
    known = [place / LOOK for place in exports_in(folder) if read_manifest(place).look] if folder else []
    here = [path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path for path in known]
    return str(here[0]) if here else "runs/look"


def model_for(
    run: Path | None,
    device: str,
    reporter: console.Reporter,
    pretrained: str | None = None,
    frame: str | None = None,
    first: LookSettings | None = None,
    stop_threshold: float | None = None,
    counts: bool = False,
) -> Model:
    """The policy that is meant (see `meant`), with its backbone and what it is shown of an image.

    Args:
        frame: "image", the whole of it; "found", the region that a first look finds; None: what it was trained on.
        first: how a first look finds that.
        stop_threshold: see `LoadedPolicy`.
        counts: see `load_with_backbone`.

    Raises:
        UsageError: `first` is of frames that are found, and none is.
    """
    from hsal_cli.models.model import framed, sees_a_part
    from hsal_cli.models.shipped import look_beside

    loaded, backbone = load_with_backbone(run, device, reporter, pretrained, stop_threshold, counts)
    trained = loaded.meta.frame
    part = sees_a_part(loaded, frame)
    if first is not None:
        check_look("found" if part else "image", first)
    if trained != "image" and frame is None:
        reporter.say(f"trained on frame {trained}: a first look finds that part of each image; of images cut to it already: --frame image")
    if part and trained != "image" and (first is None or first.look is None) and look_beside(loaded.checkpoint.path) is None:
        reporter.warn(
            "no network that looks first came with this policy, so its own backbone does, which finds less: name one with --look, such as "
            "data/pretrained/street-numbers/look in a checkout of hsal"
        )
    return framed(loaded, backbone, frame, first)


def load_with_backbone(
    run: Path | None,
    device: str,
    reporter: console.Reporter,
    pretrained: str | None = None,
    stop_threshold: float | None = None,
    counts: bool = False,
) -> tuple[LoadedPolicy, LoadedBackbone]:
    """The policy that is meant (see `meant`), which stops above a threshold if one is given, and its backbone, on a device.

    Args:
        counts: whether a direct baseline will do too, where one is named or there is no run of a policy.
    """
    from hsal_cli.models.load import find_backbone
    from hsal_cli.models.shipped import load_shipped
    from hsal_cli.vision.devices import choose_device

    chosen = choose_device(device)
    run, pretrained = meant(run, pretrained, reporter, ("policy", "count") if counts else ("policy",))
    if pretrained is not None:
        shipped = load_shipped(pretrained, chosen, counts)
        return dataclasses.replace(shipped.policy, stop_threshold=stop_threshold), shipped.backbone
    assert run is not None
    loaded = load(run, chosen, reporter, counts)
    return dataclasses.replace(loaded, stop_threshold=stop_threshold), find_backbone(loaded, chosen)
