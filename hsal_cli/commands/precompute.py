"""`hsal precompute`: volumes and saliency maps of a scene file, for training to read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Optional

import typer

from hsal_cli import console, distributed
from hsal_cli.commands.asking import Yes, begin
from hsal_cli.commands.options import Backbone, Config, Device, DryRun, Json, Overwrite, Preset, options, recipe_for
from hsal_cli.errors import FileError
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.scenes.settings import made_by
from hsal_cli.settings import as_dict

Data = Annotated[
    Optional[Path],
    typer.Option("--data", help="The scene file.", show_default="the one in data/, else data/mnist-multiset.h5"),
]
VolumesFrom = Annotated[
    Optional[Path],
    typer.Option(
        "--volumes-from",
        help="Feature file of the same scenes and backbone, whose volumes are copied; only the saliency maps are computed.",
        show_default=False,
    ),
]
Out = Annotated[
    Optional[Path],
    typer.Option("--out", help="The feature file to write.", show_default="DATA.fine.features.h5, or DATA.14x14.MODEL.features.h5"),
]


PANELS = {
    "What": "data backbone saliency volumes_from resolution views mirror",
    "Settings": "batch_size preset config",
    "Where": "device yes",
    "Output": "out overwrite dry_run json",
}
EXAMPLES = """Examples:

  hsal precompute
      the features that hsal train would compute itself; of fewer than 2,000 images it takes --views 20

  hsal precompute --saliency itti --volumes-from data/mnist-multiset.fine.features.h5
"""


@options(settings=PrecomputeSettings, panels=PANELS)
def precompute(
    settings: PrecomputeSettings,
    data: Data = None,
    backbone: Backbone = None,
    volumes_from: VolumesFrom = None,
    out: Out = None,
    device: Device = "auto",
    yes: Yes = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
    preset: Preset = None,
    config: Config = None,
) -> None:
    """Compute volumes and saliency maps once, for training to read. Run again after an interruption, it continues."""
    from hsal_cli.experiments.pipeline import DEFAULT_SCENES, only_scenes
    from hsal_cli.runs import run as runs

    data = data or only_scenes() or DEFAULT_SCENES
    if not data.is_file():
        raise FileError(f"there is no scene file {data}", made_by(data))
    backbone = runs.named_or_newest(backbone, "backbone", reporter=console.TerminalReporter())

    from hsal_cli.bench.estimate import precomputing
    from hsal_cli.features.precompute import plan
    from hsal_cli.features.precompute import precompute as compute
    from hsal_cli.features.settings import features_path
    from hsal_cli.features.table import open_features
    from hsal_cli.vision.devices import choose_device

    recipe = recipe_for(preset, config, precompute=settings)
    settings = recipe.precompute
    out = out or features_path(data, settings.saliency, settings.resolution)
    chosen = choose_device(device)
    report = {"data": str(data), "backbone": str(backbone), "saliency": settings.saliency, "out": str(out), "device": str(chosen)}
    if dry_run:
        todo = plan(data, backbone, out, settings, overwrite)
        report |= {"dry_run": True, "images": todo.images, "bytes": todo.size, "exists": todo.exists, "settings": as_dict(settings)}
        words = f"{out} holds these features already" if todo.exists else f"Would write {out}"
        text = f"{words}: {todo.images:,} images, {todo.size / 1e9:.2f} GB"
        console.print_json(report) if json else console.print_line(text)
        return
    reporter = console.TerminalReporter()
    start = time.monotonic()
    with console.stopping(reporter), distributed.joined(chosen, reporter):
        begin(lambda: precomputing(data, backbone, out, settings, overwrite), yes, recipe, chosen, reporter, backbone)
        compute(data, backbone, out, settings, chosen, reporter, overwrite, volumes_from)
    seconds = time.monotonic() - start
    with open_features(out) as features:
        report |= {
            "images": len(features),
            "bytes": out.stat().st_size,
            "volume_shape": list(features.volume_shape),
            "digest": features.digest,
            "seconds": round(seconds, 3),
        }
    if json:
        console.print_json(report)
        return
    size = "x".join(map(str, report["volume_shape"]))
    console.print_line(f"{report['images']:,} volumes of {size} in {out} ({report['bytes'] / 1e9:.2f} GB, {console.clock(seconds)})")
