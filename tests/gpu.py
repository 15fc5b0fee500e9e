"""What a machine with an NVIDIA GPU should be asked first, in less than ten minutes: `python tests/gpu.py [cuda:N]` in a checkout.

Training on the GPU against the CPU, at the same random numbers; steps captured as a CUDA graph against the same ones launched one by one;
steps under torch's own guard against waiting; an epoch of 60,000 images; the tests of devices; `hsal bench`. It ends with 1 where something
is not as it must be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator

import torch

from hsal_cli.features.table import FeatureTable
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import DEFAULT
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.train import PolicyTask
from hsal_cli.vision.devices import choose_device, computing

CPU = torch.device("cpu")
CLOSE = 1e-3  # relative: single precision, in another order of summation
BENCH = "make-data,finetune,precompute,train,eval"


def task_of(device: torch.device, rows: int, deterministic: bool, channels: int = 512) -> PolicyTask:
    """Training of the default policy on random features of one to four labels, a finer stage among their channels."""
    draw, fine = torch.Generator().manual_seed(0), channels
    volumes = torch.rand(min(rows, 512), channels + fine, 7, 7, generator=draw).half()
    volumes = volumes.repeat(-(-rows // len(volumes)), 1, 1, 1)[:rows]
    labels = torch.randint(10, (rows, 4), generator=draw)
    labels = torch.where(torch.arange(4) < torch.randint(1, 5, (rows, 1), generator=draw), labels, -1)
    table = FeatureTable(volumes, torch.rand(rows, 14, 14, generator=draw), labels, None, (100, 100), fine=fine)
    torch.manual_seed(0)
    policy = HSAL(dataclasses.replace(DEFAULT, fine=fine), 10, (channels + fine, 7, 7)).to(device)
    settings = TrainSettings(deterministic=deterministic)
    task = PolicyTask(policy, table, torch.arange(rows), table.select(slice(0, 2)), settings, device, {"max_labels": 4})
    task.start_epoch(0)
    return task


def differences(device: torch.device, rows: int = 512, channels: int = 512) -> float:
    """How far what the steps of an epoch say is from what they say on the CPU, relative."""
    said = []
    for where in (CPU, device):
        task = task_of(where, rows, True, channels)
        with computing(where, True):
            said.append([_said(task, step) for step in range(task.steps(0))])
    return _apart(*said)


def captured_apart(device: torch.device, rows: int = 1000, channels: int = 512) -> tuple[float, int]:
    """How far what the steps of two epochs say, captured, is from what they say launched one by one; and how many were played back."""
    said, replayed = [], 0
    for captured in (True, False):
        task = task_of(device, rows, False, channels)
        if not captured:
            task.captured = None
        with computing(device, False):
            each = []
            for epoch in (0, 1):
                task.start_epoch(epoch)
                each += [_said(task, step) for step in range(task.steps(epoch))]
        said.append(each)
        if task.warning:
            print(task.warning)
        replayed = max(replayed, task.captured.replayed if task.captured else 0)
    return _apart(*said), replayed


def _said(task: PolicyTask, step: int) -> dict[str, float]:
    return {name: float(value) for name, value in task.step(step)[1].items()}


def _apart(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    pairs = ((mine[name], theirs[name]) for mine, theirs in zip(one, other, strict=True) for name in mine)
    return max(abs(mine - theirs) / (0.1 + abs(mine)) for mine, theirs in pairs)


@contextlib.contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Any wait for the GPU in the block is an error."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_without_waiting(device: torch.device, rows: int = 1024, channels: int = 512) -> None:
    """Takes steps that may not wait for the GPU, launched and played back, of data that is there and of data that is not."""
    for resident in (True, False):
        task = task_of(device, rows, False, channels)
        if not resident:
            task.held = None
        with computing(device, False):
            for step in range(6 if task.captured else 2):
                with no_waiting(device) if step in (1, 5) else contextlib.nullcontext():
                    task.step(step % task.steps(0))


def epoch_seconds(device: torch.device, rows: int = 60_000, channels: int = 512) -> float:
    """Seconds of an epoch, behind steps that lay out what is needed and are captured."""
    task = task_of(device, rows, False, channels)
    with computing(device, False):
        for step in range(5 if task.captured else 1):
            task.step(step % task.steps(0))
        _wait(device)
        start = time.perf_counter()
        for step in range(task.steps(0)):
            task.step(step)
        _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(name: str) -> int:
    device = choose_device(name)
    print(torch.__version__, torch.cuda.get_device_name(device))
    found = differences(device)
    print(f"four steps, GPU against CPU: {found:.1e} apart, {'as they must be' if found < CLOSE else 'TOO FAR'}")
    captured, replayed = captured_apart(device)
    print(f"steps as a CUDA graph, {replayed} played back: {captured:.1e} apart from the same ones launched one by one")
    step_without_waiting(device)
    print("a training step waits for nothing")
    seconds = epoch_seconds(device)
    print(f"an epoch of 60,000 images: {seconds:.2f} s, {60_000 / seconds:,.0f} images/s (goal on an H200: 1.5 s)")
    print("tests:", flush=True)
    commands = [
        [sys.executable, "-m", "pytest", "-q", "tests/test_vision_devices.py", "tests/gpu_path.py"],
        [sys.executable, "-m", "hsal_cli", "bench", "--device", str(device), "--stages", BENCH, "--seconds", "2", "--laps", "3"],
    ]
    wrong = max(found, captured) >= CLOSE or not replayed
    return int(wrong or any(subprocess.run(command).returncode for command in commands))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:] or ["cuda"]))
