"""hsal inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from hsal_cli import console
from hsal_cli.commands.eval import number
from hsal_cli.commands.options import Json
from hsal_cli.errors import UsageError
from hsal_cli.words import brief

LONGEST = 78  # letters of a setting that the table shows
STATED = ("exact_match", "macro_f1", "accuracy", "test_accuracy")  # figures of a manifest
FEW = 30  # classes that are listed; of more, the rarest and the most frequent

Table = tuple[str, list[str], list[list[str]]]


def inspect(
    file: Annotated[
        Path, typer.Argument(help="A scene or feature file, or the folder of a run, of a checkpoint or of hsal export.", show_default=False)
    ],
    out: Annotated[
        Optional[Path],
        typer.Option("--out", help="A PNG to draw: labels, objects an image, sizes, positions, overlap, saliency.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Say what is in a file: splits, classes, label counts, sizes, overlap, digests, and how it was made."""
    from hsal_cli.models.shipped import is_export
    from hsal_cli.storage.checkpoints import MANIFEST

    if out is not None:
        if out.suffix.lower() != ".png":
            raise UsageError(f"--out {out} is not a PNG file", "give --out a name that ends in .png")
        if file.is_dir():
            raise UsageError(f"--out draws what is in a data file; {file} is a folder", f"hsal report {file}")
    if file.is_dir() and is_export(file):
        document, made = _export(file)
    elif (file / MANIFEST).is_file():
        document, made = _checkpoint(file)
    elif file.is_dir():
        from hsal_cli.runs.record import read_record, run_summary

        document: dict[str, Any] = {"run": str(file), **run_summary(read_record(file))}
        made = _run_tables(document)
    else:
        from hsal_cli.upkeep.contents import look_into

        contents = look_into(file)
        document, made = contents.document, _file_tables(contents.document)
        if out is not None:
            from hsal_cli.pictures.charts.data_figure import data_figure
            from hsal_cli.pictures.writing import write_bytes

            write_bytes(data_figure(contents.measures, document["classes"], contents.saliency), out)
            document = {**document, "picture": str(out)}
    if json:
        console.print_json(document)
        return
    for title, columns, rows in made:
        console.print_table(title, columns, rows)
    if out is not None:
        console.print_line(f"drawn in {out}")


def _export(folder: Path) -> tuple[dict[str, Any], list[Table]]:
    """What a folder of `hsal export` holds, those within it that have a backbone of their own too, and what their manifests state."""
    from hsal_cli.models.shipped import exports_in, read_manifest
    from hsal_cli.storage.checkpoints import read_checkpoint

    parts: dict[str, Any] = {}
    rows = []
    for place in exports_in(folder):
        for part, entry in read_manifest(place).parts.items():
            stated = entry.result.raw if entry.result else {}
            meta = read_checkpoint(place / part).meta
            name = (place / part).relative_to(folder).as_posix()
            parts[name] = {"command": entry.command, "seed": entry.seed, "stated": stated, "meta": meta}
            figures = [f"{key.replace('_', ' ')} {stated[key]:.4f}" for key in STATED if isinstance(stated.get(key), float)]
            rows.append([name, _what(meta), _megabytes(place / part), ", ".join(figures) or "-"])
    document = {"export": str(folder), "format_version": read_manifest(folder).format_version, "parts": parts}
    return document, [(str(folder), ["part", "what", "size", "stated"], rows)]


def _checkpoint(folder: Path) -> tuple[dict[str, Any], list[Table]]:
    """What a checkpoint is of, and the settings that it holds."""
    from hsal_cli.storage.checkpoints import read_checkpoint

    found = read_checkpoint(folder)
    numbers = sum(tensor.numel() for tensor in found.weights.values())
    document = {"checkpoint": str(folder), "kind": found.kind, "digest": found.digest, "numbers": numbers, "meta": found.meta}
    overview = [["what", _what(found.meta)], ["size", _megabytes(folder)], ["numbers in its weights", f"{numbers:,}"]]
    overview += [["digest", found.digest], ["training state", "none" if found.state is None else "held"]]
    return document, [(str(folder), ["what", "value"], overview), ("Made with", ["setting", "value"], _settings(found.meta))]


def _what(meta: dict[str, Any]) -> str:
    """What a checkpoint is of, in a few words."""
    if meta.get("kind") == "backbone":
        return str(meta.get("arch") or "backbone")
    return f"{meta.get('objective')} policy, frame {meta.get('frame', 'image')}"


