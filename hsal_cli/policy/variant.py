"""The paper's policy and every departure from it, as one set of values none of which is open; importing this needs no torch.

`PAPER` is section 3 and appendix A to the letter, `DEFAULT` what is measured best. `COLUMNS` was the default before: its mask is learned,
and its glimpses read columns of the volume, as the paper's do; `FIXED_MASK` is the control for that mask, which learns nothing. Runs,
checkpoints and exports hold all values, as they are on the map that they were trained on, so that a later default changes none of them.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hsal_cli.errors import FileError, UsageError
from hsal_cli.settings import as_dict, check, kind_of, nearest, parse, setting
from hsal_cli.typed import Odd

PAPER_CELLS = 49  # of the paper's maps, 7 x 7
# Values that came later, with the one way that there was before them.
LATER = {"aspect": 1.0, "update": "normalized", "glimpse": "column", "glimpses_apart": "no", "fine": 0, "fine_side": 2}
# Values that there are no more, and which of them is what every policy does now.
GONE = {"memory": "last", "shape": "round"}
STORED_HINT = "read it with the hsal that made it, or train a new policy: hsal train"
SET_HINT = "`hsal train --help` lists what --set takes, `hsal train --dry-run` shows every value"


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a policy is, and what its objective reads of it."""

    glimpses: int = setting(2, "Overt glimpses a meta-step, k (appendix A: 2).", low=0, high=64)
    glimpse: Literal["column", "fine", "window"] = setting(
        "column",
        "What an overt glimpse reads at its cell: column: the volume's column, as in the paper; fine: the 2 x 2 cells of an earlier, finer "
        "stage (section 5.2, lower-level activations at attended areas), which `hsal precompute --resolution fine` stores; window: the "
        "image around it at full size, of which the first look saw half the size (--resolution window).",
    )
    glimpses_apart: Literal["no", "yes"] = setting(
        "no",
        "Inhibition of return within a meta-step: yes: no cell is looked at twice, the priority of one that was is no longer a reward, and "
        "the first alone loses all its saliency.",
    )
    gaussians: int = setting(5, "Components of the Gaussian attention mask, K (appendix A: 5).", low=1, high=64)
    meta_encode: int = setting(128, "Width of the meta-controller's input encoding (appendix A: 128).", low=1, high=8192)
    meta_hidden: int = setting(128, "Units of the meta-controller's GRU (appendix A: 128).", low=1, high=8192)
    controller_encode: int = setting(512, "Width of the controller's input encoding (appendix A: 512).", low=1, high=8192)
    controller_hidden: int = setting(512, "Units of the controller's GRU (appendix A: 512).", low=1, high=8192)
    location_hidden: int = setting(64, "Hidden units of the location MLP (appendix A: 64).", low=1, high=8192)
    mask: Literal["learned", "anchored", "winner-take-all"] = setting(
        "anchored",
        "Where the Gaussians sit: learned freely as in the paper; anchored at the maximum of S_t plus a learned offset; or one fixed "
        "Gaussian at that maximum, nothing learned.",
    )
    beta: tuple[float, float] = setting(
        (2.0, 3.0),
        "Range of the Gaussians' parameter beta, 1/cells^2 of a map of 7 x 7 cells (appendix A: 1.5-2.0); on a finer one it is lowered, so "
        "that a Gaussian covers as much of the image.",
        above=0,
    )
    aspect: float = setting(
        1.0,
        "Height over width of the Gaussians (the paper: 1), for objects that are taller than wide; beta is that of the columns, and of the "
        "rows it is beta / aspect^2.",
        low=0.1,
        high=10,
    )
    inhibition: Literal["mask", "normalized"] = setting(
        "normalized", "What inhibition of return subtracts: the mask M_t as in the paper, or M_t / max M_t."
    )
    inhibition_width: float = setting(
        2.5,
        "How many times wider than the mask's the Gaussians are that inhibition of return takes M_t from; 1: the mask itself, as in the "
        "paper; wider, the mask can be narrow and point, while the rim of what it points at loses its saliency too.",
        low=1,
        high=100,
    )
    update: Literal["normalized", "rescaled", "raw"] = setting(
        "normalized",
        "The map S_t that inhibition of return subtracts from: normalized: scaled to [0, 1] once, at the start; rescaled: scaled again at "
        "each meta-step; raw: the raw map, scaled for each meta-step's input alone.",
    )
    location_input: Literal["hidden", "priority"] = setting(
        "priority",
        "What the location head reads: the controller's state as in the paper, or that and the priority map, which, times a learned "
        "number, is added to its scores too.",
    )
    controller_state: Literal["carry", "reset"] = setting(
        "reset", "The controller's hidden state at the start of a meta-step: carried over as in the paper, or reset to zero."
    )
    saliency_transform: Literal["none", "sqrt"] = setting(
        "sqrt", "What is done to the raw saliency map before it is scaled to [0, 1]: nothing as in the paper, or its square root."
    )
    stop_input: Literal["state", "state+saliency"] = setting(
        "state+saliency",
        "What stop is decided by: the controller's state as in the paper, or that and a small convolutional head that reads the saliency "
        "map as it was and as it is.",
    )
    stop: Literal["supervised", "sampled"] = setting(
        "supervised",
        "supervised: stop is never sampled early, and learned at every step; sampled: as in the paper, sampled like a label, "
        "supervised at step m+1.",
    )
    gradient: Literal["sampled", "expected"] = setting(
        "expected",
        "The policy gradient of objective rl: sampled: REINFORCE, from the actions taken and a value baseline, as in section 4.2; "
        "expected: its mean over all actions, whose rewards are known (all-action policy gradient). Glimpses under other objectives: "
        "REINFORCE.",
    )
    # Not to be chosen: `on_map` settles them when a policy is made.
    reach: float = setting(3.0, "Largest offset of an anchored centre, cells of the map.", above=0, fixed=True)
    cells: int = setting(PAPER_CELLS, "Cells of the map that beta and reach are for.", low=1, fixed=True)
    fine: int = setting(0, "Channels of the volume that are a finer stage's or a window's, the last ones.", low=0, fixed=True)
    fine_side: int = setting(2, "Cells of that stage along a side of one of the volume; 1: windows.", low=1, high=2, fixed=True)

    def __post_init__(self) -> None:
        check(self, SET_HINT)
        if self.glimpses_apart == "yes" and self.glimpses > self.cells:
            raise UsageError(f"there are {self.cells} cells, and glimpses = {self.glimpses} are to fall on as many", "take fewer glimpses")
        if self.stop == "sampled" and self.stop_input == "state+saliency":
            raise UsageError(
                "stop is sampled, and a head that reads the saliency map can only be trained by supervision",
                "add --set stop_input=state, or leave stop supervised",
            )

    @property
    def reads(self) -> int:
        """Cells along a side of the square around a glimpse's cell that the glimpse reads."""
        return 3 if self.glimpse == "fine" else 1

    def on_map(self, cells: int) -> Variant:
        """The same on a map of so many cells: Gaussians and offsets that cover as much of the image."""
        finer = cells / self.cells
        low, high = self.beta
        return dataclasses.replace(self, beta=(low / finer, high / finer), reach=self.reach * math.sqrt(finer), cells=cells)


