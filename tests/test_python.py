"""docs/python.md: its scripts and commands run as they stand, and it names all of the public face."""

import importlib.metadata
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from evaluation_parts import write_features
from learning_parts import easy_table
from PIL import Image
from typer.testing import CliRunner

import hsal_cli as hsal
from hsal_cli import registry
from hsal_cli.features.saliency.models import saliency_model
from hsal_cli.features.settings import SALIENCY_MODELS, PrecomputeSettings
from hsal_cli.features.table import open_features
from hsal_cli.main import app
from hsal_cli.runs.run import Run
from hsal_cli.runs.settings import REWARDS
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.training.own_rewards import rewards_of_actions

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SCRIPTS = {re.match(r"# (\w+\.py)", text)[1]: text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)}
BACKBONE = ROOT / "data" / "pretrained" / "backbone"
MOST_LINES = 40


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch):
    """Parts that a test registers are forgotten behind it."""
    for known in (SALIENCY_MODELS, REWARDS):
        monkeypatch.setattr(known, "_parts", {})
    monkeypatch.setattr(registry, "_imported", set())
    monkeypatch.delenv(registry.VARIABLE, raising=False)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs a script of the page with these words, in an empty folder, and gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *words: str) -> str:
        (tmp_path / name).write_text(SCRIPTS[name])
        monkeypatch.setattr(sys, "argv", [name, *words])
        torch.manual_seed(0)
        runpy.run_path(name, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_script_is_short_and_run_here():
    assert set(SCRIPTS) == {"name_images.py", "digits.py", "own_loop.py", "mine.py", "scores.py", "steps.py"}
    assert max(len(text.splitlines()) for text in SCRIPTS.values()) <= MOST_LINES


def test_images_are_named(run, tmp_path, mnist_dir):
    scene = hsal.MultisetDigits(mnist_dir, train=False, length=2)[1]
    Image.fromarray(scene.image[..., 0].numpy()).save(tmp_path / "image.png")
    said = run("name_images.py", "image.png", "image.png").splitlines()
    first = said[0].split()
    assert first[0] == "image.png" and len(said) == 2 * len(first)
    assert sorted(map(int, first[1:])) == sorted(scene.labels[scene.labels >= 0].tolist())
    assert all("mask highest at" in line for line in said[1 : len(first)])


def test_digits_are_a_dataset(run, mnist_dir):
    said = run("digits.py", str(mnist_dir), "12", "1")
    assert said.startswith("12 and 2 images of 0, 1, 2") and "objects an image" in said


def test_a_loop_of_ones_own_learns(run, tmp_path):
    tables = {"train": easy_table(128, most=2), "test": easy_table(32, most=2, seed=1)}
    write_features(tmp_path / "x.features.h5", tables, classes=["one", "two"])
    said = run("own_loop.py", "x.features.h5", "9").splitlines()
    first, last = (float(re.search(r"macro F1 ([\d.]+)", line)[1]) for line in (said[0], said[-1]))
    assert len(said) == 9 and last > max(0.75, first)


def test_the_metrics_stand_alone(run):
    assert run("scores.py").startswith("exact match 0.667, 95% interval [0.0, 1.0]\nmacro F1 0.933; owls: {'precision': 1.0, ")


def test_the_functions_behind_the_commands_take_plain_values(run, tmp_path, mnist_dir):
    assert re.search(r"exact match \d\.\d+ after one epoch of 24 images", run("steps.py", str(mnist_dir), str(tmp_path)))


def test_parts_of_ones_own_are_used_from_the_command_line(tmp_path, monkeypatch, mnist_dir):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SCRIPTS["mine.py"])
    small = SceneSettings(train=24, test=6, digits="mnist", mnist_dir=str(mnist_dir))
    make_dataset("mnist-multiset", small, Path("data/mnist-multiset.h5"), workers=1)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save("image.png")
    more = {"precompute": ["--backbone", str(BACKBONE)]}
    more["train"] = [*more["precompute"], "--epochs", "1", "--batch-size", "8"]
    lines = re.search(r"^ {4}export (HSAL_PLUGINS)=(\S+)\n((?: {4}hsal .*\n)+)", PAGE, re.MULTILINE)
    monkeypatch.setenv(lines[1], lines[2])
    ran = []
    for _, *words in map(shlex.split, lines[3].splitlines()):
        done = CliRunner().invoke(app, [*words, *more.get(words[0], []), *(["--device", "cpu"] if words[0] != "compare" else [])])
        assert done.exit_code == 0, (words, done.output, done.exception)
        ran.append(words[0])
    assert ran == ["precompute", "train", "train", "eval", "eval", "compare", "saliency"]
    with open_features(Path("data/mnist-multiset.fine.contrast.features.h5")) as file:
        assert file.saliency == "contrast" and file.saliency_digest.startswith("contrast:")
    assert Run(Path("runs/mine")).config.train.reward == "rare-first"
    assert Path("image.saliency.hsal.png").is_file()
    # Another version of the file is another saliency model.
    Path("mine.py").write_text(SCRIPTS["mine.py"] + "\n# changed\n")
    done = CliRunner().invoke(app, ["train", "--data", "data/mnist-multiset.h5", "--saliency", "contrast", *more["train"]])
    assert "holds features of another saliency model: contrast of another version" in str(done.exception)


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "gone.py"))
    with pytest.raises(hsal.HsalError, match=r"HSAL_PLUGINS: .*gone\.py cannot be imported: FileNotFoundError"):
        PrecomputeSettings(saliency="mine")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "broken.py"))
    with pytest.raises(hsal.HsalError, match="cannot be imported: ModuleNotFoundError: No module named 'nothing_of_that_name'"):
        REWARDS.check("mine")


