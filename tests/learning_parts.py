"""What the tests of learning share: a reporter that stops, comparisons at zero tolerance, an easy problem, and a tiny policy in double."""

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from hsal_cli.features.table import FeatureTable
from hsal_cli.policy.episode import Episode
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import Variant
from hsal_cli.progress import Reporter
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training.objectives import Namer, Targets
from hsal_cli.training.rewards import count_labels

SMALL = Variant(
    beta=(0.1, 1.0),
    cells=9,
    reach=9 / 7,
    glimpses=1,
    gaussians=2,
    meta_encode=8,
    meta_hidden=8,
    controller_encode=24,
    controller_hidden=24,
    location_hidden=8,
)
TIMES = {"seconds", "examples_per_s"}


class OneLayer(nn.Module):
    """What fine-tuning needs of the activation model, with BatchNorm's state."""

    windows = False

    def __init__(self, arch: str, classes: int, input_size: int = 224, resolution: int = 7, dilate: bool = False, channels: int = 6):
        super().__init__()
        self.input_size, self.resolution, self.stride = input_size, input_size // 4, 4
        self.conv, self.norm, self.fc = nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.BatchNorm2d(6), nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv(images)))

    def classify(self, images: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        return self.name(self(images), regions)

    def name(self, volumes: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        summed = volumes.sum((2, 3)) if regions is None else torch.einsum("bmhw,bchw->bmc", regions, volumes)
        return self.fc(summed / (self.input_size / self.stride) ** 2)


def with_stop_head(policy: HSAL) -> HSAL:
    """The policy, with a head for stop that says something, as it does not from the start."""
    if policy.stop_head is not None:
        nn.init.normal_(policy.stop_head.score.weight)
        nn.init.normal_(policy.stop_head.score.bias)
    return policy


class StoppingReporter(Reporter):
    """Remembers what was said, and asks to stop after some steps, as a signal would."""

    def __init__(self, after: int | None = None):
        self.after, self.steps, self.said, self.warned = after, 0, [], []

    def say(self, message: str) -> None:
        self.said.append(message)

    def warn(self, message: str) -> None:
        self.warned.append(message)

    @contextlib.contextmanager
    def track(self, what: str, total: int, unit: str, done: int = 0):
        self.total, self.done = total, done

        def advance(n: int, note: str = "") -> None:
            self.steps += n
            if self.steps == self.after:
                self.stop_signal = 15

        yield advance


def assert_equal(left: Any, right: Any, where: str = "") -> None:
    """Compares nested states at zero tolerance."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            if key not in TIMES:
                assert_equal(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for place, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    else:
        assert left == right, where


def easy_table(count: int, classes: int = 2, least: int = 1, most: int = 2, seed: int = 0, side: int = 3) -> FeatureTable:
    """Images of `least` to `most` objects, each in a cell of its own whose column is the one-hot code of its class; the rest is empty."""
    generator = torch.Generator().manual_seed(seed)
    volumes = torch.zeros(count, classes, side * side)
    labels = torch.randint(0, classes, (count, most), generator=generator)
    sizes = torch.randint(least, most + 1, (count, 1), generator=generator)
    labels = torch.where(torch.arange(most) < sizes, labels, -1)
    boxes = torch.full((count, most, 4), -1)
    for row in range(count):
        cells = torch.randperm(side * side, generator=generator)[:most]
        for place in range(int(sizes[row])):
            cell = int(cells[place])
            volumes[row, labels[row, place], cell] = 1 + 0.1 * float(torch.rand((), generator=generator))
            x, y = 10 * (cell % side), 10 * (cell // side)
            boxes[row, place] = torch.tensor([x, y, x + 10, y + 10])
    volumes = volumes.view(count, classes, side, side).half()
    return FeatureTable(volumes, volumes.float().square().sum(1), labels, boxes, (10 * side, 10 * side))


def without(row: dict[str, Any], names: set[str] = TIMES) -> dict[str, Any]:
    """A row of metrics without what depends on the clock."""
    return {key: value for key, value in row.items() if key not in names}


def small(**changes: Any) -> Variant:
    """The small policy, changed."""
    return dataclasses.replace(SMALL, **changes)


TINY = Variant(
    glimpses=1,
    gaussians=2,
    meta_encode=3,
    meta_hidden=3,
    controller_encode=4,
    controller_hidden=4,
    location_hidden=3,
    mask="learned",
    stop_input="state",
    inhibition_width=1.0,
    beta=(1.5, 2.0),
)
TWO_STOP_HEADS = dataclasses.replace(TINY, stop_input="state+saliency")
PLAIN = TrainSettings(label_entropy=0.0)


def tiny_policy(classes: int, seed: int = 0, variant: Variant = TINY) -> HSAL:
    torch.manual_seed(seed)
    policy = HSAL(variant, classes, (2, 2, 2)).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.8)
    return policy


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, 2, 2, generator=generator).double(), torch.rand(count, 2, 2, generator=generator).double()


def targets_of(labels: list[list[int]], classes: int) -> Targets:
    width = max(1, *map(len, labels))
    table = torch.tensor([[*row, *[-1] * (width - len(row))] for row in labels])
    return Targets(table, count_labels(table, classes), (table >= 0).sum(1))


def roll_out(policy: HSAL, targets: Targets, settings: TrainSettings, seed: int = 0, variant: Variant | None = None) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    namer = Namer(targets, policy.classes, settings, variant or policy.variant, generator)
    volumes, saliency = images(len(targets.sizes), seed)
    return policy(volumes, saliency, choose=namer, steps=targets.sizes + 1, sample_glimpses=True, generator=generator)


def gradients(value: Tensor, policy: HSAL) -> dict[str, Tensor]:
    names = dict(policy.named_parameters())
    found = torch.autograd.grad(value, list(names.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(names[name]) if grad is None else grad for name, grad in zip(names, found, strict=True)}
