"""Workers that were given different settings or data do not work together: they say what differs, and who has which."""

from pathlib import Path

import pytest
from evaluation_parts import write_features
from learning_parts import easy_table

from hsal_cli import distributed
from hsal_cli.errors import UsageError
from hsal_cli.runs.run import create


def test_what_differs_is_named_with_its_values_and_who_has_them(monkeypatch) -> None:
    def agree(*others: dict) -> None:
        monkeypatch.setattr(distributed, "all_gather", lambda own: [own, *others])
        distributed.agree(digest="a", train={"seed": 0, "epochs": 3})

    same = {"digest": "a", "train.seed": 0, "train.epochs": 3}
    agree(same, same)
    with pytest.raises(UsageError) as caught:
        agree(same, {**same, "train.seed": 5}, {**same, "train.seed": 5, "digest": "b"})
    said = "the workers differ: digest is a (worker 0, 1, 2), b (worker 3); train.seed is 0 (worker 0, 1), 5 (worker 2, 3)"
    assert caught.value.message == said
    with pytest.raises(UsageError, match=r"new is missing \(worker 0\), 1 \(worker 1\)"):
        agree({**same, "new": 1})


CASES = {
    "another seed": (("train", "--data", "easy.features.h5"), ("--seed", "5"), "train.seed is 0 (worker 0), 5 (worker 1)"),
    "other features": (("train", "--data", "easy.features.h5"), ("--data", "hard.features.h5"), "scenes_digest is sss"),
    "another objective": (
        ("train", "--data", "easy.features.h5"),
        ("--objective", "multiset"),
        "train.objective is rl (worker 0), multiset",
    ),
    "other settings": (("finetune", "--data", "squares.h5"), ("--batch-size", "4"), "batch_size is 8 (worker 0), 4 (worker 1)"),
    "other scenes": (
        ("precompute", "--data", "pictures.h5", "--backbone", "backbone"),
        ("--batch-size", "2"),
        "batch_size is 4 (worker 0), 2",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.fault(21, "workers with other seeds, features or settings: refused before the first step, with the values", tried=len(CASES))
def test_workers_that_differ_refuse_to_work(case: str, worker_place, worker_nursery) -> None:
    words, more, said = CASES[case]
    write_features(
        worker_place / "hard.features.h5",
        {"train": easy_table(44, seed=5), "test": easy_table(21, seed=6)},
        classes=["one", "two"],
        scenes_digest="0" * 64,
    )
    out = Path(worker_place, "differ")
    first, second = worker_nursery.run(worker_place, *words, "--out", out, "--config", "toy.toml", more={1: more})
    assert first["code"] == second["code"] == 2, (first, second)
    lines = [line for line in first["err"].splitlines() if line.startswith(("Error: ", "Hint: "))]
    assert len(lines) == 2 and lines[0].startswith("Error: the workers differ: ") and said in lines[0], first
    assert not out.exists() and "Traceback" not in first["err"] + second["err"]


def test_evaluation_compares_too(worker_place, worker_nursery) -> None:
    if not (worker_place / "rl-1").exists():
        done = worker_nursery.run(worker_place, "train", "--data", "easy.features.h5", "--out", "rl-1", "--config", "toy.toml", size=1)
        assert done[0]["code"] == 0, done
    words = ("eval", "--run", "rl-1", "--out", "differ.json", "--config", "toy.toml")
    first, second = worker_nursery.run(worker_place, *words, more={1: ["--sample", "2"]})
    assert first["code"] == second["code"] == 2 and "eval.sample is 0 (worker 0), 2 (worker 1)" in first["err"], (first, second)
    assert not (worker_place / "differ.json").exists()


def test_a_place_that_not_all_workers_see_is_refused_and_left_clean(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(distributed, "current", lambda: distributed.Workers(0, 3))
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, True, False])
    with pytest.raises(UsageError, match="worker 2 does not see "):
        create(tmp_path / "runs/new", "policy", {})
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(distributed, "all_gather", lambda own: [own, own, own])
    assert create(tmp_path / "runs/new", "policy", {}).status.state == "running"
    assert [place.name for place in tmp_path.rglob(".hsal-*")] == []
