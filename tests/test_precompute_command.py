"""`hsal precompute` from the command line: help, defaults, refusals, and what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from test_precompute import TEST, TRAIN, write_backbone, write_scenes
from typer.testing import CliRunner

from hsal_cli.commands.precompute import precompute
from hsal_cli.errors import FileError, UsageError
from hsal_cli.features.settings import alike, made_with
from hsal_cli.runs import run as runs

APP = typer.Typer()
APP.command("precompute")(precompute)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ready(here) -> Path:
    """A folder as `hsal make-data` and `hsal finetune` leave it."""
    Path("data").mkdir()
    write_scenes(Path("data/mnist-multiset.h5"))
    run = runs.create(Path("runs/backbone"), "backbone", {})
    write_backbone(run.checkpoints / "epoch-1")
    run.set_status("finished")
    return here


def call(*arguments: str):
    return CliRunner().invoke(APP, list(arguments))


def test_help_names_every_option():
    text = call("--help").stdout
    for name in ("--data", "--backbone", "--out", "--device", "--batch-size", "--overwrite", "--dry-run", "--json", "--preset", "--config"):
        assert name in text


def test_importing_the_command_imports_no_torch():
    code = "import sys, hsal_cli.commands.precompute; sys.exit(bool({'torch', 'h5py', 'numpy', 'torchvision'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_without_options_it_takes_what_the_commands_before_it_made(ready):
    result = call()
    assert result.exit_code == 0, result.output
    assert f"{TRAIN + TEST} volumes of 1536x1x1 in data/mnist-multiset.fine.features.h5" in result.stdout
    assert Path("data/mnist-multiset.fine.features.h5").is_file()
    assert "holds these features already" in call().stderr


def test_json_is_one_document_on_stdout(ready):
    result = call("--json", "--out", "f.h5", "--device", "cpu", "--batch-size", "7")
    report = json.loads(result.stdout)
    assert report["out"] == "f.h5" and report["images"] == TRAIN + TEST and report["volume_shape"] == [512 + 4 * 256, 1, 1]
    assert report["device"] == "cpu" and report["backbone"] == "runs/backbone" and len(report["digest"]) == 64


def test_a_dry_run_writes_nothing(ready):
    result = call("--dry-run")
    assert "Would write data/mnist-multiset.fine.features.h5: 28 images" in result.stdout
    assert json.loads(call("--dry-run", "--json").stdout)["dry_run"] is True
    assert [file.name for file in Path("data").iterdir()] == ["mnist-multiset.h5"]


def test_a_missing_scene_file_and_a_missing_backbone_name_the_commands_that_make_them(ready):
    for file in Path("runs/backbone").glob("status.json"):
        file.unlink()
    for arguments, words, hint in (
        (("--data", "none.h5"), "no scene file none.h5", "hsal make-data folder --images DIR --labels FILE --out none.h5"),
        ((), "no finished backbone", "hsal finetune"),
        (("--backbone", "nowhere"), "no backbone at nowhere", "hsal finetune"),
    ):
        error = call(*arguments).exception
        assert isinstance(error, FileError) and words in error.message and hint in error.hint


@pytest.mark.parametrize(
    ("arguments", "words"), [(("--device", "tpu"), "tpu"), (("--batch-size", "0"), "batch_size"), (("--preset", "x"), "x")]
)
def test_wrong_values_are_refused_and_nothing_is_written(ready, arguments, words):
    error = call(*arguments).exception
    assert isinstance(error, UsageError) and words in error.message
    assert [file.name for file in Path("data").iterdir()] == ["mnist-multiset.h5"]


@pytest.mark.parametrize(
    ("features", "command"),
    [
        ("data/x.features.h5", "hsal precompute --data data/x.h5 --resolution own --out data/x.features.h5"),
        ("x.fine.features.h5", "hsal precompute --data x.h5 --resolution fine --out x.fine.features.h5"),
        ("x.14x14.itti.features.h5", "hsal precompute --data x.h5 --resolution 14 --saliency itti --out x.14x14.itti.features.h5"),
        ("a.double.features.h5", "hsal precompute --data a.h5 --resolution double --out a.double.features.h5"),
        ("fine.features.h5", "hsal precompute --data fine.h5 --resolution own --out fine.features.h5"),
        ("mine.h5", "hsal precompute --data SCENES --resolution own --out mine.h5"),
    ],
)
def test_the_command_that_makes_a_feature_file_is_known_by_its_name(features, command):
    assert made_with(Path(features)) == command
    assert made_with(Path(features), "runs/b").replace(" --backbone runs/b", "") == command


def test_features_of_the_kind_of_others_have_their_name_too():
    kinds = {
        "a.fine.features.h5": "data/x.fine.features.h5",
        "b.features.h5": "data/x.features.h5",
        "c.14x14.itti.features.h5": "data/x.14x14.itti.features.h5",
    }
    for source in ("data/x.h5", "data/x.features.h5", "data/x.double.features.h5"):
        assert {other: str(alike(Path(source), Path(other))) for other in kinds} == kinds
