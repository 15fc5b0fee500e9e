"""The yardstick of the embedded digits: a small convolutional net that has seen only strokes reads real MNIST digits."""

import pytest
import torch
from torch import nn

from hsal_cli.scenes.digits.idx import read_pair
from hsal_cli.scenes.digits.strokes import draw_pool


def train_on_strokes(glyphs: int = 8_000, epochs: int = 4, seed: int = 0) -> nn.Module:
    """Trains a small convolutional net on strokes alone; about 20 s on one core."""
    torch.manual_seed(seed)
    images, labels = draw_pool("train", seed, glyphs)
    x, y = torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 9, 10)),
    )
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        if step % (len(x) // 128) == 0:
            order = torch.randperm(len(x))
        rows = order[step % (len(x) // 128) * 128 :][:128]
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def accuracy(net: nn.Module, images, labels) -> float:
    """The share of digits that the net reads right."""
    with torch.no_grad():
        read = torch.cat([net(part[:, None].float() / 255).argmax(1) for part in torch.tensor(images).split(1000)])
    return (read == torch.tensor(labels)).float().mean().item()


@pytest.mark.slow
def test_a_net_that_has_seen_only_strokes_reads_real_digits(mnist_dir):
    assert accuracy(train_on_strokes(), *read_pair(mnist_dir, "test")) >= 0.93
