"""When to stop, set at run time: stop is named once its probability exceeds a threshold."""

import json

import pytest
import torch
from learning_parts import SMALL, easy_table
from test_evaluation_commands import call, here, place  # noqa: F401  fixtures

from hsal_cli.bench.products import MatrixProducts
from hsal_cli.errors import UsageError
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.flops import flops_of, policy_flops
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.trust import Trust
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.episode import greedy, until, with_shift
from hsal_cli.policy.hsal import HSAL


def test_stop_is_named_above_the_threshold_and_else_the_likeliest_label() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [0.0, 0.0, -9.0]])
    chance = logits.softmax(1)[:, 2]  # 0.67, 0.11, 0.00
    rows = slice(3)
    assert until(None) is greedy
    for threshold in (0.0, 0.05, 0.5, 0.9):
        wanted = [2 if chance[row] > threshold else int(logits[row, :2].argmax()) for row in range(3)]
        assert until(threshold)(0, rows, logits).tolist() == wanted
    assert until(0.9)(0, rows, logits)[0] == 1  # though stop is the likeliest
    assert until(0.5, temperature=9.0)(0, rows, logits)[0] == 1  # as sure as it says it is


def policy() -> HSAL:
    torch.manual_seed(1)
    return HSAL(SMALL, 2, (2, 3, 3), 0.3).eval()


def test_a_lower_threshold_takes_fewer_meta_steps_and_less_work() -> None:
    def run(threshold: float | None):
        settings = EvalSettings(resamples=2, looking=0, stop_threshold=threshold)
        return evaluate(policy(), easy_table(24, 2, seed=3), ["a", "b"], settings, 5, trust=Trust(temperature=2.0))

    table = easy_table(24, 2, seed=3)
    with torch.no_grad():
        first = policy()(table.volumes.float(), table.saliency, choose=greedy, max_steps=1)
    middle = float((with_shift(first.logits, first.stop_shift)[0] / 2).softmax(1)[:, 2].median())
    always, some, never = run(0.0), run(middle), run(1.0)
    assert always["macro_recall"] == 0 and always["stop_threshold"] == 0.0 and run(None)["stop_threshold"] is None
    assert always["flops"]["policy"] == policy_flops(policy(), 1) < some["flops"]["policy"] < never["flops"]["policy"]
    assert never["flops"]["policy"] == policy_flops(policy(), 5)
    assert always["cells_looked_at"] == 1  # one glimpse, one meta-step


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flops_of_a_policy_are_those_of_its_roll_out(steps: int) -> None:
    one, table = policy(), easy_table(1, 2, seed=3)

    @torch.no_grad()
    def roll() -> None:
        one(table.volumes.float(), table.saliency, choose=until(1.0), max_steps=steps)

    assert policy_flops(one, steps) == flops_of(roll) > 0
    one.stop_head = None  # so that it is made of matrix products alone
    with torch.inference_mode(), MatrixProducts() as products:
        roll()
    assert flops_of(roll) == products.flops  # heads once, though they are asked again where gradients are wanted


def test_direct_baselines_and_sampled_roll_outs_have_no_threshold() -> None:
    with pytest.raises(UsageError, match="stop is drawn"):
        EvalSettings(sample=2, stop_threshold=0.5)
    counts = CountClassifier(2, (2, 3, 3), 2, 0.3).eval()
    with pytest.raises(UsageError, match="a direct baseline takes no steps"):
        evaluate(counts, easy_table(4, 2), ["a", "b"], EvalSettings(stop_threshold=0.5), 3)
    found = evaluate(counts, easy_table(4, 2), ["a", "b"], EvalSettings(resamples=2), 3)
    assert found["flops"]["policy"] > 0 and found["cells_looked_at"] is None


def test_eval_predict_and_visualize_take_the_threshold(here) -> None:  # noqa: F811
    found = json.loads(call("eval", "--json", "--resamples", 2, "--stop-threshold", 0, "--out", here / "eval-stop.json").stdout)
    assert found["stop_threshold"] == 0 and found["macro_recall"] == 0
    assert found["flops"]["image"] == found["flops"]["backbone"] + found["flops"]["windows"] + found["flops"]["policy"]
    for command in ("predict", "visualize"):
        (never,), (always,) = (
            json.loads(call(command, "grey.png", "--json", "--max-steps", 2, "--stop-threshold", value).stdout) for value in (1, 0)
        )
        assert len(never["labels"]) == 2 and always["labels"] == []
    assert "stop-threshold" in call("predict", "grey.png", "--stop-threshold", 2, code=2).said
