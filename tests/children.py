"""Runs hsal commands in processes of their own, and does things to them: kills, signals, limits, closed streams.

As a program it is a nursery: it imports everything once and forks a child for each order, a JSON line on its stdin, so that a test
that kills a command twenty times does not import torch forty times. As a module it is what the tests talk to the nursery with.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "hsal.step")  # moments at which a child may be hit
HANG_S = 240.0


class Nursery:
    """The test's side: starts the program below and hands it orders.

    Args:
        small: with a network of one layer and small blocks (see `make_small`), not with the real ones.
    """

    def __init__(self, small: bool = True) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "HSAL_MNIST_DIR"}
        environment |= {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
        self._program = subprocess.Popen(
            [sys.executable, __file__, *(["small"] if small else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder: Path, *words: str, **order: Any) -> dict[str, Any]:
        """Runs `hsal WORDS` in a folder.

        Args:
            order: `hit_at`: number of the event at which the child is hit, with `signals` (default SIGKILL); `kill_after`: seconds;
                `limit`: largest file that it may write, bytes; `memory`: what it may hold beside what it starts with, bytes;
                `stdin`, `stdout`: "closed"; `encoding`; `environment`.

        Returns:
            `code` (negative: the signal that ended it; "hang" if it did not end), `out`, `err`, `events`, `seconds`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._program.stdin.write(json.dumps({"folder": str(folder), "words": [str(word) for word in words], **order}) + "\n")
        self._program.stdin.flush()
        return json.loads(self._program.stdout.readline())

    def close(self) -> None:
        self._program.stdin.close()
        self._program.wait(30)


def main() -> None:
    import h5py  # noqa: F401
    import torch
    import torchvision.models  # noqa: F401

    import hsal_cli.experiments.pipeline
    import hsal_cli.main  # noqa: F401
    from hsal_cli.commands import check, eval, train, visualize  # noqa: F401
    from hsal_cli.pictures import trajectory  # noqa: F401
    from hsal_cli.upkeep import check as _  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored behind nohup
    if sys.argv[1:] == ["small"]:
        make_small()
    for line in sys.stdin:
        answer = serve(json.loads(line))
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()


def run_hsal(words: list[str]) -> int:
    """Runs a command in this process, as its entry point does; returns its exit code, 70 where it leaves without one."""
    from hsal_cli.main import run

    sys.argv = ["hsal", *words]
    try:
        run()
    except SystemExit as end:
        return end.code or 0
    return 70


def make_small() -> None:
    """A network of one layer, a checkpoint at every step, and small blocks, so that there is much to hit."""
    from test_finetune import OneLayer

    from hsal_cli.features import writer as feature_writer

    finetune = importlib.import_module("hsal_cli.finetuning.finetune")
    from hsal_cli.runs import loop

    finetune.ActivationModel = OneLayer
    finetune.initial_weights = lambda model, weights, reporter: "random"
    loop.SAVE_EVERY_S = -1.0
    feature_writer.BLOCK_BYTES, feature_writer.SAVE_EVERY_S = 3 * 1024, -1.0
    step = loop.Run.write_rows

    def write_rows(run: Any, rows: Any) -> None:
        sys.audit("hsal.step")
        step(run, rows)

    loop.Run.write_rows = write_rows


def serve(order: dict[str, Any]) -> dict[str, Any]:
    folder, start = Path(order["folder"]), time.monotonic()
    # Pipes, for a limit on the size of files does not hold for them.
    pipes = {name: os.pipe() for name in ("out", "err", "events")}
    child = os.fork()
    if child == 0:
        try:
            live(order, folder, {name: writing for name, (_, writing) in pipes.items()})
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens, there is never a second nursery
            os._exit(71)
    for _, writing in pipes.values():
        os.close(writing)
    said = {reading: b"" for reading, _ in pipes.values()}
    code: Any = None
    still, deadline = set(said), start + order.get("kill_after", HANG_S)
    while still:
        ready = select.select([*still], [], [], max(0.0, deadline - time.monotonic()))[0]
        if not ready:
            code = code or (None if "kill_after" in order else "hang")
            os.kill(child, signal.SIGKILL)
            deadline = time.monotonic() + HANG_S
        for reading in ready:
            data = os.read(reading, 1 << 16)
            said[reading] += data
            if not data:
                still.discard(reading)
    _, status = os.waitpid(child, 0)
    found = {name: said[reading].decode(errors="replace") for name, (reading, _) in pipes.items()}
    for reading in said:
        os.close(reading)
    events = int(found.pop("events") or 0)
    return {"code": code or os.waitstatus_to_exitcode(status), "events": events, "seconds": time.monotonic() - start, **found}


def live(order: dict[str, Any], folder: Path, said: dict[str, int]) -> None:
    """What the child does; it does not return."""
    os.dup2(said["out"], 1)
    os.dup2(said["err"], 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.close(said["out"])
    os.close(said["err"])
    encoding = order.get("encoding", "utf-8")
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False, encoding=encoding) for number in (1, 2))
    for number, name in ((0, "stdin"), (1, "stdout")):
        if order.get(name) == "closed":
            os.close(number)
            setattr(sys, name, None)
    os.environ.update(order.get("environment", {}))
    os.chdir(folder)
    count = watch_events(folder, order.get("hit_at"), order.get("signals", [signal.SIGKILL]))
    if "limit" in order:
        sys.dont_write_bytecode = True  # Python 3.11 takes the cut-off file of a module for whole, ever after
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], resource.RLIM_INFINITY))
    if "memory" in order:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        held = int(status["VmData"].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + order["memory"], resource.RLIM_INFINITY))
    code = 70
    try:
        code = run_hsal(order["words"])
    finally:
        os.write(said["events"], str(count[0]).encode())
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    os._exit(code)


def watch_events(folder: Path, hit_at: int | None, signals: list[int]) -> list[int]:
    """Counts what the process does to files in the folder, and hits it at one such moment."""
    count = [0]
    here = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        if event != "hsal.step":
            name = arguments[0] if arguments else ""
            if not isinstance(name, (str, bytes, os.PathLike)):
                return
            name = os.fsdecode(name)
            if not (name.startswith(here) or (not name.startswith("/") and name)):
                return
        count[0] += 1
        if hit_at is not None and count[0] == hit_at:
            for number in signals:
                os.kill(os.getpid(), number)

    sys.addaudithook(hook)
    return count


if __name__ == "__main__":
    main()
