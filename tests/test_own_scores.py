"""eval.json holds the scores on the test split of a run's own data, and nothing else; whoever reads it looks."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_parts import small_policy, small_table, write_features, write_run
from typer.testing import CliRunner

from hsal_cli.errors import FileError
from hsal_cli.main import app
from hsal_cli.models.export import export
from hsal_cli.runs import run as runs
from hsal_cli.runs.record import evaluations, read_record
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.upkeep.check import check_path

OWN, OTHER, THIRD = "s" * 64, "0" * 64, "7" * 64  # digests of scenes
DIGESTS = ("digest", "scenes_digest", "features_digest")  # an older version noted none
FEATURES, FINER = "f" * 64, "d" * 64  # digests of two feature files of the first


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a finished run, its features, and feature files of other scenes, two of them with one name."""
    monkeypatch.chdir(tmp_path)
    tables = {name: small_table(8, seed=seed) for seed, name in enumerate(("train", "test"))}
    for name, digest in (("toy", OWN), ("other", OTHER), ("more/other", THIRD), ("moved/toy", OWN), ("last", OTHER)):
        Path(name).parent.mkdir(exist_ok=True)
        write_features(tmp_path / f"{name}.features.h5", tables, scenes_digest=digest, digest=FEATURES if digest == OWN else digest)
    write_features(tmp_path / "toy.double.features.h5", tables, scenes_digest=OWN, digest=FINER)
    policy = small_policy()
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] -= 3
    write_run(tmp_path / "run", policy, features="toy.features.h5")
    write_sealed(tmp_path / "run" / "status.json", {"format": "hsal-run", "kind": "policy", "state": "finished", "updated": "2026"})
    config = {"features": "toy.features.h5", "features_digest": FEATURES, "scenes_digest": OWN, "train": {"objective": "rl", "seed": 0}}
    write_sealed(tmp_path / "run" / "config.json", config)
    return tmp_path


def hsal(*words: object, code: int = 0):
    found = CliRunner().invoke(app, [str(word) for word in words])
    raised = found.exception if not isinstance(found.exception, SystemExit) else None
    assert (raised.exit_code if isinstance(raised, Exception) else found.exit_code) == code, (found.output, raised)
    return f"{raised.message} {raised.hint}" if raised else found.output


def evaluate(*words: object) -> str:
    """Evaluates the run; gives the name of the file that it is told of."""
    return hsal("eval", "--run", "run", "--resamples", 2, *words).partition("written to run/")[2].split()[0]


def scenes_of(name: str) -> str:
    return json.loads(Path("run", name).read_text())["scenes_digest"]


@pytest.mark.fault(19, "eval on other data, another split, two files of one name: eval.json stays, nothing is overwritten", tried=6)
def test_scores_on_other_data_stand_beside_those_of_the_run(here) -> None:
    assert evaluate() == "eval.json"
    before = Path("run/eval.json").read_bytes()
    assert evaluate("--data", "moved/toy.features.h5") == "eval.json"  # the same scenes, wherever they are
    assert evaluate() == "eval.json" and Path("run/eval.json").read_bytes() == before
    assert evaluate("--data", "other.features.h5") == "eval.other.json" and scenes_of("eval.other.json") == OTHER
    assert evaluate("--data", "more/other.features.h5") == "eval.other.77777777.json" and scenes_of("eval.other.json") == OTHER
    assert evaluate("--data", "more/other.features.h5") == "eval.other.77777777.json"
    assert evaluate("--data", "last.features.h5") == "eval.last.00000000.json"  # eval.last.json is of the last epoch
    assert evaluate("--split", "train") == "eval.toy.train.json"
    assert evaluate("--data", "other.features.h5") == "eval.other.json"
    assert Path("run/eval.json").read_bytes() == before


def test_scores_on_other_features_of_the_runs_own_scenes_stand_beside_its_own(here) -> None:
    assert evaluate() == "eval.json"
    before = Path("run/eval.json").read_bytes()
    finer = "toy.double.features.h5"
    assert evaluate("--data", finer) == "eval.toy.json" and Path("run/eval.json").read_bytes() == before
    assert evaluate("--data", finer) == "eval.toy.json"
    Path(finer).rename("toy.features.h5")  # where the run's own were
    assert evaluate() == "eval.toy.json" and Path("run/eval.json").read_bytes() == before


