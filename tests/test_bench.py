"""hsal bench times the real stages beside their floors, counts FLOPs rightly, and leaves nothing behind."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import torch
import typer
from idx_files import write_idx_set
from learning_parts import StoppingReporter
from typer.testing import CliRunner

from hsal_cli.bench import stages
from hsal_cli.bench.bench import bench as run_bench
from hsal_cli.bench.products import MatrixProducts, replay
from hsal_cli.bench.settings import STAGES, BenchSettings
from hsal_cli.bench.shop import Shop
from hsal_cli.bench.timing import Clock, Stage, call, lap, measure
from hsal_cli.commands.bench import bench
from hsal_cli.errors import HsalError, Interrupted, UsageError
from hsal_cli.evaluation.evaluate import roll_outs
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.experiments.pipeline import Recipe
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.stop_head import CHANNELS
from hsal_cli.policy.variant import Variant
from hsal_cli.progress import SILENT
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.settings import SceneSettings

SMALL = {"meta_encode": 8, "meta_hidden": 8, "controller_encode": 16, "controller_hidden": 16, "location_hidden": 8}
TOML = f"""
[make-data]
train = 12
count = [1, 2]
[finetune]
arch = "resnet18"
input_size = 56
batch_size = 2
[precompute]
batch_size = 4
[train]
batch_size = 4
[eval]
batch_size = 4
resamples = 2
[variant]
{chr(10).join(f"{name} = {value}" for name, value in SMALL.items())}
"""
NOTHING = EvalSettings(batch_size=4, resamples=2)
app = typer.Typer()
app.command("bench")(bench)
app.command("other")(lambda: None)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder that temporary files go to."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def digits(tmp_path, monkeypatch) -> None:
    """A few square glyphs, as nothing here depends on what digits look like."""
    monkeypatch.setenv("HSAL_MNIST_DIR", str(write_idx_set(tmp_path / "digits")))


def small_recipe() -> Recipe:
    return Recipe(
        SceneSettings(train=12, count=(1, 2)),
        FinetuneSettings(arch="resnet18", input_size=56, batch_size=2),
        PrecomputeSettings(batch_size=4),
        Variant(**SMALL),
        TrainSettings(batch_size=4),
    )


def hand_count(settings: Variant, steps: list[int], classes: int, shape: tuple[int, int, int], times_heads: int) -> int:
    """FLOPs of a roll-out's products, layer by layer from figures 8, 10 and 11.

    Args:
        steps: how many examples are active at each meta-step.
        times_heads: 1; where gradients are wanted 2: actions are chosen without, and the heads read all states again in one go.
    """
    channels, height, width = shape
    cells, labels, k = height * width, classes + 1, settings.glimpses
    encode, hidden = settings.controller_encode, settings.controller_hidden
    total = 0
    for t, active in enumerate(steps):
        multiplications = (cells + labels) * settings.meta_encode + settings.meta_encode * 3 * settings.meta_hidden
        masks = 1 + (settings.inhibition_width != 1)  # the covert one, and a wider one for inhibition of return
        multiplications += settings.meta_hidden * 4 * settings.gaussians + masks * height * settings.gaussians * width
        multiplications += settings.meta_hidden * 3 * settings.meta_hidden if t else 0
        multiplications += cells * channels  # g_0
        multiplications += (cells + labels) * encode + (k + 1) * (channels * encode + encode * 3 * hidden)
        carried = t > 0 and settings.controller_state == "carry"  # a state of zeros is not multiplied
        multiplications += (k + carried) * hidden * 3 * hidden
        # The location head reads P_t once a meta-step, the state at each glimpse.
        heads = (k * hidden + (k + 1) * cells) * settings.location_hidden
        heads += hidden * labels + CHANNELS * (settings.stop_input == "state+saliency")
        multiplications += times_heads * heads + (k + 1) * hidden
        total += 2 * active * multiplications
    return total


@pytest.mark.parametrize("state", ["carry", "reset"])
@pytest.mark.parametrize("inference", [False, True])
def test_the_products_of_a_roll_out_are_those_counted_by_hand(inference: bool, state: str) -> None:
    settings, shape, classes = Variant(**SMALL, gaussians=3, controller_state=state), (5, 3, 4), 6
    policy = HSAL(settings, classes, shape)
    with MatrixProducts() as products, torch.inference_mode(inference):
        policy(
            torch.rand(3, *shape), torch.rand(3, *shape[1:]), choose=lambda t, rows, logits: logits.argmax(1), steps=torch.tensor([2, 1, 3])
        )
    assert products.flops == hand_count(settings, [3, 2, 1], classes, shape, 1 if inference else 2)


def test_backward_passes_are_counted_too() -> None:
    layer, x = torch.nn.Linear(7, 5), torch.rand(3, 7, requires_grad=True)
    with MatrixProducts() as products:
        layer(x).sum().backward()
    assert products.flops == 3 * (2 * 3 * 7 * 5)  # the product, and one for the gradient of each factor


def test_a_floor_is_of_single_precision_whichever_the_work_has() -> None:
    with MatrixProducts() as products:
        torch.ones(3, 4, dtype=torch.bfloat16) @ torch.ones(4, 2, dtype=torch.bfloat16)
    with MatrixProducts() as again:
        replay(products, torch.device("cpu"))()
    assert {layout[-1] for pair in products.found for layout in pair} == {torch.bfloat16}
    assert {layout[-1] for pair in again.found for layout in pair} <= {torch.float32}


def test_a_replay_takes_every_product_as_often_as_it_was_found(monkeypatch) -> None:
    a, b, c = torch.rand(4, 3), torch.rand(3, 2), torch.rand(2, 4, 3)
    with MatrixProducts() as products:
        for _ in range(3):
            a @ b
        c @ c.transpose(1, 2)
        b.t() @ torch.ones(1).expand(3, 2)
    with MatrixProducts() as again:
        run = replay(products, torch.device("cpu"))
    taken = []
    for name in ("mm", "bmm"):
        monkeypatch.setattr(torch, name, lambda a, b, out=None, take=getattr(torch, name): taken.append((a, b)) or take(a, b, out=out))
    run = replay(products, torch.device("cpu"))
    taken.clear()
    run()
    shapes = [(tuple(left.shape), left.stride(), tuple(right.shape)) for left, right in taken]
    assert shapes == 3 * [((4, 3), (3, 1), (3, 2))] + [((2, 4, 3), (12, 3, 1), (2, 3, 4))] + [((2, 3), (1, 2), (3, 2))]
    assert again.flops == products.flops - 2 * (2 * 4 * 3 * 2)  # preparing takes each kind once


def test_a_lap_goes_on_for_its_seconds_and_stage_and_floor_take_turns() -> None:
    assert lap(lambda: (6, 2.0), 5.0, SILENT) == 3.0
    order = []
    speeds = {"work": iter([99, 4, 1, 3]), "floor": iter([99, 10, 8, 2])}

    def piece(name: str):
        def run() -> tuple[float, float]:
            order.append(name)
            return next(speeds[name]), 1.0

        return run

    laps = []
    stage = Stage(piece("work"), piece("floor"), "", "", lambda rate, floor: True)
    assert measure(stage, 0.5, 3, SILENT, laps.append) == ([4, 1, 3], [10, 8, 2]) and laps == [1] * 6
    assert order == ["work", "floor", "work", "floor", "floor", "work", "work", "floor"]


def test_the_stages_that_compute_are_measured_and_nothing_is_left_behind(tmp_path, temporary) -> None:
    (tmp_path / "small.toml").write_text(TOML)
    words = ["bench", "--stages", "make-data,finetune,precompute,train,eval", "--seconds", "1e-6", "--laps", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--config", str(tmp_path / "small.toml"), "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert [stage["stage"] for stage in document["stages"]] == ["make-data", "finetune", "precompute", "train", "eval"]
    assert document["device"] == "cpu" and document["cores"] >= 1
    for stage in document["stages"]:
        assert {"stage", "rate", "unit", "floor", "ratio"} <= stage.keys()
        assert stage["unit"] == "images/s" and stage["rate"] > 0 and stage["floor"] > 0
        assert stage["ratio"] == pytest.approx(stage["rate"] / stage["floor"], rel=1e-12)
        assert isinstance(stage["reached"], bool) and len(stage["rates"]) == len(stage["floors"]) == 1
    # What torch leaves where it is imported first is not ours.
    assert [path for path in temporary.iterdir() if not path.name.startswith("torchinductor")] == []


def test_the_commands_are_called_in_processes_of_their_own_and_told_in_seconds(temporary, monkeypatch) -> None:
    monkeypatch.setattr(Shop, "picture", lambda shop: Path("image.png"))
    called = []
    monkeypatch.setattr(stages, "call", lambda words, folder, reporter: called.append(words) or (lambda: (1, 0.25)))
    monkeypatch.setattr(Shop, "policy_checkpoint", lambda shop: Path("policy"))
    done = CliRunner().invoke(app, ["bench", "--stages", "help,visualize", "--seconds", "0.5", "--laps", "1"], catch_exceptions=False)
    assert [words[:3] for words in called[:2]] == [["-m", "hsal_cli", "--help"], ["-c", "pass"]]
    assert called[2][:6] == ["-m", "hsal_cli", "visualize", "image.png", "--run", "policy"]
    assert [line.split("│")[1:4] for line in done.stdout.splitlines() if "│ 0." in line] == [
        [" help      ", " 0.25 s ", " 0.25 s "],
        [" visualize ", " 0.25 s ", " 0.25 s "],
    ]


def test_a_call_runs_hsal_of_this_checkout_wherever_it_runs(tmp_path) -> None:
    units, seconds = call(["-m", "hsal_cli", "--version"], tmp_path, StoppingReporter())()
    assert units == 1 and seconds > 0
    with pytest.raises(HsalError, match=r"ended with 2: Error: .*there-is-no-such"):
        call(["-m", "hsal_cli", "there-is-no-such"], tmp_path, StoppingReporter())()


@pytest.mark.parametrize("glimpse", ["column", "fine", "window"])
def test_the_picture_is_looked_at_by_the_policy_made_for_it(tmp_path, glimpse) -> None:
    from hsal_cli.models.load import find_backbone, load_policy
    from hsal_cli.models.look import look_at_files

    recipe = dataclasses.replace(small_recipe(), variant=Variant(**SMALL, glimpse=glimpse))
    shop = Shop(recipe, tmp_path, torch.device("cpu"), StoppingReporter())
    assert shop.volume_shape[0] == {"column": 512, "fine": 512 + 4 * 64, "window": 64 + 512}[glimpse] == shop.table.volumes.shape[1]
    assert len(list(roll_outs(shop.policy().eval(), shop.table.select(slice(0, 2)), 1, 2))) == 1
    loaded = load_policy(shop.policy_checkpoint())
    [(_, found)] = look_at_files([shop.picture()], find_backbone(loaded), loaded, stages.LOOK_STEPS)
    assert len(found.labels) == stages.LOOK_STEPS


def test_the_untrained_policy_stops_about_when_a_trained_one_would(tmp_path) -> None:
    shop = Shop(small_recipe(), tmp_path, torch.device("cpu"), StoppingReporter())
    policy = shop.stopping_policy()
    steps = torch.cat([episode.active.sum(0) for _, episode in roll_outs(policy, shop.table, shop.most_labels + 2, 12)])
    assert 2 <= steps.float().mean() <= 3  # images have 1 or 2 labels, and stop is named after them


def test_a_room_is_timed_from_where_it_says_how_much_there_is(monkeypatch) -> None:
    times = iter([10.0, 13.0, 20.0])
    monkeypatch.setattr("hsal_cli.bench.timing.time.perf_counter", lambda: next(times))
    clock = Clock(StoppingReporter())
    with clock.running(), clock.track("composing", 70, "images") as advance:
        advance(70)
    assert (clock.start_s, clock.work_s, clock.units) == (3.0, 7.0, 70.0)


def test_a_stop_leaves_at_the_next_piece_and_leaves_nothing_behind(temporary) -> None:
    reporter = StoppingReporter(after=1)
    settings = BenchSettings(stages="train", seconds=1e-6, laps=3)
    with pytest.raises(Interrupted):
        run_bench(settings, small_recipe(), NOTHING, torch.device("cpu"), reporter)
    assert reporter.steps == 1 and list(temporary.iterdir()) == []


def test_a_stage_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError) as found:
        BenchSettings(stages="train,trian")
    assert "there is no stage 'trian'" in found.value.message
    assert all(name in found.value.hint for name in STAGES)
    with pytest.raises(UsageError):
        BenchSettings(stages=" , ")
    assert BenchSettings().stage_names == list(STAGES) == list(stages.MAKERS)
    assert BenchSettings(stages="eval, eval,train").stage_names == ["eval", "train"]
