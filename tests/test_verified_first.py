"""A resume that fails changes nothing: all is read and verified before anything of a run is written."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_parts import write_features
from learning_parts import SMALL, easy_table, small
from test_faults_resume import FINETUNE, NAMES, TRAIN, data, one_layer  # noqa: F401

from hsal_cli.errors import FileError, HsalError
from hsal_cli.finetuning.finetune import FinetuneTask, finetune
from hsal_cli.runs import run as runs
from hsal_cli.runs.start import differences
from hsal_cli.storage import checkpoints
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.training.train import PolicyTask, resume, train
from hsal_cli.upkeep.check import check_path

CPU = torch.device("cpu")


def all_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def make(command: str, data: Path, out: Path, **changes: Any) -> runs.Run:  # noqa: F811
    if command == "train":
        return train(data / "easy.features.h5", out, changes.pop("variant", SMALL), dataclasses.replace(TRAIN, **changes), CPU)
    return finetune(data / "squares.h5", out, dataclasses.replace(FINETUNE, crop_images=16, epoch_images=16, **changes), CPU)


def longer(command: str, run: Path) -> runs.Run:
    if command == "train":
        return resume(run, CPU, epochs=5)
    return finetune(Path("nowhere"), run, FINETUNE, CPU, resume=True, full_images=2 * FINETUNE.full_images)


def give_checkpoints(source: Path, target: Path) -> None:
    """Somebody copies another run's checkpoints over a run's own."""
    for file in checkpoints.all_files(target / "checkpoints"):
        file.unlink()
    for file in checkpoints.all_files(source / "checkpoints"):
        goal = target / "checkpoints" / file.relative_to(source / "checkpoints")
        goal.parent.mkdir(exist_ok=True)
        goal.write_bytes(file.read_bytes())


class OutOfRoom(HsalError):
    pass


@pytest.mark.parametrize("command", ["train", "finetune"])
@pytest.mark.fault(20, "a finished run is to go on and fails at its first step: it is what it was, finished", tried=2)
def test_a_finished_run_that_fails_to_go_on_stays_finished(command: str, data, tmp_path, monkeypatch) -> None:  # noqa: F811
    run = make(command, data, tmp_path / "run")
    before = all_of(run.path)

    def fail(*given: Any) -> None:
        assert run.status.state == "running"
        raise OutOfRoom("out of memory", "take a smaller --batch-size")

    with monkeypatch.context() as patch, pytest.raises(OutOfRoom):
        patch.setattr(PolicyTask if command == "train" else FinetuneTask, "step", fail)
        longer(command, run.path)
    assert all_of(run.path) == before and run.status.state == "finished"
    assert len(longer(command, run.path).rows()) > len(before["metrics.jsonl"].splitlines())


@pytest.mark.fault(20, "a run resumed from another run's checkpoints: refused with what differs, nothing is written", tried=4)
@pytest.mark.parametrize("other", ["settings", "classes", "objective", "backbone"])
def test_a_run_does_not_go_on_from_the_checkpoints_of_another(other: str, data, tmp_path) -> None:  # noqa: F811
    command = "finetune" if other == "backbone" else "train"
    run = make(command, data, tmp_path / "run")
    if other == "classes":
        features = write_features(tmp_path / "three.features.h5", {"train": easy_table(32, classes=3)}, classes=["a", "b", "c"])
        theirs = train(features, tmp_path / "other", SMALL, TRAIN, CPU)
    else:
        changes = {"settings": {"variant": small(gaussians=3)}, "objective": {"objective": "multiset"}, "backbone": {"input_size": 48}}[
            other
        ]
        theirs = make(command, data, tmp_path / "other", **changes)
    give_checkpoints(theirs.path, run.path)
    before = all_of(run.path)
    said = {"settings": "variant.gaussians is 3, not 2", "classes": "classes is a, b, c, not one, two"}
    said |= {"objective": "objective is multiset, not rl", "backbone": "input_size is 48, not 32"}
    with pytest.raises(FileError, match=f"is of another run: .*{said[other]}"):
        longer(command, run.path)
    assert all_of(run.path) == before
    assert any(said[other] in fault for fault in check_path(run.path).faults)


@pytest.mark.fault(20, "a checkpoint whose optimiser state does not fit, or whose features are gone: the run stays as it is", tried=3)
@pytest.mark.parametrize("fault", ["state", "progress", "features"])
def test_a_resume_that_cannot_load_what_it_needs_writes_nothing(fault: str, data, tmp_path) -> None:  # noqa: F811
    features = tmp_path / "mine.features.h5"
    features.write_bytes((data / "easy.features.h5").read_bytes())
    run = train(features, tmp_path / "run", SMALL, TRAIN, CPU)
    last = checkpoints.load(run.checkpoints, "last")
    state = {"state": {**last.state, "task": {"optimiser": {}}}, "progress": {"task": last.state["task"]}}.get(fault)
    if state is not None:
        checkpoints.write_checkpoint(last.path, last.weights, state, last.meta)
    else:
        features.unlink()
    before = all_of(run.path)
    said = {"state": "does not fit the training", "progress": "state.pt holds no progress", "features": "missing"}
    with pytest.raises(FileError, match=said[fault]):
        longer("train", run.path)
    assert all_of(run.path) == before and run.status.state == "finished"


@pytest.mark.fault(20, "check: a best checkpoint of another run of the same settings", tried=1)
def test_check_tells_a_checkpoint_of_another_seed_by_its_score(data, tmp_path) -> None:  # noqa: F811
    run = make("train", data, tmp_path / "run")
    best = checkpoints.load(run.checkpoints, "best")
    score = best.meta["exact_match"]
    checkpoints.write_checkpoint(best.path, best.weights, best.state, {**best.meta, "exact_match": score + 0.25})
    said = f"has exact_match {score + 0.25:.4f}, metrics.jsonl has {score:.4f} for epoch {best.meta['epoch']}"
    assert any(said in fault for fault in check_path(run.path).faults)


def test_what_a_version_left_open_is_no_difference() -> None:
    config = {"variant": {"beta": None, "mask": "learned", "gone": 3}, "finetune": {"resolution": "7"}, "train": {"objective": "rl"}}
    meta = {"variant": {"beta": [1, 2], "mask": "learned", "new": 1}, "resolution": 7, "classes": ["a"]}
    assert differences(config, meta) == []
    assert differences(config, {"variant": {"mask": "free"}, "resolution": 14}) == [
        "variant.mask is free, not learned",
        "resolution is 14, not 7",
    ]


@pytest.mark.fault(20, "reproduce goes on with another backbone than its features were made by: refused, grid.json stays", tried=1)
def test_a_grid_that_is_refused_keeps_its_record(tmp_path, monkeypatch) -> None:
    from shipped_parts import use_tiny_backbone, write_backbone

    from hsal_cli.evaluation.settings import EvalSettings
    from hsal_cli.experiments.grid import Grid
    from hsal_cli.experiments.grid_run import run_grid
    from hsal_cli.experiments.pipeline import Recipe
    from hsal_cli.features.settings import PrecomputeSettings
    from hsal_cli.finetuning.finetune import FinetuneSettings
    from hsal_cli.progress import SILENT
    from hsal_cli.scenes.settings import SceneSettings

    monkeypatch.chdir(tmp_path)
    use_tiny_backbone(monkeypatch)
    first, _ = write_backbone(Path("runs/first")), write_backbone(Path("runs/second"), seed=1)
    Path("data").mkdir()
    tables = {"train": easy_table(8), "test": easy_table(4)}
    write_features(Path("data/mnist-set.features.h5"), tables, backbone_digest=first, classes=NAMES)
    recipe = Recipe(SceneSettings(), FinetuneSettings(), PrecomputeSettings(), SMALL, TRAIN)
    grid = Grid(("mnist-set",), ("rl",), (0,), Path("out"), recipe, EvalSettings(), backbone=Path("runs/second"))
    Path("out").mkdir()
    grid.record(backbone="runs/first")
    before = Path("out/grid.json").read_bytes()
    with pytest.raises(FileError, match="another backbone"):
        run_grid(grid, CPU, SILENT)
    assert Path("out/grid.json").read_bytes() == before and not Path("data/mnist-set.h5").exists()


def test_config_of_a_new_run_says_what_its_checkpoints_say(data, tmp_path) -> None:  # noqa: F811
    run = make("train", data, tmp_path / "run")
    assert (run.config.raw["classes"], run.config.raw["volume_shape"]) == (NAMES, [2, 3, 3])
    config = run.config.raw
    for key, value, said in (
        ("volume_shape", [4, 3, 3], "volume_shape is 2, 3, 3, not 4, 3, 3"),
        ("classes", ["x"], "classes is one, two"),
    ):
        write_sealed(run.path / "config.json", {**config, key: value})
        assert any(said in fault for fault in check_path(run.path).faults)
