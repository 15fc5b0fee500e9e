"""The one training loop: epochs and steps, metrics, checkpoints, Ctrl-C and resuming; fine-tuning and policy training are its tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hsal_cli import distributed
from hsal_cli.errors import FileError, Interrupted, TrainingError, WorkerLost, first_line
from hsal_cli.progress import Reporter
from hsal_cli.runs.documents import rank
from hsal_cli.runs.run import Run
from hsal_cli.storage import checkpoints
from hsal_cli.storage.checkpoints import Checkpoint
from hsal_cli.typed import Document, Odd, checked

TRAIN_AGAIN = "train a new run, or start one from these weights alone: hsal train --init-from"
SAVE_EVERY_S = 120.0  # between epochs, a crash or a kill loses no more work than this
KERNELS = ("fused", "foreach", "capturable", "lr")  # what an optimiser's state says of how a step is computed; each sets the rate anew
CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where each look waits for the device


class Task(Protocol):
    """What the loop trains.

    Attributes:
        command: the command that runs it, such as "hsal train".
        epochs: how many epochs there are.
        score_name: the key of the validation metric by which the best checkpoint is chosen (see `documents.rank`).
        headline: keys shown in the line of an epoch.
    """

    command: str
    epochs: int
    score_name: str
    headline: tuple[str, ...]

    def steps(self, epoch: int) -> int:
        """Steps in an epoch."""

    def start_epoch(self, epoch: int) -> None:
        """Prepares an epoch; what it draws depends on the seed and the epoch alone."""

    def step(self, step: int) -> tuple[int, dict[str, Tensor]]:
        """Takes one step of the current epoch.

        Returns:
            (number of examples, scalars averaged over the epoch; "loss" is among them, and may be "gradient_norm", both of which must be
            finite). The tensors may stay on the device. Of several workers each has the same, for the whole batch.

        Raises:
            WorkerLost: another worker has gone; weights and state are those from before the step.
        """

    def validate(self) -> dict[str, float]:
        """Scores on held-out examples."""

    def check(self, rows: list[dict[str, Any]]) -> str | None:
        """Looks at the metrics of the epochs so far; the last of them is new.

        Returns:
            What the user should be warned of; None if all is well.

        Raises:
            TrainingError: going on is pointless.
        """

    def weights(self) -> dict[str, Tensor]:
        """The model."""

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the weights: optimiser, random states (tensors and plain types)."""

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Takes up where `weights` and `state` were saved."""

    def meta(self) -> dict[str, Any]:
        """What the checkpoint's manifest says of the model."""


class ModelTask:
    """What a task saves and takes up again where a `model` and its `optimiser` are all that training changes."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    _meta: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def state(self) -> dict[str, Any]:
        state = self.optimiser.state_dict()
        groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
        return {"optimiser": {**state, "param_groups": groups}}

    def load(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.model.load_state_dict(weights)
        saved, own = state["optimiser"], self.optimiser.state_dict()
        # By which kernels a step is computed is up to this device and this hsal, not to those that saved.
        pairs = zip(saved["param_groups"], own["param_groups"], strict=True)
        groups = [{**group, **{name: mine[name] for name in KERNELS if name in mine}} for group, mine in pairs]
        self.optimiser.load_state_dict({**saved, "param_groups": groups})

    def meta(self) -> dict[str, Any]:
        return self._meta


def one_cycle(step: int, steps: int, peak: float, warm_up: float = 0.2) -> float:
    """Learning rate before step `step` of `steps`: linear from peak/25 in the `warm_up` share of them, then a cosine down to peak/1000."""
    rising = max(1, round(steps * warm_up))
    if step < rising:
        return peak * (0.04 + 0.96 * step / rising)
    done = (step - rising) / max(1, steps - rising)
    return peak * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@dataclasses.dataclass(frozen=True)
class Progress(Document):
    """How far training has come, as a checkpoint's state holds it.

    Attributes:
        epoch: finished epochs.
        step: steps of the next one that were taken.
        rows: the metrics of the finished ones.
        count: examples of those steps.
        seconds: that they took.
        sums: their metrics, times examples.
        best_name: the checkpoint that has it.
    """

    epoch: int
    step: int
    rows: list[dict[str, float]]
    count: int = 0
    seconds: float = 0.0
    sums: dict[str, Any] = dataclasses.field(default_factory=dict)
    best_name: str | None = None


def progress_of(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """How far training had come when a checkpoint was saved (see `Progress`); None: nowhere.

    Raises:
        FileError: the checkpoint's state does not say so.
    """
    progress = {"epoch": 0, "step": 0, "sums": {}, "count": 0, "seconds": 0.0, "rows": []}
    if checkpoint is None:
        return progress
    try:
        if "progress" not in checkpoint.state or not isinstance(checkpoint.state.get("task"), dict):
            raise Odd("", "holds no progress, or nothing of the optimiser")
        found = checked(checkpoint.state["progress"], Progress, "progress")
        if not (found.epoch == len(found.rows) and found.step >= 0 and found.count >= 0):
            raise Odd("progress", f"says epoch {found.epoch}, step {found.step}, with {len(found.rows)} rows of metrics")
        if not all(isinstance(value, (float, Tensor)) for value in found.sums.values()):
            raise Odd("progress.sums", "holds something that is no number")
    except Odd as odd:
        raise FileError(odd.said_of(checkpoint.path / checkpoints.STATE), f"{TRAIN_AGAIN} {checkpoint.path}") from odd
    return progress | found.raw


def restored(task: Task, checkpoint: Checkpoint) -> dict[str, Any]:
    """Takes a task up where a checkpoint was saved, and returns the progress to go on from, for `train`.

    Raises:
        FileError: the checkpoint's weights or state are not of such a task.
    """
    progress = progress_of(checkpoint)
    try:
        if any(task.score_name not in row for row in progress["rows"]):
            raise Odd("progress.rows", f"have no {task.score_name}")
        task.load(checkpoint.weights, checkpoint.state["task"])
    except (Odd, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise FileError(
            f"the state of checkpoint {checkpoint.path} does not fit the training that it is to go on with: {said}",
            f"bring back the run's own checkpoints, or train a new run: {task.command}",
        ) from error
    return progress | {"checkpoint": checkpoint.path.name}


def train(task: Task, run: Run, reporter: Reporter, progress: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Trains a task to its end, or until a signal asks to stop.

    Args:
        progress: where the task was taken up again (see `restored`); None: from the start.

    Returns:
        One row of metrics an epoch.

    Raises:
        Interrupted: asked to stop; a checkpoint was saved.
        TrainingError: the loss or the gradient is not finite, or the task says that it has collapsed; the last good checkpoint stays.
        FileError: a checkpoint cannot be written; the one before stays.
        WorkerLost: another worker has gone; what this one knows was saved, if it leads and computes on a CPU.
    """
    if progress is None:
        progress = progress_of(None)
    else:
        last = progress.pop("checkpoint")
        run.write_rows(progress["rows"])
        if distributed.current().leads:  # a kill may have come between a checkpoint and the index that names it
            checkpoints.write_index(run.checkpoints, last=last, best=progress.get("best_name"))
    run.set_status("running")
    try:
        return _epochs(task, run, reporter, progress)
    except Interrupted:
        _leave(run, "stopped")
        raise
    except WorkerLost as error:
        raise _after_a_loss(task, run, progress) from error
    except BaseException:
        _leave(run, "failed")
        raise


