"""The stages and their floors: each calls what the command calls, and beside it what the machine would have to do at the very least."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from hsal_cli.bench.products import MatrixProducts, replay
from hsal_cli.bench.shop import CLASSES, Shop
from hsal_cli.bench.timing import Clock, Piece, Stage, call, timed
from hsal_cli.evaluation.evaluate import evaluate, roll_outs
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.features.precompute import precompute
from hsal_cli.finetuning.finetune import FinetuneTask
from hsal_cli.finetuning.reading import read_objects
from hsal_cli.runs.loop import CHECK_EVERY
from hsal_cli.runs.seeds import Draws
from hsal_cli.runs.settings import DIRECT
from hsal_cli.scenes.compose import Composer
from hsal_cli.scenes.digits.glyphs import find_digits
from hsal_cli.scenes.make import PART, compose_part, make_dataset
from hsal_cli.threads import cores
from hsal_cli.training.train import PolicyTask
from hsal_cli.vision.backbone import fused, load_backbone
from hsal_cli.vision.devices import forward_context
from hsal_cli.vision.resolution import at_resolution

SINGLES = 512  # single-object images to fine-tune on
SCENES = 70_000  # images of a whole data set
MOST_COMPOSED, MOST_PRECOMPUTED = SCENES, 10_000  # images a piece
RECORDED = 3  # steps, or batches, whose matrix products make a floor
EPOCH, EPOCH_S = 60_000, 1.5  # images, and seconds that an epoch of policy training may take on an H200
COMPOSE_S, HELP_S, VISUALIZE_S = 15.0, 0.3, 1.5
LOOK_STEPS = 4  # meta-steps that a picture shows

# Torch, and one forward pass of the bare network: `python -c THIS resnet34 112 7 cpu`.
BARE_FORWARD = """
import sys
import torch
arch, side, device = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if arch.startswith("timm:"):
    import timm
    make = lambda: timm.create_model(arch[5:])
else:
    import torchvision.models.resnet as resnet
    make = getattr(resnet, arch)
with torch.device("meta"):
    model = make()
model = model.to_empty(device=device).eval()
with torch.inference_mode():
    for tensor in model.state_dict().values():
        tensor.zero_()
    float(model(torch.zeros(1, 3, side, side, device=device)).sum())
"""


def make_data(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """`hsal make-data mnist-multiset`, beside the same images composed in one thread with nothing written."""
    composer = Composer(find_digits(shop.scenes, shop.reporter).glyphs("train", shop.scenes.seed), shop.scenes, distinct=False, stream=0)
    count = min(PART, shop.scenes.train)
    place = 0

    def alone() -> float:
        nonlocal place
        compose_part(composer, place, place + count)
        place = place + count if place + 2 * count <= MOST_COMPOSED else 0
        return count

    floor = timed(alone, torch.device("cpu"))
    workers, speed = cores(), _speed(floor)
    # Some parts for every worker, however short a lap.
    images = min(max(round(speed * workers * seconds), 2 * workers * PART), MOST_COMPOSED, shop.scenes.train)
    settings, out = dataclasses.replace(shop.scenes, train=images, test=0), shop.folder / "made.h5"
    starts = []

    def whole() -> tuple[float, float]:
        clock = Clock(shop.reporter)
        with clock.running():
            make_dataset("mnist-multiset", settings, out, None, clock)
        out.unlink()
        starts.append(clock.start_s)
        return clock.units, clock.work_s

    return Stage(
        whole,
        floor,
        "the same images composed in one thread, nothing written",
        f"0.9 x {workers} core{'s' * (workers > 1)}, and {SCENES:,} images in {COMPOSE_S:g} s",
        lambda rate, floor: rate >= 0.9 * workers * floor and min(starts) + SCENES / rate <= COMPOSE_S,
    )


def finetune(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """A step of `hsal finetune` on full images, beside forward and backward of the bare network on a resident batch."""
    settings, device = shop.finetune, shop.device
    data = read_objects(shop.compose("mnist-single", min(SINGLES, max(shop.scenes.train, 4))), "train", "single")
    model = shop.model().to(device, memory_format=torch.channels_last)
    model.freeze(settings.frozen or 0.0)
    task = FinetuneTask(model, data, settings, device, {})
    task.start_epoch(0)
    rows = torch.arange(settings.batch_size) % len(task.data.labels)
    alone = dataclasses.replace(settings, crowd=1)  # one label an image, so that nothing stands between the network and its loss
    draws = Draws.all(torch.Generator().manual_seed(0), len(rows))
    shown = task.data.show(rows, False, model.input_size, model, alone, draws).first(len(rows), device)
    images, labels = shown.inputs.contiguous(memory_format=torch.channels_last), shown.labels

    def bare() -> float:
        model.train()
        model.zero_grad(set_to_none=True)
        with forward_context(device):
            logits = model.classify(images).float()
        F.cross_entropy(logits, labels).backward()
        return len(images)

    return Stage(
        timed(_steps(task, device), device),
        timed(bare, device),
        f"forward and backward of the bare {settings.arch} at {model.input_size} px on a resident batch",
        *_at_least(0.93),
    )


def precomputing(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """`hsal precompute`, writing included, beside the bare forward pass on a resident batch."""
    device, settings = shop.device, shop.recipe.precompute
    model = fused(at_resolution(load_backbone(shop.backbone, device=device), settings.resolution).model)
    side = model.input_size
    batch = torch.randn(settings.batch_size, 3, side, side).to(device).contiguous(memory_format=torch.channels_last)

    def bare() -> float:
        with torch.inference_mode(), forward_context(device):
            model(batch)
        return len(batch)

    floor = timed(bare, device)
    batches = max(2, math.ceil(_speed(floor) * seconds / len(batch)))
    scenes = shop.compose("mnist-multiset", min(batches * len(batch), MOST_PRECOMPUTED, shop.scenes.train))
    out = shop.folder / "made.features.h5"

    def whole() -> tuple[float, float]:
        clock = Clock(shop.reporter)
        with clock.running():
            precompute(scenes, shop.backbone, out, settings, device, clock)
        out.unlink()
        return clock.units, clock.work_s

    what = f"forward pass of the bare {model.arch} at {side} px on a resident batch"
    return Stage(whole, floor, what, *_at_least(0.95))


def train(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """A step of `hsal train`, beside the matrix products of its roll-out alone, forward and backward."""
    device, table = shop.device, shop.table
    settings = dataclasses.replace(shop.recipe.train, epochs=100_000)
    if settings.objective in DIRECT:
        settings = dataclasses.replace(settings, objective="rl")  # no policy, no roll-out
    task = PolicyTask(shop.policy(), table, torch.arange(len(table)), table, settings, device, {})
    task.start_epoch(0)
    step = _steps(task, device, look_every=1)
    with MatrixProducts() as products:
        images = sum(step() for _ in range(RECORDED))
    on_gpu = (f"{EPOCH:,} images in {EPOCH_S:g} s", lambda rate, floor: rate >= EPOCH / EPOCH_S)
    return Stage(
        timed(_steps(task, device), device),
        _products_alone(products, images, device),
        f"the roll-out's matrix products alone, forward and backward, {products.flops / images / 1e6:,.1f} MFLOP an image",
        *(on_gpu if device.type == "cuda" else _at_least(0.6)),
    )


def evaluating(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """`evaluate`, metrics and intervals included and no test of looking, beside the products of the policy's forward pass alone."""
    evaluation = dataclasses.replace(evaluation, looking=0)
    device, policy, most = shop.device, shop.stopping_policy(), shop.most_labels + 2
    some = shop.table.select(slice(0, RECORDED * evaluation.batch_size))
    with MatrixProducts() as products:
        images = sum(len(part) for part, _ in roll_outs(policy, some, most, evaluation.batch_size, device))

    floor = _products_alone(products, images, device)
    # As many as a lap has time for, and no less than three batches.
    rows = max(len(some), round(_speed(floor) * seconds / 2))
    table = shop.table.select(slice(0, rows))

    def whole() -> float:
        evaluate(policy, table, CLASSES, evaluation, most, device, Clock(shop.reporter))
        return len(table)

    return Stage(
        timed(whole, device),
        floor,
        f"the policy's matrix products alone, forward, in float32, {products.flops / images / 1e6:,.1f} MFLOP an image",
        *_at_least(0.6),
    )


