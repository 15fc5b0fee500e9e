"""Evaluating a policy: what is scored, that batching changes nothing, sampling, and the trivial baselines."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, SMALL, small_policy, small_table, write_features, write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_parts import StoppingReporter

from hsal_cli.errors import FileError, Interrupted
from hsal_cli.evaluation.evaluate import evaluate, mean_of, quick_scores, roll_outs
from hsal_cli.evaluation.files import evaluate_file
from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts, trivial_baselines
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.load import load_policy
from hsal_cli.models.look import look_at
from hsal_cli.models.seen import to_json
from hsal_cli.policy.episode import Episode, greedy
from hsal_cli.progress import Reporter

CONTRACT = {
    *("examples", "exact_match", "macro_f1", "macro_precision", "macro_recall", "micro_f1", "micro_precision", "micro_recall"),
    *("example_f1", "cardinality_error", "ci95", "by_count", "by_class", "attn_saliency", "localization", "baselines"),
}


def run(policy=None, table=None, max_steps=4, **chosen):
    table = small_table() if table is None else table
    return evaluate(policy or small_policy(), table, NAMES, EvalSettings(resamples=20, **chosen), max_steps, train_labels=table.labels)


def flat(document):
    """path -> number, so that nested documents can be compared approximately."""
    if isinstance(document, dict):
        return {f"{key}/{path}": value for key, part in document.items() for path, value in flat(part).items()}
    if isinstance(document, list):
        return {f"{place}/{path}": value for place, part in enumerate(document) for path, value in flat(part).items()}
    return {"": document}


def test_batched_equals_one_by_one():
    whole = run(batch_size=256)
    for size in (1, 5):
        assert flat(run(batch_size=size)) == pytest.approx(flat(whole), abs=1e-6)


def test_every_key_of_the_contract_is_there_and_is_json():
    found = run()
    assert found.keys() >= CONTRACT
    assert found["attn_saliency"].keys() == {"raw", "normalized", "random", "best"}
    assert found["localization"].keys() >= {
        "glimpse_hit",
        "mask_mass",
        "random",
        "area",
        "center",
        "reachable",
        "saliency",
        "digits_once",
        "repeat_visits",
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_the_policy_names_greedily_is_what_is_scored():
    policy, table = small_policy(), small_table()
    named = []
    for row in range(len(table)):
        one = table.select(slice(row, row + 1))
        with torch.no_grad():
            episode = policy(one.volumes.float(), one.saliency, choose=greedy, max_steps=4)
        labels = [int(label) for label in episode.labels[:, 0] if label != policy.stop]
        named.append([labels.count(c) for c in range(3)])
    exact, macro_f1 = exact_match_and_f1(label_counts(table.labels, 3), np.array(named))
    found, quick = run(policy, table), quick_scores(policy, table, 4, batch_size=6)
    assert 0 < macro_f1 < 1
    assert (found["exact_match"], found["macro_f1"]) == (quick["exact_match"], quick["macro_f1"]) == pytest.approx((exact, macro_f1))
    assert quick["attn_saliency"] == pytest.approx(found["attn_saliency"]["raw"])
    assert quick["attn_saliency_normalized"] == pytest.approx(found["attn_saliency"]["normalized"])
    local = ("glimpse_hit", "mask_mass", "area", "digits_once", "repeat_visits")
    assert [quick[key] for key in local] == pytest.approx([found["localization"][key] for key in local])


def test_the_cap_on_steps_bounds_what_is_named():
    policy = small_policy()
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] = -100.0  # never stop
    table = small_table()
    sizes = (table.labels >= 0).sum(1).float()
    assert run(policy, table, max_steps=5)["cardinality_error"] == pytest.approx(float((5 - sizes).abs().mean()))
    settings = EvalSettings(resamples=2, max_steps=1)  # what the user sets goes before the policy's own cap
    assert evaluate(policy, table, NAMES, settings, 5)["cardinality_error"] == pytest.approx(float((1 - sizes).abs().mean()))


def test_without_boxes_there_is_no_localization():
    found = run(table=small_table(boxes=False))
    assert "localization" not in found
    assert quick_scores(small_policy(), small_table(boxes=False), 4).keys() == {
        *("exact_match", "macro_f1", "attn_saliency", "attn_saliency_normalized")
    }


def test_a_policy_without_glimpses_is_scored_all_the_same():
    policy = small_policy(settings=dataclasses.replace(SMALL, glimpses=0))
    found = run(policy)
    assert found["attn_saliency"]["raw"] is None and found["localization"]["glimpse_hit"] is None
    assert 0 < found["localization"]["mask_mass"] <= 1
    assert "attn_saliency" not in quick_scores(policy, small_table(), 4)


def test_sampled_rollouts_are_seeded_and_averaged():
    both, again = run(sample=2, seed=7), run(sample=2, seed=7)
    assert both == again
    singles = [run(sample=1, seed=seed) for seed in (7, 8)]
    assert both["exact_match"] == pytest.approx(np.mean([single["exact_match"] for single in singles]))
    assert both["macro_f1"] == pytest.approx(np.mean([single["macro_f1"] for single in singles]))
    assert singles[0]["attn_saliency"] != singles[1]["attn_saliency"]
    assert both["sample"] == 2 and both["examples"] == 23


def test_glimpses_are_sampled_too():
    table = small_table()
    policy = small_policy(settings=dataclasses.replace(SMALL, location_input="hidden"))

    def first_glimpses(seed):
        (_, episode), *_ = roll_outs(policy, table, 4, 256, seed=seed)
        return episode.glimpses[0].tolist()

    assert first_glimpses(1) == first_glimpses(1) != first_glimpses(2)
    assert first_glimpses(None) == first_glimpses(None) != first_glimpses(1)


def test_averaging_keeps_what_is_missing_and_what_agrees():
    assert mean_of([{"a": [1, 2], "b": None, "n": 3}, {"a": [3, 3], "b": 0.5, "n": 3}]) == {"a": [2, 2.5], "b": 0.5, "n": 3}
    assert mean_of([None, None]) is None


def test_a_request_to_stop_is_heeded_between_batches():
    class Asked(Reporter):
        stop_signal = 15

    with pytest.raises(Interrupted) as raised:
        evaluate(small_policy(), small_table(), NAMES, EvalSettings(), 4, reporter=Asked())
    assert raised.value.exit_code == 143


def test_a_look_is_one_images_part_of_an_episode():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 3, 2, 2, 4, generator=generator)  # which map, step, image, h, w
    logits, stop_shift = torch.randn(3, 2, 4, generator=generator), torch.randn(3, 2, generator=generator)
    episode = Episode(
        active=torch.tensor([[True, True], [True, True], [False, True]]),
        labels=torch.tensor([[1, 2], [3, 0], [-1, 3]]),
        logits=logits,
        stop_shift=stop_shift,
        glimpses=torch.tensor([[[0, 5], [1, 6]], [[2, 2], [7, 3]], [[0, 0], [4, 4]]]),
        location_logits=torch.zeros(3, 2, 2, 8),
        values=torch.zeros(3, 2, 3),
        masks=maps[0],
        priority=maps[1],
        saliency=maps[2],
        gaussians=torch.zeros(3, 2, 1, 5),
    )
    document = to_json(look_at(episode, 1, "x.png", np.zeros((2, 2, 3), np.uint8), NAMES))
    scores = logits + stop_shift[..., None] * torch.eye(4)[3]
    softmax = scores[:, 1].softmax(-1)
    assert document["labels"] == ["owl", "cat"]
    assert document["stop_probability"] == pytest.approx(float(softmax[2, 3]), abs=1e-5)
    for step, (label, glimpses) in enumerate(((2, [[0, 1], [1, 2]]), (0, [[1, 3], [0, 3]]))):
        found = document["steps"][step]
        assert found["label"] == NAMES[label] and found["probability"] == pytest.approx(float(softmax[step, label]), abs=1e-5)
        assert found["glimpses"] == glimpses
        for place, name in enumerate(("mask", "priority", "saliency")):
            assert np.allclose(found[name], maps[place, step, 1], atol=1e-5)
    first = to_json(look_at(episode, 0, "x.png", np.zeros((2, 2, 3), np.uint8), NAMES))
    assert first["labels"] == ["dog"]
    assert first["stop_probability"] == pytest.approx(float(scores[1, 0].softmax(-1)[3]), abs=1e-5)


multisets = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(multisets, multisets)
def test_trivial_baselines_are_the_most_frequent_multisets(train, test):
    def commonest(labels):
        counted = Counter(tuple(labels_of.count(c) for c in range(3)) for labels_of in labels)
        return min(counted, key=lambda multiset: (-counted[multiset], multiset))

    def scores(guesses):
        exact, macro_f1 = exact_match_and_f1(np.array([[t.count(c) for c in range(3)] for t in test]), np.array(guesses))
        return {"exact_match": exact, "macro_f1": macro_f1}

    by_size = [commonest([t for t in train if len(t) == len(labels)] or train) for labels in test]
    counts = [np.array([[t.count(c) for c in range(3)] for t in part]) for part in (train, test)]
    assert trivial_baselines(*counts) == {
        "most_frequent_multiset": scores([commonest(train)] * len(test)),
        "count_only": scores(by_size),
    }


def test_a_feature_file_is_evaluated_and_named(tmp_path):
    tables = {"train": small_table(9, seed=1), "test": small_table()}
    features = write_features(tmp_path / "toy.features.h5", tables)
    loaded = load_policy(write_run(tmp_path / "run", small_policy()))
    found = evaluate_file(loaded, features, EvalSettings(resamples=20))
    wanted = evaluate(loaded.policy, tables["test"], NAMES, EvalSettings(resamples=20), 5, train_labels=tables["train"].labels)
    assert (found["dataset"], found["split"]) == ("toy", "test")
    assert {key: found[key] for key in wanted} == wanted | {"flops": found["flops"]}
    nowhere = {"looks": 0, **dict.fromkeys(("backbone", "windows", "image"))}  # no backbone is named
    assert found["flops"] == wanted["flops"] | nowhere
    assert evaluate_file(loaded, features, EvalSettings(split="train", resamples=2))["examples"] == 9


def test_the_backbone_of_a_policy_is_searched_for_once(tmp_path, monkeypatch):
    features = write_features(tmp_path / "toy.features.h5", {"test": small_table(4)})
    loaded = load_policy(write_run(tmp_path / "run", small_policy()))
    searched = []
    monkeypatch.setattr("hsal_cli.models.load.backbone_folder", lambda digest, *places: searched.append(digest))
    evaluate_file(loaded, features, EvalSettings(resamples=2, looking=0))
    assert searched == ["b" * 64]


@pytest.mark.parametrize("gains", [False, True])
def test_roll_outs_are_in_half_precision_where_that_gains(gains, monkeypatch):
    monkeypatch.setattr("hsal_cli.vision.devices.autocast_gains", lambda device: gains)
    asked = []
    policy = small_policy()
    monkeypatch.setattr(type(policy), "forward", lambda self, *parts, **named: asked.append(named["half"]))
    list(roll_outs(policy, small_table(4), 4, 2))
    assert asked == [gains] * 2


def test_cores_that_others_use_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("hsal_cli.threads.advice", lambda count: "too many threads")
    loaded, reporter = load_policy(write_run(tmp_path / "run", small_policy())), StoppingReporter()
    evaluate_file(
        loaded, write_features(tmp_path / "toy.features.h5", {"test": small_table(4)}), EvalSettings(resamples=2), "cpu", reporter
    )
    assert "too many threads" in reporter.said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"backbone_digest": "c" * 64}, "another backbone"),
        ({"classes": ["cat", "dog", "emu"]}, "emu"),
        ({"shape": (4, 2, 3)}, r"\[4, 2, 3\]"),
    ],
)
def test_features_of_something_else_are_refused(tmp_path, changed, said):
    shape = changed.pop("shape", None)
    table = small_table(4, **({"shape": shape} if shape else {}))
    features = write_features(tmp_path / "toy.features.h5", {"test": table}, **changed)
    with pytest.raises(FileError, match=said):
        evaluate_file(load_policy(write_run(tmp_path / "run", small_policy())), features, EvalSettings())


def test_a_split_that_is_not_there_is_named(tmp_path):
    features = write_features(tmp_path / "toy.features.h5", {"train": small_table(4)})
    with pytest.raises(FileError, match="test"):
        evaluate_file(load_policy(write_run(tmp_path / "run", small_policy())), features, EvalSettings())