def _megabytes(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB"


def _file_tables(found: dict[str, Any]) -> list[Table]:
    """A scene or feature file as tables: (title, columns, rows) each."""
    splits: dict[str, Any] = found["splits"]
    overview = [["format", found["format"]], ["size", f"{found['bytes'] / 1e6:,.1f} MB"], ["classes", str(len(found["classes"]))]]
    overview += [["volume shape", " x ".join(map(str, found["volume_shape"]))]] if "volume_shape" in found else []
    overview += [["input size", f"{found['input_size']} px"]] if "input_size" in found else []
    overview += [[key.replace("_", " "), found[key]] for key in ("digest", "scenes_digest", "backbone_digest") if key in found]
    made = [
        (found["file"], ["what", "value"], overview),
        ("Splits", ["", *splits], _by_split(splits)),
        ("Objects in an image", ["objects", *splits], _counts(splits, "objects_per_image", "images")),
        ("Labels", ["class", *splits], _labels(splits)),
    ]
    if found["config"]:
        made.append(("Made with", ["setting", "value"], _settings(found["config"])))
    return made


def _by_split(splits: dict[str, Any]) -> list[list[str]]:
    """Everything that is one number a split; rows that no split has are left out."""

    def boxes(part: dict[str, Any], name: str) -> str:
        return "-" if part["boxes"] is None else number(part["boxes"][name])

    def sizes(part: dict[str, Any], name: str) -> str:
        if part["boxes"] is None:
            return "-"
        low, mean, high = (part["boxes"][name][edge] for edge in ("min", "mean", "max"))
        return f"{low:.0f} to {high:.0f}, mean {mean:.1f}"

    def features(part: dict[str, Any], group: str, name: str) -> str:
        value = part.get(group, {}).get(name)
        return "-" if value is None else f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"

    lines = {
        "images": lambda part: f"{part['images']:,}",
        "image size, height x width, px": lambda part: " x ".join(map(str, part["image_size"])),
        "channels": lambda part: str(part.get("channels", "-")),
        "objects": lambda part: f"{part['objects']:,}",
        "images in which a label repeats": lambda part: number(part["repeats"]),
        "width of the boxes, px": lambda part: sizes(part, "width"),
        "height of the boxes, px": lambda part: sizes(part, "height"),
        "longer side of the boxes, px": lambda part: sizes(part, "longer_side"),
        "area of a box, share of the image": lambda part: boxes(part, "area"),
        "images of 2 or more whose boxes touch": lambda part: boxes(part, "touching"),
        "  whose boxes overlap": lambda part: boxes(part, "overlapping"),
        "  largest IoU of two boxes, mean": lambda part: boxes(part, "mean_iou"),
        "  and maximum": lambda part: boxes(part, "max_iou"),
        "activations, mean": lambda part: features(part, "volumes", "mean"),
        "  standard deviation": lambda part: features(part, "volumes", "std"),
        "  largest": lambda part: features(part, "volumes", "max"),
        "  share that is zero": lambda part: features(part, "volumes", "zero"),
        "saliency, raw, mean": lambda part: features(part, "saliency", "mean"),
        "  maximum": lambda part: features(part, "saliency", "max"),
        "  maps whose maximum lies on an object": lambda part: features(part, "saliency", "peak_on_object"),
        "  cells that do, by chance": lambda part: features(part, "saliency", "area_on_object"),
    }
    rows = [[name, *(line(part) for part in splits.values())] for name, line in lines.items()]
    return [row for row in rows if set(row[1:]) != {"-"}]


def _counts(splits: dict[str, Any], key: str, unit: str) -> list[list[str]]:
    names = sorted({name for part in splits.values() for name in part[key]}, key=int)
    return [[name, *(_share(part[key].get(name, 0), part[unit]) for part in splits.values())] for name in names]


def _labels(splits: dict[str, Any]) -> list[list[str]]:
    first = next(iter(splits.values()))["labels"]
    names = list(first)
    rows = [[brief(name), *(_share(part["labels"][name], part["objects"]) for part in splits.values())] for name in names]
    if len(names) <= FEW:
        return rows
    order = sorted(range(len(names)), key=lambda place: -first[names[place]])
    between = [f"... {len(names) - FEW} classes between", *("" for _ in splits)]
    return [*(rows[place] for place in order[: FEW // 2]), between, *(rows[place] for place in order[-(FEW // 2) :])]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(total, 1):.1%})"


def _run_tables(found: dict[str, Any]) -> list[Table]:
    """A run as tables."""
    overview = [[key, _shown(found[key])] for key in ("kind", "state", "started", "updated", "epochs")]
    overview.append(["time in training", console.clock(found["seconds"])])
    overview += [["note", found["note"]]] if "note" in found else []
    made = [(found["run"], ["what", "value"], overview)]
    best, last = found["best"], found["last"]
    if last is not None:
        best = best or {}
        rows = [[key.replace("_", " "), _number(best.get(key)), _number(value)] for key, value in last.items()]
        made.append(("Metrics", ["metric", "best epoch", "last epoch"], rows))
    if found["test"] is not None:
        made.append(("hsal eval", ["what", "value"], [[key.replace("_", " "), _number(value)] for key, value in found["test"].items()]))
    made.append(("Settings", ["setting", "value"], _settings(found["config"])))
    return made


def _settings(config: dict[str, Any]) -> list[list[str]]:
    """Rows of settings, those of a group under its name."""
    rows: list[list[str]] = []
    for key, value in config.items():
        rows += [[f"{key}.{name}", _shown(part)] for name, part in value.items()] if isinstance(value, dict) else [[key, _shown(value)]]
    return rows


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else _shown(value)


def _shown(value: Any) -> str:
    # Settings that are lists are ranges, written as the command line takes them.
    text = "-".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)
    return brief(text, LONGEST)
