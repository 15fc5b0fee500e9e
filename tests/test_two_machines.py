"""Two machines, of which each is a network namespace (see two_machines.py): the results of one process, and what a cut cable leaves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_workers import assert_close, contents
from two_machines import Machines, alone, reason_against, until
from worker_parts import assert_same_training, make_place

from hsal_cli.storage import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOY = ("--config", "toy.toml")
TRAIN = ("train", "--data", "easy.features.h5", *TOY, "--out")
PRECOMPUTE = ("precompute", "--data", "pictures.h5", "--backbone", "backbone", *TOY, "--out")
FINETUNE = ("finetune", "--data", "squares.h5", "--arch", "resnet18", "--weights", "none", *TOY, "--input-size", "112", "--out")


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    reason = reason_against()
    if reason:
        pytest.skip(reason)
    with Machines() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("machines"))


def both(machines: Machines, place: Path, *words: object) -> None:
    for ended in machines.run(place, *words):
        assert ended.code == 0, ended.said


def test_training_and_evaluation_are_those_of_one_process(machines, place) -> None:
    alone(place, *TRAIN, "one")
    both(machines, place, *TRAIN, "two")
    assert_same_training(place / "one", place / "two")
    alone(place, "eval", "--run", "one", "--out", "one.json", *TOY)
    both(machines, place, "eval", "--run", "one", "--out", "two.json", *TOY)
    assert_close(*(json.loads((place / f"{name}.json").read_text()) for name in ("one", "two")))


def test_a_precomputation_is_that_of_one_process(machines, place) -> None:
    alone(place, *PRECOMPUTE, "one.features.h5")
    both(machines, place, *PRECOMPUTE, "two.features.h5")
    one, two = (contents(place / f"{name}.features.h5") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_fine_tuning_starts_as_that_of_one_process_and_ends_close_to_it(machines, place) -> None:
    alone(place, *FINETUNE, "one-backbone")
    both(machines, place, *FINETUNE, "two-backbone")
    one, two = (
        [json.loads(line) for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one-backbone", "two-backbone")
    )
    assert len(one) == len(two)
    # AdamW makes whole steps of gradients that are nothing but rounding: a few steps are alike, not equal
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-2)


def test_a_cut_cable_ends_in_two_lines_on_both_sides_and_a_run_that_goes_on(machines, place) -> None:
    alone(place, *TRAIN, "whole", "--epochs", "40")

    def cut() -> None:
        until((place / "cut" / "metrics.jsonl").exists)
        machines.cut()

    try:
        found = machines.run(place, *TRAIN, "cut", "--epochs", "40", meanwhile=cut, environment={"HSAL_WORKER_TIMEOUT": "15"})
    finally:
        machines.mend()
    for ended in found:
        assert ended.code != 0 and len(ended.error) == 2, ended.said
        assert ended.error[0].startswith("Error: a worker was lost at step ") and "hsal train --resume cut" in ended.error[1]
    assert json.loads((place / "cut/status.json").read_text())["state"] == "stopped"
    both(machines, place, "train", "--resume", "cut")
    ends = [checkpoints.load(place / name / "checkpoints", "last") for name in ("whole", "cut")]
    assert [end.meta["epoch"] for end in ends] == [40, 40]


REFUSED = {
    "no data": (TRAIN, "easy.features.h5", "easy.features.h5"),
    "another run folder": (TRAIN, "", "does not see "),
    "features on one of them": (PRECOMPUTE, "", "features_are_there is True (worker 0), False (worker 1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_machines_with_disks_of_their_own_are_refused_before_the_first_step(case, machines, place, tmp_path) -> None:
    words, lacking, said = REFUSED[case]
    out = "there.features.h5" if words is PRECOMPUTE else f"refused-{len(case)}"
    disk = tmp_path / "disk"
    shutil.copytree(place, disk)
    (disk / lacking).unlink() if lacking else None
    if words is PRECOMPUTE:
        alone(place, *PRECOMPUTE, out)
    found = machines.run(place, *words, out, own_disk=disk)
    assert all(ended.code != 0 for ended in found)
    lines = [line for ended in found for line in ended.error]
    assert len(lines) == 2 and said in lines[0], (found[0].said, found[1].said)
    assert words is PRECOMPUTE or not (place / out).exists()


def test_a_name_that_stands_for_the_machine_itself_is_answered_with_the_variable_that_helps(machines, place) -> None:
    found = machines.run(place, *TRAIN, "unnamed", own_name="127.0.1.1", environment={"HSAL_WORKER_TIMEOUT": "10"})
    errors = [line for ended in found for line in ended.error]
    assert errors and "does not find the others" in errors[0] and "GLOO_SOCKET_IFNAME" in errors[1], found
    for ended in machines.run(place, *TRAIN, "named", own_name="127.0.1.1", environment={"GLOO_SOCKET_IFNAME": "wire0"}):
        assert ended.code == 0, ended.said
