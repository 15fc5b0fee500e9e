"""Attention scores against the definitions written as loops over images, meta-steps, glimpses and boxes."""

import time

import numpy as np
import pytest
import torch

from hsal_cli.evaluation.attention import Tally, add_attn_saliency, add_localization, cells_inside, naming_steps
from hsal_cli.policy.episode import Episode

CLASSES, GRID, SIZE = 4, (5, 6), (50, 90)  # cells h x w; image H x W in px: neither square, so that a swap shows


def random_episode(batch, steps=5, glimpses=2, seed=0, grid=GRID):
    """A random episode of valid form, the parts that scores read; saliency falls to 0 here and there, as inhibition has it."""
    generator = torch.Generator().manual_seed(seed)
    height, width = grid
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    active = torch.arange(steps)[:, None] < lengths
    labels = torch.randint(0, CLASSES + 1, (steps, batch), generator=generator)
    saliency = torch.rand(steps, batch, height, width, generator=generator)
    saliency = torch.where(torch.rand(saliency.shape, generator=generator) < 0.3, 0, saliency)
    saliency[1:] = torch.where(saliency[:1] == 0, 0, saliency[1:])  # what was 0 from the start stays 0
    return Episode(
        active=active,
        labels=torch.where(active, labels, -1),
        logits=torch.zeros(steps, batch, CLASSES + 1),
        stop_shift=torch.zeros(steps, batch),
        glimpses=torch.randint(0, height * width, (steps, batch, glimpses), generator=generator),
        location_logits=torch.zeros(steps, batch, glimpses, height * width),
        values=torch.zeros(steps, batch, glimpses + 1),
        masks=torch.rand(steps, batch, height, width, generator=generator),
        priority=torch.zeros(steps, batch, height, width),
        saliency=saliency,
        gaussians=torch.zeros(steps, batch, 1, 5),
    )


