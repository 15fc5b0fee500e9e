"""Whole commands in processes of their own: killed at any moment, interrupted, on a full disk, without a terminal; nothing is lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import Nursery
from fault_parts import SETTINGS, contents, fill_features, left_behind, small_scenes
from idx_files import write_idx_set
from learning_parts import assert_equal, without

from hsal_cli.runs.run import Run
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.upkeep.check import check_path

COMMANDS = ("make-data", "finetune", "precompute", "train")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what every command starts from; its name has a space, square brackets and signs outside ASCII."""
    from test_finetune import write_scenes
    from test_precompute import write_backbone

    folder = tmp_path_factory.mktemp("ready") / "Übung [1] é"
    folder.mkdir()
    (folder / "toy.toml").write_text(SETTINGS)
    small_scenes(folder / "s.h5", train=24, test=6)
    fill_features(folder / "s.h5", folder / "t.features.h5")
    write_scenes(folder / "single.h5")
    write_backbone(folder / "b")
    write_idx_set(folder / "digits")
    return folder


def words_of(command: str) -> list[str]:
    return {
        "make-data": ["make-data", "mnist-multiset", "--out", "m.h5", "--workers", "1"],
        "finetune": ["finetune", "--data", "single.h5", "--out", "run"],
        "precompute": ["precompute", "--data", "s.h5", "--backbone", "b", "--out", "f.h5"],
        "train": ["train", "--data", "t.features.h5", "--variant", "columns", "--out", "run"],
    }[command] + ["--config", "toy.toml"]


def again(command: str, folder: Path) -> list[str]:
    """What a user types after an interruption: the same again, or --resume where there is a run."""
    if command in ("finetune", "train") and (folder / "run").exists():
        return [command, "--resume", "run"]
    return words_of(command)


def result_of(command: str, folder: Path) -> object:
    """All that a command leaves, but for what depends on the clock."""
    if command == "make-data":
        with open_scenes(folder / "m.h5") as scenes:
            assert scenes.computed_digest() == scenes.noted_digest
            return scenes.digest
    if command == "precompute":
        return {name: values.tobytes() for name, values in contents(folder / "f.h5").items()}
    run = Run(folder / "run")
    found = {which: checkpoints.load(run.checkpoints, which) for which in ("last", "best")}
    assert not any(checkpoint.note for checkpoint in found.values())
    table = (run.path / "results.csv").read_text().splitlines()
    status = {key: value for key, value in run.status.raw.items() if key in ("state", "exact_match", "accuracy", "test_accuracy")}
    states = {which: [part.weights, part.state, part.meta, part.path.name] for which, part in found.items()}
    held = json.loads((run.path / "config.json").read_text(encoding="utf-8"))  # its paths as they are stored
    return {"states": states, "rows": [without(row) for row in run.rows()], "lines": len(table), "status": status, "config": held}


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, ready: Path, tmp_path_factory: pytest.TempPathFactory):
    """command -> (what it leaves when nothing happens to it, how many events that takes, how many seconds)."""
    found: dict[str, tuple[object, int, float]] = {}

    def of(command: str) -> tuple[object, int, float]:
        if command not in found:
            folder = copy(ready, tmp_path_factory.mktemp(command))
            done = nursery.run(folder, *words_of(command))
            assert done["code"] == 0, done
            found[command] = result_of(command, folder), done["events"], done["seconds"]
        return found[command]

    return of


def copy(ready: Path, place: Path) -> Path:
    """A copy whose large files, which nothing writes to, are hard links: a backbone's files may be no others."""
    target = place / ready.name
    shutil.copytree(ready, target, copy_function=os.link)
    return target


