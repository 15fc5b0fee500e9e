"""The report of a reproduction, from runs made up for it: what its tables and curves say."""

import dataclasses
import json
import statistics

import pytest
from PIL import Image

from hsal_cli.experiments.grid import GridRun
from hsal_cli.experiments.grid_report import curve_panels, shown_score, write_report

PROVENANCE = {
    "commands": ["hsal make-data mnist-set --out data/mnist-set.h5"],
    "backbone": {"run": "runs/b", "digest": "b" * 64, "arch": "resnet34", "input_size": 112, "accuracy": 0.985},
    "data": {
        "mnist-set": {
            "scenes": "data/mnist-set.h5",
            "scenes_digest": "5" * 64,
            "features": "data/mnist-set.features.h5",
            "features_digest": "f" * 64,
            "images": {"train": 60_000, "test": 10_000},
        }
    },
    "seconds": {"data mnist-set": 75.0, "backbone": 3600.0},
    "settings": {},
    "environment": {"torch": "2.6", "cuda": None},
}
BASELINES = {"count_only": {"exact_match": 0.029, "macro_f1": 0.211}}


def run_of(objective: str, seed: int, exact: float | None, looks: bool = True) -> GridRun:
    rows = [{"epoch": epoch, "exact_match": 0.31 * epoch, "macro_f1": 0.31 * epoch + 0.05 * seed} for epoch in (1, 2, 3)]
    evaluation = None
    if exact is not None:
        evaluation = {"exact_match": exact, "macro_f1": 0.9, "ci95": {"exact_match": [exact - 0.01, exact + 0.01]}, "baselines": BASELINES}
        evaluation["attn_saliency"] = {"raw": 26_734.7, "random": 0.1} if looks else {"raw": None, "random": None}
        if looks:
            evaluation["localization"] = {"glimpse_hit": 0.95, "mask_mass": 0.5, "digits_once": 0.9, "repeat_visits": 0.05, "center": 0.11}
            rows = [{**row, "attn_saliency": 100.0 * row["epoch"], "glimpse_hit": 0.2} for row in rows]
    failure = "" if exact is not None else "the policy has collapsed"
    name = f"mnist-set.{objective}.seed{seed}"
    return GridRun(name, "mnist-set", objective, seed, f"runs/{name}", evaluation, rows, 61.0, "d" * 64, [f"hsal train {name}"], failure)


@pytest.fixture
def runs() -> list[GridRun]:
    return [run_of("rl", 0, 0.97), run_of("rl", 1, 0.95), run_of("count", 0, 0.88, looks=False), run_of("cross-entropy", 0, None)]


