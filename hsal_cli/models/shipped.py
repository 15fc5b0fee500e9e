"""The trained policies that come with hsal (`--pretrained NAME`): one backbone in float16, and policies that were trained on it.

data/pretrained/             in a checkout; hsal_cli/pretrained/ in an installed wheel, which holds fewer; anywhere else as FOLDER/NAME
    manifest.json            "format", and for each of the following: command, seed, result, and the sha256 of each file
    backbone/                a checkpoint (see checkpoints.py) of kind backbone
    look/                    another, where a first look finds what the policies are shown (see features/two_looks.py)
    mnist-multiset.rl/       a checkpoint of kind policy; its "backbone_digest" is that of backbone/
    DATASET.OBJECTIVE/       and so on
    street-numbers/          another such folder, with a backbone of its own

`hsal export` writes such a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hsal_cli.errors import FileError, UsageError
from hsal_cli.runs.documents import Evaluation
from hsal_cli.storage.atomic import finish_replacing
from hsal_cli.storage.documents import read_document
from hsal_cli.storage.files import digest_of_file, is_plain_name, named
from hsal_cli.typed import Document, Odd, checked

if TYPE_CHECKING:
    import torch

    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.vision.backbone import LoadedBackbone

FORMAT = "hsal-pretrained"
FORMAT_VERSION = 1
BACKBONE = "backbone"
LOOK = "look"
DEFAULT = "mnist-multiset"
LOCAL = ("glimpse_hit", "mask_mass")  # of what an evaluation has of them, a manifest states these
OBJECTIVE = "rl"  # of the policy that a data set's name alone means
AGAIN = "install hsal again, or in a checkout: git checkout -- data/pretrained"
CHECKOUT = Path("data") / "pretrained"  # of the folder that hsal runs in, where that is a checkout
MORE = f"a checkout of hsal has more: {CHECKOUT}/NAME"
EXPORT_AGAIN = "export it again: hsal export RUN --out FOLDER"


@dataclasses.dataclass(frozen=True)
class Result(Document):
    """What a manifest states of a policy, as `hsal eval` found it, or of a backbone; what is not stated is None.

    Attributes:
        dataset, split, examples: what it was evaluated on.
        exact_match, macro_f1: its scores on that.
        accuracy, test_accuracy: of a backbone, on held-out and on test images.
    """

    dataset: str | None = None
    split: str | None = None
    examples: int | None = None
    exact_match: float | None = None
    macro_f1: float | None = None
    accuracy: float | None = None
    test_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a manifest says of a policy, or of the backbone: checksum of each file, and as far as known what trained it and its figures."""

    sha256: dict[str, str]
    command: str | None = None
    seed: int | None = None
    result: Result | None = None


@dataclasses.dataclass(frozen=True)
class ShippedManifest:
    """manifest.json of a folder of trained policies: the `backbone`, the `policies` trained on it, and who looks first, if any."""

    format: Literal["hsal-pretrained"]
    format_version: int
    backbone: Entry
    policies: dict[str, Entry]
    look: Entry | None = None

    @property
    def parts(self) -> dict[str, Entry]:
        """All that lies in the folder, by the names of its folders."""
        return {BACKBONE: self.backbone, **({LOOK: self.look} if self.look else {}), **self.policies}


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A policy that comes with hsal, DATASET.OBJECTIVE, with its backbone, verified, in float32; `stated`: its entry in the manifest."""

    name: str
    policy: LoadedPolicy
    backbone: LoadedBackbone
    stated: Entry

    @property
    def dataset(self) -> str:
        """The data set it was evaluated on, such as mnist-multiset."""
        return self.name.rpartition(".")[0]


def own_folder() -> Path | None:
    """The folder that came with this hsal: inside the installed package, else the checkout's data/pretrained; None where there is none."""
    for folder in (_installed(), _installed().parents[1] / CHECKOUT):
        _recover(folder)
        if (folder / "manifest.json").is_file():
            return folder
    return None


def _installed() -> Path:
    """Where a wheel has its policies."""
    return Path(str(importlib.resources.files("hsal_cli"))) / "pretrained"