def kill_and_go_on(nursery: Nursery, ready: Path, undisturbed, command: str, times: int, tmp_path: Path) -> None:
    wanted, events, seconds = undisturbed(command)
    draw = random.Random(f"{command} {times}")
    for number in range(times):
        folder = copy(ready, tmp_path / str(number))
        # Every other one dies at a file operation, the rest at any moment.
        how = {"kill_after": draw.uniform(0, seconds)} if number % 2 else {"hit_at": draw.randint(1, events)}
        died = nursery.run(folder, *words_of(command), **how)
        assert died["code"] == -signal.SIGKILL or "kill_after" in how, died
        if not (command == "make-data" and (folder / "m.h5").exists()):  # killed when all was done: the same again would not replace it
            done = nursery.run(folder, *again(command, folder))
            assert done["code"] == 0, (how, done)
        assert_equal(result_of(command, folder), wanted, f"{command} {how}")
        assert left_behind(folder) == [], how


@pytest.mark.fault(1, "SIGKILL at a random moment, then the same again or --resume: the same result to the last bit", tried=2)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_goes_on_to_the_same_result(command: str, nursery, ready, undisturbed, tmp_path) -> None:
    kill_and_go_on(nursery, ready, undisturbed, command, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.fault(1, "SIGKILL at a random moment, then the same again or --resume: the same result to the last bit", tried=20)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_twenty_times_goes_on_to_the_same_result(command: str, nursery, ready, undisturbed, tmp_path) -> None:
    kill_and_go_on(nursery, ready, undisturbed, command, 20, tmp_path)


@pytest.mark.fault(2, "Ctrl-C, SIGTERM or SIGHUP once: state saved, the way on is named, exit code 130, 143 or 129", tried=1)
@pytest.mark.parametrize(("command", "number"), [("finetune", 2), ("train", 15), ("train", 1), ("precompute", 2), ("make-data", 15)])
def test_a_signal_saves_the_state_and_names_the_way_on(command: str, number: int, nursery, ready, undisturbed, tmp_path) -> None:
    wanted, events, _ = undisturbed(command)
    folder = copy(ready, tmp_path)
    done = nursery.run(folder, *words_of(command), hit_at=events // 2, signals=[number])
    lines = done["err"].strip().splitlines()
    assert done["code"] == 128 + number, done
    assert lines[-2].startswith("Error: stopped") and lines[-1].startswith("Hint: ")
    assert ("--resume run" in lines[-1]) == (command in ("finetune", "train")) and left_behind(folder) == []
    assert nursery.run(folder, *again(command, folder))["code"] == 0
    assert_equal(result_of(command, folder), wanted)


@pytest.mark.fault(2, "Ctrl-C twice: leaves at once, the older checkpoint is intact and training goes on from it", tried=1)
def test_a_second_signal_leaves_at_once_and_the_older_checkpoint_is_intact(nursery, ready, undisturbed, tmp_path) -> None:
    wanted, events, _ = undisturbed("train")
    folder = copy(ready, tmp_path)
    done = nursery.run(folder, *words_of("train"), hit_at=events * 2 // 3, signals=[2, 2])
    assert done["code"] == 130 and "resume" not in done["err"]
    assert checkpoints.load(folder / "run" / "checkpoints", "last").note == ""
    assert nursery.run(folder, "train", "--resume", "run")["code"] == 0
    assert_equal(result_of("train", folder), wanted)


FULL = "no more room in the middle of a write, by a limit that no look at the free space shows: two lines, exit code 1"


def fill_the_disk(nursery: Nursery, ready: Path, undisturbed, command: str, limits: tuple[int, ...], tmp_path: Path) -> None:
    for limit in limits:
        folder = copy(ready, tmp_path / str(limit))
        done = nursery.run(folder, *words_of(command), limit=limit)
        if done["code"] == 0:  # the larger limits may be enough for the files of a toy
            assert limit >= 9_000
            continue
        lines = done["err"].strip().splitlines()
        assert done["code"] == 1, done
        assert lines[-2].startswith("Error: cannot write ") and "File too large" in lines[-2] and lines[-1].startswith("Hint: "), lines
        assert left_behind(folder) == [] and not any((folder / name).exists() for name in ("m.h5", "f.h5"))
        assert nursery.run(folder, *again(command, folder))["code"] == 0
        assert_equal(result_of(command, folder), undisturbed(command)[0])


@pytest.mark.fault(7, FULL, tried=1)
@pytest.mark.parametrize(("command", "limit"), [("make-data", 2_000), ("train", 9_000)])
def test_where_the_disk_takes_no_more_there_are_two_lines(command: str, limit: int, nursery, ready, undisturbed, tmp_path) -> None:
    fill_the_disk(nursery, ready, undisturbed, command, (limit,), tmp_path)


@pytest.mark.slow
@pytest.mark.fault(7, FULL, tried=8)
@pytest.mark.parametrize("command", COMMANDS)
def test_wherever_the_disk_takes_no_more_there_are_two_lines(command: str, nursery, ready, undisturbed, tmp_path) -> None:
    fill_the_disk(nursery, ready, undisturbed, command, (0, 100, 500, 2_000, 4_000, 9_000, 12_000, 20_000), tmp_path)


@pytest.mark.fault(7, "a second process writes the same run: refused, the first goes on", tried=1)
def test_a_run_that_another_process_trains_is_left_to_it(nursery, ready, undisturbed, tmp_path) -> None:
    import fcntl

    folder = copy(ready, tmp_path)
    events = undisturbed("train")[1]
    assert nursery.run(folder, *words_of("train"), hit_at=events // 2, signals=[15])["code"] == 143
    before = {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.is_file()}
    with (folder / "run" / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        for words in (["train", "--resume", "run"], [*words_of("train"), "--overwrite"]):
            done = nursery.run(folder, *words)
            assert done["code"] == 1 and "is being written by another process" in done["err"], done
    (folder / "run" / ".lock").unlink(missing_ok=True)
    assert {path: path.stat().st_mtime_ns for path in (folder / "run").rglob("*") if path.is_file()} == before
    assert nursery.run(folder, "train", "--resume", "run")["code"] == 0
    assert_equal(result_of("train", folder), undisturbed("train")[0])


@pytest.mark.fault(15, "a run moved to another folder, its features too, then resumed; a finished one resumed: nothing to do", tried=1)
def test_a_run_and_its_data_may_move(nursery, ready, undisturbed, tmp_path) -> None:
    wanted, events, _ = undisturbed("train")
    folder = copy(ready, tmp_path)
    assert nursery.run(folder, *words_of("train"), hit_at=events // 2, signals=[2])["code"] == 130
    (folder / "elsewhere").mkdir()
    (folder / "run").rename(folder / "elsewhere" / "my [run]")
    (folder / "t.features.h5").rename(folder / "elsewhere" / "u.features.h5")
    lost = nursery.run(folder, "train", "--resume", "elsewhere/my [run]")
    assert lost["code"] == 1 and "t.features.h5 is missing" in lost["err"]
    words = ["train", "--resume", "elsewhere/my [run]", "--data", "elsewhere/u.features.h5"]
    assert nursery.run(folder, *words)["code"] == 0
    (folder / "elsewhere" / "my [run]").rename(folder / "run")
    found = result_of("train", folder)
    assert found["config"].pop("features") == "../u.features.h5" and wanted["config"]["features"] == "../t.features.h5"
    for key in ("rows", "lines", "status"):
        assert_equal(found[key], wanted[key])
    assert_equal(found["states"]["last"][:2], wanted["states"]["last"][:2])
    done = nursery.run(folder, "train", "--resume", "run")
    assert done["code"] == 0 and "nothing to do" in done["err"]


@pytest.mark.fault(14, "no TTY, ASCII output, NO_COLOR, 20 columns, closed stdin or stdout", tried=5)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"encoding": "ascii"},
        {"environment": {"NO_COLOR": "1", "COLUMNS": "20"}},
        {"stdin": "closed"},
        {"stdout": "closed"},
    ],
    ids=["plain", "ASCII", "20 columns", "no stdin", "no stdout"],
)
def test_whatever_the_terminal_commands_print_and_end_well(how: dict, nursery, ready, tmp_path) -> None:
    folder = copy(ready, tmp_path)
    checked = nursery.run(folder, "check", "s.h5", "t.features.h5", **how)
    helped = nursery.run(folder, "train", "--help", **how)
    report = nursery.run(folder, "check", "s.h5", "--json", **how)
    assert [part["code"] for part in (checked, helped, report)] == [0, 0, 0], (checked, report)
    assert "\x1b" not in checked["out"] + checked["err"]
    if how.get("stdout") != "closed":
        assert checked["out"].count("ok  ") == 2 and json.loads(report["out"])[0]["path"] == "s.h5"
    missing = nursery.run(folder, "check", "Ünd [b]/é.h5", "--json", **how)
    assert missing["code"] == 1
    if how.get("stdout") != "closed":
        assert json.loads(missing["out"])[0]["path"] == "Ünd [b]/é.h5"


@pytest.mark.fault(14, "LANG=C with a path outside ASCII", tried=1)
def test_under_the_c_locale_paths_are_printed(tmp_path: Path) -> None:
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-m", "hsal_cli", "make-data", "mnist-set", "--dry-run", "--out", "Ünd [b]/é.h5"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0 and "Ünd [b]/é.h5" in done.stdout.decode(), done


@pytest.mark.fault(13, "zero and negative counts, learning rate nan, seed 2**64, unknown keys: exit code 2, nothing created", tried=7)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["make-data", "mnist-set", "--train", "-1"], "train = -1 is below 0"),
        (["finetune", "--batch-size", "0"], "batch_size = 0 is below 2"),
        (["precompute", "--batch-size", "0"], "batch_size = 0 is below 1"),
        (["train", "--learning-rate", "nan"], "learning_rate = nan is not finite"),
        (["train", "--seed", str(2**64)], "seed = 18446744073709551616 is above"),
        (["train", "--config", "bad.toml"], "unknown key train.epoch (did you mean epochs?); train.clip = 'x' is not a number"),
        (["train", "--device", "cuda:7"], "device cuda:7"),
    ],
)
def test_a_value_that_cannot_be_used_creates_nothing(words: list[str], said: str, nursery, tmp_path) -> None:
    (tmp_path / "bad.toml").write_text("[train]\nepoch = 3\nclip = 'x'\n")
    done = nursery.run(tmp_path, *words)
    lines = done["err"].strip().splitlines()
    assert done["code"] == 2 and len(lines) == 2 and said in lines[0] and lines[1].startswith("Hint: "), done
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.fault(8, "output is a file, a folder of something else, the home folder with --overwrite: refused, nothing deleted", tried=3)
def test_nothing_that_hsal_did_not_make_is_deleted(nursery, ready, tmp_path) -> None:
    folder = copy(ready, tmp_path)
    home = folder / "home"
    (home / "checkpoints" / "old").mkdir(parents=True)
    (home / "checkpoints" / "old" / "thesis.pdf").write_text("x")
    (home / "config.json").write_text("{}")
    before = sorted(path for path in folder.rglob("*"))
    for out in ("home", "toy.toml", "."):
        done = nursery.run(
            folder, "train", "--data", "t.features.h5", "--variant", "columns", "--config", "toy.toml", "--out", out, "--overwrite"
        )
        assert done["code"] == 2 and "is not a run of hsal" in done["err"], done
    assert sorted(path for path in folder.rglob("*")) == before


def test_a_run_that_was_made_is_sound(nursery, ready, undisturbed, tmp_path) -> None:
    folder = copy(ready, tmp_path)
    assert nursery.run(folder, *words_of("train"))["code"] == 0
    report = check_path(folder / "run")
    assert report.ok, report.faults
    done = nursery.run(folder, "train", "--resume", "run", "--epochs", "3")
    assert done["code"] == 0 and "epochs 2 -> 3" in done["err"], done
    assert [row["epoch"] for row in Run(folder / "run").rows()] == [1, 2, 3] and check_path(folder / "run").ok
    assert nursery.run(folder, "train", "--resume", "run", "--learning-rate", "0.5")["code"] == 2
