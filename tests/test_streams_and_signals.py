"""Printing never ends the work; a signal, whenever it comes, is two lines and an exit code; so are odd variables of torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fault_parts import small_scenes
from learning_parts import StoppingReporter
from test_loop import LineTask

from hsal_cli import console, distributed
from hsal_cli.errors import FileError, UsageError
from hsal_cli.progress import SILENT
from hsal_cli.runs import run as runs
from hsal_cli.runs.loop import restored, train
from hsal_cli.storage import checkpoints

ROOT = Path(__file__).parents[1]
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def hsal(code: str, *words: str, **more) -> subprocess.CompletedProcess:
    """Runs hsal in a process of its own, after some code of the test."""
    # A test run behind nohup or & has these ignored, and so would its children.
    heard = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)"
    script = f"import sys\n{heard}\n{code}\nsys.argv = ['hsal', *sys.argv[1:]]\nfrom hsal_cli.main import run\nrun()\n"
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120, "cwd": ROOT} | more
    return subprocess.run([sys.executable, "-c", script, *words], **more)


# --- streams ----------------------------------------------------------------------------------------------------------------------


@FULL
@pytest.mark.parametrize("stream", ["full", "closed pipe", "closed"])
@pytest.mark.fault(17, "a progress log on a full disk, a closed pipe, a closed file: the work goes on", tried=3)
def test_progress_that_cannot_be_said_ends_no_work(stream: str, monkeypatch) -> None:
    if stream == "full":
        broken = open("/dev/full", "w")  # noqa: SIM115
    elif stream == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        broken = os.fdopen(writing, "w", buffering=1)
    else:
        broken = open(os.devnull, "w")  # noqa: SIM115
        broken.close()
    monkeypatch.setattr(sys, "stderr", broken)
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    reporter, done = console.TerminalReporter(), 0
    reporter.say("hello")
    reporter.warn("x" * 100_000)
    with reporter.track("training", 3, "steps") as advance:
        for _ in range(3):
            advance(1, "note")
            done += 1
    assert done == 3
    assert console.exit_code_of(lambda: (_ for _ in ()).throw(UsageError("it broke", "mend it"))) == 2
    monkeypatch.undo()
    try:
        broken.close()
    except (OSError, ValueError):
        pass


def test_a_bar_on_a_terminal_that_goes_away_ends_no_work(monkeypatch) -> None:
    import pty

    main, other = pty.openpty()
    stream = os.fdopen(other, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    reporter = console.TerminalReporter()
    assert reporter.console.is_terminal
    with reporter.track("training", 3, "steps") as advance:
        advance(1, "note")
        os.close(main)
        advance(2, "note")
        reporter.say("still here")
    monkeypatch.undo()
    with pytest.raises(OSError):
        stream.close()  # what could not be said is still waiting


@FULL
@pytest.mark.fault(17, "a result on a full disk: two lines, exit code 1; errors on one: the exit code", tried=2)
def test_a_result_that_cannot_be_written_is_an_error_of_two_lines(tmp_path) -> None:
    small_scenes(tmp_path / "s.h5")
    with open("/dev/full", "w") as full:
        done = hsal("", "inspect", str(tmp_path / "s.h5"), stdout=full)
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and len(lines) == 2, done
        assert lines[0] == "Error: the result cannot be written to standard output: No space left on device" and lines[1].startswith(
            "Hint: "
        )
        assert hsal("", "inspect", str(tmp_path / "none.h5"), stderr=full).returncode == 1
        assert hsal("", "inspect", str(tmp_path / "s.h5"), stderr=full).returncode == 0


@pytest.mark.fault(17, "metrics.jsonl on a full disk: training goes on, says so, and writes all when there is room", tried=1)
def test_metrics_that_cannot_be_written_end_no_training(tmp_path, monkeypatch) -> None:
    run, reporter = runs.create(tmp_path / "run", "policy", {}), StoppingReporter()
    real, calls = runs.Run.write_rows, []

    def write_rows(self, rows) -> None:
        calls.append(len(rows))
        if len(calls) < 3:
            raise FileError("cannot write metrics.jsonl: No space left on device", "free some space")
        real(self, rows)

    monkeypatch.setattr(runs.Run, "write_rows", write_rows)
    rows = train(LineTask(), run, reporter)
    assert len(rows) == 3 and run.rows() == rows
    assert len([line for line in reporter.warned if "No space left" in line and "training goes on" in line]) == 2


@pytest.mark.fault(17, "metrics.jsonl on a disk that stays full: an error at the end, and the resumed run is finished at once", tried=1)
def test_metrics_that_are_never_written_are_an_error_at_the_end_with_all_state_kept(tmp_path, monkeypatch) -> None:
    run = runs.create(tmp_path / "run", "policy", {})
    with monkeypatch.context() as patch, pytest.raises(FileError, match="No space"):

        def full(self, rows) -> None:
            raise FileError("cannot write metrics.jsonl: No space left on device", "free some space")

        patch.setattr(runs.Run, "write_rows", full)
        train(LineTask(), run, StoppingReporter())
    task, reporter = LineTask(), StoppingReporter()
    rows = train(task, run, reporter, restored(task, checkpoints.load(run.checkpoints, "last")))
    assert len(rows) == 3 and run.rows() == rows and reporter.steps == 0


@pytest.mark.fault(17, "no room for a checkpoint: a clear error, the checkpoint before is kept, and the way on is named", tried=1)
def test_a_checkpoint_for_which_there_is_no_room_is_a_clear_error(tmp_path, monkeypatch) -> None:
    run = runs.create(tmp_path / "a run", "policy", {})
    real, calls = checkpoints.write_checkpoint, []

    def write(folder, *given) -> None:
        calls.append(folder)
        if len(calls) == 2:
            raise FileError(f"cannot write {folder}: No space left on device", "name another place with --out, or free some space")
        real(folder, *given)

    with monkeypatch.context() as patch, pytest.raises(FileError, match="No space left on device") as caught:
        patch.setattr(checkpoints, "write_checkpoint", write)
        train(LineTask(), run, StoppingReporter())
    assert caught.value.hint.startswith("free some space") and f"--resume '{run.path}'" in caught.value.hint
    assert run.status.state == "failed" and checkpoints.names(run.checkpoints) == [calls[0].name]
    task = LineTask()
    assert len(train(task, run, StoppingReporter(), restored(task, checkpoints.load(run.checkpoints, "last")))) == 3


def test_a_status_that_cannot_be_written_does_not_hide_why_training_ended(tmp_path, monkeypatch) -> None:
    run = runs.create(tmp_path / "run", "policy", {})
    real = runs.Run.set_status

    def set_status(self, state, **more) -> None:
        if state == "failed":
            raise FileError("cannot write status.json: No space left on device", "free some space")
        real(self, state, **more)

    monkeypatch.setattr(runs.Run, "set_status", set_status)
    with pytest.raises(RuntimeError, match="it broke"):
        task = LineTask()
        task.step = lambda step: (_ for _ in ()).throw(RuntimeError("it broke"))
        train(task, run, StoppingReporter())


# --- signals ----------------------------------------------------------------------------------------------------------------------

STRIKE = """
import os
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Strike())
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("hsal_cli.console", signal.SIGINT),
        ("hsal_cli.app", signal.SIGTERM),
        ("typer", signal.SIGINT),
        ("hsal_cli.commands.train", signal.SIGINT),
        ("numpy", signal.SIGINT),
        ("torch.nn", signal.SIGTERM),
        ("typer", signal.SIGHUP),
    ],
)
@pytest.mark.fault(18, "Ctrl-C, SIGTERM, SIGHUP during the imports: two lines, 130, 143, 129, no traceback", tried=7)
def test_a_signal_during_the_imports_is_two_lines(module: str, number: int, tmp_path) -> None:
    done = hsal(STRIKE.format(module=module, number=int(number)), "train", "--dry-run", "--data", str(tmp_path / "x.h5"))
    assert done.returncode == 128 + number and done.stdout == "", done
    assert done.stderr == "Error: interrupted\nHint: run the same command again\n"


