"""hsal report: the confusion of multisets, the images that are chosen, the page, and what is left out and why."""

import io
import itertools
import json
import re
from html.parser import HTMLParser

import h5py
import numpy as np
import pytest
import torch
import typer
from evaluation_parts import NAMES, SIZE, small_policy, small_table, write_features, write_run
from PIL import Image
from typer.testing import CliRunner

from hsal_cli.commands.report import report
from hsal_cli.errors import FileError, UsageError
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.metrics import scores_by_count
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.load import load_policy
from hsal_cli.models.trust import Trust
from hsal_cli.pictures.charts.panels import DPI, HEIGHT, WIDTH
from hsal_cli.pictures.charts.reliability import wilson
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.variant import DEFAULT
from hsal_cli.report.report_figures import calibration, count_figure, curve_figures, curve_name
from hsal_cli.report.report_page import Page, PageFigure, PageFinding, Section, render, spark
from hsal_cli.report.tested import Detail, choose, confusion, detail
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.settings import as_dict

app = typer.Typer()
app.command("report")(report)


def call(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found


def write_history(run, rows, state="finished", kind="policy", config=None):
    """What training leaves beside the checkpoints."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "status.json").write_text(json.dumps({"format": "hsal-run", "kind": kind, "state": state, "updated": "2026"}))
    config = config or {"train": {"objective": "rl", "seed": 0, "epochs": max(1, len(rows))}}
    others = {"features": "f.h5", "features_digest": "f", "variant": as_dict(DEFAULT)}
    if kind == "backbone":
        others = {"scenes": "s.h5", "scenes_digest": "s", "weights_used": "random"}
    (run / "config.json").write_text(json.dumps({**others, **config}))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def rows_of(last=0.6):
    """Six epochs of some metrics of a policy."""
    shown = ("exact_match", "early_stops", "loss")  # each is a figure to draw
    return [{"epoch": e, **dict.fromkeys(shown, 0.1 * e * last), "examples_per_s": 10.0, "seconds": 1.0} for e in range(1, 7)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two policy runs that differ by their seed, with features and the scene file beside them."""
    root = tmp_path_factory.mktemp("report")
    table = small_table(12, seed=5)
    labels, boxes = table.labels.numpy(), table.boxes.numpy()
    with h5py.File(root / "toy.h5", "w") as file:
        file.attrs["format"], file.attrs["classes"] = "hsal-scenes", json.dumps(NAMES)
        file["test/images"] = np.random.default_rng(0).integers(0, 256, (12, *SIZE), dtype=np.uint8)
        file["test/labels"], file["test/boxes"] = labels, boxes
    with open_scenes(root / "toy.h5") as scenes:
        digest = scenes.digest
    features = write_features(root / "toy.features.h5", {"test": table}, scenes_digest=digest)
    for seed in (0, 1):
        policy = small_policy(seed=seed)
        with torch.no_grad():
            policy.controller.label.bias[policy.stop] -= 3  # so that something is named
        run = write_run(root / f"seed{seed}", policy)
        config = {"features": str(features), "features_digest": "f", "train": {"objective": "rl", "seed": seed, "epochs": 6}}
        write_history(run, rows_of(0.5 + 0.1 * seed), config=config)
    return root


def slow_confusion(true, named, classes):
    """Averages over all ways to pair what is missed with what is wrong, the shorter side filled up with nothing."""
    found = np.zeros((classes + 1, classes + 1))
    for n, p in zip(true.tolist(), named.tolist(), strict=True):
        missed = [c for c in range(classes) for _ in range(max(0, n[c] - p[c]))]
        wrong = [c for c in range(classes) for _ in range(max(0, p[c] - n[c]))]
        for c in range(classes):
            found[c, c] += min(n[c], p[c])
        most = max(len(missed), len(wrong))
        missed, wrong = (part + [classes] * (most - len(part)) for part in (missed, wrong))
        orders = list(itertools.permutations(wrong))
        for order in orders:
            for one, two in zip(missed, order, strict=True):
                found[one, two] += 1 / len(orders)
    return found


def test_confusion_is_the_mean_over_all_pairings_of_missed_and_wrong_labels():
    generator = np.random.default_rng(1)
    true, named = generator.integers(0, 3, (30, 3)), generator.integers(0, 3, (30, 3))
    found = confusion(true, named)
    assert found == pytest.approx(slow_confusion(true, named, 3))
    assert found[:3].sum(1) == pytest.approx(true.sum(0)) and found[:, :3].sum(0) == pytest.approx(named.sum(0))
    assert confusion(true, true)[:3, :3] == pytest.approx(np.diag(true.sum(0)))


def test_images_are_chosen_by_their_rule():
    true = np.array([[1, 0], [1, 1], [2, 0], [0, 1], [1, 1], [0, 2]])
    named = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [1, 1], [0, 2]])
    found = Detail(true, named, np.array([0.9, 0.6, 0.5, 0.4, 0.8, 0.7]))
    assert choose(found, 2) == {"best": [4, 5], "worst": [2, 3], "repeats": [2, 5], "uncertain": [3, 2]}
    perfect = Detail(true[:2], true[:2], np.ones(2))
    assert choose(perfect) == {"best": [1, 0], "uncertain": [0, 1]}  # nothing wrong, no repeat


