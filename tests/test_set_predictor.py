"""The second direct baseline, after DETR: its loss against a slow reference, that it learns repeats, and that commands take it."""

import dataclasses
import itertools
import math

import pytest
import torch
from evaluation_parts import write_features
from learning_parts import SMALL, StoppingReporter, assert_equal, easy_table

from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.load import load_model, load_policy
from hsal_cli.policy.set_predictor import NOTHING, SetPredictor, set_loss
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.storage import checkpoints
from hsal_cli.training.count_task import SetTask
from hsal_cli.training.train import resume, train

CPU = torch.device("cpu")
FAST = TrainSettings(objective="set", epochs=2, batch_size=8, validation=0.25)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    tables = {"train": easy_table(32), "test": easy_table(9, seed=1)}
    return write_features(tmp_path_factory.mktemp("data") / "easy.features.h5", tables, classes=["one", "two"])


@pytest.mark.parametrize("labels", [[0, 1], [1, 1], [2], []])
def test_the_loss_is_that_of_the_cheapest_of_all_pairings(labels) -> None:
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(len(labels)))
    chances = logits[0].softmax(-1)
    pairings = list(itertools.permutations(range(3), len(labels)))
    best = max(pairings, key=lambda queries: sum(chances[q, label].item() for q, label in zip(queries, labels, strict=True)))
    named = dict(zip(best, labels, strict=True))
    slow = -sum(math.log(chances[q, named[q]]) if q in named else NOTHING * math.log(chances[q, 3]) for q in range(3))
    padded = torch.tensor([[*labels, *[-1] * (2 - len(labels))]])
    assert set_loss(logits, padded).item() == pytest.approx(slow, rel=1e-5)


def test_it_learns_multisets() -> None:
    torch.manual_seed(0)
    table, others = easy_table(384, 3, most=3), easy_table(100, 3, most=3, seed=100)
    model = SetPredictor(3, (3, 3, 3), queries=6, volume_scale=0.3, hidden=32)
    settings = dataclasses.replace(FAST, epochs=10, batch_size=16, learning_rate=5e-3)
    task = SetTask(model, table, torch.arange(384), others, settings, CPU, {})
    before = task.validate()["exact_match"]
    for epoch in range(task.epochs):
        task.start_epoch(epoch)
        for step in range(task.steps(epoch)):
            task.step(step)
    assert before < 0.3 and task.validate()["exact_match"] > 0.65


def test_a_stopped_run_resumes_to_exactly_what_it_would_have_been_and_is_evaluated(features, tmp_path) -> None:
    whole = train(features, tmp_path / "whole", SMALL, FAST, CPU)
    with pytest.raises(Interrupted):
        train(features, tmp_path / "run", SMALL, FAST, CPU, StoppingReporter(4))
    resume(tmp_path / "run", CPU)
    ours, theirs = (checkpoints.load(tmp_path / name / "checkpoints", "last").weights for name in ("run", "whole"))
    assert_equal(ours, theirs)
    assert isinstance(load_model(whole.path).policy, SetPredictor)
    found = evaluate_file(load_model(whole.path), features, EvalSettings(), CPU)
    assert found["objective"] == "set" and found["examples"] == 9 and found["attn_saliency"]["raw"] is None
    with pytest.raises(FileError, match="objective set: it looks nowhere"):
        load_policy(whole.path)


def test_a_list_has_an_order_and_it_has_none() -> None:
    with pytest.raises(UsageError, match="objective set with task list"):
        TrainSettings(objective="set", task="list")