def _leave(run: Run, state: str) -> None:
    """Notes how training ended; where that cannot be written, the error that ended it is still the one to tell."""
    with contextlib.suppress(FileError):
        run.set_status(state)


def _epochs(task: Task, run: Run, reporter: Reporter, progress: dict[str, Any]) -> list[dict[str, Any]]:
    unwritten: FileError | None = None
    all_steps = sum(task.steps(epoch) for epoch in range(task.epochs))
    taken = sum(task.steps(epoch) for epoch in range(progress["epoch"])) + progress["step"]
    with reporter.track("training", all_steps, "steps", done=taken) as advance:
        _plot(task, reporter, progress["rows"])
        for epoch in range(progress["epoch"], task.epochs):
            task.start_epoch(epoch)
            _steps(task, run, reporter, progress, epoch, advance)
            _check_weights(task, run, progress)
            row: dict[str, Any] = {"epoch": epoch + 1}
            row |= {key: float(value) / max(progress["count"], 1) for key, value in progress["sums"].items()}
            row |= {"examples_per_s": progress["count"] / max(progress["seconds"], 1e-9), "seconds": progress["seconds"]} | task.validate()
            progress["rows"] = [*progress["rows"], row]
            best = row is max(progress["rows"], key=lambda each: rank(each, task.score_name))
            progress.update(epoch=epoch + 1, step=0, sums={}, count=0, seconds=0.0)
            try:
                run.write_rows(progress["rows"])
                unwritten = None
            except FileError as error:  # a disk that takes the checkpoint, which holds the metrics too, ends no training
                unwritten = error
            warning = task.check(progress["rows"])  # before saving: one that has collapsed does not take the place of one that has not
            _plot(task, reporter, progress["rows"])
            _save(task, run, progress, best)
            shown = "  ".join(f"{key} {row[key]:.3f}" for key in task.headline if key in row)
            reporter.say(f"epoch {epoch + 1}/{task.epochs}: {shown}  ({row['examples_per_s']:,.0f} examples/s)")
            if warning:
                reporter.warn(warning)
            if unwritten:
                reporter.warn(f"{unwritten.message}; the checkpoint holds what belongs there, and training goes on")
            signal = distributed.all_reduce_max(reporter.stop_signal)
            if signal and epoch + 1 < task.epochs:
                _stop(task, run, signal)
    if unwritten:
        run.write_rows(progress["rows"])  # there may be room again
    return progress["rows"]


