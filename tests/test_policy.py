"""The policy as a module: gradient reach, batches, early ends, randomness, shapes, what is stored."""

import dataclasses
import types

import pytest
import torch
from learning_parts import with_stop_head
from torch.utils._python_dispatch import TorchDispatchMode

from hsal_cli.policy.controllers import WinnerTakeAll
from hsal_cli.policy.episode import Episode, draw, greedy, sampling
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.maps import GaussianAttention, gaussian_masks
from hsal_cli.policy.shared import HalfPrecision, SharedWeights, linear
from hsal_cli.policy.stop_head import StopHead
from hsal_cli.policy.variant import COLUMNS, DEFAULT, FIXED_MASK, PAPER, PAPER_CELLS, Variant

CLASSES, SHAPE = 3, (6, 4, 5)
SMALL = {
    "meta_encode": 8,
    "meta_hidden": 8,
    "controller_encode": 12,
    "controller_hidden": 12,
    "location_hidden": 6,
}
FLOATS = ("logits", "stop_shift", "location_logits", "values", "masks", "priority", "saliency", "gaussians")


def make(seed=0, shape=SHAPE, scale=0.7, **settings):
    torch.manual_seed(seed)
    policy = with_stop_head(HSAL(Variant(**{**SMALL, "cells": shape[1] * shape[2], **settings}), CLASSES, shape, scale))
    volumes, saliency = data(16, shape)
    with torch.no_grad():
        if policy.variant.mask == "anchored":  # centres that differ between examples
            policy.meta_controller.attention.layer.weight.mul_(8)
        # Labels that differ between examples, and stop about as likely as not to be the highest.
        policy.controller.label.weight.mul_(8)
        logits = policy(volumes, saliency, choose=greedy, steps=torch.full((16,), 4)).scores
        policy.controller.label.bias[CLASSES] -= (logits[..., CLASSES] - logits[..., :CLASSES].amax(-1)).median()
    return policy


def data(size, shape=SHAPE, seed=0):
    volumes = torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed)).relu() * 3
    return volumes, volumes.pow(2).sum(1)


def same(a: Episode, b: Episode, **tolerance):
    for field in dataclasses.fields(Episode):
        torch.testing.assert_close(getattr(a, field.name), getattr(b, field.name), **tolerance, msg=lambda m, n=field.name: f"{n}: {m}")


def pick(episode: Episode, rows) -> Episode:
    return Episode(**{field.name: getattr(episode, field.name)[:, rows] for field in dataclasses.fields(Episode)})


