"""Several processes that work as one: the only place that knows torch.distributed.

`torchrun --nproc-per-node=N -m hsal_cli train ...` starts N workers and tells each its rank by the environment. Worker 0 leads: it alone
prints, and writes runs and checkpoints. With one process every operation here gives back what it is given, so callers need not ask.

A worker that fails leaves its error in the store that torchrun keeps, and closes its connections. Whoever waits for it finds a connection
closed, looks into the store and raises the same error; where there is none, the worker was lost (`errors.WorkerLost`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hsal_cli.errors import HsalError, Stopped, UsageError, WorkerLost, first_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hsal_cli.progress import Reporter

T = TypeVar("T")
COMMANDS = ("finetune", "precompute", "train", "eval")
TIMEOUT = "HSAL_WORKER_TIMEOUT"
TIMEOUT_S = 600.0  # a worker that is not heard of for so long is lost; one that ends is missed at once
GRACE_S = 5.0  # how long the others leave it to worker 0 to say an error that all of them have
POLL_S = 0.5
ANSWER_S = 30.0  # the store never keeps anyone waiting; where it does not answer for so long, it cannot be reached
OF_GLOO = ("gloo", "pair closure", "connection closed by peer")  # what its errors say; they have no class of their own
AGAIN = "run the same command again"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WITHOUT = f"start it with torchrun, or for one process: unset {' '.join(VARIABLES)}"


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who this process is among the workers.

    Attributes:
        rank: 0 to size - 1.
        size: how many there are, on all machines.
        local_rank: the rank among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is worker 0, which prints and writes."""
        return self.rank == 0


class _Store:
    """torch's store, whose calls fail after `ANSWER_S`; by itself they wait until TCP gives up, 15 minutes after a cable broke."""

    def __init__(self, store: Any):
        self._store, self._lost = store, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            from torch import distributed as dist

            found: list[Any] = []

            def ask() -> None:
                try:
                    found.extend((getattr(self._store, name)(*arguments), None))
                except Exception as error:
                    found.extend((None, error))

            if not self._lost:
                asking = threading.Thread(target=ask, daemon=True)  # one that waits for ever ends with the process
                asking.start()
                asking.join(ANSWER_S)
            if not found:
                self._lost = True
                raise dist.DistNetworkError("the store of the workers does not answer")
            if found[1] is not None:
                raise found[1]
            return found[0]

        return call


@dataclasses.dataclass
class _Group:
    """The connections of a group of workers; `store` is common to all of them."""

    workers: Workers
    store: _Store
    reporter: Reporter
    meetings: int = 0


_group: _Group | None = None
_last: _Store | None = None  # the store of the last group, by which workers agree who says an error
_joined = 0


def asked() -> Workers:
    """Who torchrun says that this process is; alone where it was not started by torchrun, or what it says cannot be (see `prepare`)."""
    try:
        return _told()
    except UsageError:
        return Workers()


def _told() -> Workers:
    """The same; UsageError where a variable of torchrun's has a value that cannot be."""
    if not set(VARIABLES) <= os.environ.keys():
        return Workers()
    rank, size, local, port = (_number(name, low) for name, low in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("MASTER_PORT", 1)))
    for name, value, above in (("RANK", rank, size), ("LOCAL_RANK", local, size), ("MASTER_PORT", port, 1 << 16)):
        if value >= above:
            raise UsageError(f"{name} = {value} is not below {above}{', the WORLD_SIZE' if name != 'MASTER_PORT' else ''}", WITHOUT)
    return Workers(rank, size, local) if size > 1 else Workers()


def _number(name: str, low: int) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= low):
        raise UsageError(f"{name} = {text[:40]!r} is not a number of at least {low}", WITHOUT)
    return int(text)


def current() -> Workers:
    """Who this process is in the group that it has joined; alone where it has joined none."""
    return Workers() if _group is None else _group.workers


def prepare(command: str | None) -> None:
    """What several processes need before torch is imported; refuses a command that is not made for them.

    Raises:
        UsageError: torchrun started several, and they would all do the same; or its variables have values that cannot be.
    """
    if command is None or _told().size == 1:
        return
    if command not in COMMANDS:
        raise UsageError(f"hsal {command} runs in one process, not in {asked().size}", f"without torchrun: hsal {command}")
    # DistributedDataParallel would warn, once a worker, that every parameter is used; which ones are depends on the objective.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


