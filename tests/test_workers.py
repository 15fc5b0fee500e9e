"""Several workers: the results of one process, whoever computes what."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from worker_parts import assert_same_training, hsal

from hsal_cli.errors import Interrupted
from hsal_cli.vision.devices import autocast_gains

SLOW = pytest.mark.slow
OBJECTIVES = [("rl", 2), *(pytest.param(*case, marks=SLOW) for case in (("rl", 3), ("cross-entropy", 2), ("count", 2)))]


@pytest.mark.parametrize(("objective", "size"), OBJECTIVES)
def test_training_gives_the_weights_and_metrics_of_one_process(objective, size, worker_place, worker_nursery) -> None:
    words = ("train", "--data", "easy.features.h5", "--objective", objective, "--out")
    one, many = (worker_place / f"{objective}-{number}" for number in (1, size))
    if not one.exists():
        hsal(worker_nursery, worker_place, *words, one, size=1)
    said = hsal(worker_nursery, worker_place, *words, many, size=size)
    assert "best exact match" in said["out"]
    assert_same_training(one, many)
    status = json.loads((many / "status.json").read_text())
    assert status["state"] == "finished" and status["workers"] == size


def test_fine_tuning_takes_batch_norm_over_all_workers(worker_place, worker_nursery) -> None:
    words = ("finetune", "--data", "squares.h5", "--out")
    for size in (1, 2):
        hsal(worker_nursery, worker_place, *words, worker_place / f"finetune-{size}", size=size)
    # The bias before a BatchNorm has no gradient but rounding's, which AdamW makes steps of. bfloat16, where a CPU has it, rounds more.
    runs, relative = (worker_place / "finetune-1", worker_place / "finetune-2"), 1e-2 if autocast_gains(torch.device("cpu")) else 1e-4
    assert_same_training(*runs, without=("conv.bias", "norm.running_mean"), relative=relative)
    one, two = (json.loads((worker_place / f"finetune-{size}/status.json").read_text()) for size in (1, 2))
    assert one["test_accuracy"] == two["test_accuracy"] and one["accuracy"] == two["accuracy"]


def test_a_network_of_timm_is_fine_tuned_as_by_one_process(worker_place, worker_nursery) -> None:
    pytest.importorskip("timm", reason="timm is not installed: pip install 'hsal[timm]'")
    words = ("finetune", "--data", "squares.h5", "--arch", "timm:test_efficientnet", "--channels", 16, "--input-size", 56, "--out")
    runs = [worker_place / f"timm-{size}" for size in (1, 2)]
    for size, run in enumerate(runs, 1):
        hsal(worker_nursery, worker_place, *words, run, size=size)
    assert_same_training(*runs, relative=1e-2)


@pytest.mark.parametrize("sample", [0, pytest.param(2, marks=SLOW)])
def test_evaluation_is_that_of_one_process(sample, worker_place, worker_nursery) -> None:
    if not (worker_place / "rl-1").exists():
        hsal(worker_nursery, worker_place, "train", "--data", "easy.features.h5", "--out", "rl-1", size=1)
    found = []
    for size in (1, 2):
        said = hsal(
            worker_nursery, worker_place, "eval", "--run", "rl-1", "--sample", sample, "--json", "--out", f"{sample}-{size}.json", size=size
        )
        found.append(json.loads(said["out"]))
        assert found[-1] == json.loads((worker_place / f"{sample}-{size}.json").read_text())
    assert_close(*found)
    assert found[0]["examples"] == 21


def assert_close(left, right, where: str = "") -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - {"digest"}:
            assert_close(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list):
        for pair in zip(left, right, strict=True):
            assert_close(*pair, where)
    else:
        assert left == (pytest.approx(right, abs=1e-9) if isinstance(right, float) else right), where


@pytest.mark.parametrize("size", [2, pytest.param(9, marks=SLOW)])
def test_a_shared_precomputation_gives_the_same_file(size, worker_place, worker_nursery) -> None:
    words = ("precompute", "--data", "pictures.h5", "--backbone", "backbone", "--out")
    if not (worker_place / "1.features.h5").exists():
        hsal(worker_nursery, worker_place, *words, "1.features.h5", size=1)
    hsal(
        worker_nursery, worker_place, *words, f"{size}.features.h5", size=size
    )  # 6 batches of train, 2 of test: not every one of 9 has any
    one, many = (contents(worker_place / f"{number}.features.h5") for number in (1, size))
    assert one.keys() == many.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], many[name], err_msg=name)
    with h5py.File(worker_place / "1.features.h5") as left, h5py.File(worker_place / f"{size}.features.h5") as right:
        assert left.attrs["attributes_digest"] == right.attrs["attributes_digest"]


def test_a_precomputation_goes_on_with_another_number_of_workers(worker_place, worker_nursery) -> None:
    from test_precompute import Heard

    from hsal_cli.features.precompute import precompute
    from hsal_cli.features.settings import PrecomputeSettings

    if not (worker_place / "1.features.h5").exists():
        words = ("precompute", "--data", "pictures.h5", "--backbone", "backbone", "--out", "1.features.h5")
        hsal(worker_nursery, worker_place, *words, size=1)
    out = worker_place / "begun.features.h5"
    with pytest.raises(Interrupted):
        precompute(worker_place / "pictures.h5", worker_place / "backbone", out, PrecomputeSettings(batch_size=4), "cpu", Heard(2))
    said = hsal(
        worker_nursery, worker_place, "precompute", "--data", "pictures.h5", "--backbone", "backbone", "--out", "begun.features.h5", size=2
    )
    assert "continuing after 8 images" in said["err"]
    one, two = (contents(worker_place / f"{name}.features.h5") for name in ("1", "begun"))
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {f"{split}/{name}": data[()] for split, group in file.items() for name, data in group.items()}
