"""`hsal make-data` as it is typed."""

import json
from pathlib import Path

import pytest
from idx_files import write_idx_set
from PIL import Image
from typer.testing import CliRunner

from hsal_cli.commands.make_data import app as APP
from hsal_cli.errors import UsageError
from hsal_cli.scenes.scene_file import open_scenes


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that types `hsal make-data` with these arguments, in an empty folder, at toy size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSAL_MNIST_DIR", str(write_idx_set(tmp_path / "digits")))
    small = ["--train", "6", "--test", "4", "--image-size", "40", "--digit-size", "8-12", "--workers", "1"]
    return lambda *arguments: CliRunner().invoke(APP, [*arguments, *(small if arguments[0] != "--help" else [])])


def test_it_writes_the_file_where_the_next_command_looks(run, tmp_path):
    result = run("mnist-multiset")
    assert result.exit_code == 0 and "6 train and 4 test images in data/mnist-multiset.h5" in result.stdout
    with open_scenes(tmp_path / "data" / "mnist-multiset.h5") as scenes:
        assert scenes.splits == ["train", "test"]


def test_json_and_preview_tell_and_show_what_was_made(run, tmp_path):
    result = run("mnist-set", "--json", "--out", "a.h5", "--preview", "pictures/a.png", "--count", "2")
    report = json.loads(result.stdout)
    with open_scenes(tmp_path / "a.h5") as scenes:
        assert report["digest"] == scenes.digest and scenes.config["count"] == [2, 2]
    assert report["images"] == {"train": 6, "test": 4} and report["digits"] == "mnist" and report["preview"] == "pictures/a.png"
    with Image.open(tmp_path / "pictures" / "a.png") as picture:
        assert picture.format == "PNG" and picture.width > 600


def test_a_dry_run_makes_nothing(run, tmp_path):
    result = run("mnist-single", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["out"] == "data/mnist-single.h5" and plan["settings"]["train"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]


def test_what_exists_is_replaced_only_on_request_and_only_if_hsal_made_it(run, tmp_path):
    assert run("mnist-set", "--out", "a.h5").exit_code == 0
    assert "a.h5 exists" in run("mnist-set", "--out", "a.h5").exception.message
    assert run("mnist-set", "--out", "a.h5", "--overwrite").exit_code == 0
    (tmp_path / "mine.h5").write_text("mine")
    assert "not made by hsal" in run("mnist-set", "--out", "mine.h5", "--overwrite").exception.message
    assert (tmp_path / "mine.h5").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--count", "5-2"], "count = 5-2 runs backwards"),
        (["--count", "many"], "count = 'many' is not a range"),
        (["--count", "64", "--digit-size", "30"], "64 digits of 30 px do not fit"),
        (["--seed", "-1"], "seed = -1 is below 0"),
        (["--preview", "a.jpg"], "not a PNG"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_made(run, tmp_path, arguments, part):
    # Options given twice: the last one counts, so the toy size stands before.
    result = CliRunner().invoke(APP, ["mnist-multiset", "--image-size", "40", "--digit-size", "8-12", *arguments])
    assert isinstance(result.exception, UsageError) and part in result.exception.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]


def test_unknown_words_are_wrong_usage(run):
    for arguments in (["svhn"], ["mnist-set", "--placement", "nowhere"], ["mnist-set", "--digits", "roman"]):
        result = run(*arguments)
        assert result.exit_code == 2 and ("is not one of" in result.stderr or "No such command 'svhn'" in result.stderr)


def test_options_may_stand_before_the_name_as_before_there_were_commands(run, tmp_path):
    result = CliRunner().invoke(APP, ["--train", "7", "--json", "mnist-set", "--dry-run"])
    assert json.loads(result.stdout)["settings"]["train"] == 7 and json.loads(result.stdout)["dataset"] == "mnist-set"


def test_any_idx_set_has_names_of_its_own_and_some_of_its_classes(run, tmp_path):
    result = run("multiset", "--classes", "7,2", "--json")
    assert result.exit_code == 0, result.exception
    with open_scenes(tmp_path / "data" / "multiset.h5") as scenes:
        assert scenes.classes == ["7", "2"] and scenes.config["dataset"] == "multiset"


def test_help_names_every_setting(run):
    text = CliRunner().invoke(APP, ["mnist-set", "--help"]).stdout
    assert all(option in text for option in ("--count", "--digit-size", "--clutter", "--placement", "--mnist-dir", "--preview", "--seed"))


def test_each_name_is_offered_only_what_belongs_to_it():
    assert all(
        name in CliRunner().invoke(APP, ["--help"]).stdout for name in ("mnist-multiset", "svhn-multiset", "street-numbers", "folder")
    )
    street, own = (CliRunner().invoke(APP, [name, "--help"]).stdout for name in ("street-numbers", "folder"))
    assert "--svhn-labels" in street and "--clutter" not in street and "--labels-format" in own and "--typefaces" not in own


def test_images_to_search_are_large_and_hold_six_to_ten_digits(run):
    found = CliRunner().invoke(APP, ["mnist-search", "--train", "3", "--test", "1", "--digits", "strokes", "--out", "search.h5"])
    assert found.exit_code == 0, found.output
    with open_scenes(Path("search.h5")) as scenes:
        sides = scenes.split("train").boxes[..., 2:] - scenes.split("train").boxes[..., :2]
        counts = (scenes.split("train").labels >= 0).sum(1)
        assert scenes.split("train").image_size == (224, 224) and counts.min() >= 6 and counts.max() <= 10 and sides.max() <= 48


def test_a_file_without_a_test_split_is_noted_with_what_helps(run):
    assert "a.h5 has no test images" not in run("set", "--out", "a.h5", "--count", "0-1").stderr
    found = CliRunner().invoke(APP, ["set", "--train", "3", "--test", "0", "--image-size", "40", "--digit-size", "8-12", "--out", "b.h5"])
    assert found.exit_code == 0 and "b.h5 has no test images, so hsal eval has nothing to score there: --test N makes some" in found.stderr


def test_a_folder_of_too_few_images_to_test_on_is_noted_with_what_helps(run, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "ab":
        Image.new("RGB", (20, 20), (90, 9, 9)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "labels.csv").write_text("image,labels\na.png,cat\nb.png,cat\n")
    words = ["folder", "--images", "pictures", "--labels", "labels.csv", "--out", "c.h5"]
    found = CliRunner().invoke(APP, words)
    assert found.exit_code == 0 and "c.h5 has no test images" in found.stderr and "--test-share" in found.stderr
    found = CliRunner().invoke(APP, [*words, "--overwrite", "--test-share", "0.5"])
    assert found.exit_code == 0 and "no test images" not in found.stderr
