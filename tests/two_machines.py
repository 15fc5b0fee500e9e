"""Two machines on one: two network namespaces joined by a virtual cable, one worker group of torchrun in each. Linux, and root, are needed.

`python tests/two_machines.py` counts the bytes that a step sends over the cable (docs/scaling.md).
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent
WIRE, ADDRESSES = "wire0", ("10.77.0.1", "10.77.0.2")
PATIENCE_S = 240.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How torchrun ended on a machine: its exit code (None: its worker has ended, and it goes on), and what both wrote."""

    code: int | None
    said: str

    @property
    def error(self) -> list[str]:
        """The lines of hsal's error."""
        return [line for line in self.said.splitlines() if line.startswith(("Error: ", "Hint: "))]


class Machines:
    """Two namespaces, `first` and `second`, with the addresses 10.77.0.1 and 10.77.0.2 on a cable between them."""

    def __init__(self) -> None:
        self.names = [f"hsal-{os.getpid()}-{which}" for which in ("first", "second")]

    def __enter__(self) -> Machines:
        first, second = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", WIRE, "netns", first, "type", "veth", "peer", "name", WIRE, "netns", second)
        for address, name in zip(ADDRESSES, self.names, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", WIRE)
            for device in (WIRE, "lo"):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def run(
        self,
        folder: Path,
        *words: object,
        own_disk: Path | None = None,
        environment: dict[str, str] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        own_name: str | None = None,
    ) -> list[Ended]:
        """Runs `hsal WORDS` in a folder on both machines, one worker on each, until both have ended.

        Args:
            own_disk: what the second machine sees at the place of `folder`; None: the same files as the first.
            environment: variables beside the usual ones.
            meanwhile: called once both have started.
            own_name: the address that each machine's /etc/hosts gives for its own name; None: that on the cable.
        """
        more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), **(environment or {})}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        torchrun += ["--rdzv-endpoint=first:29400", "-m", "--", "hsal_cli", *map(str, words)]
        running = []
        with tempfile.TemporaryDirectory() as logs:
            for name in self.names:
                machine = name.rpartition("-")[2]
                known = dict(zip(("first", "second"), ADDRESSES, strict=True)) | ({machine: own_name} if own_name else {})
                hosts = Path(logs, f"{machine}.hosts")
                hosts.write_text("".join(f"{address} {host}\n" for host, address in known.items()))
                mounts = {hosts: Path("/etc/hosts"), **({own_disk: folder} if machine == "second" and own_disk else {})}
                # ip gives each of its commands mounts of its own, and unshare a name of its own
                parts = [shlex.join(["mount", "--bind", str(source), str(place)]) for source, place in mounts.items()]
                parts += [f"hostname {machine}", f"cd {shlex.quote(str(folder))}", f"exec {shlex.join(torchrun)}"]
                with Path(logs, name).open("w") as log:
                    command = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", " && ".join(parts)]
                    running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | more))
            try:
                meanwhile()
                until(lambda: all(self._ended(one, name, Path(logs, name)) for one, name in zip(running, self.names, strict=True)))
                return [Ended(one.poll(), Path(logs, name).read_text()) for one, name in zip(running, self.names, strict=True)]
            finally:
                for name in self.names:
                    for process in self._processes(name):
                        os.kill(process, signal.SIGKILL)
                for one in running:
                    one.wait()

    def _ended(self, torchrun: subprocess.Popen, name: str, log: Path) -> bool:
        """Behind a cut cable torchrun waits as long as TCP does, for minutes: there its worker counts."""
        return torchrun.poll() is not None or ("\nHint: " in log.read_text() and self._processes(name) <= {torchrun.pid})

    def _processes(self, name: str) -> set[int]:
        return set(map(int, subprocess.check_output(["ip", "netns", "pids", name]).split()))

    def cut(self) -> None:
        """Pulls the cable."""
        ip("-n", self.names[1], "link", "set", WIRE, "down")

    def mend(self) -> None:
        """Plugs it in again."""
        ip("-n", self.names[1], "link", "set", WIRE, "up")

    def sent(self) -> list[int]:
        """Bytes that each machine has sent so far, with the headers of Ethernet, IP and TCP."""
        file = f"/sys/class/net/{WIRE}/statistics/tx_bytes"
        return [int(subprocess.check_output(["ip", "netns", "exec", name, "cat", file])) for name in self.names]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def reason_against() -> str | None:
    """Why there can be no two machines here; None: there can."""
    if not shutil.which("ip"):
        return "there is no command ip (iproute2)"
    try:
        with Machines() as machines:
            machines.sent()
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {str(error.stderr or error).strip()}"
    return None


def alone(folder: Path, *words: object) -> None:
    """Runs `hsal WORDS` in one process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run([sys.executable, "-m", "hsal_cli", *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def until(there: Callable[[], bool]) -> None:
    """Waits for something to be so."""
    end = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s"
        time.sleep(0.1)


def main() -> None:
    """Prints what each machine sends for a step: the difference of two runs that differ in their number of steps alone."""
    import torch
    from evaluation_parts import write_features
    from test_finetune import write_scenes

    from hsal_cli.features.table import FeatureTable

    draw = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as name, Machines() as machines:
        folder = Path(name)
        volumes = torch.rand(80, 1024, 7, 7, generator=draw).half()  # half of them a finer stage's, as the default reads it
        labels = torch.randint(0, 10, (80, 4), generator=draw)
        table = FeatureTable(volumes, torch.rand(80, 14, 14, generator=draw), labels, None, (100, 100), fine=512)
        write_features(folder / "wide.features.h5", {"train": table, "test": table}, classes=list("0123456789"))
        write_scenes(folder / "squares.h5", count=120)
        train = ("train", "--data", "wide.features.h5", "--batch-size")
        tuned = ("finetune", "--data", "squares.h5", "--weights", "none", "--batch-size", 8, "--validation", 8, "--full-images", 0)
        # label, command, option that gives the number of steps, its two values, steps between them
        counted = [
            ("train, batch 8", (*train, 8), "--epochs", (1, 3), 16),  # a fifth of the 80 images is held out
            ("train, batch 38", (*train, 38), "--epochs", (1, 6), 10),
            ("finetune resnet34, batch 8", tuned, "--crop-images", (8, 24), 2),
        ]
        print(f"{'':28}{'machine 1 sends':>17}{'machine 2 sends':>17}   bytes a step")
        for label, words, option, values, steps in counted:
            sent = []
            for value in values:
                before = machines.sent()
                for ended in machines.run(folder, *words, option, value, "--out", f"{label[0]}{len(list(folder.iterdir()))}"):
                    assert ended.code == 0, ended.said
                sent.append([after - early for after, early in zip(machines.sent(), before, strict=True)])
            first, second = ((many - few) // steps for few, many in zip(*sent, strict=True))
            print(f"{label:28}{first:17,}{second:17,}", flush=True)


if __name__ == "__main__":
    main()