def test_the_roll_outs_agree_with_looking_at_each_image_alone(place):
    loaded, table = load_policy(place / "seed0"), small_table(12, seed=5)
    found = detail(loaded, table)
    for row in range(len(table)):
        one = table.select(slice(row, row + 1))
        with torch.inference_mode():
            episode = loaded.policy(one.volumes.float(), one.saliency, choose=greedy, max_steps=5)
        labels = episode.labels[:, 0].tolist()
        assert found.named[row].tolist() == [labels.count(c) for c in range(3)]
        chances = episode.scores[:, 0].softmax(-1)
        lowest = min(float(chances[step, label]) for step, label in enumerate(labels) if label >= 0)
        assert found.confidence[row] == pytest.approx(lowest, abs=1e-5)


class Reader(HTMLParser):
    """Collects tags, ids, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.sources, self.text = [], set(), [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append(tag)
        self.ids.add(known.get("id"))
        self.links += [known["href"]] if "href" in known else []
        self.sources += [known["src"]] if "src" in known else []

    def handle_data(self, data):
        self.text += data


def test_a_report_of_two_seeds_is_one_page_with_everything_in_it(place, tmp_path):
    found = json.loads(call(place / "seed0", place / "seed1", "--out", tmp_path / "page", "--json").stdout)
    page = Reader((tmp_path / "page" / "report.html").read_text())
    assert found["left_out"] == [] and "script" not in page.tags
    assert all(source.startswith("data:image/png;base64,") for source in page.sources) and len(page.sources) >= 8
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links) and page.links
    for words in ("Report on 2 runs", "Verdicts", "Confusion.", "Gallery", "Worst.", "Most uncertain.", "still rising at the end"):
        assert words in page.text, words
    pictures = sorted(path.name for path in (tmp_path / "page").glob("*.png"))
    assert "policy-exact-match.png" in pictures and "confusion-1.png" in pictures and "gallery-worst.png" in pictures
    for path in (tmp_path / "page").glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200 and path.stat().st_size < 1_000_000
    assert [run["group"] for run in found["runs"]] == ["rl", "rl"]
    for run in found["runs"]:
        loaded, table = load_policy(place / run["run"].rpartition("/")[2]), small_table(12, seed=5)
        own = detail(loaded, table)
        assert run["test"]["examples"] == 12 and run["test"]["exact_match"] == pytest.approx(own.exact.mean())
        assert {count: part["examples"] for count, part in run["test"]["by_count"].items()} == {
            count: part["examples"] for count, part in scores_by_count(own.true, own.named).items()
        }


def test_a_report_replaces_an_older_one_and_nothing_else(place, tmp_path):
    run = write_history(tmp_path / "run", rows_of())
    call(run, "--out", tmp_path / "page")
    assert (tmp_path / "page" / "policy-early-stops.png").is_file()
    write_history(run, [{"epoch": 1, "exact_match": 0.5, "loss": 1.0}])
    call(run, "--out", tmp_path / "page")
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == [
        "policy-exact-match.png",
        "policy-loss.png",
        "report.html",
        "report.json",
    ]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a report"):
        call(run, "--out", other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_what_needs_features_is_left_out_and_said(place, tmp_path):
    config = {"features": str(tmp_path / "gone.h5"), "train": {"objective": "rl", "seed": 0}}
    run = write_run(tmp_path / "run", small_policy())
    write_history(run, rows_of(), config=config)
    said = call(run)
    assert "left out" in said.stderr and "gone.h5" in said.stderr
    page = Reader((run / "plots" / "report.html").read_text())
    assert "Left out" in page.text and "gone.h5" in page.text and "Confusion." not in page.text
    given = json.loads(call(run, "--data", place / "toy.features.h5", "--json").stdout)
    assert given["left_out"] == [] and given["runs"][0]["test"]["examples"] == 12
    with pytest.raises(FileError, match="missing"):
        call(run, "--data", tmp_path / "none.h5")


def test_a_gallery_needs_the_very_scene_file(place, tmp_path):
    moved = tmp_path / "moved.features.h5"
    moved.write_bytes((place / "toy.features.h5").read_bytes())
    run = write_run(tmp_path / "run", small_policy())
    write_history(run, rows_of(), config={"features": str(moved), "train": {"objective": "rl", "seed": 0}})
    without = json.loads(call(run, "--json").stdout)
    assert len(without["left_out"]) == 1 and "scene file" in without["left_out"][0] and without["runs"][0]["test"] is not None
    assert json.loads(call(run, "--data", place / "toy.h5", "--json").stdout)["left_out"] == []


def test_runs_of_fine_tuning_have_a_report_too(tmp_path):
    rows = [{"epoch": e, "loss": 1 / e, "train_accuracy": 1 - 1 / (e + 1), "accuracy": 1 - 1 / (e + 2)} for e in range(1, 6)]
    run = write_history(tmp_path / "run", rows, kind="backbone", config={"finetune": {"arch": "resnet18", "seed": 0}})
    found = json.loads(call(run, "--json").stdout)
    assert found["runs"][0]["best"]["epoch"] == 5 and any("still rising" in verdict["text"] for verdict in found["runs"][0]["verdicts"])
    assert {path.name for path in (run / "plots").glob("*.png")} == {
        "backbone-accuracy.png",
        "backbone-train-accuracy.png",
        "backbone-loss.png",
    }


def test_a_run_that_is_named_twice_or_is_none_is_refused(place, tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        call(place / "seed0", place / "x" / ".." / "seed0")
    with pytest.raises(FileError, match="is not a run"):
        call(tmp_path)


def test_a_run_without_an_epoch_has_a_page_that_says_so(tmp_path):
    run = write_history(tmp_path / "run", [], state="failed")
    call(run)
    assert "no epoch was finished: the run is failed" in (run / "plots" / "report.html").read_text()


def test_names_are_text_and_not_markup():
    wicked = '<b>run</b> & "quotes"'
    finding = PageFinding(wicked, "note", "f", wicked, [(1, 0.0), (2, 1.0)], 2)
    figure = PageFigure("f", wicked, wicked, b"png")
    text = render(
        Page(
            wicked, wicked, [wicked], [[wicked]], {wicked: [finding]}, [Section(wicked, wicked, [figure])], [wicked], {wicked: {wicked: 1}}
        )
    )
    assert "<b>run" not in text and Reader(text).text.count('<b>run</b> & "quotes"') >= 8


def test_the_small_curve_marks_the_epoch_that_is_meant():
    found = spark([(1, 0.0), (2, 1.0), (3, 0.5)], 2)
    points = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', found)[1].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points) and points[1][1] < points[2][1] < points[0][1]  # up is a smaller y
    assert f'cx="{points[1][0]:.1f}" cy="{points[1][1]:.1f}"' in found and found.count("<circle") == 1
    assert spark([(1, 0.0)], 1) == "" and "<circle" not in spark([(1, 2.0), (2, 2.0)], None)


def test_curves_are_drawn_for_the_metrics_that_were_logged():
    curves = {"exact_match": {"rl": [[(1, 0.2), (2, 0.4)], [(1, 0.3)]], "list": [[]]}, "reward": {"rl": [[], []]}}
    figures = curve_figures("policy", curves)
    assert [figure.name for figure in figures] == [curve_name("policy", "exact_match")]
    with Image.open(io.BytesIO(figures[0].png)) as picture:
        assert picture.size == (round(WIDTH * DPI), round(HEIGHT * DPI))


def test_exact_match_by_count_is_drawn_for_counts_that_some_run_lacks():
    one = scores_by_count(np.array([[1], [2]]), np.array([[1], [1]]))
    two = scores_by_count(np.array([[1], [3]]), np.array([[1], [3]]))
    assert count_figure({"a": [one, two], "b": [two]}).png[:4] == b"\x89PNG"


def test_the_reliability_of_a_report_is_that_of_an_evaluation(place, tmp_path):
    loaded, table = load_policy(write_run(tmp_path, small_policy(), trust=as_dict(Trust(0.5)))), small_table(12, seed=5)
    own = calibration([detail(loaded, table)])
    known = evaluate(loaded.policy, table, NAMES, EvalSettings(resamples=2, looking=0), loaded.max_steps, trust=loaded.trust)["calibration"]
    assert {key: own["calibrated"][key] for key in ("ece", "temperature", "bins")} == {
        key: known[key] for key in ("ece", "temperature", "bins")
    }
    assert own["as trained"]["ece"] == known["ece_at_1"] != known["ece"]
    both = calibration([detail(loaded, table)] * 2)["calibrated"]
    assert both["ece"] == pytest.approx(known["ece"]) and both["bins"][-1]["choices"] == 2 * known["bins"][-1]["choices"]


def test_the_reliability_diagram_is_in_the_report_and_its_errors_in_the_document(place, tmp_path):
    found = json.loads(call(place / "seed0", place / "seed1", "--out", tmp_path / "page", "--json").stdout)
    page = Reader((tmp_path / "page" / "report.html").read_text())
    assert (tmp_path / "page" / "reliability-1.png").is_file() and "expected calibration error" in page.text
    assert all(0 <= run["test"]["calibration"]["ece"] <= 1 for run in found["runs"])


def test_the_report_says_whether_it_matters_where_a_run_looks(place, tmp_path):
    run = write_history(tmp_path / "run", rows_of())
    lost = {"exact_match": 0.8, "lost": 0.0, "lost_ci95": [-0.004, 0.004]}
    looking = {"images": 500, "exact_match": 0.8, "one_cell": 0.0}
    looking |= {"glimpses": {"random": lost, "saliency": lost}, "masks": {"turned": {**lost, "lost": 0.7, "lost_ci95": [0.6, 0.8]}}}
    looking["masks"]["saliency"] = {**lost, "lost": 0.1, "lost_ci95": [0.05, 0.15]}
    scores = {
        "dataset": "toy",
        "split": "test",
        "exact_match": 0.8,
        "macro_f1": 0.9,
        "ci95": {key: [0, 1] for key in ("exact_match", "macro_f1")},
        "examples": 500,
    }
    (run / "eval.json").write_text(json.dumps({**scores, "looking": looking}))
    found = json.loads(call(run, "--out", tmp_path / "page", "--json").stdout)["runs"][0]
    said = [verdict["text"] for verdict in found["verdicts"] if verdict["metric"] == "looking"]
    assert found["looking"] == looking and said[0].startswith("where its glimpses fall decides nothing") and len(said) == 2
    page = Reader((tmp_path / "page" / "report.html").read_text())
    assert (tmp_path / "page" / "looking.png").is_file() and all(text in page.text for text in said)
    assert json.loads(call(place / "seed0", "--out", tmp_path / "other", "--json").stdout)["runs"][0]["looking"] is None
    assert not (tmp_path / "other" / "looking.png").exists()


def test_direct_baselines_stand_beside_policies_each_in_its_colour(tmp_path, monkeypatch):
    from hsal_cli.report import report_figures

    drawn = {}

    def draw(panels, *given, names, **more):
        drawn.setdefault(panels[0].title, []).append((list(panels[0].series), list(names)))
        return real(panels, *given, names=names, **more)

    real = report_figures.draw_panels
    monkeypatch.setattr(report_figures, "draw_panels", draw)
    by_count = {"1": {"examples": 400, "exact_match": 0.9, "macro_f1": 0.9}, "2": {"examples": 100, "exact_match": 0.4, "macro_f1": 0.5}}
    scores = {"dataset": "toy", "split": "test", "exact_match": 0.8, "macro_f1": 0.9, "examples": 500, "by_count": by_count}
    for objective, kind in (("rl", "policy"), ("count", "count")):
        run = write_history(tmp_path / objective, rows_of(), kind=kind, config={"train": {"objective": objective, "seed": 0, "epochs": 6}})
        (run / "eval.json").write_text(json.dumps({**scores, "ci95": {key: [0, 1] for key in ("exact_match", "macro_f1")}}))
    call(tmp_path / "rl", tmp_path / "count", "--out", tmp_path / "page")
    together, both = ["rl", "count"], ["Exact match", "Exact match by number of objects"]
    assert [drawn[title][0] for title in both] == [(together, together)] * 2
    assert drawn["Exact match"][1] == (["count"], together) and drawn["Early stops"] == [(["rl"], together)]


def test_a_run_whose_backbone_sees_little_has_a_page_that_says_so(tmp_path):
    weak = {"train": {"objective": "rl", "seed": 0, "epochs": 6}, "backbone": str(tmp_path / "b"), "features": "f.h5"}
    write_history(tmp_path / "b", [{"epoch": 1, "accuracy": 0.3, "loss": 1.0}], kind="backbone", config={"finetune": {}})
    status = json.loads((tmp_path / "b" / "status.json").read_text())
    (tmp_path / "b" / "status.json").write_text(json.dumps({**status, "accuracy": 0.3}))
    run = write_history(tmp_path / "run", rows_of(), config=weak)
    said = json.loads(call(run, "--json").stdout)["runs"][0]["verdicts"]
    assert [verdict for verdict in said if verdict["metric"] == "accuracy"], said
    assert "the backbone names" in Reader((run / "plots" / "report.html").read_text()).text


def test_wilsons_interval_is_wide_for_few_choices_and_no_point_at_its_ends():
    low, high = wilson(np.array([0.0, 1.0, 0.5, 0.5]), np.array([3.0, 3.0, 10.0, 1000.0]))
    assert low[0] == 0 and high[0] == pytest.approx(0.5615, abs=1e-3) and high[1] == 1 and low[1] == pytest.approx(1 - 0.5615, abs=1e-3)
    assert high[2] - low[2] == pytest.approx(0.5268, abs=1e-3) and high[3] - low[3] < 0.07