def row_of(text: str, heading: str, *names: str) -> list[str]:
    """The cells of the first row under a heading that begins with these names."""
    part = text.split(f"## {heading}\n")[1]
    line = next(line for line in part.splitlines() if line.startswith(f"| {' | '.join(names)} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][len(names) :]


def test_the_tables_say_what_the_runs_say(runs, tmp_path) -> None:
    summary = write_report(tmp_path, runs, PROVENANCE, {}, "hsal reproduce")
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary, allow_nan=False))
    text = (tmp_path / "summary.md").read_text()
    half = 12.706205 * statistics.stdev([0.97, 0.95]) / 2**0.5
    heading = "Results on the test split"
    assert row_of(text, heading, "MNIST Set", "HSAL-RL") == ["0.900 ± 0.000", "0.990", f"0.960 ± {half:.3f}", "0.960", "3", "0, 1"]
    assert row_of(text, heading, "MNIST Set", "Count classifier") == ["0.900", "-", "0.880 (0.870 to 0.890)", "-", "3", "0"]
    assert row_of(text, heading, "MNIST Set", "Cross-entropy") == ["-", "0.735", "-", "0.478", "-", "failed: 0"]
    assert row_of(text, heading, "MNIST Set", "number of objects known") == ["0.211", "0.029"]
    where = row_of(text, "Where it looks", "MNIST Set", "HSAL-RL")
    assert [cell.split(" ")[0] for cell in where] == ["0.950", "0.500", "0.900", "0.050", "26,735"]
    assert "Count classifier" not in text.split("## Where it looks")[1].split("## Over training")[0]
    assert row_of(text, "Runs", "mnist-set.rl.seed0")[2:7] == ["3", "3", "0.930", "0.930", "1:01"]
    assert "the policy has collapsed" in text and "1:01:15" in text and "0.9" in row_of(text, "Runs", "mnist-set.rl.seed0")[0]
    for command in (*PROVENANCE["commands"], *(run.commands[0] for run in runs)):
        assert f"    {command}\n" in text + "\n"
    assert summary["pictures"] == ["macro-f1.png", "attn-saliency.png", "attention.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"summary.md", "summary.json", *summary["pictures"]}


def test_a_run_that_fell_after_its_best_epoch_shows_both(runs, tmp_path) -> None:
    fallen = dataclasses.replace(runs[0], rows=[*reversed(runs[0].rows), {"epoch": 4}])
    nothing = dataclasses.replace(runs[1], rows=[])
    summary = write_report(tmp_path, [fallen, nothing], PROVENANCE, {}, "hsal reproduce")
    text = (tmp_path / "summary.md").read_text()
    assert row_of(text, "Runs", fallen.name)[2:6] == ["4", "3", "0.930", "0.310"]
    assert row_of(text, "Runs", nothing.name)[2:6] == ["0", "-", "-", "-"]
    assert [run["held_out_exact_match"] for run in summary["runs"]] == [{"best": pytest.approx(0.93), "last": pytest.approx(0.31)}, None]


def test_scores_after_the_last_epoch_stand_beside_those_of_the_best(runs, tmp_path) -> None:
    heading = "Results on the test split"
    write_report(tmp_path, runs, PROVENANCE, {}, "hsal reproduce")
    assert "After the last epoch" not in (tmp_path / "summary.md").read_text(), "where the last is the best, there is nothing to add"
    fallen = dataclasses.replace(runs[1], last=run_of("rl", 1, 0.45).evaluation)
    summary = write_report(tmp_path, [runs[0], fallen, *runs[2:]], PROVENANCE, {}, "hsal reproduce")
    best, last = (tmp_path / "summary.md").read_text().split("After the last epoch:")
    half = 12.706205 * statistics.stdev([0.97, 0.45]) / 2**0.5
    assert row_of(best, heading, "MNIST Set", "HSAL-RL")[2].startswith("0.960 ±")
    last = f"## {heading}\n{last}"
    assert row_of(last, heading, "MNIST Set", "HSAL-RL")[:3] == ["0.900 ± 0.000", f"0.710 ± {half:.3f}", "0.950 ± 0.000"]
    assert row_of(last, heading, "MNIST Set", "Count classifier") == ["0.900", "0.880 (0.870 to 0.890)", "-", "-"]
    assert "Cross-entropy" not in last.split("Predictors")[0], "a failed run has no last epoch"
    assert [run["last_scores"] and run["last_scores"]["exact_match"] for run in summary["runs"]] == [None, 0.45, None, None]


def test_pictures_of_an_earlier_report_go_and_others_stay(runs, tmp_path) -> None:
    write_report(tmp_path, runs, PROVENANCE, {}, "hsal reproduce")
    (tmp_path / "macro-f1.png").rename(tmp_path / "trajectories.mnist-multiset.png")
    Image.new("L", (2, 2)).save(tmp_path / "mine.png")
    summary = write_report(tmp_path, runs, PROVENANCE, {}, "hsal reproduce")
    assert {path.name for path in tmp_path.glob("*.png")} == {*summary["pictures"], "mine.png"}


def test_curves_hold_every_run_of_an_objective_that_has_the_score(runs) -> None:
    [macro] = curve_panels(runs, ["macro_f1"])
    assert {name: len(curves) for name, curves in macro.series.items()} == {"HSAL-RL": 2, "Count classifier": 1, "Cross-entropy": 1}
    assert macro.series["HSAL-RL"][1] == [(1.0, pytest.approx(0.36)), (2.0, pytest.approx(0.67)), (3.0, pytest.approx(0.98))]
    [salient] = curve_panels(runs, ["attn_saliency"])
    assert list(salient.series) == ["HSAL-RL"] and (salient.low, salient.high) == (0.0, None)
    assert curve_panels(runs, ["mask_mass"]) == []


def test_a_score_shows_its_interval_or_none() -> None:
    assert shown_score({"mean": 0.5, "low": 0.4, "high": 0.6, "interval": "seeds"}) == "0.500 ± 0.100"
    assert shown_score({"mean": 0.5, "low": None, "high": None, "interval": None}) == "0.500"
    assert shown_score(None) == "-"
