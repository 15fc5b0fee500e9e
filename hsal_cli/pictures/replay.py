"""A replay: episodes as one self-contained HTML page that steps forward and back and reads S_t, M_t and P_t under the pointer."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hsal_cli.pictures.marks import part_seen
from hsal_cli.pictures.palette import SCALE
from hsal_cli.pictures.trajectory import hits, remaining, titles
from hsal_cli.pictures.writing import MARK
from hsal_cli.words import brief

if TYPE_CHECKING:
    from hsal_cli.models.seen import Look

LONGEST = 1200  # side of an embedded image, px; larger ones are reduced
LOSSLESS = 100_000  # images of more pixels than this are embedded as JPEG
DIGITS = 4  # decimals of numbers


def replay_page(looks: Sequence[Look], truths: Sequence[Sequence[str] | None] | None = None) -> str:
    """The HTML page.

    Args:
        looks: at least one; with more, the page lets the reader choose.
        truths: the true multisets, or None for those not known; with them, the page has the remaining multiset and hits and misses.
    """
    truths = [None] * len(looks) if truths is None else truths
    found = [document_of(look, truth) for look, truth in zip(looks, truths, strict=True)]
    return page_of(found, found[0]["title"])


def page_of(looks: Sequence[dict[str, Any]], title: str, pad: str = "", style: str = "", script: str = "", connect: str = "") -> str:
    """The page that shows looks in the form of `document_of`.

    Args:
        looks: what it shows; none: what `script` has it show later.
        title: of the page.
        pad: HTML above it all.
        style, script: CSS and JavaScript behind the page's own.
        connect: what it may connect to, as a source of a content security policy; "": nothing.
    """
    # "<" is escaped, so that no class name can end the script that holds the data.
    data = json.dumps({"scale": SCALE.tolist(), "looks": looks}, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    before, after = files("hsal_cli.pictures").joinpath("replay.html").read_text(encoding="utf-8").split("@DATA@")
    parts = {"TITLE": html.escape(title), "GENERATOR": MARK, "PAD": pad, "STYLE": style, "SCRIPT": script}
    parts["CONNECT"] = f"; connect-src {connect}" if connect else ""
    return data.join(re.sub(r"@([A-Z]+)@", lambda place: parts[place[1]], part) for part in (before, after))


def document_of(look: Look, truth: Sequence[str] | None = None) -> dict[str, Any]:
    """What the page shows of one look; the meta-step that named stop is its last step."""
    title, subtitle = titles(look, truth)
    seen = np.asarray(part_seen(look))
    meta_steps = [*look.steps, *([look.end] if look.end is not None else [])]
    right = hits(look.labels, truth) if truth is not None else [None] * len(look.steps)
    left = remaining(look.labels, truth) if truth is not None else [[]] * (len(look.steps) + 1)
    steps = [
        {
            "label": brief(step.label),
            "stop": place == len(look.steps),
            "probability": round(step.probability, DIGITS),
            "hit": right[place] if place < len(right) else None,
            "remaining": list(map(brief, sorted(left[place]))),
            "glimpses": [list(map(int, cell)) for cell in step.glimpses],
            "reads": step.reads,
            "classes": [round(probability, DIGITS) for _, probability in step.classes],
            **{name: getattr(step, name).round(DIGITS).tolist() for name in ("saliency", "mask", "priority", "gaussians")},
        }
        for place, step in enumerate(meta_steps)
    ]
    return {
        "name": brief(Path(look.name).name),
        "title": title,
        "subtitle": subtitle,
        "lowest": round(look.lowest, DIGITS),
        "warnings": look.warnings,
        "known": truth is not None,
        "image": data_uri(seen),
        "size": [seen.shape[1], seen.shape[0]],
        "whole": None if look.region is None else {"image": data_uri(look.image), "box": shares_of(look.region, look.image.shape)},
        "grid": list(meta_steps[0].mask.shape) if meta_steps else [1, 1],
        "classes": [brief(name) for name, _ in meta_steps[0].classes] if meta_steps else [],
        "steps": steps,
    }


def shares_of(region: Sequence[int], shape: Sequence[int]) -> list[float]:
    """Where a region (x0, y0, x1, y1 in px) of an image (H, W, ...) lies, as left, top, width and height in shares of the image's sides."""
    (x0, y0, x1, y1), (height, width) = region, shape[:2]
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)  # it may be padded
    return [round(share, DIGITS) for share in (x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height)]


def data_uri(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data URI, reduced to what a screen shows; small ones as PNG, others as JPEG."""
    picture = Image.fromarray(image)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    kind = "png" if picture.width * picture.height <= LOSSLESS else "jpeg"
    stream = io.BytesIO()
    picture.save(stream, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
