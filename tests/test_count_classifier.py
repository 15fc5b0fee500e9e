"""The direct baseline: that it learns to count, resumes exactly, is evaluated like a policy, and is refused where glimpses are wanted."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from evaluation_parts import write_features
from learning_parts import SMALL, StoppingReporter, assert_equal, easy_table, without
from typer.testing import CliRunner

from hsal_cli.commands.options import recipe_for
from hsal_cli.errors import FileError, Interrupted, UsageError
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.table import open_features
from hsal_cli.main import app
from hsal_cli.models.load import load_model, load_policy
from hsal_cli.policy.count_classifier import CountClassifier, expected_counts
from hsal_cli.runs import run as runs
from hsal_cli.runs.record import read_record
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.storage import checkpoints
from hsal_cli.training.count_task import CountTask
from hsal_cli.training.train import resume, train

CPU = torch.device("cpu")
NAMES = ["one", "two"]
FAST = TrainSettings(objective="count", epochs=3, batch_size=8, validation=0.25)  # 24 of 32 images: 3 steps an epoch


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    tables = {"train": easy_table(32), "test": easy_table(9, seed=1)}
    return write_features(tmp_path_factory.mktemp("data") / "easy.features.h5", tables, classes=NAMES)


@pytest.fixture(scope="module")
def trained(features, tmp_path_factory) -> runs.Run:
    return train(features, tmp_path_factory.mktemp("count") / "run", SMALL, FAST, CPU)


def test_it_learns_how_often_each_class_occurs() -> None:
    torch.manual_seed(0)
    table, others = easy_table(256, 3, most=3), easy_table(100, 3, most=3, seed=100)
    model = CountClassifier(3, (3, 3, 3), most=3, volume_scale=0.3, hidden=16)
    task = CountTask(
        model, table, torch.arange(256), others, dataclasses.replace(FAST, epochs=12, batch_size=16, learning_rate=1e-2), CPU, {}
    )
    before = task.validate()["exact_match"]
    for epoch in range(task.epochs):
        task.start_epoch(epoch)
        for step in range(task.steps(epoch)):
            task.step(step)
    assert before < 0.3 and task.validate()["exact_match"] > 0.65  # after 8 epochs it was 0.78


def test_the_loss_is_the_negative_log_likelihood_of_the_whole_multiset(monkeypatch) -> None:
    monkeypatch.setattr("hsal_cli.training.count_task.DROPOUT", 0.0)
    table = easy_table(6)
    model = CountClassifier(2, (2, 3, 3), most=2, hidden=4)
    task = CountTask(model, table, torch.arange(6), table, dataclasses.replace(FAST, batch_size=6), CPU, {})
    task.start_epoch(0)
    model.train()
    with torch.no_grad():
        probabilities = model(table.volumes).softmax(-1).double()
    slow = 0.0
    for row in range(6):
        for label in range(2):
            slow -= math.log(probabilities[row, label, table.labels[row].tolist().count(label)])
    assert task.step(0)[1]["loss"].item() == pytest.approx(slow / 6, rel=1e-5)


@pytest.mark.parametrize("after", [2, 3, 7])
def test_a_stopped_run_resumes_to_exactly_what_it_would_have_been(after, features, trained, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(features, out, SMALL, FAST, CPU, StoppingReporter(after))
    torch.manual_seed(999)  # a new process has other random states
    resumed = resume(out, CPU)
    for which in ("last", "best"):
        mine, theirs = (checkpoints.load(run.checkpoints, which) for run in (resumed, trained))
        for part in ("weights", "state", "meta"):
            assert_equal(getattr(mine, part), getattr(theirs, part))
    assert [without(row) for row in resumed.rows()] == [without(row) for row in trained.rows()]


def test_it_is_evaluated_like_a_policy_without_scores_of_attention(features, trained) -> None:
    loaded = load_model(trained.path)
    found = evaluate_file(loaded, features, EvalSettings(resamples=10, batch_size=4), CPU)
    table = easy_table(9, seed=1)
    with torch.no_grad():
        counts = loaded.policy(table.volumes).argmax(-1).tolist()
    slow = sum(counts[row] == [table.labels[row].tolist().count(label) for label in (0, 1)] for row in range(9)) / 9
    assert found["exact_match"] == pytest.approx(slow) and found["examples"] == 9 and found["objective"] == "count"
    assert found["attn_saliency"] == dict.fromkeys(("raw", "normalized", "random", "best")) and "localization" not in found
    assert {"most_frequent_multiset", "count_only"} == set(found["baselines"])
    channels, hidden, outputs = 2, 128, 2 * 3
    assert found["parameters"] == 9 * hidden * (channels + hidden) + 4 * hidden + (2 * hidden + 1) * outputs
    json.dumps(found, allow_nan=False)


def test_it_takes_no_steps_so_none_can_be_sampled_or_capped(trained) -> None:
    model = load_model(trained.path).policy
    for settings in (EvalSettings(sample=2), EvalSettings(max_steps=3)):
        with pytest.raises(UsageError, match="takes no steps"):
            evaluate(model, easy_table(3), NAMES, settings, 0)


def test_it_counts_no_further_than_the_training_images_do(trained) -> None:
    meta = checkpoints.load(trained.checkpoints, "best").meta
    assert meta["kind"] == "count" and meta["count"] == {"most": 2, "hidden": 128} and "policy" not in meta
    assert load_model(trained.path).policy(torch.zeros(1, 2, 3, 3)).shape == (1, 2, 3)


def test_it_is_refused_where_a_trajectory_is_wanted(trained) -> None:
    with pytest.raises(FileError, match="looks nowhere") as caught:
        load_policy(trained.path)
    assert f"hsal predict IMAGE --run {trained.path}" in caught.value.hint


@pytest.mark.parametrize(("objective", "resolution"), [("rl", "fine"), ("count", None), ("set", None)])
def test_of_a_scene_file_it_reads_the_volume_alone(objective, resolution) -> None:
    assert recipe_for(None, None, train=TrainSettings(objective=objective)).precompute.resolution == resolution


def test_a_list_has_an_order_that_counts_do_not_tell() -> None:
    with pytest.raises(UsageError, match="objective count with task list"):
        TrainSettings(objective="count", task="list")


def call(*words: object) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.stdout


def test_the_commands_take_it_in_turn(features, tmp_path, monkeypatch) -> None:
    """train --objective count, then eval, which finds it, and compare, which shows its size beside a policy's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "easy.features.h5").write_bytes(features.read_bytes())
    small = ("--epochs", 1, "--data", "data/easy.features.h5")
    call("train", *small, "--variant", "columns", "--set", "controller_encode=8", "--set", "controller_hidden=8")
    call("eval", "--resamples", 5)
    call("train", "--objective", "count", *small)
    said = call("eval", "--resamples", 5)
    assert "count classifier" in said and "attn_saliency" not in said and "visualize" not in said
    assert "next: hsal predict FOLDER --csv counts.csv --run runs/easy-count" in said
    assert (tmp_path / "runs/easy-rl/eval.json").read_text() != (tmp_path / "runs/easy-count/eval.json").read_text()
    said = call("compare", "runs/easy-rl", "runs/easy-count")
    assert "train.objective: rl, count" in said and "train.epochs" not in said
    assert f"{json.loads((tmp_path / 'runs/easy-count/eval.json').read_text())['parameters']:,}" in said
    assert [part["run"] for part in json.loads(call("compare", "runs/easy-rl", "runs/easy-count", "--json"))] == [
        "runs/easy-rl",
        "runs/easy-count",
    ]
    call("train", *small, "--variant", "columns", "--set", "controller_encode=8", "--set", "controller_hidden=8", "--set", "mask=learned")
    call("eval", "--resamples", 5)
    assert "variant.mask: anchored, learned, -" in call("compare", "runs/easy-rl", "runs/easy-rl-2", "runs/easy-count")
    assert "epochs 1 -> 2" in CliRunner().invoke(app, ["train", "--resume", "runs/easy-count", "--epochs", "2"]).stderr
    assert len(runs.Run(Path("runs/easy-count")).rows()) == 2
    refused = CliRunner().invoke(app, ["train", "--resume", "runs/easy-count", "--set", "mask=learned"])
    assert "runs/easy-count goes on with its own settings: it has no variant" in refused.exception.message
    call("check", "runs/easy-count")
    refused = CliRunner().invoke(app, ["visualize", "--data", "data/easy.features.h5", "--run", "runs/easy-count"])
    assert isinstance(refused.exception, FileError) and "looks nowhere" in refused.exception.message