def again(folder: Path) -> str:
    """The hint for a folder of trained policies, or a part of one, that is damaged."""
    own = own_folder()
    return AGAIN if own is not None and folder.absolute().is_relative_to(own) else EXPORT_AGAIN


def exports_in(folder: Path) -> list[Path]:
    """A folder of trained policies, and those within it that have a backbone of their own."""
    return [folder, *(path.parent for path in sorted(folder.glob("*/manifest.json")) if is_export(path.parent))]


def read_manifest(folder: Path) -> ShippedManifest:
    """The manifest of a folder of trained policies.

    Raises:
        FileError: missing, not of this format, or of a newer version of it.
    """
    try:
        found = read_document(folder / "manifest.json", ShippedManifest, "hsal export")
    except FileError as error:
        raise FileError(f"{folder} holds no trained policies: {error.message}", again(folder)) from error
    if found.format_version > FORMAT_VERSION:
        newer = f"{folder} has format version {found.format_version}; this hsal reads up to {FORMAT_VERSION}"
        raise FileError(newer, "pip install --upgrade hsal")
    for name, entry in found.parts.items():
        odd = next((part for part in (name, *entry.sha256) if not is_plain_name(part)), None)
        if odd is not None:
            raise FileError(f"{folder} holds no trained policies: it names {str(odd)[:80]!r}, which is not a plain name", again(folder))
    return found


def _recover(folder: Path) -> None:
    """Gives a folder its place again whose export was killed while it replaced an older one."""
    if not folder.exists():
        with contextlib.suppress(FileError):  # what reads it says that it is missing
            finish_replacing(folder, exported_files)


def exported_files(folder: Path) -> list[Path]:
    """The files of a folder that `hsal export` wrote, its manifest last; none where it is no such folder."""
    try:
        manifest = read_manifest(folder)
    except FileError:
        return []
    names = [(part, file) for part, entry in manifest.parts.items() for file in ("manifest.json", *entry.sha256)]
    found = [folder / part / file for part, file in names if not (folder / part).is_symlink()]
    return [*dict.fromkeys(file for file in found if file.is_file()), folder / "manifest.json"]


def find_shipped(name: str) -> tuple[Path, str]:
    """The folder and the full name that a value of --pretrained means.

    Args:
        name: DATASET.OBJECTIVE, or DATASET alone for its rl policy, of hsal's own folder, else of the checkout that it runs in; of any
            other folder FOLDER/NAME, or FOLDER alone where it holds one policy.

    Raises:
        UsageError: there is no such policy; names those that there are.
        FileError: there is no such folder, or its manifest is not one.
    """
    meant, own = named_in(name), Path(name).expanduser() / "manifest.json"
    if meant is None and own.is_file() and not (own.absolute().parents[1] / "manifest.json").is_file():
        read_manifest(own.parent)  # an exported folder that is damaged, which this says
    name = meant or name
    place, _, last = name.rpartition("/")
    own_folders = [folder for folder in (own_folder(), CHECKOUT if is_export(CHECKOUT) else None) if folder is not None]
    folders = [Path(place or "/")] if "/" in name else own_folders
    if not folders:
        raise UsageError(
            f"there is no pretrained policy {name!r}: this hsal came without any", "train one with: hsal train; or name one as FOLDER/NAME"
        )
    names: set[str] = set()
    for folder in folders:
        _recover(folder)
        known = {full: place for place in exports_in(folder) for full in read_manifest(place).policies}
        found = next((full for full in (last, f"{last}.{OBJECTIVE}") if full in known), None)
        if found is not None:
            return known[found], found
        names |= set(known)
    more = f"; {MORE}" if folders == [_installed()] else ""
    raise UsageError(f"there is no pretrained policy {name!r}", f"take one of: {', '.join(sorted(names))}{more}")