@pytest.mark.fault(18, "a signal while a command runs outside of long work: temporary files go, exit code 130", tried=1)
def test_a_signal_between_imports_and_long_work_leaves_no_temporary_file(tmp_path) -> None:
    code = (
        "import os, signal\nfrom hsal_cli import app\nfrom hsal_cli.storage.atomic import atomic_write\nfrom pathlib import Path\n"
        "def call():\n"
        f"    with atomic_write(Path({str(tmp_path / 'it')!r})) as place:\n"
        "        place.write_text('half')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        while True: pass\n"
        "app.call = call"
    )
    done = hsal(code)
    assert done.returncode == 130 and done.stderr == "Error: interrupted\nHint: run the same command again\n", done
    assert list(tmp_path.iterdir()) == []


def test_what_ignores_hang_ups_still_does() -> None:
    code = "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup starts it
    done = hsal(code + "\n" + STRIKE.format(module="hsal_cli.commands.train", number=int(signal.SIGHUP)), "--version")
    assert done.returncode == 0 and done.stdout.startswith("hsal "), done


def test_a_second_hang_up_does_not_leave_at_once() -> None:
    reporter, before = console.Reporter(), signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored behind nohup
    with console.stopping(reporter):
        for _ in range(2):  # a shell sends one, its terminal another
            os.kill(os.getpid(), signal.SIGHUP)
        assert reporter.stop_signal == signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


# --- variables of torchrun --------------------------------------------------------------------------------------------------------

WRONG = [
    ({"RANK": "abc"}, "RANK = 'abc' is not a number of at least 0"),
    ({"RANK": "2"}, "RANK = 2 is not below 2, the WORLD_SIZE"),
    ({"RANK": "-1"}, "RANK = '-1' is not a number of at least 0"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0' is not a number of at least 1"),
    ({"WORLD_SIZE": "1", "RANK": "1"}, "RANK = 1 is not below 1, the WORLD_SIZE"),
    ({"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1' is not a number of at least 0"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK = '' is not a number of at least 0"),
    ({"MASTER_PORT": "x"}, "MASTER_PORT = 'x' is not a number of at least 1"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT = 99999 is not below 65536"),
    ({"WORLD_SIZE": "9" * 5000}, "is not a number of at least 1"),
]


@pytest.mark.parametrize(("variables", "said"), WRONG)
@pytest.mark.fault(18, "RANK=abc, WORLD_SIZE=0, RANK=WORLD_SIZE, MASTER_PORT=x, LOCAL_RANK=-1 ...: refused by name", tried=len(WRONG))
def test_variables_of_torchrun_that_cannot_be_are_refused(variables, said, monkeypatch) -> None:
    for name, value in {**TORCHRUN, **variables}.items():
        monkeypatch.setenv(name, value)
    assert distributed.asked() == distributed.Workers()  # whoever says the error is alone
    for call in (lambda: distributed.prepare("train"), lambda: distributed.joined(torch.device("cpu"), SILENT).__enter__()):
        with pytest.raises(UsageError) as caught:
            call()
        assert said in caught.value.message and "unset RANK WORLD_SIZE" in caught.value.hint


def test_wrong_variables_of_torchrun_are_two_lines() -> None:
    done = hsal("", "train", "--dry-run", env={**os.environ, **TORCHRUN, "RANK": "abc"})
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2 and done.stderr.startswith("Error: RANK = 'abc'"), done
