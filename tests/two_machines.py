"""Two machines on one: two network namespaces joined by a virtual cable, one worker group of torchrun in each. Linux, and root, are needed.

`python tests/two_machines.py` counts the bytes that a step of training and of fine-tuning sends over the cable (docs/scaling.md).
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
WIRE, ADDRESSES = "wire0", ("10.77.0.1", "10.77.0.2")
PATIENCE_S = 240.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """How torchrun ended on a machine: its exit code, and what it and its worker wrote."""

    code: int
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
        own_name: str = "",
    ) -> list[Ended]:
        """Runs `hsal WORDS` in a folder on both machines, one worker on each, until both have ended.

        Args:
            own_disk: what the second machine sees at the place of `folder`; None: the same files as the first.
            environment: variables beside the usual ones.
            meanwhile: called once both have started.
            own_name: the address that the second machine's /etc/hosts gives for its own name; empty: that of the cable.
        """
        more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent), **(environment or {})}
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        torchrun += ["--rdzv-endpoint=first:29400", "-m", "hsal_cli", *map(str, words)]
        running = []
        with tempfile.TemporaryDirectory() as logs:
            for name, addresses in zip(self.names, (ADDRESSES, (ADDRESSES[0], own_name or ADDRESSES[1])), strict=True):
                machine = name.rpartition("-")[2]
                hosts = Path(logs, f"{machine}.hosts")
                hosts.write_text("".join(f"{address} {host}\n" for address, host in zip(addresses, ("first", "second"), strict=True)))
                mounts = {hosts: Path("/etc/hosts"), **({own_disk: folder} if machine == "second" and own_disk else {})}
                # ip gives each of its commands mounts of its own, and unshare a name of its own
                parts = [shlex.join(["mount", "--bind", str(source), str(place)]) for source, place in mounts.items()]
                parts += [f"hostname {machine}", f"cd {shlex.quote(str(folder))}", f"exec {shlex.join(torchrun)}"]
                with Path(logs, name).open("w") as log:
                    command = ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", " && ".join(parts)]
                    running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | more))
            try:
                meanwhile()
                codes = [one.wait(PATIENCE_S) for one in running]
            finally:
                for one in running:
                    one.kill()
            return [Ended(code, Path(logs, name).read_text()) for code, name in zip(codes, self.names, strict=True)]

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
    """Waits for something to be there."""
    end = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