@contextlib.contextmanager
def joined(device: torch.device, reporter: Reporter) -> Iterator[None]:
    """Joins the workers that torchrun started, for the time of the block; does nothing for a single process.

    Args:
        device: where this worker computes; gloo connects CPUs, NCCL GPUs.
        reporter: asked, while waiting for others, whether to stop.

    Raises:
        HsalError: the workers do not find each other, or another one has failed.
    """
    global _group, _last, _joined
    workers = _told()
    if workers.size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)  # or all of a machine would talk through its first GPU
    if not dist.is_available():
        raise HsalError("this torch was built without torch.distributed", "start one process, without torchrun")
    wait = timedelta(seconds=_timeout())
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=wait))
        store, _joined = dist.PrefixStore(f"hsal/{_joined}", store), _joined + 1
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=workers.rank, world_size=workers.size, timeout=wait)
    except (RuntimeError, OSError) as error:
        raise HsalError(
            f"worker {workers.rank} of {workers.size} does not find the others: {first_line(error)}",
            f"look whether all were started, and whether {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} can be reached from each "
            "machine; where a machine's own name stands for 127.0.0.1, name its network: export GLOO_SOCKET_IFNAME=eth0 (on GPUs "
            "NCCL_SOCKET_IFNAME too)",
        ) from error
    store = _Store(store)
    _group, _last, failed = _Group(workers, store, reporter), store, False
    try:
        yield
        _part(math.inf)
    except BaseException as error:
        failed = True
        _publish(error)
        with contextlib.suppress(HsalError):
            _part(POLL_S)
        raise
    finally:
        _group = None
        if not (failed and device.type == "cuda"):  # NCCL would wait for the others; at the end of the process all is closed
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()


def _part(patience: float) -> None:
    """Worker 0 goes last, or after so many seconds: it may be the one that keeps the store."""
    end = time.monotonic() + patience
    with guarded():
        if _group.workers.leads:
            _until(lambda: _group.store.add("parted", 0) == _group.workers.size - 1 or time.monotonic() > end)
        else:
            _group.store.add("parted", 1)


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(text) if text else TIMEOUT_S
        if not (math.isfinite(seconds) and seconds > 0):
            raise ValueError
    except ValueError:
        raise UsageError(f"{TIMEOUT} = {text} is not a number of seconds above 0", f"leave it out: it is {TIMEOUT_S:g} s") from None
    return seconds


def _publish(error: BaseException) -> None:
    """Tells the others why this worker ends. What they told it, or found out themselves, is not repeated."""
    if isinstance(error, WorkerLost) or getattr(error, "from_elsewhere", False):
        return
    message, hint = f"unexpected {type(error).__name__}: {error}", "HSAL_DEBUG=1 shows where; please report it"
    if isinstance(error, (KeyboardInterrupt, Stopped)):
        message, hint = "interrupted", AGAIN
    if isinstance(error, HsalError):
        message, hint = error.message, error.hint
    said = json.dumps([message, hint, getattr(error, "exit_code", 1)])
    with contextlib.suppress(RuntimeError, OSError):
        _group.store.compare_set("error", "", said)


def _published() -> HsalError | None:
    """The error that another worker has left, if there is one."""
    with contextlib.suppress(RuntimeError, OSError):
        if _group.store.check(["error"]):
            message, hint, code = json.loads(_group.store.get("error"))
            error = HsalError(message, hint)
            error.exit_code, error.from_elsewhere = code, True
            return error
    return None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Turns a connection that fails in the block into the error of the worker that has left, or into `WorkerLost`.

    The operations of this module are guarded already.
    """
    try:
        yield
    except RuntimeError as error:
        if _group is None or not _of_connection(error):
            raise
        raise (_published() or WorkerLost(f"a worker was lost: {first_line(error)}", AGAIN)) from error


def _of_connection(error: RuntimeError) -> bool:
    from torch import distributed as dist

    said = str(error).lower()
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or any(words in said for words in OF_GLOO)


def all_reduce(values: Tensor) -> Tensor:
    """The sum of a tensor over all workers, the same on each; the tensor that is given stays as it is."""
    return _reduced(values, "SUM")


def all_reduce_max(value: int) -> int:
    """The largest of the workers' numbers."""
    if _group is None:
        return value
    import torch

    return int(_reduced(torch.tensor(value), "MAX"))


def _reduced(values: Tensor, how: str) -> Tensor:
    if _group is None:
        return values
    import torch.distributed as dist

    found = values.detach().clone().contiguous()
    with guarded():
        dist.all_reduce(found, getattr(dist.ReduceOp, how))
    return found


def all_gather(thing: T) -> list[T]:
    """What each worker has, by rank."""
    if _group is None:
        return [thing]
    import torch.distributed as dist

    found: list[Any] = [None] * _group.workers.size
    with guarded():
        dist.all_gather_object(found, thing)
    return found


