"""Which device computes, and in which precision."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hsal_cli import distributed, threads
from hsal_cli.errors import HsalError, UsageError, out_of_memory
from hsal_cli.progress import Reporter

CPU_FLAGS = Path("/proc/cpuinfo")


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a `--device` value; what was asked for, or an error, never silently the CPU.

    Args:
        name: a torch device, which is taken as it is; or auto (a GPU where there is one, else the CPU), cpu, cuda, cuda:N or mps. Of
            several workers each takes the GPU of its own local rank.

    Raises:
        UsageError: no such name, or no such device here.
    """
    if isinstance(name, torch.device):
        return name
    asked = re.fullmatch(r"auto|cpu|mps|cuda(?::(\d{1,3}))?", name)
    if asked is None:
        raise UsageError(f"there is no device {name!r}", "take one of: auto, cpu, cuda, cuda:N, mps")
    told = distributed.asked()
    has_mps = torch.backends.mps.is_available() and told.size == 1  # workers cannot talk about what an Apple GPU holds
    if told.size > 1 and (name == "mps" or asked[1]):
        raise UsageError(f"device {name} is one GPU, and there are {told.size} workers", "take --device auto, cuda or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if name == "mps" and not has_mps:
        raise UsageError("device mps is not available: there is no Apple GPU that this torch can use", "take --device cpu")
    if not name.startswith("cuda"):
        return torch.device(name)
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no NVIDIA GPU or no driver"
        raise UsageError(f"device {name} is not available: {why}", "take --device cpu or --device auto; `hsal doctor` tells more")
    index, count = int(asked[1] or told.local_rank), torch.cuda.device_count()
    if index >= count and told.size > 1:
        raise UsageError(f"worker {index} of this machine has no GPU of its own: there are {count}", f"take --nproc-per-node={count}")
    if index >= count:
        raise UsageError(
            f"device {name} does not exist: GPUs here are numbered 0 to {count - 1}", f"take --device cuda:{count - 1} or --device auto"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)  # or pinned memory, and what asks for "the" GPU, would open and name the first one
    return device


def say_if_busy(device: torch.device | str, reporter: Reporter) -> None:
    """Says so where a CPU is to compute, and its threads would share their cores with other processes (see `threads.advice`)."""
    if torch.device(device).type == "cpu" and (line := threads.advice(torch.get_num_threads())):
        reporter.say(line)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. A GPU is not waited for, as it is where what is copied lies in memory that may be swapped out."""
    if tensor.device.type != "cpu" or device.type in ("cpu", "mps"):
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, as far as it tells; 0 on a CPU, which holds things already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0


def on_host(tensor: Tensor) -> Tensor:
    """A tensor of floats on the CPU in double precision, which an Apple GPU has not."""
    return tensor.detach().cpu().double()


def autocast_gains(device: torch.device) -> bool:
    """Whether bfloat16 autocast is faster than float32: on GPUs with bfloat16 units, and on CPUs with AMX or AVX512-BF16.

    Elsewhere it is emulated: on a CPU with AVX2 alone, ten times slower than float32.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_cpu_flags())
    return False


def half_gains(device: torch.device) -> bool:
    """Whether large products of a roll-out are faster in bfloat16: on a CPU that has units for it. A GPU has TF32 (see `computing`)."""
    return device.type == "cpu" and autocast_gains(device)


def forward_context(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 autocast where it gains, else a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if autocast_gains(device) else contextlib.nullcontext()


@contextlib.contextmanager
def computing(device: torch.device, deterministic: bool) -> Iterator[None]:
    """How a GPU computes in the block: products in TF32, whose sums are single precision's; or the same way each time, in full."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without; read when it is first used
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    torch.use_deterministic_algorithms(deterministic or before[1], warn_only=True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.use_deterministic_algorithms(before[1])


@contextlib.contextmanager
def fitting(device: torch.device | str, batch_size: int) -> Iterator[None]:
    """Turns running out of memory in the block into an error that names the batch size used and one to try.

    Raises:
        HsalError: out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).partition("\n")[0]
        if not out_of_memory(error) and "out of memory" not in said:
            raise
        hint = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "take a device with more memory, or smaller images"
        raise HsalError(f"out of memory on {device} with a batch size of {batch_size}: {said or 'no more to be had'}", hint) from error


def _cpu_flags() -> set[str]:
    """The first processor's feature flags; empty where the system does not list them, as outside Linux."""
    try:
        lines = CPU_FLAGS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