def help_(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """`hsal --help`, beside the start of the interpreter."""
    work = call(["-m", "hsal_cli", "--help"], shop.folder, shop.reporter)
    floor = call(["-c", "pass"], shop.folder, shop.reporter)
    return Stage(work, floor, "the interpreter's start", f"{HELP_S:g} s", lambda rate, floor: 1 / rate <= HELP_S, "calls/s")


def visualize(shop: Shop, seconds: float, evaluation: EvalSettings) -> Stage:
    """`hsal visualize image.png`, beside importing torch and one forward pass of the bare network."""
    words = ["-m", "hsal_cli", "visualize", str(shop.picture()), "--run", str(shop.policy_checkpoint())]
    words += ["--device", str(shop.device), "--max-steps", str(LOOK_STEPS)]
    floor = ["-c", BARE_FORWARD, shop.finetune.arch, str(shop.finetune.input_size), str(shop.device)]
    return Stage(
        call(words, shop.folder, shop.reporter),
        call(floor, shop.folder, shop.reporter),
        f"import torch and torchvision, and one forward pass of the bare {shop.finetune.arch}",
        f"floor + {VISUALIZE_S:g} s",
        lambda rate, floor: 1 / rate <= 1 / floor + VISUALIZE_S,
        "calls/s",
    )


MAKERS: dict[str, Callable[[Shop, float, EvalSettings], Stage]] = {
    "make-data": make_data,
    "finetune": finetune,
    "precompute": precomputing,
    "train": train,
    "eval": evaluating,
    "help": help_,
    "visualize": visualize,
}


def _steps(task: FinetuneTask | PolicyTask, device: torch.device, look_every: int | None = None) -> Callable[[], float]:
    """Takes steps of a task, epoch after epoch, as the loop does: on a GPU many between two waits for the device."""
    place = [0, 0]  # epoch, step
    many = look_every or (CHECK_EVERY if device.type == "cuda" else 1)

    def steps() -> float:
        images = 0
        for _ in range(many):
            if place[1] == task.steps(place[0]):
                place[:] = [(place[0] + 1) % task.epochs, 0]
                task.start_epoch(place[0])
            images += task.step(place[1])[0]
            place[1] += 1
        return images

    return steps


def _products_alone(products: MatrixProducts, images: float, device: torch.device) -> Piece:
    run = replay(products, device)

    def alone() -> float:
        run()
        return images

    return timed(alone, device)


def _at_least(goal: float) -> tuple[str, Callable[[float, float], bool]]:
    """A share of the floor as a goal: in words, and whether it is reached."""
    return f"{goal:g}", lambda rate, floor: rate >= goal * floor


def _speed(piece: Piece) -> float:
    """Units a second of the second of two pieces."""
    piece()
    units, seconds = piece()
    return units / seconds