def test_features_are_known_by_what_they_are_where_their_name_does_not_say_so(features, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.h5").write_bytes(features.read_bytes())
    assert not call("train", "--objective", "count", "--epochs", 1, "--data", "own.h5").count("own.features.h5")
    assert runs.Run(Path("runs/own-count")).config.raw["features"].endswith("own.h5")
    call("eval", "--resamples", 5)


def test_its_verdicts_speak_of_the_loss_since_it_has_no_reward(trained) -> None:
    from hsal_cli.training.verdicts import verdicts

    record = read_record(trained.path)
    scores = [0.5, 0.8, 0.9, 0.6, 0.5, 0.4]
    rows = [{"epoch": place + 1, "exact_match": score, "macro_f1": score, "loss": 3.0 - 0.4 * place} for place, score in enumerate(scores)]
    said = verdicts(dataclasses.replace(record, rows=rows))[0].text
    assert record.kind == "count" and "overfits since epoch 3" in said and "loss in training fell from 2.200 to 1.000" in said


def counting_backbone(path: Path, objects: str, digest: str = "b") -> SimpleNamespace:
    """What `hsal finetune --objects ...` leaves, as far as training asks for it."""
    torch.manual_seed(0)
    return SimpleNamespace(
        config=SimpleNamespace(finetune=SimpleNamespace(objects=objects)),
        digest=digest,
        model=SimpleNamespace(fc=torch.nn.Linear(2, 2), resolution=3, channels=2),
    )


@pytest.mark.parametrize(("objects", "digest", "taken"), [("counts", None, True), ("single", None, False), ("counts", "other", False)])
def test_it_goes_on_from_a_backbone_that_learned_counts(features, tmp_path, monkeypatch, objects, digest, taken) -> None:
    with open_features(features) as file:
        stub, table = counting_backbone(tmp_path, objects, digest or file.backbone_digest), file.table("train")
    monkeypatch.setattr(sys.modules["hsal_cli.training.material"], "load_backbone", lambda path: stub)
    known = runs.open_run
    monkeypatch.setattr(runs, "open_run", lambda path, kind=None: stub if path.name == "backbone" else known(path, kind))
    settings = dataclasses.replace(FAST, learning_rate=1e-9, epochs=1)
    run = train(features, tmp_path / "run", SMALL, settings, CPU, backbone=tmp_path / "backbone")
    model = load_model(run.path, "last").policy
    assert model.expecting == (2 if taken else 0)
    if taken:
        expected = expected_counts(stub.model.fc, table.volumes.float()).sum((1, 2))
        assert torch.equal(model.predict(table.volumes), expected.detach().round().clamp(max=model.most).long())


def test_what_cells_expect_without_evidence_is_one_object_among_them_all() -> None:
    layer = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(layer.bias)
    found = expected_counts(layer, torch.zeros(2, 4, 5, 5))
    assert found.shape == (2, 5, 5, 3) and torch.allclose(found.sum((1, 2)), torch.full((2, 3), 1.0), atol=0.03)