def gather(own: Sequence[Tensor] | None, counts: Sequence[int]) -> list[Sequence[Tensor]]:
    """The rows that each worker has, by rank; on worker 0, which must have some itself. The others get none.

    Args:
        own: tensors with this worker's rows; None where it has none.
        counts: the rows of workers 0, 1 ...: as many as have some.
    """
    if _group is None:
        return [own]
    import torch.distributed as dist

    with guarded():
        if not _group.workers.leads:
            for part in own or ():
                dist.send(part, 0)
            return []
        found = [own]
        for rank, rows in enumerate(counts[1:], 1):
            found.append([part.new_empty(rows, *part.shape[1:]) for part in own])
            for part in found[-1]:
                dist.recv(part, rank)
        return found


def agree(**things: Any) -> None:
    """Looks whether all workers have the same settings and data, before they work together.

    Args:
        things: what must be the same, by name: plain JSON types; of a dict each value by itself.

    Raises:
        UsageError: they differ; names the first few that do, with the values and who has them.
    """
    flat: dict[str, Any] = {}
    for name, thing in things.items():
        flat |= {f"{name}.{key}": value for key, value in thing.items()} if isinstance(thing, dict) else {name: thing}
    said = [{name: str(value) for name, value in theirs.items()} for theirs in all_gather(flat)]
    differing = []
    for name in dict.fromkeys(name for theirs in said for name in theirs):
        values = [theirs.get(name, "missing") for theirs in said]
        who = {value: ", ".join(str(rank) for rank, its in enumerate(values) if its == value) for value in dict.fromkeys(values)}
        if len(who) > 1:
            differing.append(f"{name} is " + ", ".join(f"{value} (worker {ranks})" for value, ranks in who.items()))
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UsageError(f"the workers differ: {'; '.join(differing[:3])}{more}", "give all of them the same options, settings and files")


def broadcast(call: Callable[[], T]) -> T:
    """Has worker 0 do something, however long it takes, and gives all of them the result; errors as `barrier`, and what worker 0 raised."""
    if _group is None:
        return call()
    found = call() if _group.workers.leads else None
    with _meeting() as name:
        if _group.workers.leads:
            _group.store.set(name, pickle.dumps(found))
            return found
        _until(lambda: _group.store.check([name]))
        return pickle.loads(_group.store.get(name))


def barrier() -> None:
    """Waits, however long it takes, until all workers are here.

    Raises:
        HsalError: another one has failed, or a signal asked to stop.
    """
    if _group is not None:
        with _meeting() as name:
            _group.store.add(name, 1)
            _until(lambda: _group.store.add(name, 0) == _group.workers.size)


@contextlib.contextmanager
def _meeting() -> Iterator[str]:
    """A name in the store that all workers use next."""
    _group.meetings += 1
    with guarded():
        yield f"meeting/{_group.meetings}"


def _until(there: Callable[[], bool]) -> None:
    """Waits for others, and raises what one of them has published, or that a signal asked to stop."""
    pause, asked_at = 0.001, None
    while not there():
        error = _published()
        if error is not None:
            raise error
        if _group.reporter.stop_signal:  # whoever is waited for has been asked too, and may still save what it has
            asked_at = asked_at or time.monotonic()
            if time.monotonic() - asked_at > GRACE_S:
                _group.reporter.check_stop(AGAIN)
        time.sleep(pause)
        pause = min(2 * pause, POLL_S)


def share(count: int) -> range:
    """The part of `count` places that this worker takes: a stretch, as long as the others' or by one different; it may be empty."""
    workers = current()
    return range(count * workers.rank // workers.size, count * (workers.rank + 1) // workers.size)


def stretch(count: int, batch: int) -> range:
    """The part of `count` rows that this worker takes where work goes by batches, cut where a single process would cut its batches."""
    batches = share(-(-count // batch))
    return range(min(batches.start * batch, count), min(batches.stop * batch, count))


def may_speak() -> bool:
    """Whether this process says an error. Worker 0 does; another one waits a moment, and does where worker 0 has not."""
    told = asked()
    if told.leads:
        return True
    if _last is None:
        time.sleep(GRACE_S)  # torchrun ends this process as soon as worker 0 has ended with an error
        return True
    try:
        _last.wait(["said"], timedelta(seconds=GRACE_S))
        return False
    except (RuntimeError, OSError):
        return True


def has_spoken() -> None:
    """To be called after an error was said: the others need not say it."""
    if _last is not None:
        with contextlib.suppress(RuntimeError, OSError):
            _last.set("said", "")