def random_objects(batch, most=4, seed=0):
    """Labels (B, L) and boxes (B, L, 4), some of which overlap and some of which hold no cell's centre."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, most + 1, batch)
    labels = np.where(np.arange(most) < counts[:, None], generator.integers(0, CLASSES, (batch, most)), -1)
    corner = np.stack([generator.integers(0, 60, (batch, most)), generator.integers(0, 30, (batch, most))], -1)
    boxes = np.concatenate([corner, corner + generator.integers(2, 30, (batch, most, 2))], -1)
    boxes[labels < 0] = -1
    return torch.from_numpy(labels), torch.from_numpy(boxes)


def mean(values):
    return sum(values) / len(values) if values else None


def slow_attn_saliency(episode, raw):
    found = {"raw": [], "normalized": [], "random": [], "best": []}
    for t in range(episode.active.shape[0]):
        for b in range(episode.active.shape[1]):
            if not episode.active[t, b] or int(episode.labels[t, b]) == CLASSES:
                continue
            now, first = episode.saliency[t, b].flatten().tolist(), episode.saliency[0, b].flatten().tolist()
            glimpses = episode.glimpses[t, b].tolist()
            seen = [0.0 if now[cell] == 0 and first[cell] > 0 else float(raw[b].flatten()[cell]) for cell in glimpses]
            found["raw"].append(mean(seen))
            found["normalized"].append(mean([now[cell] for cell in glimpses]))
            found["random"].append(mean(now))
            found["best"].append(mean(sorted(now)[-len(glimpses) :]))
    return {name: mean(values) for name, values in found.items()}


def lies_in(cell, box):
    row, column = divmod(cell, GRID[1])
    x, y = (column + 0.5) * SIZE[1] / GRID[1], (row + 0.5) * SIZE[0] / GRID[0]
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def slow_localization(episode, labels, boxes):
    cells = range(GRID[0] * GRID[1])
    names = ("glimpse_hit", "mask_mass", "random", "area", "center", "saliency", "reachable", "digits_once", "repeat_visits")
    found = {name: [] for name in names}
    for b in range(labels.shape[0]):
        objects = [(int(label), box) for label, box in zip(labels[b], boxes[b].tolist(), strict=True) if label >= 0]
        remaining, visits = [label for label, _ in objects], [0] * len(objects)
        for t in range(episode.active.shape[0]):
            said = int(episode.labels[t, b])
            if not episode.active[t, b] or said == CLASSES:
                continue
            glimpses = episode.glimpses[t, b].tolist()
            held = [[lies_in(cell, box) for cell in glimpses] for _, box in objects]
            best = max(range(len(objects)), key=lambda o: (sum(held[o]), held[o], -o), default=None)
            visited = best is not None and any(held[best])
            if objects:  # an image without an object has none to visit twice
                found["repeat_visits"].append(float(visited and visits[best] > 0))
            if visited:
                visits[best] += 1
            if said not in remaining:
                continue
            remaining.remove(said)
            mine = [box for label, box in objects if label == said]
            mask, saliency = episode.masks[t, b].flatten().double().tolist(), episode.saliency[t, b].flatten().tolist()
            found["glimpse_hit"].append(max(mean([lies_in(cell, box) for cell in glimpses]) for box in mine))
            found["mask_mass"].append(max(sum(mask[c] for c in cells if lies_in(c, box)) / sum(mask) for box in mine))
            found["area"].append(max((box[2] - box[0]) * (box[3] - box[1]) / (SIZE[0] * SIZE[1]) for box in mine))
            found["random"].append(mean([max(lies_in(c, box) for box in mine) for c in cells]))
            found["center"].append(max(lies_in(GRID[0] // 2 * GRID[1] + GRID[1] // 2, box) for box in mine))
            found["reachable"].append(any(lies_in(c, box) for c in cells for box in mine))
            found["saliency"].append(max(lies_in(saliency.index(max(saliency)), box) for box in mine))
        found["digits_once"] += [visit == 1 for visit in visits]
    return {name: mean(values) for name, values in found.items()}


@pytest.mark.parametrize("glimpses", [1, 2, 3])
def test_scores_are_what_the_definitions_say(glimpses):
    episode, raw = random_episode(60, glimpses=glimpses, seed=glimpses), 50 * torch.rand(60, *GRID)
    labels, boxes = random_objects(60, seed=glimpses)
    tally = Tally()
    add_attn_saliency(tally, episode, raw)
    assert tally.means() == pytest.approx(slow_attn_saliency(episode, raw))
    tally = Tally()
    add_localization(tally, episode, labels, boxes, SIZE)
    assert tally.means() == pytest.approx(slow_localization(episode, labels, boxes))


def test_batches_add_up_to_the_whole():
    parts = [random_episode(size, seed=size) for size in (7, 20)]
    objects = [random_objects(size, seed=size) for size in (7, 20)]
    whole = Episode(**{name: torch.cat([getattr(part, name) for part in parts], 1) for name in Episode.__dataclass_fields__})
    one, two = Tally(), Tally()
    add_localization(one, whole, *[torch.cat(pair) for pair in zip(*objects, strict=True)], SIZE)
    for part, (labels, boxes) in zip(parts, objects, strict=True):
        add_localization(two, part, labels, boxes, SIZE)
    assert one.means() == pytest.approx(two.means())


def one_step(label, glimpses, grid=(2, 2)):
    """An episode of one image that names one label and then stops."""
    height, width = grid
    mask = torch.zeros(2, 1, height, width)
    mask[0, 0, 0, 0] = 1
    return Episode(
        active=torch.ones(2, 1, dtype=torch.bool),
        labels=torch.tensor([[label], [CLASSES]]),
        logits=torch.zeros(2, 1, CLASSES + 1),
        stop_shift=torch.zeros(2, 1),
        glimpses=torch.tensor([[glimpses], [[3] * len(glimpses)]], dtype=torch.long),
        location_logits=torch.zeros(2, 1, len(glimpses), height * width),
        values=torch.zeros(2, 1, len(glimpses) + 1),
        masks=mask,
        priority=torch.zeros(2, 1, height, width),
        saliency=torch.tensor([[[[1.0, 0.5], [0.25, 0.0]]], [[[0.0, 0.5], [0.25, 0.0]]]]),
        gaussians=torch.zeros(2, 1, 1, 5),
    )


def test_a_score_written_out_by_hand():
    salient, local = Tally(), Tally()
    episode = one_step(label=2, glimpses=[0, 1])
    add_attn_saliency(salient, episode, torch.tensor([[[80.0, 40.0], [20.0, 0.0]]]))
    add_localization(local, episode, torch.tensor([[2]]), torch.tensor([[[0, 0, 10, 10]]]), (20, 20))
    # The step that names stop does not count.
    assert salient.means() == {"raw": 60, "normalized": 0.75, "random": 0.4375, "best": 0.75}
    assert local.means() == {
        "glimpse_hit": 0.5,
        "mask_mass": 1,
        "random": 0.25,
        "area": 0.25,
        "center": 0,
        "saliency": 1,
        "reachable": 1,
        "digits_once": 1,
        "repeat_visits": 0,
    }


def test_glimpses_on_two_objects_of_one_class_fit_neither_wholly():
    tally = Tally()
    boxes = torch.tensor([[[0, 0, 10, 10], [10, 0, 20, 10]]])
    add_localization(tally, one_step(label=2, glimpses=[0, 1]), torch.tensor([[2, 2]]), boxes, (20, 20))
    means = tally.means()
    assert (means["glimpse_hit"], means["random"], means["area"]) == (0.5, 0.5, 0.25)
    assert means["digits_once"] == 0.5  # of two boxes with one glimpse each, the first glimpse decides


def test_a_wrong_label_is_not_localized_but_its_visit_counts():
    tally = Tally()
    add_localization(tally, one_step(label=1, glimpses=[0, 1]), torch.tensor([[2]]), torch.tensor([[[0, 0, 10, 10]]]), (20, 20))
    assert tally.means()["glimpse_hit"] is None
    assert tally.means()["digits_once"] == 1


def test_without_glimpses_there_is_no_glimpse_score():
    tally = Tally()
    episode = one_step(label=2, glimpses=[])
    add_attn_saliency(tally, episode, torch.rand(1, 2, 2))
    add_localization(tally, episode, torch.tensor([[2]]), torch.tensor([[[0, 0, 10, 10]]]), (20, 20))
    means = tally.means()
    assert means["raw"] is means["normalized"] is means["glimpse_hit"] is None
    assert means["mask_mass"] == 1


def test_the_half_open_edge_of_a_box():
    inside = cells_inside(np.array([[5, 0, 15, 6]]), (20, 20), (2, 2))  # centres at 5 and 15
    assert inside.tolist() == [[True, False, False, False]]


def test_steps_that_name_stop_or_are_over_name_nothing():
    assert naming_steps(one_step(label=0, glimpses=[0])).tolist() == [[True], [False]]


def test_ten_thousand_images_take_seconds():
    episode, (labels, boxes) = random_episode(10_000, steps=6, grid=(7, 7)), random_objects(10_000)
    tally, start = Tally(), time.process_time()
    add_attn_saliency(tally, episode, torch.rand(10_000, 7, 7))
    add_localization(tally, episode, labels, boxes, SIZE)
    assert time.process_time() - start < 5
