"""All stages on a device that pretends to be a GPU (see fake_device): nothing is refused, and a training step waits for nothing."""

import dataclasses
import sys
from types import SimpleNamespace

import gpu
import pytest
import torch
import torch.nn.functional as F
from fake_device import DEVICE, NAME, FakeDevice, FakeGraph
from learning_parts import SMALL, TWO_STOP_HEADS, OneLayer, easy_table

from hsal_cli.evaluation.files import evaluate_file, evaluate_scenes
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.precompute import precompute
from hsal_cli.features.saliency.models import maps_of_image, saliency_model
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.features.table import open_features
from hsal_cli.finetuning.finetune import finetune
from hsal_cli.finetuning.views import views
from hsal_cli.models.export import export
from hsal_cli.models.load import find_backbone, load_model
from hsal_cli.models.look import look_at_scenes
from hsal_cli.policy.count_classifier import CountClassifier
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import COLUMNS, DEFAULT, PAPER
from hsal_cli.progress import SILENT
from hsal_cli.report.tested import detail
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.make import make_dataset
from hsal_cli.scenes.settings import SceneSettings
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.storage.checkpoints import load
from hsal_cli.training import captured, feature_task, objectives, rewards
from hsal_cli.training.count_task import CountTask
from hsal_cli.training.train import PolicyTask, resume, train

CPU = torch.device("cpu")
FEW = {"meta_encode": 8, "meta_hidden": 8, "controller_encode": 8, "controller_hidden": 8, "location_hidden": 8}
LAUNCHES = 1_000  # of a step of five meta-steps
MORE = {"tall Gaussians": 1_100, "multiset": 1_050}  # raw maps are scaled at each, and what is left is drawn from
CAPTURED = 30  # of one that is played back
KINDS = {
    "rl": (DEFAULT, {}),
    "columns": (COLUMNS, {}),
    "sampled": (dataclasses.replace(COLUMNS, gradient="sampled"), {}),
    "paper": (PAPER, {}),
    "winner-take-all": (dataclasses.replace(COLUMNS, mask="winner-take-all"), {}),
    "no glimpses": (dataclasses.replace(COLUMNS, glimpses=0), {}),
    "tall Gaussians": (dataclasses.replace(COLUMNS, aspect=2.0, update="raw"), {}),
    "cross-entropy": (COLUMNS, {"objective": "cross-entropy"}),
    "multiset": (COLUMNS, {"objective": "multiset"}),
    "list": (COLUMNS, {"task": "list"}),
}


@pytest.fixture
def device(request, monkeypatch):
    """The device, with the memory and the types of an Apple GPU, which refuses more; or, as a parameter, of an NVIDIA one: "cuda"."""
    kind = getattr(request, "param", "mps")
    if kind == "mps":
        for module in (rewards, objectives):
            monkeypatch.setattr(module, "wide", lambda values: torch.float32 if values.device.type == NAME else torch.float64)
    monkeypatch.setattr(feature_task, "free_memory", lambda device: 1e12)
    with FakeDevice(double=kind == "cuda") as found:
        yield found


def task_of(variant, device: torch.device, **settings) -> PolicyTask:
    table, fine = easy_table(24, classes=3, most=4, side=7), 4 if variant.glimpse == "fine" else 0
    torch.manual_seed(0)
    if fine:
        stage = torch.rand(24, 1, 14, 14)
        volumes = torch.cat([table.volumes, F.pixel_unshuffle(stage, 2).half()], 1)
        table = dataclasses.replace(table, volumes=volumes, saliency=stage[:, 0], fine=fine)
    policy = HSAL(dataclasses.replace(variant, fine=fine, **FEW), 3, (3 + fine, 7, 7)).to(device)
    settings = TrainSettings(epochs=2, batch_size=8, **settings)
    task = PolicyTask(policy, table, torch.arange(20), table.select(slice(20, 24)), settings, device, {"max_labels": 4})
    task.start_epoch(0)
    return task


def steps_of(task: PolicyTask) -> list[dict[str, float]]:
    """What two steps say, the last of them one of fewer images; and the scores behind them."""
    said = [{name: float(value) for name, value in task.step(step)[1].items()} for step in (0, 2)]
    return [*said, task.validate()]


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_cpus_random_numbers_a_gpu_trains_as_a_cpu_does(kind, device) -> None:
    variant, settings = KINDS[kind]
    one, other = (steps_of(task_of(variant, where, deterministic=True, **settings)) for where in (CPU, DEVICE))
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize(("kind", "resident"), [*((kind, True) for kind in KINDS), ("rl", False), ("list", False)])
def test_a_training_step_waits_for_nothing_and_makes_few_launches(kind, resident, device, monkeypatch) -> None:
    if not resident:
        monkeypatch.setattr(feature_task, "free_memory", lambda device: 0)
    variant, settings = KINDS[kind]
    task = task_of(variant, DEVICE, **settings)
    task.step(0)  # constants are laid out
    device.clear()
    task.step(1)
    assert not device.waits
    assert device.launches <= MORE.get(kind, LAUNCHES)