def stated_evaluation(name: str) -> Evaluation:
    """What its manifest states of a policy, as `hsal eval` found it before it was exported; `name` as in `find_shipped`.

    Raises:
        UsageError: there is no such policy.
        FileError: there is no such folder, its manifest is not one, or it states nothing of the policy.
    """
    folder, full = find_shipped(name)
    stated = read_manifest(folder).policies[full].result
    raw = {} if stated is None else stated.raw
    held = read_document(folder / full / "manifest.json", dict, "hsal export").get("meta")
    known = {
        "objective": held.get("objective") if isinstance(held, dict) else None,
        "localization": {score: raw.get(score) for score in LOCAL},
    }
    try:
        return checked({**raw, **known}, Evaluation)
    except Odd as odd:
        raise FileError(f"{folder} states no evaluation of {full}: {odd}", "evaluate it, then export it again") from odd


def named_in(place: str | Path) -> str | None:
    """A value of --pretrained that means the same as a place in an exported folder: the folder itself, or a policy's folder in it.

    Returns:
        None where the place is neither; for a folder of several policies the one that MNIST Multiset's name alone means.

    Raises:
        UsageError: a folder of several policies, none of which is that.
    """
    path = Path(place).expanduser()
    if is_export(path):
        names = sorted(read_manifest(path).policies)
        name = names[0] if len(names) == 1 else f"{DEFAULT}.{OBJECTIVE}"
        if name not in names:
            hint = f"name one: {', '.join(f'{place}/{name}' for name in names)}" if names else EXPORT_AGAIN
            raise UsageError(f"{place} holds {len(names)} policies", hint)
        return f"{path}/{name}"
    path = path if path.name else path.absolute()
    return f"{path.parent}/{path.name}" if path.is_dir() and is_export(path.absolute().parent) else None


def is_export(folder: Path) -> bool:
    """Whether a folder says of itself that `hsal export` wrote it."""
    try:
        return read_document(folder / "manifest.json", dict, "hsal export").get("format") == FORMAT
    except FileError:
        return False


def load_shipped(name: str, device: torch.device | str = "cpu", counts: bool = False) -> Shipped:
    """Loads a policy that comes with hsal, named as in `find_shipped`, and its backbone; `counts`: a count classifier will do too.

    Raises:
        UsageError: there is no such policy.
        FileError: a file is missing or damaged, or the policy was not trained on this backbone.
    """
    from hsal_cli.models.load import backbone_folder, find_backbone, load_model, load_policy

    folder, full = find_shipped(name)
    manifest = read_manifest(folder)
    stated = manifest.policies[full]
    for part, entry in ((full, stated), (BACKBONE, manifest.backbone)):
        check_files(named(folder, part, a_folder=True), entry.sha256)
    policy = (load_model if counts else load_policy)(folder / full, device=device)
    if backbone_folder(str(policy.meta.backbone_digest), folder / BACKBONE) is None:
        raise FileError(f"{folder / full} was not trained on the backbone that lies beside it: they come from two exports", again(folder))
    return Shipped(full, policy, find_backbone(policy, device, folder / BACKBONE), stated)


def part_of(place: Path, *parts: str) -> Path:
    """The network that is meant by the folder that `hsal export` wrote it into; any other place stays as it is.

    Args:
        place: of a network, or such a folder.
        parts: `LOOK`, `BACKBONE`: the first of them that the folder has, verified.

    Raises:
        FileError: it is damaged.
    """
    if not is_export(place):
        return place
    known = read_manifest(place).parts
    part = next((part for part in parts if part in known), None)
    if part is None:
        return place
    check_files(named(place, part, a_folder=True), known[part].sha256)
    return place / part


def look_beside(policy: Path) -> Path | None:
    """The network that looks first for a policy that `hsal export` wrote, verified; None where none came with it.

    Args:
        policy: the folder of its checkpoint.

    Raises:
        FileError: it is damaged.
    """
    found = part_of(policy.absolute().parent, LOOK)
    return found if found.name == LOOK else None


def check_files(folder: Path, sums: dict[str, str]) -> None:
    """Refuses a checkpoint folder one of whose files is missing, no plain file, or not that of the manifest above it."""
    for name, expected in sums.items():
        try:
            found = digest_of_file(named(folder, name))
        except OSError as error:
            raise FileError(f"{folder / name} cannot be read: {error.strerror}", again(folder)) from error
        if found != expected:
            raise FileError(f"{folder / name} is damaged: it does not have the checksum that the manifest gives", again(folder))