COLUMNS = Variant()
PAPER = Variant(
    mask="learned",
    beta=(1.5, 2.0),
    inhibition="mask",
    inhibition_width=1.0,
    location_input="hidden",
    controller_state="carry",
    saliency_transform="none",
    stop_input="state",
    stop="sampled",
    gradient="sampled",
)
FIXED_MASK = dataclasses.replace(COLUMNS, mask="winner-take-all", gaussians=1, beta=(2.5, 2.5))  # the middle of its widths
DEFAULT = dataclasses.replace(FIXED_MASK, glimpse="fine", glimpses_apart="yes")
VARIANTS = {"paper": PAPER, "default": DEFAULT, "columns": COLUMNS, "fixed-mask": FIXED_MASK}


@dataclasses.dataclass(frozen=True)
class VariantName:
    """The key of a [variant] table that says what its other keys change."""

    name: Literal["paper", "default", "columns", "fixed-mask"] = setting("default", "The variant that the other values change.")


def value_names() -> list[str]:
    """The names that `--set` takes."""
    return [field.name for field in dataclasses.fields(Variant) if not field.metadata["fixed"]]


def what_set_takes() -> str:
    """Every name that `--set` takes, with its kind of value: "glimpses=N, mask=learned|anchored|..."."""
    hints = typing.get_type_hints(Variant)
    kinds = {int: "N", float: "X"}
    return ", ".join(f"{name}={'|'.join(kind_of(hints[name])[1]) or kinds.get(hints[name], 'LO-HI')}" for name in value_names())