@pytest.fixture
def graphs(monkeypatch):
    """The device, with graphs that it captures at the second step."""
    monkeypatch.setattr(feature_task, "free_memory", lambda device: 1e12)
    monkeypatch.setattr(feature_task, "graph_on", lambda device: FakeGraph)
    monkeypatch.setattr(captured, "WARM", 1)
    with FakeDevice() as found:
        yield found


def fourth_of(task: PolicyTask, device: FakeDevice) -> list[dict[str, float]]:
    """What four steps say, the third of fewer images, and behind them all weights; the fourth is counted."""
    said = []
    for epoch, step in ((0, 0), (0, 1), (0, 2), (1, 0)):
        task.start_epoch(epoch)
        device.clear()
        said.append(task.step(step)[1])
    device.counted = device.launches, list(device.waits)
    return [{name: value.tolist() for name, value in each.items()} for each in [*said, task.weights()]]


@pytest.mark.parametrize(
    ("kind", "resident"), [("rl", True), ("rl", False), ("paper", True), ("cross-entropy", True), ("multiset", True), ("list", True)]
)
def test_a_captured_step_is_the_step_and_makes_a_few_launches(kind, resident, graphs, monkeypatch) -> None:
    if not resident:
        monkeypatch.setattr(feature_task, "free_memory", lambda device: 0)
    variant, settings = KINDS[kind]
    task = task_of(variant, DEVICE, **settings)
    found = fourth_of(task, graphs)
    assert (task.captured.replayed, task.warning) == (2, None)
    launches, waits = graphs.counted
    assert launches <= CAPTURED and not waits
    plain = task_of(variant, DEVICE, **settings)
    plain.captured = None
    for mine, theirs in zip(found, fourth_of(plain, graphs), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(torch.tensor(mine[name]), torch.tensor(theirs[name]), atol=1e-6, rtol=1e-5)


def test_a_step_that_cannot_be_captured_is_taken_as_it_is_and_said(graphs, monkeypatch) -> None:
    expected = task_of(COLUMNS, DEVICE)
    expected.captured = None
    task = task_of(COLUMNS, DEVICE)
    loss = task.replica._loss

    def waiting(*parts):
        found = loss(*parts)
        found[0].item()
        return found

    task.replica._loss = waiting
    assert steps_of(task)[:2] == steps_of(expected)[:2]
    task.step(1)
    assert task.captured is None and "the host waits in a capture" in task.warning
    row = {"epoch": 1, "early_stops": 0.0, "reward": 0.0, "exact_match": 0.0}
    assert "could not be captured" in task.check([row]) and task.check([row]) is None


@pytest.mark.parametrize(("size", "kind"), [(1, "cuda"), (2, "cuda"), (1, "cpu")])
def test_graphs_are_captured_by_one_worker_on_an_nvidia_gpu(size, kind, monkeypatch) -> None:
    monkeypatch.setattr(captured.distributed, "current", lambda: SimpleNamespace(size=size))
    assert (captured.graph_on(torch.device(kind)) is captured.CudaGraph) == ((size, kind) == (1, "cuda"))


def test_an_epoch_is_begun_without_waiting(device) -> None:
    task = task_of(COLUMNS, DEVICE)
    device.clear()
    task.start_epoch(1)
    assert not device.waits


def test_a_step_of_counting_waits_for_nothing(device) -> None:
    table = easy_table(24, classes=3, most=4, side=7)
    model = CountClassifier(3, (3, 7, 7), 4, hidden=8).to(DEVICE)
    settings = TrainSettings(objective="count", batch_size=8)
    task = CountTask(model, table, torch.arange(20), table.select(slice(20, 24)), settings, DEVICE, {})
    task.start_epoch(0)
    task.step(0)
    device.clear()
    task.step(1)
    assert not device.waits


def test_a_device_draws_the_same_again_for_the_same_step(device) -> None:
    first, again = (steps_of(task_of(COLUMNS, DEVICE))[:2] for _ in range(2))
    assert first == again


def test_the_script_for_a_machine_with_a_gpu_runs(device) -> None:
    assert gpu.differences(DEVICE, 128, 8) < gpu.CLOSE
    assert gpu.captured_apart(DEVICE, 128, 8) == (0, 0)  # this one captures nothing
    gpu.step_without_waiting(DEVICE, 256, 8)
    assert gpu.epoch_seconds(DEVICE, 128, 8) > 0


@pytest.mark.parametrize("most", [2, 20])
def test_a_dense_roll_out_is_a_sparse_one(most) -> None:
    torch.manual_seed(0)
    policy = HSAL(dataclasses.replace(SMALL, stop_input=TWO_STOP_HEADS.stop_input), 3, (3, 7, 7))
    with torch.no_grad():
        policy.controller.label.weight.normal_(0, 2)
    table = easy_table(40, classes=3, most=4, side=7)
    for more in ({}, {"steps": (table.labels >= 0).sum(1)}):
        with torch.inference_mode():
            sparse, dense = (
                policy(table.volumes, table.saliency, choose=greedy, max_steps=most + 3, dense=dense, **more) for dense in (False, True)
            )
        assert len(set(sparse.lengths.tolist())) > 1
        for field in dataclasses.fields(sparse):
            few, many = getattr(sparse, field.name), getattr(dense, field.name)
            empty = -1 if field.name == "labels" else 0
            torch.testing.assert_close(few.float(), many[: len(few)].float(), atol=1e-5, rtol=1e-4)
            assert bool((many[len(few) :] == empty).all())


@pytest.mark.parametrize("boxed", [True, False])
def test_views_are_cut_on_the_device_from_bytes_and_nothing_is_waited_for(boxed, device) -> None:
    images = torch.randint(0, 256, (6, 40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[5.0, 6.0, 20.0, 22.0]]).expand(6, 4) if boxed else None

    def cut(where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        return views(images, boxes, 32, 48, True, Draws.all(torch.Generator().manual_seed(1), 6), where)

    cut(DEVICE)  # constants are laid out
    device.clear()
    device.pinned.clear()
    seen, theta = cut(DEVICE)
    assert not device.waits
    assert sorted(sent.dtype.itemsize * sent.numel() for sent in device.pinned.values()) == [6 * 4, 6 * 6 * 4, images.numel()]
    for mine, theirs in zip((seen.cpu(), theta), cut(CPU), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    settings = SceneSettings(train=12, test=2, digits="strokes")
    return {name: make_dataset(f"mnist-{name}", settings, folder / f"{name}.h5", None, SILENT) for name in ("single", "multiset")}


def test_every_stage_runs_on_a_gpu_and_what_it_writes_is_read_without_one(scenes, device, tmp_path, monkeypatch) -> None:
    tiny = {"arch": "resnet18", "weights": "none", "input_size": 56, "batch_size": 4, "full_images": 4, "epoch_images": 4, "validation": 4}
    for objects, mode in (("single", "crops"), ("crops", "full"), ("counts", "full")):
        data = scenes["single" if objects == "single" else "multiset"]
        settings = FinetuneSettings(objects=objects, mode=mode, crop_images=4, **tiny)
        with monkeypatch.context() as patch:
            if objects != "single":  # one real network will do
                patch.setattr(sys.modules["hsal_cli.finetuning.finetune"], "ActivationModel", OneLayer)
            finetune(data, tmp_path / f"backbone-{objects}", settings, DEVICE)
    backbone = tmp_path / "backbone-single"
    features = {}
    for saliency in ("activation", "itti", "spectral-residual", "center"):
        features[saliency] = tmp_path / f"{saliency}.features.h5"
        precompute(scenes["multiset"], backbone, features[saliency], PrecomputeSettings(batch_size=8, saliency=saliency), DEVICE)
    features["fine"] = tmp_path / "fine.features.h5"
    precompute(scenes["multiset"], backbone, features["fine"], PrecomputeSettings(batch_size=8, resolution="fine"), DEVICE)
    run, variant = tmp_path / "run", dataclasses.replace(DEFAULT, **FEW)
    brief = TrainSettings(epochs=1, batch_size=8, validation=0.3)
    train(features["fine"], run, variant, brief, DEVICE, backbone=backbone)
    for where, epochs in ((DEVICE, 2), (CPU, 3), (DEVICE, 4)):  # what one saves the other goes on with
        resume(run, where, epochs=epochs)
        state = load(run / "checkpoints", "last").state
        assert all(value.device == CPU for group in state["task"]["optimiser"]["state"].values() for value in group.values())
    settings, others = EvalSettings(resamples=10, batch_size=4), {"columns": "rl", "count": "count", "set": "set"}
    for name, objective in others.items():
        columns = dataclasses.replace(COLUMNS, **FEW)
        train(features["activation"], tmp_path / name, columns, dataclasses.replace(brief, objective=objective), DEVICE)
        evaluate_file(load_model(tmp_path / name, "best", DEVICE), features["activation"], dataclasses.replace(settings, looking=0), DEVICE)
    loaded = load_model(run, "best", DEVICE)
    write_sealed(run / "eval.json", evaluate_file(loaded, features["fine"], settings, DEVICE))
    evaluate_file(loaded, features["fine"], dataclasses.replace(settings, sample=2), DEVICE)
    network = find_backbone(loaded, DEVICE, backbone)
    evaluate_scenes(loaded, network, scenes["multiset"], settings, DEVICE)
    on_gpu = look_at_scenes(scenes["multiset"], "test", [0, 1], network, loaded)
    cpu = load_model(run, "best", CPU)
    on_cpu = look_at_scenes(scenes["multiset"], "test", [0, 1], find_backbone(cpu, CPU, backbone), cpu)
    assert [look.labels for look, _ in on_gpu] == [look.labels for look, _ in on_cpu]
    maps_of_image(torch.zeros(1, 60, 60, 3, dtype=torch.uint8), "a", [saliency_model("activation")], network)
    with open_features(features["fine"]) as file:
        detail(loaded, file.table("test"), DEVICE)
    export([str(run)], tmp_path / "exported")
