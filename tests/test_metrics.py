"""Multiset metrics against the definitions written as loops, and on sets against scikit-learn."""

import math
import time

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from hsal_cli.evaluation.metrics import exact_match_and_f1, label_counts, multiset_metrics


def divide(a, b):
    return a / b if b else 0.0


def slow_metrics(true, predicted):
    """Design, section 7, word for word; where nothing is there and nothing is named, all is right."""
    images, classes = range(len(true)), range(len(true[0]))
    hits = [[min(true[i][c], predicted[i][c]) for c in classes] for i in images]
    n = [sum(true[i][c] for i in images) for c in classes]
    p = [sum(predicted[i][c] for i in images) for c in classes]
    h = [sum(hits[i][c] for i in images) for c in classes]
    occurring = [c for c in classes if n[c] or p[c]]
    precision, recall = [divide(h[c], p[c]) for c in classes], [divide(h[c], n[c]) for c in classes]
    f1 = [divide(2 * precision[c] * recall[c], precision[c] + recall[c]) for c in classes]
    micro_p, micro_r = divide(sum(h), sum(p)), divide(sum(h), sum(n))
    if not occurring:
        names = (
            "exact_match",
            *(f"{over}_{score}" for over in ("macro", "micro") for score in ("precision", "recall", "f1")),
            "example_f1",
        )
        zeros = [0.0] * len(true[0])
        return {**dict.fromkeys(names, 1.0), "cardinality_error": 0.0, "f1": zeros, "precision": zeros, "recall": zeros}
    return {
        "exact_match": sum(list(true[i]) == list(predicted[i]) for i in images) / len(true),
        "macro_precision": divide(sum(precision[c] for c in occurring), len(occurring)),
        "macro_recall": divide(sum(recall[c] for c in occurring), len(occurring)),
        "macro_f1": divide(sum(f1[c] for c in occurring), len(occurring)),
        "micro_precision": micro_p,
        "micro_recall": micro_r,
        "micro_f1": divide(2 * micro_p * micro_r, micro_p + micro_r),
        "example_f1": sum(
            divide(2 * sum(hits[i]), sum(true[i]) + sum(predicted[i])) if any(true[i]) or any(predicted[i]) else 1.0 for i in images
        )
        / len(true),
        "cardinality_error": sum(abs(sum(true[i]) - sum(predicted[i])) for i in images) / len(true),
        "f1": f1,
        "precision": precision,
        "recall": recall,
    }


pairs = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.int64, shape, elements=st.integers(0, 3))] * 2)
)


@settings(deadline=None, max_examples=100)
@given(pairs)
def test_metrics_are_what_the_definitions_say(pair):
    true, predicted = pair
    names = [f"class {c}" for c in range(true.shape[1])]
    found, wanted = multiset_metrics(true, predicted, names, resamples=3), slow_metrics(true, predicted)
    for name in ("precision", "recall", "f1"):
        assert [found["by_class"][c][name] for c in names] == pytest.approx(wanted.pop(name))
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert exact_match_and_f1(true, predicted) == pytest.approx((wanted["exact_match"], wanted["macro_f1"]))
    assert [found["by_class"][c]["support"] for c in names] == true.sum(0).tolist()
    assert sum(part["examples"] for part in found["by_count"].values()) == found["examples"] == len(true)
    for count, part in found["by_count"].items():
        rows = true.sum(1) == int(count)
        part_wanted = slow_metrics(true[rows], predicted[rows])
        assert (part["exact_match"], part["macro_f1"]) == pytest.approx((part_wanted["exact_match"], part_wanted["macro_f1"]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_on_sets_metrics_equal_the_usual_multilabel_metrics():
    generator = np.random.default_rng(1)
    true, predicted = (generator.random((2, 200, 7)) < 0.3).astype(np.int64)
    true[:, 6] = predicted[:, 6] = 0  # a class that never occurs must not pull the macro means down
    found = multiset_metrics(true, predicted, [str(c) for c in range(7)], resamples=2)
    for average in ("macro", "micro"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(true, predicted, labels=range(6), average=average, zero_division=0)
        assert found[f"{average}_precision"] == pytest.approx(precision)
        assert found[f"{average}_recall"] == pytest.approx(recall)
        assert found[f"{average}_f1"] == pytest.approx(f1)
    assert found["example_f1"] == pytest.approx(sk.f1_score(true, predicted, average="samples", zero_division=1))
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(true, predicted))


def test_counts_ignore_padding_and_the_stop_label():
    labels = [[1, 1, -1], [0, 2, 3], [3, -1, -1]]
    wanted = [[0, 2, 0], [1, 0, 1], [0, 0, 0]]
    assert label_counts(torch.tensor(labels), 3).tolist() == wanted
    assert label_counts(np.array(labels, dtype=np.int16), 3).tolist() == wanted
    assert label_counts(torch.zeros(0, 4, dtype=torch.long), 3).shape == (0, 3)
    assert label_counts(torch.zeros(2, 0, dtype=torch.long), 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_intervals_are_seeded_and_as_wide_as_the_binomial_says():
    generator = np.random.default_rng(0)
    true = generator.integers(0, 2, (400, 3))
    predicted = np.where(generator.random((400, 1)) < 0.3, 1 - true, true)
    names = ["a", "b", "c"]
    first = multiset_metrics(true, predicted, names, resamples=2000, seed=5)
    assert first["ci95"] == multiset_metrics(true, predicted, names, resamples=2000, seed=5)["ci95"]
    assert first["ci95"] != multiset_metrics(true, predicted, names, resamples=2000, seed=6)["ci95"]
    share = first["exact_match"]
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert first["ci95"]["exact_match"] == pytest.approx([share - half, share + half], abs=0.01)
    low, high = first["ci95"]["macro_f1"]
    assert low < first["macro_f1"] < high


def test_intervals_equal_a_resampling_done_by_hand():
    generator = np.random.default_rng(3)
    true, predicted = generator.integers(0, 3, (2, 30, 4))
    drawn = np.random.default_rng(9).integers(0, 30, (50, 30))  # the same draws, resample by resample
    by_hand = [slow_metrics(true[rows], predicted[rows])["macro_f1"] for rows in drawn]
    found = multiset_metrics(true, predicted, list("abcd"), resamples=50, seed=9)["ci95"]["macro_f1"]
    assert found == pytest.approx(np.percentile(by_hand, [2.5, 97.5]).tolist())


def test_ten_thousand_images_take_seconds():
    true, predicted = np.random.default_rng(0).integers(0, 2, (2, 10_000, 10))
    start = time.process_time()
    multiset_metrics(true, predicted, [str(c) for c in range(10)])
    assert time.process_time() - start < 4


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        multiset_metrics(np.zeros((2, 3)), np.zeros((2, 4)), list("abc"))
    with pytest.raises(ValueError, match="shapes"):
        multiset_metrics(np.zeros((0, 3)), np.zeros((0, 3)), list("abc"))
