"""Weights to start fine-tuning from: torchvision's ImageNet weights, from its cache or by download, and weight files."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli.errors import FileError, HsalError, first_line
from hsal_cli.progress import Reporter
from hsal_cli.storage.atomic import atomic_write
from hsal_cli.storage.files import digest_of_file, load_tensors

TIMEOUT_S = 15  # without a network some systems answer at once and others never
CHUNK_BYTES = 1 << 20
MOST_BYTES = 1 << 30  # of a weights file; a ResNet-34 has 87 MB
EXPORTED = "weights.safetensors"
WAYS_OUT = "start from random weights with --weights none, or from a file with --weights FILE"


class CannotDownload(HsalError):
    """Weights are neither cached nor to be had."""


def cached_download(url: str, reporter: Reporter) -> Path:
    """The cached copy of a weights file whose name ends in the first digits of its sha256, as torchvision's do.

    The cache is torch hub's ($TORCH_HOME/hub/checkpoints), so that a file downloaded once serves every program.

    Args:
        url: where the file is, such as .../resnet34-b627a593.pth.
        reporter: told about the download.

    Raises:
        CannotDownload: not cached, and the server cannot be reached or the cache not be written.
        FileError: the cached file is damaged.
    """
    name = url.rsplit("/", 1)[-1]
    cached = cached_path(url)
    if cached.is_file():
        if not is_whole(cached):
            raise FileError(f"{cached} is damaged: its sha256 is not the one in its name", "delete that file and run again")
        return cached
    reporter.say(f"downloading {url}")
    try:
        with atomic_write(cached) as temporary:
            _download(url, temporary, reporter)
            if not _has_digest_of(name, temporary):  # such as the login page of a network
                raise CannotDownload(f"{url} did not send the weights: their sha256 is not the one in their name", WAYS_OUT)
    except FileError as error:
        raise CannotDownload(error.message, WAYS_OUT) from error
    return cached


def _download(url: str, target: Path, reporter: Reporter) -> None:
    try:
        response = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise CannotDownload(f"cannot download {url}: {reason}", WAYS_OUT) from error
    with response, target.open("wb") as stream:
        total = int(response.headers.get("Content-Length") or 0)
        with reporter.track("download", total, "bytes") as advance:
            while True:
                reporter.check_stop("run the same command again")
                try:
                    data = response.read(CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise CannotDownload(f"the download of {url} broke off: {error}", WAYS_OUT) from error
                if not data:
                    break
                stream.write(data)
                if stream.tell() > MOST_BYTES:
                    raise CannotDownload(f"{url} sends more than {MOST_BYTES:,} bytes", WAYS_OUT)
                advance(len(data))


def cached_path(url: str) -> Path:
    """Where the cached copy of a weights file is, or would be."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def is_whole(cached: Path) -> bool:
    """Whether a cached file has the sha256 in its name."""
    return _has_digest_of(cached.name, cached)


def _has_digest_of(name: str, file: Path) -> bool:
    expected = re.search(r"-([0-9a-f]{8,64})\.", name)
    return expected is None or digest_of_file(file).startswith(expected[1])


def read_weights(source: Path) -> dict[str, Tensor]:
    """Reads a weights file without running any code that it may hold.

    Args:
        source: a .safetensors file, a state dict that torch.save wrote (.pth, .pt), or a folder with weights.safetensors in it, as
            `hsal export` writes.

    Returns:
        name -> tensor, on the CPU.

    Raises:
        FileError: missing, a folder, damaged, or something else than named tensors.
    """
    from safetensors.torch import load

    hint = "give --weights a .pth or .safetensors file in torchvision's layout, or: auto, imagenet, none"
    if (source / EXPORTED).is_file():
        source = source / EXPORTED
    if not source.is_file():
        raise FileError(f"weights file {source} is {'a folder' if source.is_dir() else 'missing'}", hint)
    try:
        # Read by Python: safetensors opens no path whose bytes are not UTF-8.
        weights = load(source.read_bytes()) if source.suffix == ".safetensors" else load_tensors(source)
    except (OSError, ValueError) as error:
        raise FileError(f"weights file {source} cannot be read: {first_line(error)}", hint) from error
    except Exception as error:  # torch and its unpickler raise almost anything, and advise to run what a file holds
        raise FileError(f"weights file {source} cannot be read: it is damaged, or something else than named tensors", hint) from error
    if not isinstance(weights, dict) or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise FileError(f"weights file {source} does not hold named tensors only", hint)
    return weights
