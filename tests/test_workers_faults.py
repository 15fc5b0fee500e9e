"""Several workers when something goes wrong: one error of two lines, no hang, and a run that can be resumed by any number of them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from worker_parts import assert_same_training, hsal

from hsal_cli import distributed
from hsal_cli.errors import WorkerLost
from hsal_cli.storage import checkpoints

TRAIN = ("train", "--data", "easy.features.h5", "--out")


@pytest.fixture(scope="module")
def whole(worker_place, worker_nursery) -> Path:
    """An undisturbed run of one process."""
    hsal(worker_nursery, worker_place, *TRAIN, worker_place / "whole", size=1)
    return worker_place / "whole"


def lines_of(worker: dict) -> list[str]:
    """The error that a worker has said."""
    return [line for line in worker["err"].splitlines() if line.startswith(("Error: ", "Hint: "))]


def test_when_a_worker_is_killed_worker_0_saves_what_it_knows_and_one_process_goes_on(worker_place, worker_nursery, whole) -> None:
    out = worker_place / "killed"
    first, second = worker_nursery.run(worker_place, *TRAIN, out, "--config", "toy.toml", hit=(1, 3, signal.SIGKILL))
    assert (first["code"], second["code"]) == (1, -signal.SIGKILL)
    step = "epoch-00000-step-0000003"
    assert lines_of(first) == [
        f"Error: a worker was lost at step 3 of epoch 1; the last checkpoint is {out}/checkpoints/{step}",
        f"Hint: go on with: hsal train --resume {out}, with as many workers as there are",
    ]
    assert checkpoints.load(out / "checkpoints", "last").path.name == step
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert "workers 2 -> 1" in worker_nursery.run(worker_place, "train", "--resume", out, size=1)[0]["err"]
    assert_same_training(whole, out)


@pytest.mark.slow
def test_when_worker_0_is_killed_another_one_says_so(worker_place, worker_nursery) -> None:
    first, second = worker_nursery.run(worker_place, *TRAIN, "headless", "--config", "toy.toml", hit=(0, 7, signal.SIGKILL))
    assert (first["code"], second["code"]) == (-signal.SIGKILL, 1)
    found = lines_of(second)
    assert len(found) == 2 and "a worker was lost at step 2 of epoch 2; the last checkpoint is headless/checkpoints/epoch-00001" in found[0]


def test_a_signal_to_one_worker_stops_all_behind_the_same_step(worker_place, worker_nursery, whole) -> None:
    out = worker_place / "stopped"
    found = worker_nursery.run(worker_place, *TRAIN, out, "--config", "toy.toml", hit=(1, 6, signal.SIGTERM))
    assert [worker["code"] for worker in found] == [143, 143]
    assert lines_of(found[0]) == ["Error: stopped; the state is saved", f"Hint: resume with: hsal train --resume {out}"]
    assert not found[1]["err"]
    assert checkpoints.load(out / "checkpoints", "last").path.name == "epoch-00001-step-0000001"
    assert [worker["code"] for worker in worker_nursery.run(worker_place, "train", "--resume", out)] == [0, 0]
    assert_same_training(whole, out)


@pytest.mark.slow
def test_fine_tuning_goes_on_where_a_worker_was_lost(worker_place, worker_nursery) -> None:
    words = ("finetune", "--data", "squares.h5", "--config", "toy.toml", "--out")
    assert worker_nursery.run(worker_place, *words, worker_place / "finetune-whole", size=1)[0]["code"] == 0
    out = worker_place / "finetune-killed"
    assert worker_nursery.run(worker_place, *words, out, hit=(1, 4, signal.SIGKILL))[0]["code"] == 1
    assert checkpoints.present(out / "checkpoints")  # of the loss, or of before where worker 0 was ended while it saved
    assert worker_nursery.run(worker_place, "finetune", "--resume", out, size=1)[0]["code"] == 0
    assert_same_training(worker_place / "finetune-whole", out, without=("conv.bias", "norm.running_mean"))


@pytest.mark.slow
def test_an_error_that_all_workers_have_is_said_once(worker_place, worker_nursery, whole) -> None:
    first, second = worker_nursery.run(worker_place, *TRAIN, whole, "--config", "toy.toml")
    assert first["code"] == second["code"] == 2
    assert len(lines_of(first)) == 2 and "holds a run already" in first["err"] and not second["err"]


def torchrun(worker_place: Path, *words: str) -> subprocess.Popen:
    """Starts two workers as a user does."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hsal_cli", *words)
    return subprocess.Popen([sys.executable, *words], cwd=worker_place, env=environment, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen) -> list[str]:
    """What the workers say of an error until torchrun ends; torchrun itself says much more."""
    return [line for line in process.communicate(timeout=200)[1].splitlines() if line.startswith(("Error: ", "Hint: "))]


def trained(run: Path, process: subprocess.Popen) -> None:
    """Waits for the first epoch."""
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_and_saves(worker_place) -> None:
    process = torchrun(worker_place, *TRAIN, "long", "--config", "toy.toml", "--epochs", "5000")
    trained(worker_place / "long", process)
    process.send_signal(signal.SIGTERM)
    assert said(process) == ["Error: stopped; the state is saved", "Hint: resume with: hsal train --resume long"]
    assert json.loads((worker_place / "long/status.json").read_text())["state"] == "stopped"
    assert checkpoints.load(worker_place / "long/checkpoints", "last").state is not None


@pytest.mark.slow
def test_torchrun_ends_when_a_worker_is_killed(worker_place) -> None:
    process = torchrun(worker_place, *TRAIN, "lost", "--config", "toy.toml", "--epochs", "5000")
    trained(worker_place / "lost", process)
    children = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    other = next(child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes())
    os.kill(other, signal.SIGKILL)
    found = said(process)
    assert len(found) == 2 and "a worker was lost" in found[0] and "hsal train --resume lost" in found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "easy.features.h5"), "hsal inspect runs in one process, not in 2"),
        (("train", "--epochs", "none"), "Invalid value for '--epochs'"),
    ],
)
def test_wrong_usage_is_said_once_under_torchrun(words, message, worker_place) -> None:
    found = said(torchrun(worker_place, *words))
    assert len(found) == 2 and message in found[0]


def test_a_store_that_does_not_answer_is_given_up_once(monkeypatch) -> None:
    answer = threading.Event()

    class Silent:
        def check(self, names: list[str]) -> bool:
            return answer.wait(60)

    monkeypatch.setattr(distributed, "ANSWER_S", 0.01)
    store = distributed._Store(Silent())
    with pytest.raises(RuntimeError, match="does not answer"):
        store.check(["error"])
    answer.set()
    with pytest.raises(RuntimeError, match="does not answer"):  # and nothing waits for it again
        store.check(["error"])


def test_what_gloo_says_behind_a_cut_cable_is_a_lost_worker(monkeypatch) -> None:
    monkeypatch.setattr(distributed, "_group", object())
    monkeypatch.setattr(distributed, "_published", lambda: None)
    with pytest.raises(WorkerLost), distributed.guarded():
        raise RuntimeError("Application timeout caused pair closure")
    with pytest.raises(RuntimeError, match="shapes"), distributed.guarded():
        raise RuntimeError("shapes differ")
