"""Runs hsal commands in processes of their own, and does things to them: kills, signals, limits, closed streams.

As a program it is a nursery: it imports everything once and forks a child for each order, a JSON line on its stdin, so that a test
that kills a command twenty times does not import torch forty times. As a module it is what the tests talk to the nursery with.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "hsal.step")  # moments at which a child may be hit
HANG_S = 240.0


class Nursery:
    """The test's side: starts the program below and hands it orders."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "HSAL_MNIST_DIR"}
        environment |= {"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, *words: str, **order: Any) -> dict[str, Any]:
        """Runs `hsal WORDS` in a folder.

        Args:
            order: `hit_at`: number of the event at which the child is hit, with `signals` (default SIGKILL); `kill_after`: seconds;
                `limit`: largest file that it may write, bytes; `stdin`, `stdout`: "closed"; `environment`.

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

    import hsal_cli.learning.pipeline
    import hsal_cli.main  # noqa: F401
    from hsal_cli.commands import check, eval, train, visualize  # noqa: F401
    from hsal_cli.pictures import trajectory  # noqa: F401
    from hsal_cli.upkeep import check as _  # noqa: F401

    torch.set_num_threads(1)
    make_small()
    for line in sys.stdin:
        answer = serve(json.loads(line))
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()


def make_small() -> None:
    """A network of one layer, a checkpoint at every step, and small blocks, so that there is much to hit."""
    from test_finetune import OneLayer

    from hsal_cli.learning import finetune, loop
    from hsal_cli.vision import feature_writer

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
    folder = Path(order["folder"])
    said = {name: folder.parent / f".{folder.name}.{name}" for name in ("out", "err", "events")}
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        live(order, folder, said)
    watch = os.pidfd_open(child)
    code: Any = None
    if "kill_after" in order and not select.select([watch], [], [], order["kill_after"])[0]:
        os.kill(child, signal.SIGKILL)
    if not select.select([watch], [], [], HANG_S)[0]:
        os.kill(child, signal.SIGKILL)
        code = "hang"
    os.close(watch)
    _, status = os.waitpid(child, 0)
    found = {name: path.read_text(errors="replace") if path.exists() else "" for name, path in said.items()}
    for path in said.values():
        path.unlink(missing_ok=True)
    events = int(found.pop("events") or 0)
    return {"code": code or os.waitstatus_to_exitcode(status), "events": events, "seconds": time.monotonic() - start, **found}


def live(order: dict[str, Any], folder: Path, said: dict[str, Path]) -> None:
    """What the child does; it does not return."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    for number, name in ((0, "stdin"), (1, "stdout")):
        if order.get(name) == "closed":
            os.close(number)
            setattr(sys, name, None)
    os.environ.update(order.get("environment", {}))
    os.chdir(folder)
    count = watch_events(folder, order.get("hit_at"), order.get("signals", [signal.SIGKILL]))
    if "limit" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], resource.RLIM_INFINITY))
    sys.argv = ["hsal", *order["words"]]
    from hsal_cli.main import run

    code = 70
    try:
        run()
    except SystemExit as end:
        code = end.code or 0
    finally:
        if "limit" in order:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        number = os.open(said["events"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(number, str(count[0]).encode())
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    leave(code)


def leave(code: int) -> None:
    """Ends the child as an interpreter ends: HDF5 closes its files at exit, and may crash there."""
    import atexit

    atexit._run_exitfuncs()
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
