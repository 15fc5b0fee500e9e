"""The trained policies that come with hsal (`--pretrained NAME`): one backbone in float16, and policies that were trained on it.

data/pretrained/             in a checkout; hsal_cli/pretrained/ in an installed wheel; anywhere else as FOLDER/NAME
    manifest.json            "format", and for the backbone and each policy: command, seed, result, and the sha256 of each file
    backbone/                a checkpoint (see checkpoints.py) of kind backbone
    mnist-multiset.rl/       a checkpoint of kind policy; its "backbone_digest" is that of backbone/
    DATASET.OBJECTIVE/       and so on

`hsal export` writes such a folder.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsal_cli.errors import FileError, UsageError
from hsal_cli.storage.files import digest_of_file

if TYPE_CHECKING:
    import torch

    from hsal_cli.models.load import LoadedPolicy
    from hsal_cli.vision.backbone import LoadedBackbone

FORMAT = "hsal-pretrained"
FORMAT_VERSION = 1
BACKBONE = "backbone"
DEFAULT = "mnist-multiset"
OBJECTIVE = "rl"  # of the policy that a data set's name alone means
AGAIN = "install hsal again, or in a checkout: git checkout -- data/pretrained"


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A policy that comes with hsal, with its backbone; every file was verified.

    Attributes:
        name: DATASET.OBJECTIVE.
        policy, backbone: on the device asked for, in float32.
        stated: its entry in the manifest: `command`, `seed`, `result`, `sha256`.
    """

    name: str
    policy: LoadedPolicy
    backbone: LoadedBackbone
    stated: dict[str, Any]

    @property
    def dataset(self) -> str:
        """The data set it was evaluated on, such as mnist-multiset."""
        return self.name.rpartition(".")[0]


def own_folder() -> Path | None:
    """The folder that came with this hsal: inside the installed package, else the checkout's data/pretrained; None where there is none."""
    package = Path(str(importlib.resources.files("hsal_cli")))
    for folder in (package / "pretrained", package.parent / "data" / "pretrained"):
        if (folder / "manifest.json").is_file():
            return folder
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of trained policies.

    Raises:
        FileError: missing, not of this format, or of a newer version of it.
    """
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']}")
        if int(found["format_version"]) > FORMAT_VERSION:
            raise FileError(
                f"{folder} has format version {found['format_version']}; this hsal reads up to {FORMAT_VERSION}",
                "pip install --upgrade hsal",
            )
        for entry in (found[BACKBONE], *found["policies"].values()):
            dict(entry["sha256"])
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(f"{folder} holds no trained policies: {type(error).__name__} {error}", AGAIN) from error


def find_shipped(name: str) -> tuple[Path, str]:
    """The folder and the full name that a value of --pretrained means.

    Args:
        name: DATASET.OBJECTIVE, or DATASET alone for its rl policy; of another folder than hsal's own: FOLDER/NAME.

    Raises:
        UsageError: there is no such policy; names those that there are.
        FileError: there is no such folder, or its manifest is not one.
    """
    place, _, last = name.rpartition("/")
    folder = Path(place or "/") if "/" in name else own_folder()
    if folder is None:
        raise UsageError(
            f"there is no pretrained policy {name!r}: this hsal came without any", "train one with: hsal train; or name one as FOLDER/NAME"
        )
    known = sorted(read_manifest(folder)["policies"])
    found = next((full for full in (last, f"{last}.{OBJECTIVE}") if full in known), None)
    if found is None:
        raise UsageError(f"there is no pretrained policy {name!r}", f"take one of: {', '.join(known)}")
    return folder, found


def named_in(place: str | Path) -> str | None:
    """A value of --pretrained that means the same as a place in an exported folder: the folder itself, or a policy's folder in it.

    Returns:
        None where the place is neither; for a folder of several policies the one that MNIST Multiset's name alone means.

    Raises:
        UsageError: a folder of several policies, none of which is that.
    """
    path = Path(place).expanduser()
    if _is_export(path):
        names = sorted(read_manifest(path)["policies"])
        name = names[0] if len(names) == 1 else f"{DEFAULT}.{OBJECTIVE}"
        if name not in names:
            raise UsageError(f"{place} holds {len(names)} policies", f"name one: {', '.join(f'{place}/{name}' for name in names)}")
        return f"{path}/{name}"
    return f"{path.parent}/{path.name}" if path.is_dir() and _is_export(path.absolute().parent) else None


def _is_export(folder: Path) -> bool:
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_shipped(name: str, device: torch.device | str = "cpu", counts: bool = False) -> Shipped:
    """Loads a policy that comes with hsal, and its backbone.

    Args:
        name: as in `find_shipped`.
        device: where both go.
        counts: whether a count classifier, which takes no glimpses, will do too.

    Raises:
        UsageError: there is no such policy.
        FileError: a file is missing or damaged, or the policy was not trained on this backbone.
    """
    from hsal_cli.models.load import backbone_folder, find_backbone, load_model, load_policy

    folder, full = find_shipped(name)
    manifest = read_manifest(folder)
    stated = manifest["policies"][full]
    for part, entry in ((full, stated), (BACKBONE, manifest[BACKBONE])):
        _check_files(folder / part, entry["sha256"])
    policy = (load_model if counts else load_policy)(folder / full, device=device)
    if backbone_folder(str(policy.meta.get("backbone_digest")), folder / BACKBONE) is None:
        raise FileError(f"{folder / full} was not trained on the backbone that lies beside it: they come from two exports", AGAIN)
    return Shipped(full, policy, find_backbone(policy, device, folder / BACKBONE), stated)


def _check_files(folder: Path, sums: dict[str, str]) -> None:
    """Refuses a checkpoint folder whose files are not those of the manifest above it."""
    for name, expected in sums.items():
        try:
            found = digest_of_file(folder / name)
        except OSError as error:
            raise FileError(f"{folder / name} cannot be read: {error.strerror}", AGAIN) from error
        if found != expected:
            raise FileError(f"{folder / name} is damaged: it does not have the checksum that the manifest gives", AGAIN)