def named(name: str) -> Variant:
    """The variant of a name.

    Raises:
        UsageError: there is none.
    """
    if name not in VARIANTS:
        raise UsageError(f"there is no variant {name!r}{nearest(name, list(VARIANTS))}", f"take one of: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def changed(variant: Variant, values: Mapping[str, Any]) -> Variant:
    """A variant with some of its values changed.

    Raises:
        UsageError: there is no such value, it is of another kind or out of range, or two do not go together.
    """
    hints = typing.get_type_hints(Variant)
    for name in values:
        if name not in value_names():
            raise UsageError(f"a variant has no value {name!r}{nearest(name, value_names())}", SET_HINT)
    try:
        parsed = {name: parse(name, hints[name], value) for name, value in values.items()}
    except UsageError as error:
        raise UsageError(error.message, SET_HINT) from None
    return dataclasses.replace(variant, **parsed)


def values_of(texts: Sequence[str]) -> dict[str, Any]:
    """The values of `--set NAME=VALUE`, numbers as numbers; of a name given twice, the last one.

    Raises:
        UsageError: one is not written so.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise UsageError(f"--set {text} is not of the form NAME=VALUE", "write it as in --set mask=learned")
        found[name.replace("-", "_")] = _number(value)
    return found


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def stored_variant(held: Mapping[str, Any], cells: int, where: object) -> Variant:
    """The variant that a run or a checkpoint holds.

    Args:
        held: config.json, or what a checkpoint says of its policy.
        cells: of the maps that it was trained on; only hsal 0.1 left open what depends on them.
        where: the run or checkpoint, to be named in errors.

    Raises:
        FileError: a value is missing, unknown, of another kind or out of range, or one of hsal 0.1 that there is no more.
    """
    table = "variant" if "variant" in held else "policy"
    if not isinstance(held.get(table), Mapping):
        raise FileError(f"{where} holds no variant", STORED_HINT)
    hints = typing.get_type_hints(Variant)
    try:
        values = held[table] if table == "variant" else _values_of_0_1(held, cells, where)
        for name, kept in GONE.items():
            if values.get(name, kept) != kept:
                raise FileError(f"{where} was trained with {name} {values[name]}, which this hsal no longer has", STORED_HINT)
        values = LATER | {name: value for name, value in values.items() if name not in GONE}
        missing, unknown = [name for name in hints if values.get(name) is None], sorted(set(values) - set(hints))
        if missing or unknown:
            wrong = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which this hsal does not know"
            raise FileError(f"the variant of {where} {wrong}", STORED_HINT)
        return Variant(**{name: parse(name, hints[name], value) for name, value in values.items()})
    except (UsageError, AttributeError, TypeError) as error:
        raise FileError(f"the variant of {where} is not one: {error}", STORED_HINT) from error


def with_variant(held: dict[str, Any]) -> dict[str, Any]:
    """What a run or a checkpoint holds, as it is read today: with a whole variant, where it is of a policy.

    Raises:
        Odd: as `stored_variant`.
    """
    if "variant" in held and held["variant"] is None:  # who has none leaves the key out
        raise Odd("variant", "is None, not a table of values")
    if held.get("kind") == "count" or not (held.get("variant") or held.get("policy")):
        return held
    shape = held.get("volume_shape")
    known = isinstance(shape, list) and len(shape) == 3 and all(type(side) is int for side in shape)
    try:
        variant = stored_variant(held, shape[1] * shape[2] if known else PAPER_CELLS, "it")
    except FileError as error:
        of_variant = error.message.startswith("the variant of it")
        what = error.message.removeprefix("the variant of it ").removeprefix("it ")
        raise Odd("variant" if of_variant else "", what if of_variant else f"{what}: {error.hint}") from error
    return {**{key: value for key, value in held.items() if key != "policy"}, "variant": as_dict(variant)}


def _values_of_0_1(document: Mapping[str, Any], cells: int, where: object) -> dict[str, Any]:
    """What hsal 0.1 held, with what it left open as it took it then. Frozen: today's defaults have no place here."""
    policy, train = document["policy"], document.get("train") or {}
    held = {"mask": "anchored", "inhibition": "normalized", "location_input": "hidden+priority+residual", "memory": "counts"}
    held |= {"controller_state": "reset", "saliency_transform": "sqrt", "glimpses": 2, "gaussians": 5, "location_hidden": 64}
    held |= {"meta_encode": 128, "meta_hidden": 128, "controller_encode": 512, "controller_hidden": 512}
    # Where the key itself is missing there was no choice yet, and one value only.
    held["stop_input"] = "state+saliency" if "stop_input" in policy and train.get("stop") != "sampled" else "state"
    held |= {name: value for name, value in policy.items() if value is not None}
    for name, kept in (("glimpse_size", (1,)), ("location_input", ("hidden", "hidden+priority+residual"))):
        if held.get(name, kept[0]) not in kept:
            raise FileError(
                f"{where} was trained with {name} {held[name]}, which this hsal no longer has",
                STORED_HINT,
            )
    width = held.get("inhibition_width") or (2.5 if "inhibition_width" in policy and held["mask"] == "anchored" else 1.0)
    low, high = {"learned": (1.5, 2.0), "anchored": (0.3, 1.0) if width == 1 else (2.0, 3.0)}.get(held["mask"], (0.3, 0.3))
    finer = cells / 49
    is_rl = document.get("objective", train.get("objective", "rl")) == "rl"
    older = "sampled" if train and "gradient" not in train else None
    gradient = train.get("gradient") or older or ("expected" if is_rl and not train.get("return_to_go") else "sampled")
    settled = {
        "beta": held.get("beta") or (low / finer, high / finer),
        "reach": held.get("anchor_reach") or 3.0 * math.sqrt(cells) / 7,
        "cells": cells,
        "inhibition_width": width,
        "location_input": "hidden" if held["location_input"] == "hidden" else "priority",
        "stop": train.get("stop", "supervised"),
        "gradient": gradient,
    }
    return {name: value for name, value in {**held, **settled}.items() if name not in ("glimpse_size", "anchor_reach", "spread")}