def reached(policy, loss):
    policy.zero_grad()
    loss.backward()
    return {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("location_input", ["hidden", "priority"])
@pytest.mark.parametrize("mask", ["learned", "anchored"])
def test_label_term_reaches_all_but_the_other_heads_and_those_are_reached_by_their_own_term_only(mask, location_input):
    policy = make(mask=mask, location_input=location_input)
    volumes, saliency = data(16)
    episode = policy(volumes, saliency, choose=sampling(), steps=torch.full((16,), 3), sample_glimpses=True)
    names = {name for name, _ in policy.named_parameters()}
    location_head = {name for name in names if name.startswith(("controller.location.", "controller.priority_weight"))}
    stop_head = {name for name in names if name.startswith("stop_head.")}
    heads = {name for name in names if name.startswith("controller.value")} | location_head | stop_head
    label = episode.logits.log_softmax(-1).gather(-1, episode.labels[..., None]).mean()
    location = episode.location_logits.log_softmax(-1).gather(-1, episode.glimpses[..., None]).mean()
    assert reached(policy, label) == names - heads
    episode = policy(volumes, saliency, choose=sampling(), steps=torch.full((16,), 3), sample_glimpses=True)
    location = episode.location_logits.log_softmax(-1).gather(-1, episode.glimpses[..., None]).mean()
    assert reached(policy, location) == location_head
    assert reached(policy, episode.values.pow(2).mean()) == {"controller.value.weight", "controller.value.bias"}
    assert stop_head and reached(policy, episode.scores.log_softmax(-1)[..., -1].mean()) == stop_head


@pytest.mark.parametrize(("inhibition", "width"), [("mask", 1.0), ("normalized", 1.0), ("normalized", 1.7)])
@pytest.mark.parametrize("mask", ["learned", "anchored"])
def test_attention_gradient_is_that_of_finite_differences(mask, inhibition, width):
    # Over three steps: through the priority map, the first glimpse, and S_{t+1} that inhibition of return makes of the mask.
    policy = make(glimpses=0, mask=mask, inhibition=inhibition, inhibition_width=width).double()
    volumes, saliency = (x.double() for x in data(4))

    def loss():
        return policy(volumes, saliency, choose=lambda t, rows, logits: rows % 3, steps=torch.full((4,), 3)).logits.pow(2).mean()

    bias = policy.meta_controller.attention.layer.bias
    gradient = torch.autograd.grad(loss(), bias)[0]
    for place in range(0, len(bias), 3):
        change = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[place] += sign * 1e-6
                change.append(loss().item())
                bias[place] -= sign * 1e-6
        assert gradient[place].item() == pytest.approx((change[0] - change[1]) / 2e-6, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("mask", ["learned", "anchored", "winner-take-all"])
def test_batched_equals_one_by_one_in_any_order(mask):
    policy = make(mask=mask).double()
    volumes, saliency = data(12)
    with torch.no_grad():
        batched = policy(volumes, saliency, choose=greedy, max_steps=5)
        assert len(set(batched.lengths.tolist())) > 1
        for b in range(12):
            alone = policy(volumes[b : b + 1], saliency[b : b + 1], choose=greedy, max_steps=5)
            length = int(batched.lengths[b])
            assert len(alone.active) == length
            cut = Episode(**{f.name: getattr(batched, f.name)[:length, b : b + 1] for f in dataclasses.fields(Episode)})
            same(alone, cut)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
        same(policy(volumes[order], saliency[order], choose=greedy, max_steps=5), pick(batched, order))


def test_order_of_the_batch_does_not_matter_with_given_steps():
    policy = make().double()
    volumes, saliency = data(12)
    steps = torch.tensor([1, 4, 2, 0, 3, 3, 5, 1, 2, 4, 0, 5])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    straight = policy(volumes, saliency, choose=greedy, steps=steps)
    same(policy(volumes[order], saliency[order], choose=greedy, steps=steps[order]), pick(straight, order))
    assert straight.lengths.tolist() == steps.tolist()


def test_given_steps_and_stopping_give_the_same_episode_and_the_same_gradient():
    policy = make().double()
    volumes, saliency = data(12)
    stopped = policy(volumes, saliency, choose=greedy, max_steps=5)
    told = policy(volumes, saliency, choose=greedy, steps=stopped.lengths)
    same(stopped, told)
    weight = policy.meta_controller.gru.weight_ih
    a, b = (torch.autograd.grad(episode.logits.pow(2).sum(), weight)[0] for episode in (stopped, told))
    torch.testing.assert_close(a, b)


class Copies(TorchDispatchMode):
    """Notes of how many examples an operator puts volumes into new memory."""

    def __init__(self):
        super().__init__()
        self.made, self.memory = [], set()

    def __torch_dispatch__(self, func, types_, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.shape[1:] == (SHAPE[1] * SHAPE[2], SHAPE[0]) and out.data_ptr() not in self.memory:
            self.memory.add(out.data_ptr())
            self.made.append(len(out))
        return out


@pytest.mark.parametrize("told", [False, True])
def test_volumes_of_the_examples_that_go_on_are_not_copied(told):
    policy = make()
    volumes, saliency = data(12)
    with torch.no_grad():
        lengths = policy(volumes, saliency, choose=greedy, max_steps=5).lengths
        assert len(lengths.unique()) > 1
        with Copies() as copies:
            policy(volumes, saliency, choose=greedy, **({"steps": lengths} if told else {"max_steps": 5}))
    assert set(copies.made) == {12}


def test_an_example_ends_with_its_stop_and_what_follows_is_zero():
    policy = make()
    volumes, saliency = data(12)
    episode = policy(volumes, saliency, choose=sampling(torch.Generator().manual_seed(3)), max_steps=6)
    steps, size = episode.active.shape
    for b in range(size):
        length = int(episode.lengths[b])
        named = episode.labels[:, b].tolist()
        assert episode.active[:, b].tolist() == [t < length for t in range(steps)]
        assert policy.stop not in named[: length - 1] and -1 not in named[:length]
        assert named[length - 1] == policy.stop or length == 6
        assert named[length:] == [-1] * (steps - length)
        for name in (*FLOATS, "glimpses"):
            assert not getattr(episode, name)[length:, b].any()
            assert getattr(episode, name)[:length, b].any() or name == "glimpses"
    assert int(episode.lengths.min()) < int(episode.lengths.max())


def test_given_steps_go_on_after_a_stop():
    episode = make()(*data(3), choose=lambda t, rows, logits: torch.full_like(rows, CLASSES), steps=torch.tensor([3, 1, 2]))
    assert episode.labels.tolist() == [[3, 3, 3], [3, -1, 3], [3, -1, -1]]


@pytest.mark.parametrize("steps", [None, torch.tensor([2, 3, 1, 3])])
def test_choose_sees_the_active_examples_by_their_place_in_the_batch(steps):
    policy = make()
    seen = []

    def choose(t, rows, logits):
        seen.append((t, sorted(rows.tolist())))
        assert logits.shape == (len(rows), CLASSES + 1) and not logits.requires_grad
        return torch.where(rows == 2, CLASSES, rows % 2) if t == 0 else torch.where(rows == 0, CLASSES, rows % 2)

    policy(*data(4), choose=choose, steps=steps, max_steps=3)
    assert seen == [(0, [0, 1, 2, 3]), (1, [0, 1, 3]), (2, [1, 3])]


def test_a_generator_decides_the_episode():
    policy = make()
    volumes, saliency = data(10)

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return policy(volumes, saliency, choose=sampling(generator), max_steps=4, sample_glimpses=True, generator=generator)

    same(run(1), run(1), rtol=0, atol=0)
    assert not torch.equal(run(1).glimpses, run(2).glimpses)


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -200.0])
    drawn = draw(logits.expand(40_000, 5), torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=5) / 40_000
    assert (shares - logits.softmax(0)).abs().max() < 0.01
    assert shares[4] == 0


@pytest.mark.parametrize(("shape", "glimpses", "gaussians"), [((1, 1, 1), 1, 1), ((2, 1, 6), 0, 1), ((9, 14, 3), 3, 2)])
def test_any_volume_shape_number_of_glimpses_and_gaussians(shape, glimpses, gaussians):
    _, height, width = shape
    policy = make(shape=shape, glimpses=glimpses, gaussians=gaussians)
    volumes, saliency = data(5, shape)
    episode = policy(volumes, saliency, choose=greedy, steps=torch.tensor([2, 1, 2, 0, 2]))
    assert episode.logits.shape == (2, 5, CLASSES + 1)
    assert episode.glimpses.shape == (2, 5, glimpses)
    assert episode.location_logits.shape == (2, 5, glimpses, height * width)
    assert episode.values.shape == (2, 5, glimpses + 1)
    assert episode.masks.shape == episode.priority.shape == episode.saliency.shape == (2, 5, height, width)
    assert episode.gaussians.shape == (2, 5, gaussians, 5)
    episode.logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_empty_batches_and_no_steps_give_empty_episodes():
    policy = make()
    empty = policy(*data(0), choose=greedy, max_steps=3)
    assert empty.labels.shape == (0, 0) and empty.masks.shape == (0, 0, 4, 5)
    none = policy(*data(2), choose=greedy, steps=torch.tensor([0, 0]))
    assert none.location_logits.shape == (0, 2, 2, 20) and none.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("mask", ["learned", "anchored", "winner-take-all"])
def test_maps_without_any_saliency_give_finite_numbers_and_gradients(mask):
    policy = make(mask=mask)
    volumes, _ = data(4)
    episode = policy(volumes, torch.ones(4, 4, 5), choose=greedy, steps=torch.full((4,), 4))
    assert not episode.priority.any()
    episode.logits.pow(2).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_half_precision_volumes_give_what_their_values_give():
    policy = make()
    volumes, saliency = data(6)
    half = volumes.half()
    same(policy(half, saliency, choose=greedy, max_steps=3), policy(half.float(), saliency, choose=greedy, max_steps=3), rtol=0, atol=0)


def test_autocast_runs_forward_and_backward():
    policy = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        episode = policy(*data(6), choose=sampling(), steps=torch.tensor([1, 3, 2, 3, 0, 1]), sample_glimpses=True)
    episode.logits.float().pow(2).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_volume_scale_divides_the_volume_and_is_stored_with_the_weights():
    volumes, saliency = data(6)
    policy, other = make(scale=4.0).double(), make(seed=5, scale=1.0).double()
    scaled = policy(volumes, saliency, choose=greedy, max_steps=3)
    other.load_state_dict(policy.state_dict())
    same(other(volumes, saliency, choose=greedy, max_steps=3), scaled)
    policy.volume_scale.fill_(1.0)
    same(policy(volumes.double() / 4, saliency, choose=greedy, max_steps=3), scaled)


def test_anchored_centres_stay_within_reach_of_the_highest_cell():
    policy = make(mask="anchored", reach=1.5)
    with torch.no_grad():
        policy.meta_controller.attention.layer.weight.mul_(500)
    episode = policy(*data(8), choose=greedy, steps=torch.full((8,), 3))
    cell = episode.saliency.flatten(2).argmax(2)
    highest = torch.stack([cell // 5 + 1, cell % 5 + 1], -1)[:, :, None]
    distance = (episode.gaussians[..., 3:] - highest).abs()
    assert distance.max() <= 1.5 + 1e-5
    assert distance.max() > 1.4


def test_learned_mixtures_keep_to_appendix_a():
    policy = make(mask="learned", beta=(1.5, 2.0))
    with torch.no_grad():
        policy.meta_controller.attention.layer.weight.mul_(60)
    alpha, tall, wide, row, column = policy(*data(8), choose=greedy, steps=torch.full((8,), 3)).gaussians.unbind(-1)
    torch.testing.assert_close(alpha.sum(-1), torch.ones_like(alpha[..., 0]))
    assert tall.min() >= 1.5 and tall.max() <= 2.0 and torch.equal(tall, wide)
    assert row.min() >= 0 and row.max() <= 4 and column.min() >= 0 and column.max() <= 5


def test_freely_learned_centres_start_apart_and_anchored_ones_near_the_maximum():
    usual, spread = ((torch.manual_seed(0), GaussianAttention(8, 5, 7, 7, (1.5, 2.0), reach))[1].layer for reach in (3.0, None))
    torch.testing.assert_close(spread.weight, usual.weight * 8)
    torch.testing.assert_close(spread.bias, usual.bias)


def test_the_second_stop_head_starts_silent_and_reaches_as_far_on_a_finer_map():
    torch.manual_seed(0)
    head = StopHead()
    maps = torch.rand(3, 2, 7, 7)
    assert not head(*maps).any()
    with_stop_head(types.SimpleNamespace(stop_head=head))
    finer = maps.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(head(*finer), head(*maps))
    assert head(*maps).std() > 0


@pytest.mark.parametrize("variant", [PAPER, COLUMNS, FIXED_MASK])
def test_a_finer_map_gets_masks_that_cover_as_much_of_the_image(variant):
    policy = HSAL(dataclasses.replace(variant, **SMALL), CLASSES, (6, 28, 28))
    low, high = variant.beta
    assert policy.variant.beta == (low / 16, high / 16) and policy.variant.reach == 12 and policy.variant.cells == 28 * 28
    assert policy.variant.on_map(28 * 28) == policy.variant  # once and for all
    assert variant.on_map(PAPER_CELLS) == variant


def test_a_fixed_mask_covers_on_a_finer_map_what_it_covers_on_the_papers():
    wide_one = dataclasses.replace(FIXED_MASK, beta=(0.3, 0.3))
    # The same place of the image, a quarter of the way: each coarse cell is the mean of the 4 x 4 fine cells in it.
    coarse, fine = (WinnerTakeAll(wide_one.on_map(side * side)) for side in (7, 28))
    saliency = torch.zeros(1, 7, 7).index_put((torch.tensor(0), torch.tensor(2), torch.tensor(4)), torch.tensor(1.0))
    blown_up = saliency.repeat_interleave(4, 1).repeat_interleave(4, 2)
    blown_up[0, 10, 18] += 1  # its maximum lies near the middle of the coarse cell
    wide = gaussian_masks(fine(blown_up, saliency, None)[0], 28, 28, (1.0,))[0]
    narrow = gaussian_masks(coarse(saliency, saliency, None)[0], 7, 7, (1.0,))[0]
    assert abs(wide.mean() / narrow.mean() - 1) < 0.02
    assert (wide[0].unfold(0, 4, 4).unfold(1, 4, 4).mean((2, 3)) - narrow[0]).abs().max() < 0.1


def test_winner_take_all_learns_nothing_of_where_to_look():
    policy = make(mask="winner-take-all")
    assert not list(policy.meta_controller.parameters())
    episode = policy(*data(5), choose=greedy, steps=torch.full((5,), 2))
    assert torch.equal(episode.masks.flatten(2).argmax(2), episode.saliency.flatten(2).argmax(2))


def test_wrong_shapes_are_refused_by_name():
    policy = make()
    volumes, saliency = data(2)
    with pytest.raises(ValueError, match="volumes have shape"):
        policy(volumes[:, :3], saliency, choose=greedy, max_steps=1)
    with pytest.raises(ValueError, match="saliency maps have shape"):
        policy(volumes, saliency[:1], choose=greedy, max_steps=1)
    with pytest.raises(ValueError, match="neither steps nor max_steps"):
        policy(volumes, saliency, choose=greedy)
    with pytest.raises(ValueError, match="steps have shape"):
        policy(volumes, saliency, choose=greedy, steps=torch.tensor([1]))


def test_a_shared_weights_gradient_is_the_sum_over_its_uses():
    torch.manual_seed(0)
    weight, bias, table = (torch.randn(size, dtype=torch.double, requires_grad=True) for size in ((4, 3), (4,), (5, 4)))
    x, places = torch.randn(6, 3, dtype=torch.double, requires_grad=True), torch.tensor([0, 4, 4, 1, 0, 0])

    def loss(multiply):
        state = multiply(x, weight, bias)
        for _ in range(3):
            state = torch.tanh(multiply(state[:, :3], weight, bias))
            state = multiply(places, table, state)
        return state.square().sum()

    of = [weight, bias, table, x]
    expected = torch.autograd.grad(loss(linear), of)
    found = loss(SharedWeights())
    torch.autograd.grad(found, [x], retain_graph=True)  # one that stops short of the weights leaves nothing behind
    for _ in range(2):
        for mine, theirs in zip(torch.autograd.grad(found, of, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_large_products_in_half_precision_are_those_in_single_and_weights_are_brought_to_it_once(monkeypatch):
    torch.manual_seed(0)
    policy = HSAL(dataclasses.replace(DEFAULT, fine=256), 10, (768, 7, 7)).eval()
    volumes, saliency = torch.rand(8, 768, 7, 7), torch.rand(8, 14, 14)
    brought = []
    real = HalfPrecision.__call__
    monkeypatch.setattr(HalfPrecision, "__call__", lambda self, *parts: brought.append(self._weights) or real(self, *parts))
    with torch.inference_mode():
        single, half = (policy(volumes, saliency, choose=greedy, steps=torch.full((8,), 3), half=half) for half in (False, True))
    assert len({id(weights) for weights in brought}) == 1 and 0 < len(brought[0]) < len(brought)
    assert all(weight.numel() >= 65_536 and kept.dtype == torch.bfloat16 for weight, kept in brought[0].items())
    apart = (single.logits - half.logits).abs().max()
    assert 0 < apart < 0.02 * single.logits.abs().max()
    brought.clear()
    policy(volumes, saliency, choose=greedy, steps=torch.ones(8, dtype=torch.int64), half=True).logits.sum().backward()
    assert not brought  # gradients are those of single precision
