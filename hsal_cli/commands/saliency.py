"""hsal saliency."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.asking import Yes, paced
from hsal_cli.commands.options import Device, Images, Json, backbone_in
from hsal_cli.commands.policies import images_in
from hsal_cli.commands.visualize import targets
from hsal_cli.errors import HsalError, UsageError
from hsal_cli.features.settings import SALIENCY, SALIENCY_HELP, kind_in, saliency_kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hsal_cli.features.saliency.models import SaliencyModel
    from hsal_cli.vision.backbone import LoadedBackbone

ENDING = ".saliency.hsal.png"
WORDS = {
    "activation": "activation model (paper)",
    "itti": "Itti, Koch and Niebur",
    "spectral-residual": "spectral residual",
    "center": "centre prior",
    "file": "from file",
}
DIGITS = 5  # decimals of numbers in JSON


def saliency(
    images: Images,
    model: Annotated[
        Optional[list[str]],
        typer.Option("--saliency", help=f"{SALIENCY_HELP} Several times: side by side.", show_default="activation"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every saliency model side by side.")] = False,
    backbone: Annotated[
        Optional[Path],
        typer.Option(
            "--backbone",
            help="A run of hsal finetune, for activation.",
            show_default="the newest in runs/, else the pretrained one",
            callback=backbone_in,
        ),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(
            "--out", help="Folder for the pictures, or for one image a .png file.", show_default=f"IMAGE{ENDING} beside each image"
        ),
    ] = None,
    device: Device = "auto",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Lay saliency maps over images: what stands out to the activation model, and to other saliency models."""
    names = list(dict.fromkeys([*(model or []), *(SALIENCY if every else ())])) or ["activation"]
    for name in names:
        saliency_kind(name)
    wanted = images_in(images)
    places = targets(wanted, out, [".png"], ENDING)
    reporter = console.TerminalReporter()

    from hsal_cli.features.saliency.models import saliency_model
    from hsal_cli.vision.devices import choose_device

    loaded = _backbone(backbone, "activation" in names, choose_device(device), reporter)
    models = [saliency_model(name) for name in names]
    documents, failed = [], False
    with console.stopping(reporter):
        for path, target in paced(zip(wanted, places, strict=True), len(wanted), yes, reporter):
            try:
                documents.append(_draw(path, models, loaded, target))
                if not json:
                    _say(documents[-1])
            except HsalError as error:
                failed = True
                console.print_error(error.message, error.hint)
            reporter.check_stop("run the same command again")
    if json:
        console.print_json(documents)
    if failed:
        raise typer.Exit(1)


def _backbone(path: Path | None, wanted: bool, device: Any, reporter: console.Reporter) -> LoadedBackbone | None:
    """The activation model that is meant, the one that comes with hsal where there is no other; None where none is wanted."""
    from hsal_cli.models.shipped import BACKBONE, own_folder
    from hsal_cli.runs import run as runs
    from hsal_cli.vision.backbone import load_backbone

    if not wanted:
        if path is not None:
            raise UsageError(f"--backbone {path} goes with --saliency activation or --all", "leave one of the two out")
        return None
    folder = own_folder()
    if path is None and folder is not None and runs.newest("backbone", reporter=reporter) is None:
        reporter.say("there is no finished backbone in runs/: using the pretrained one")
        path = folder / BACKBONE
    return load_backbone(runs.named_or_newest(path, "backbone", ", or take --saliency itti", reporter), device=device)


def _draw(path: Path, models: Sequence[SaliencyModel], backbone: LoadedBackbone | None, target: Path) -> dict[str, Any]:
    from hsal_cli.features.saliency.models import maps_of_image
    from hsal_cli.pictures.saliency_maps import SaliencyView, draw_saliency
    from hsal_cli.pictures.writing import write_picture
    from hsal_cli.vision.images import from_pil, read_image

    image = from_pil(read_image(path))
    maps = maps_of_image(image, str(path), models, backbone)
    views = [SaliencyView(WORDS.get(kind_in(name), name), found) for name, found in maps.items()]
    write_picture(draw_saliency(str(path), image[0].numpy(), views), target)
    return {
        "image": str(path),
        "picture": str(target),
        "maps": {
            name: {"maximum": None if view.maximum is None else list(view.maximum), "map": view.map.round(DIGITS).tolist()}
            for name, view in zip(maps, views, strict=True)
        },
    }


def _say(document: dict[str, Any]) -> None:
    where = [f"{name} {_cell(found['maximum'])}" for name, found in document["maps"].items()]
    console.print_line(f"{document['image']}: highest cell (row, column, from 0): {', '.join(where)}   {document['picture']}")


def _cell(maximum: list[int] | None) -> str:
    return "none, the map is flat" if maximum is None else f"({maximum[0]}, {maximum[1]})"