def test_an_entry_point_gives_a_part_its_name(monkeypatch):
    class Entry:
        dist = None

        def load(self):
            return test_an_entry_point_gives_a_part_its_name

    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group, name: [Entry()] if (group, name) == ("hsal.reward", "theirs") else []
    )
    assert REWARDS.check("theirs") == "theirs" and REWARDS.get("theirs") is test_an_entry_point_gives_a_part_its_name
    with pytest.raises(hsal.HsalError, match="there is no reward 'thiers' \\(did you mean theirs\\?\\)") as caught:
        REWARDS.check("thiers")
    assert "HSAL_PLUGINS=FILE.py" in caught.value.hint


def test_names_of_hsals_own_and_odd_names_are_refused():
    for name, what in (("itti", "has a saliency model itti itself"), ("file", "itself"), ("a/b", "is no name"), ("A", "is no name")):
        with pytest.raises(hsal.HsalError, match=what):
            hsal.register_saliency(name)
    with pytest.raises(hsal.HsalError, match="has a reward list itself"):
        hsal.register_reward("list")


def test_a_class_is_made_once_and_its_maps_of_any_size_are_averaged_over_cells():
    @hsal.register_saliency("quarters")
    class Quarters:
        def __call__(self, images, volumes):
            return torch.arange(16.0).view(1, 4, 4).expand(len(images), -1, -1)

    model = saliency_model("quarters")
    assert model.digest.startswith("quarters:") and Quarters.__name__ == "Quarters"
    maps = model(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 5, 2, 2), ["a", "b", "c"])
    assert maps.shape == (3, 2, 2) and maps[2].tolist() == [[2.5, 4.5], [10.5, 12.5]]


@pytest.mark.parametrize(
    ("maps", "what"),
    [
        (torch.zeros(2, 4, 4), r"maps of shape \(2, 4, 4\)"),
        (None, "maps of type NoneType"),
        (torch.full((1, 4, 4), -1.0), "negative or not finite"),
        (torch.full((1, 4, 4), torch.nan), "negative or not finite"),
    ],
)
def test_a_saliency_model_that_gives_something_else_is_named(maps, what):
    hsal.register_saliency("odd")(lambda images, volumes: maps)
    with pytest.raises(hsal.HsalError, match=f"saliency model odd .*{what}"):
        saliency_model("odd")(torch.zeros(1, 8, 8, dtype=torch.uint8), torch.zeros(1, 5, 2, 2), ["a"])


def test_a_reward_of_ones_own_takes_the_place_of_the_tasks_and_its_shape_is_checked():
    remaining, labels = torch.tensor([[[2, 0]], [[1, 0]]]), torch.tensor([[0, 0]])
    hsal.register_reward("flat")(lambda remaining, labels: remaining.new_ones(2, 1, 3))
    assert rewards_of_actions("flat", remaining, labels).tolist() == [[[1.0] * 3]] * 2
    assert torch.equal(rewards_of_actions("multiset", remaining, labels), hsal.rewards.action_rewards(remaining))
    assert rewards_of_actions("list", remaining, labels).tolist() == [[[1.0, -1.0, -1.0]]] * 2
    hsal.register_reward("thin")(lambda remaining, labels: remaining.float())
    with pytest.raises(hsal.HsalError, match=r"reward thin gave shape \(2, 1, 2\)") as caught:
        rewards_of_actions("thin", remaining, labels)
    assert "(2, 1, 3)" in caught.value.hint


def test_the_page_names_all_of_the_public_face_and_all_of_it_has_a_docstring():
    documented = set(re.findall(r"^\| `hsal\.(\w+)` \|", PAGE, re.MULTILINE))
    explained = {name for name in hsal.__all__ if len(inspect.getdoc(getattr(hsal, name)) or "") > 30}
    print(f"public face: {len(documented & explained)} of {len(hsal.__all__)} names documented")
    assert documented == explained == set(hsal.__all__)
    for name in hsal.__all__:
        for part, value in vars(getattr(hsal, name)).items() if inspect.isclass(getattr(hsal, name)) else ():
            if not part.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)) and part != "forward":
                assert inspect.getdoc(value), f"hsal.{name}.{part}"


def test_type_checkers_see_the_names_that_there_are():
    stub = (ROOT / "hsal_cli" / "__init__.pyi").read_text()
    assert sorted(re.findall(r" as (\w+)$", stub, re.MULTILINE)) == sorted(hsal.__all__)


def test_every_command_has_its_function_on_the_page():
    table = dict(re.findall(r"^\| `hsal ([\w-]+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert set(table) == set(typer.main.get_command(app).commands)
    for places in table.values():
        for place in re.findall(r"`([\w.]+)`", places):
            module, _, name = place.rpartition(".")
            assert inspect.isfunction(getattr(importlib.import_module(module), name)), place


def test_importing_the_package_loads_nothing_heavy_and_offers_every_name():
    heavy = "{'torch', 'numpy', 'h5py', 'typer'}"
    code = f"import sys, hsal_cli as hsal; print(sorted({heavy} & set(sys.modules)), set(hsal.__all__) <= set(dir(hsal)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[] True", done.stderr


@pytest.mark.parametrize(
    "place",
    ["scenes.make", "finetuning.finetune", "features.precompute", "training.train", "evaluation.evaluate"],
)
def test_a_room_gives_its_function_whoever_imported_the_file_of_that_name_before(place):
    room, name = place.split(".")
    importlib.import_module(f"hsal_cli.{place}")
    found = getattr(importlib.import_module(f"hsal_cli.{room}"), name)
    assert inspect.isfunction(found) and found.__module__ == f"hsal_cli.{place}"
