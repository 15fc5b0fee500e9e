"""Runs hsal commands in several workers at once.

As a program it is a nursery, like children.py: it imports everything once and forks the workers of each order, a JSON line on its stdin,
with the environment that torchrun would give them. As a module it is what the tests talk to it with.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HANG_S = 120.0


class Nursery:
    """The test's side: starts the program below and hands it orders."""

    def __init__(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "HSAL_MNIST_DIR"}
        environment |= {
            "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, folder: Path, *words: object, size: int = 2, **order: Any) -> list[dict[str, Any]]:
        """Runs `hsal WORDS` in a folder, in so many workers; one of them is a process without torchrun.

        Args:
            order: `more`: rank -> further words of that worker alone;
                `hit`: (rank, step, signal), whom to hit with what after so many steps of the optimiser; `environment`.

        Returns:
            By rank: `code` (negative: the signal that ended it; "hang" if it did not end), `out`, `err`.
        """
        order |= {"folder": str(folder), "words": [str(word) for word in words], "size": size}
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        return json.loads(self._program.stdout.readline())

    def close(self) -> None:
        self._program.stdin.close()
        self._program.wait(30)


def make_place(folder: Path) -> Path:
    """A folder with features, scenes and settings. 33 of 44 images are trained on, 8 a step, so that the last step has a single one."""
    from evaluation_parts import write_features
    from learning_parts import SMALL, easy_table
    from test_finetune import write_scenes as write_squares
    from test_precompute import write_backbone
    from test_precompute import write_scenes as write_pictures

    from hsal_cli.policy.variant import PAPER_CELLS, value_names
    from hsal_cli.settings import as_dict

    write_features(folder / "easy.features.h5", {"train": easy_table(44), "test": easy_table(21, seed=1)}, classes=["one", "two"])
    chosen = as_dict(SMALL.on_map(PAPER_CELLS))
    policy = "\n".join(f"{name} = {json.dumps(chosen[name])}" for name in value_names())
    (folder / "toy.toml").write_text(
        f"[variant]\n{policy}\n[train]\nepochs = 2\nbatch_size = 8\nvalidation = 0.25\n[eval]\nresamples = 20\nbatch_size = 4\n"
        "[finetune]\ninput_size = 32\ncrop_images = 17\nfull_images = 16\nepoch_images = 17\nbatch_size = 8\nvalidation = 7\n"
        'mode = "crops"\n[precompute]\nbatch_size = 4\n'
    )
    write_squares(folder / "squares.h5", count=25)
    write_pictures(folder / "pictures.h5")
    write_backbone(folder / "backbone")
    return folder


def hsal(nursery: Nursery, folder: Path, *words: object, size: int = 2, expect: int = 0, **order) -> dict:
    """Runs a command and checks that all workers end as expected, and that the first alone says anything; returns what it said."""
    found = nursery.run(folder, *words, "--config", "toy.toml", size=size, **order)
    for rank, worker in enumerate(found):
        assert worker["code"] == expect, f"worker {rank}: {worker}"
        assert rank == 0 or not worker["out"] + worker["err"], worker
    return found[0]


def assert_same_training(one: Path, two: Path, without: tuple[str, ...] = (), relative: float = 1e-4) -> None:
    import pytest
    import torch
    from learning_parts import TIMES

    from hsal_cli.storage import checkpoints

    mine, theirs = (checkpoints.load(run / "checkpoints", "last").weights for run in (one, two))
    assert mine.keys() == theirs.keys()
    for name in mine.keys() - set(without):
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=relative, atol=relative / 10, msg=lambda text, name=name: f"{name}: {text}"
        )
    mine, theirs = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two))
    assert len(mine) == len(theirs) == 2
    for left, right in zip(mine, theirs, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - TIMES:
            assert left[name] == pytest.approx(right[name], rel=relative, abs=relative / 10), name


def main() -> None:
    import h5py  # noqa: F401
    import torch
    import torch.nn.parallel
    import torchvision.models  # noqa: F401
    from test_finetune import OneLayer

    from hsal_cli.commands import eval, finetune, precompute, train  # noqa: F401

    room = importlib.import_module("hsal_cli.finetuning.finetune")

    torch.set_num_threads(1)
    whole = room.ActivationModel
    room.ActivationModel = lambda arch, *rest: (whole if arch.startswith("timm:") else OneLayer)(arch, *rest)
    room.initial_weights = lambda model, weights, reporter: "random"
    for line in sys.stdin:
        answer = serve(json.loads(line))
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()


def serve(order: dict[str, Any]) -> list[dict[str, Any]]:
    from torch.distributed import TCPStore

    with socket.socket() as found, tempfile.TemporaryDirectory() as folder:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        found.close()
        children = [start(order, rank, port, Path(folder)) for rank in range(order["size"])]
        # As torchrun keeps one. It has threads, and a process with threads is not to be forked.
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # noqa: F841
        deadline, codes = time.monotonic() + HANG_S, {}
        while len(codes) < len(children):
            for rank, child in enumerate(children):
                if rank not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                    codes[rank] = os.waitstatus_to_exitcode(ended[1])
                elif rank not in codes and time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    codes[rank] = "hang"
            time.sleep(0.01)
        said = [[(Path(folder) / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(len(children))]
        return [{"code": codes[rank], "out": out, "err": err} for rank, (out, err) in enumerate(said)]


def start(order: dict[str, Any], rank: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        faulthandler.dump_traceback_later(HANG_S - 20)  # where a worker hangs, if one does
        os.environ.update(order.get("environment", {}))
        if order["size"] > 1:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE")
            os.environ.update(zip(names, map(str, (rank, rank, order["size"], "127.0.0.1", port, True)), strict=True))
        os.chdir(order["folder"])
        if "hit" in order and order["hit"][0] == rank:
            hit_after(*order["hit"][1:])
        from children import run_hsal

        code = run_hsal([*order["words"], *order.get("more", {}).get(str(rank), [])])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(71)


def hit_after(steps: int, number: int) -> None:
    from torch.optim import Adam, AdamW

    taken = [0]
    for kind in {Adam, AdamW}:
        own = kind.step

        def step(self: Any, *arguments: Any, own: Any = own, **more: Any) -> Any:
            found = own(self, *arguments, **more)
            taken[0] += 1
            if taken[0] == steps:
                os.kill(os.getpid(), number)
            return found

        kind.step = step


if __name__ == "__main__":
    main()