def _plot(task: Task, reporter: Reporter, rows: list[dict[str, Any]]) -> None:
    """The first of the headline's metrics, and the score, over the epochs so far."""
    shown = dict.fromkeys((task.headline[0], task.score_name))
    reporter.plot({key.replace("_", " "): [row[key] for row in rows if key in row] for key in shown})


def _steps(task: Task, run: Run, reporter: Reporter, progress: dict[str, Any], epoch: int, advance: Any) -> None:
    """The steps of one epoch, from `progress["step"]` on."""
    start = saved = time.monotonic()
    before = progress["seconds"]
    sums = {key: torch.as_tensor(value) for key, value in progress["sums"].items()}
    steps = task.steps(epoch)
    for step in range(progress["step"], steps):
        count, metrics = task.step(step)
        _add(sums, metrics, count)
        progress.update(step=step + 1, count=progress["count"] + count, seconds=before + time.monotonic() - start)
        note = ""
        if sums["loss"].device.type == "cpu" or step % CHECK_EVERY == CHECK_EVERY - 1 or step + 1 == steps:
            for key, what in (("loss", "the loss is"), ("gradient_norm", "the gradient is")):
                if key in sums and not torch.isfinite(sums[key]):
                    raise _not_finite(what, progress, run)
            rate = progress["count"] / max(progress["seconds"], 1e-9)
            note = f"epoch {epoch + 1}/{task.epochs}, loss {metrics['loss'].item():.3f}, {rate:,.0f} examples/s"
        advance(1, note)
        progress["sums"] = sums
        signal = distributed.all_reduce_max(reporter.stop_signal)  # all workers stop behind the same step
        if step + 1 < steps and (signal or time.monotonic() - saved > SAVE_EVERY_S):
            progress["sums"] = {key: value.cpu() for key, value in sums.items()}
            _check_weights(task, run, progress)
            _save(task, run, progress, best=False)
            saved = time.monotonic()
            if signal:
                _stop(task, run, signal)
    progress["sums"] = {key: value.cpu() for key, value in sums.items()}


def _add(sums: dict[str, Tensor], metrics: dict[str, Tensor], count: int) -> None:
    """sums += count * metrics, on the metrics' device and all at once."""
    for key, value in metrics.items():
        sums[key] = sums[key].to(value.device) if key in sums else torch.zeros_like(value)
    torch._foreach_add_([sums[key] for key in metrics], [value.detach() for value in metrics.values()], alpha=count)


def _not_finite(what: str, progress: dict[str, Any], run: Run) -> TrainingError:
    hint = f"the last good checkpoint is in {run.checkpoints}; try a lower --learning-rate"
    return TrainingError(f"{what} not finite at step {progress['step']} of epoch {progress['epoch'] + 1}", hint)


def _check_weights(task: Task, run: Run, progress: dict[str, Any]) -> None:
    """Called before a checkpoint: a gradient may be infinite where the loss is not, and on a GPU not every loss is looked at."""
    if not all(bool(tensor.isfinite().all()) for tensor in task.weights().values()):
        raise _not_finite("the weights are", progress, run)


def _save(task: Task, run: Run, progress: dict[str, Any], best: bool) -> None:
    name = f"epoch-{progress['epoch']:05d}-step-{progress['step']:07d}"
    if best:
        progress["best_name"] = name
    if not distributed.current().leads:
        return
    state = {"progress": progress, "task": task.state()}
    meta = {**task.meta(), "epoch": progress["epoch"], task.score_name: progress["rows"][-1][task.score_name] if progress["rows"] else None}
    try:
        checkpoints.save(run.checkpoints, name, task.weights(), state, meta, best)
    except FileError as error:
        raise FileError(error.message, f"free some space, then go on from the checkpoint before: {_resume(task, run)}") from error


def _stop(task: Task, run: Run, signal: int) -> None:
    distributed.barrier()  # a worker that ended while worker 0 still saves would have torchrun end worker 0
    raise Interrupted("stopped; the state is saved", f"resume with: {_resume(task, run)}", signal)


def _resume(task: Task, run: Run) -> str:
    return f"{task.command} --resume {shlex.quote(str(run.path))}"


def _after_a_loss(task: Task, run: Run, progress: dict[str, Any]) -> WorkerLost:
    """Saves what is known where that can be done, and says what is left."""
    _leave(run, "stopped")
    # What a GPU still computes may wait for the lost worker for ever.
    within = progress["step"] > 0 and all(tensor.device.type == "cpu" for tensor in task.weights().values())
    if within:
        progress["sums"] = {key: value.cpu() for key, value in progress["sums"].items()}
        _check_weights(task, run, progress)
        _save(task, run, progress, best=False)
    where = f"at step {progress['step']} of epoch {progress['epoch'] + 1}"
    hint = f"go on with: {_resume(task, run)}, with as many workers as there are"
    if not checkpoints.present(run.checkpoints):
        return WorkerLost(f"a worker was lost {where}; there is no checkpoint yet", hint)
    return WorkerLost(f"a worker was lost {where}; the last checkpoint is {run.checkpoints / checkpoints.names(run.checkpoints)[-1]}", hint)
