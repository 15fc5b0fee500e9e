"""The commands one after the other, as a user types them in an empty folder; toy sizes come from a settings file."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from children import Nursery

TOY = """
[make-data]
train = 40
test = 12
digits = "strokes"
count = [1, 2]

[finetune]
arch = "resnet18"
input_size = 56
weights = "none"
crop_images = 32
full_images = 16
epoch_images = 32
batch_size = 16
validation = 8

[train]
epochs = 2
batch_size = 16

[eval]
resamples = 20
"""


NURSERY: list[Nursery] = []


@pytest.fixture(scope="module", autouse=True)
def nursery() -> Iterator[None]:
    """Torch is imported once for all commands, each of which is a process of its own nevertheless."""
    NURSERY.append(Nursery(small=False))
    yield
    NURSERY.pop().close()


def hsal(folder: Path, *words: str, expect: int = 0) -> SimpleNamespace:
    """Runs one command as its own process and checks its exit code; returns what it wrote to `stdout` and `stderr`."""
    done = NURSERY[0].run(folder, *words)
    assert done["code"] == expect, f"hsal {' '.join(words)}\n{done['out']}\n{done['err']}"
    return SimpleNamespace(stdout=done["out"], stderr=done["err"])


@pytest.fixture(scope="module")
def trained(nursery: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which data was made and a policy trained; training made the backbone and the features itself."""
    folder = tmp_path_factory.mktemp("empty folder")
    (folder / "toy.toml").write_text(TOY)
    hsal(folder, "make-data", "mnist-multiset", "--config", "toy.toml")
    said = hsal(folder, "finetune", "--config", "toy.toml").stderr
    assert "data/mnist-single.h5 is missing: making it" in said
    said = hsal(folder, "train", "--config", "toy.toml").stderr
    assert "data/mnist-multiset.fine.features.h5 is missing: computing it" in said
    return folder


def test_the_five_commands_work_in_an_empty_folder(trained: Path) -> None:
    found = json.loads(hsal(trained, "eval", "--config", "toy.toml", "--json").stdout)
    assert found["examples"] == 12 and 0 <= found["exact_match"] <= 1
    assert found == json.loads((trained / "runs/mnist-multiset-rl/eval.json").read_text())
    said = hsal(trained, "visualize", "--data", "data/mnist-multiset.h5", "--rows", "0,3-4", "--out", "three.png").stdout
    assert "three.png" in said and (trained / "three.png").stat().st_size > 10_000
    from PIL import Image

    Image.new("L", (80, 60), 40).save(trained / "image.png")
    hsal(trained, "visualize", "image.png")
    assert (trained / "image.hsal.png").is_file()
    looked = json.loads(hsal(trained, "predict", "image.png", "--json").stdout)
    assert {"image", "labels", "steps"} <= set(looked[0])


def test_a_run_holds_what_the_contract_names(trained: Path) -> None:
    run = trained / "runs/mnist-multiset-rl"
    for name in ("config.json", "command.txt", "env.json", "metrics.jsonl", "results.csv", "status.json", "checkpoints"):
        assert (run / name).exists(), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    # Not attn_saliency: a policy of toy size may name nothing yet, and then there are no glimpses to score.
    wanted = {"reward", "exact_match", "macro_f1", "label_entropy", "location_entropy", "early_stops"}
    assert wanted | {"explained_variance", "examples_per_s"} <= set(rows[0])


def test_a_finished_run_has_nothing_to_resume(trained: Path) -> None:
    assert "nothing to do" in hsal(trained, "train", "--resume", "runs/mnist-multiset-rl").stderr


def test_compare_puts_evaluated_runs_beside_the_trivial_baselines(trained: Path) -> None:
    hsal(trained, "eval", "--config", "toy.toml")
    said = hsal(trained, "compare", "runs/mnist-multiset-rl").stdout
    assert "most frequent" in said and "number of objects known" in said


def test_an_existing_run_is_not_overwritten(trained: Path) -> None:
    done = hsal(trained, "train", "--config", "toy.toml", "--out", "runs/mnist-multiset-rl", expect=2)
    lines = done.stderr.strip().splitlines()
    assert lines[-2].startswith("Error: ") and lines[-1].startswith("Hint: ")