@pytest.mark.fault(19, "an eval.json of other data that an older version left: not shown by any reader, and said", tried=5)
@pytest.mark.parametrize("how", ["by digest", "by place", "by features", "by their place", "split"])
def test_scores_on_other_data_that_an_older_version_left_are_not_shown(how: str, here) -> None:
    evaluate()
    left_out = {"digest"} | ({"scenes_digest", "features_digest"} if "place" in how else set())
    found = {key: value for key, value in json.loads(Path("run/eval.json").read_text()).items() if key not in left_out}
    change = {
        "by digest": {"scenes_digest": OTHER},
        "by place": {"features": "other.features.h5"},
        "by features": {"features_digest": FINER},
        "by their place": {"features": "toy.double.features.h5", "scenes_digest": OWN},
        "split": {"split": "train"},
    }[how]
    write_sealed(Path("run/eval.json"), {**found, **change})
    run = runs.Run(Path("run"))
    for read in (run.evaluation, lambda: evaluations([run.path]), lambda: export(["toy.rl=run"], Path("out"))):
        with pytest.raises(FileError, match="not on the test split of the run's own data") as caught:
            read()
        assert caught.value.hint == "make it again with: hsal eval --run run"
    assert read_record(run.path).evaluation is None
    assert json.loads(hsal("inspect", "run", "--json"))["test"] is None and "not on the test split" in hsal("inspect", "run")
    assert "not on the test split of the run's own data" in " ".join(hsal("report", "run", "--out", "page").split())
    assert any("not on the test split" in fault for fault in check_path(run.path).faults)
    evaluate()
    assert run.evaluation().examples == 8 and not any("eval.json" in fault for fault in check_path(run.path).faults)


def test_scores_that_an_older_version_left_on_the_runs_own_data_are_shown(here) -> None:
    evaluate()
    found = {key: value for key, value in json.loads(Path("run/eval.json").read_text()).items() if key not in DIGESTS}
    for place in ("toy.features.h5", "moved/toy.features.h5"):
        write_sealed(Path("run/eval.json"), {**found, "features": place})
        assert runs.Run(Path("run")).evaluation().features == place


def test_runs_are_compared_by_the_digests_of_their_data_and_by_names_where_one_has_none(here) -> None:
    import shutil

    shutil.copytree("run", "second")
    write_sealed(Path("second/config.json"), {**runs.Run(Path("second")).config.raw, "features": "renamed.features.h5"})
    shutil.copy("toy.features.h5", "renamed.features.h5")
    for run in ("run", "second"):
        hsal("eval", "--run", run, "--resamples", 2, "--data", "toy.features.h5" if run == "run" else "renamed.features.h5")
    assert [row["dataset"] for row in json.loads(hsal("compare", "run", "second", "--json"))] == ["toy", "renamed"]
    evaluate("--data", "toy.double.features.h5")
    assert evaluations([Path("run")], "toy")[0][1].features_digest == FEATURES, "its own, not other features of the same scenes"
    older = {key: value for key, value in json.loads(Path("second/eval.json").read_text()).items() if key not in DIGESTS}
    write_sealed(Path("second/eval.json"), older)
    assert "second was evaluated on dataset renamed" in hsal("compare", "run", "second", code=1)


def test_runs_are_compared_on_other_data_by_its_name(here) -> None:
    import shutil

    shutil.copytree("run", "second")
    config = {key: value for key, value in runs.Run(Path("second")).config.raw.items() if key != "scenes_digest"}
    write_sealed(Path("second/config.json"), {**config, "features": "other.features.h5", "features_digest": OTHER, "scenes_digest": OTHER})
    for run in ("run", "second"):
        hsal("eval", "--run", run, "--resamples", 2)
    for run in ("run", "second"):
        hsal("eval", "--run", run, "--resamples", 2, "--data", "other.features.h5")
    assert Path("second/eval.json").is_file() and not Path("second/eval.other.json").exists()
    assert f"was evaluated on scenes_digest {OTHER}" in hsal("compare", "run", "second", code=1)
    assert [row["dataset"] for row in json.loads(hsal("compare", "run", "second", "--data", "other", "--json"))] == ["other", "other"]
    assert checkpoints.present(Path("second/checkpoints"))
    shutil.copytree("run", "undigested")  # which cannot vouch that the two others belong together
    kept = {key: value for key, value in json.loads(Path("run/eval.json").read_text()).items() if key not in DIGESTS}
    write_sealed(Path("undigested/eval.json"), kept)
    renamed = json.loads(Path("second/eval.json").read_text()) | {"dataset": kept["dataset"]}
    write_sealed(Path("second/eval.json"), {key: value for key, value in renamed.items() if key != "digest"})
    assert f"second was evaluated on scenes_digest {OTHER}" in hsal("compare", "undigested", "run", "second", code=1)
