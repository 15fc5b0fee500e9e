"""Looks that the tests of pictures share."""

import numpy as np

from hsal_cli.models.seen import Look, LookStep
from hsal_cli.pictures.trajectory import trajectories


def a_step(label="3", probability=0.75, glimpses=((0, 1), (2, 0)), grid=(3, 4), seed=0, classes=("3", "5", "a <b> & 'c'", "stop")):
    """A meta-step with random maps; its label has the probability, the other classes share the rest."""
    generator = np.random.default_rng(seed)
    rest = (1 - probability) / (len(classes) - 1)
    scores = [(name, probability if name == label else rest) for name in classes]
    mask, priority, saliency = (generator.random(grid) for _ in range(3))
    return LookStep(label, probability, list(glimpses), mask / 2, priority, saliency, np.array([[1.0, 0.8, 0.8, 2.0, 3.0]]), scores)


def a_look(labels=("3", "5"), size=(60, 90), name="folder/scene.png", end=True, **more):
    """A look at a grey image that names labels, and stop at the end."""
    steps = [a_step(label, seed=place, **more) for place, label in enumerate(labels)]
    last = a_step("stop", 0.9, seed=99, **more) if end else None
    return Look(name, np.full((*size, 3), 90, dtype=np.uint8), steps, 0.9, last)


def drawn(look, truth=None):
    """The picture of one look."""
    return trajectories([look], [truth])
