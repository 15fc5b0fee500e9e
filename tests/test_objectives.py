"""The loss terms of section 4.2 against loops, what they reach, and who names which label."""

import collections
import dataclasses
import itertools
import math

import pytest
import torch
from learning_parts import PLAIN, TINY, TWO_STOP_HEADS, gradients, images, roll_out, targets_of, tiny_policy

from hsal_cli.errors import UsageError
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import Variant
from hsal_cli.runs.settings import TrainSettings
from hsal_cli.training import own_rewards, rewards
from hsal_cli.training.objectives import Namer, Targets, losses, make_targets

# --- what each term reaches -------------------------------------------------------------------------------------------------------

SAMPLED_STOP = dataclasses.replace(TINY, stop="sampled")
LOCATION_HEAD = ("controller.location.", "controller.priority_weight")
BODY = {
    "controller.encode_context.weight",
    "controller.gru.weight_ih",
    "meta_controller.encode.weight",
    "meta_controller.attention.layer.weight",
}


@pytest.mark.parametrize("objective", ["rl", "multiset"])
def test_class_and_stop_reach_the_attention_and_the_other_terms_only_their_heads(objective: str) -> None:
    policy = tiny_policy(2)
    settings = TrainSettings(objective=objective)
    targets = targets_of([[0], [1, 1], [0, 1]], 2)
    terms, _ = losses(roll_out(policy, targets, settings), targets, settings, policy.variant)
    reached = {
        name: {key for key, grad in gradients(term, policy).items() if grad.abs().max() > 0}
        for name, term in terms.items()
        if term.requires_grad
    }
    for name in ("class", "stop"):
        assert reached[name] >= BODY | {"controller.label.weight"}, name
        assert not any(key.startswith((*LOCATION_HEAD, "controller.value.")) for key in reached[name])
    for name, head in (("location", LOCATION_HEAD), ("value", "controller.value.")):
        assert reached[name] and all(key.startswith(head) for key in reached[name]), name


def test_cross_entropy_gives_glimpses_no_reward() -> None:
    settings = TrainSettings(objective="cross-entropy")
    targets = targets_of([[0], [1, 1]], 2)
    assert set(losses(roll_out(tiny_policy(2), targets, settings), targets, settings, TINY)[0]) == {"class", "stop"}


# --- stop -------------------------------------------------------------------------------------------------------------------------


def test_supervised_stop_is_named_at_step_m_plus_1_and_never_before() -> None:
    policy = tiny_policy(3)
    with torch.no_grad():
        policy.controller.label.bias[3] = 50.0  # the policy itself would always stop
    sizes = [1, 3, 2, 0]
    targets = targets_of([[0] * size for size in sizes], 3)
    for objective in ("rl", "cross-entropy", "multiset"):
        settings = TrainSettings(objective=objective)
        episode = roll_out(policy, targets, settings)
        for b, size in enumerate(sizes):
            assert (episode.labels[:size, b] < 3).all() and (episode.labels[:size, b] >= 0).all()
            assert episode.labels[size, b] == 3 and episode.lengths[b] == size + 1
        logged = losses(episode, targets, settings, policy.variant)[1]
        assert logged["early_stops"] == 1.0  # every step before m+1 finds stop likelier than not


def test_supervised_stop_is_learned_at_every_step() -> None:
    policy, targets = tiny_policy(2), targets_of([[0], [1, 1]], 2)
    episode = roll_out(policy, targets, PLAIN)
    expected = 0.0
    for b, size in enumerate([1, 2]):
        for t in range(size + 1):
            p = episode.logits[t, b].softmax(-1)[2].item()
            expected -= math.log(p if t == size else 1 - p) / 2
    assert losses(episode, targets, PLAIN, policy.variant)[0]["stop"].item() == pytest.approx(expected)


def test_the_stop_loss_stays_finite_and_useful_where_the_policy_is_sure_to_stop() -> None:
    policy, targets = tiny_policy(2).float(), targets_of([[0], [1, 1]], 2)
    with torch.no_grad():
        policy.controller.label.bias[2] = 300.0
    generator = torch.Generator().manual_seed(0)
    namer = Namer(targets, 2, PLAIN, policy.variant, generator)
    episode = policy(*(part.float() for part in images(2)), choose=namer, steps=targets.sizes + 1)
    loss = losses(episode, targets, PLAIN, policy.variant)[0]["stop"]
    assert loss.item() == pytest.approx(300 * 3 / 2, rel=0.05)
    assert gradients(loss, policy)["controller.label.bias"][2].item() == pytest.approx(1.5, rel=0.01)


@pytest.mark.parametrize("objective", ["rl", "cross-entropy", "multiset"])
def test_the_second_stop_head_learns_at_every_step_what_the_first_one_lacks_and_leaves_the_rest_alone(objective: str) -> None:
    policy, targets = tiny_policy(2, variant=TWO_STOP_HEADS), targets_of([[0], [1, 1]], 2)
    settings = dataclasses.replace(PLAIN, objective=objective)
    episode = roll_out(policy, targets, settings)
    terms, _ = losses(episode, targets, settings, policy.variant)
    expected = 0.0
    for b, size in enumerate([1, 2]):
        for t in range(size + 1):
            shifted = episode.logits[t, b].tolist()
            shifted[2] += episode.stop_shift[t, b].item()
            p = torch.tensor(shifted).double().softmax(-1)[2].item()
            expected -= math.log(p if t == size else 1 - p) / 2
    assert terms["stop_shift"].item() == pytest.approx(expected, rel=1e-6)
    reached = {key for key, grad in gradients(terms.pop("stop_shift"), policy).items() if grad.abs().max() > 0}
    assert reached and all(key.startswith("stop_head.") for key in reached)
    alone, _ = losses(dataclasses.replace(episode, stop_shift=episode.stop_shift.detach()), targets, settings, policy.variant)
    assert {name: term.item() for name, term in alone.items()} == {name: term.item() for name, term in terms.items()}


def test_early_stops_are_counted_as_both_heads_have_it() -> None:
    policy, targets = tiny_policy(3, variant=TWO_STOP_HEADS), targets_of([[0] * 3] * 4, 3)
    for bias, share in ((100.0, 1.0), (-100.0, 0.0)):
        with torch.no_grad():
            policy.stop_head.score.bias.fill_(bias)
        assert losses(roll_out(policy, targets, PLAIN), targets, PLAIN, policy.variant)[1]["early_stops"] == share


def test_sampled_stop_earns_minus_one_when_it_comes_early_and_is_supervised_once() -> None:
    policy, targets, settings = tiny_policy(2, variant=SAMPLED_STOP), targets_of([[0], [1, 1]], 2), PLAIN
    with torch.no_grad():
        policy.controller.label.bias[2] = 50.0
    episode = roll_out(policy, targets, settings)
    terms, logged = losses(episode, targets, settings, policy.variant)
    assert logged["early_stops"] == 1.0 and logged["reward"] == -1.0
    expected = -sum(episode.logits[size, b].log_softmax(-1)[2].item() for b, size in enumerate([1, 2])) / 2
    assert terms["stop"].item() == pytest.approx(expected)


def test_early_stops_are_the_share_of_naming_steps_that_stopped() -> None:
    policy, targets, settings = tiny_policy(2, seed=5, variant=SAMPLED_STOP), targets_of([[0, 1, 1]] * 40, 2), PLAIN
    episode = roll_out(policy, targets, settings)
    share = losses(episode, targets, settings, policy.variant)[1]["early_stops"].item()
    assert 0 < share < 1 and share == pytest.approx((episode.labels[:3] == 2).double().mean().item())


# --- rewards, returns, values in the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multiset", "list"])
@pytest.mark.parametrize("gradient", ["sampled", "expected"])
def test_the_rl_terms_are_those_of_a_plain_loop(gradient: str, task: str) -> None:
    policy = tiny_policy(3, variant=dataclasses.replace(TINY, glimpses=2, gradient=gradient))
    true = [[0, 1, 1], [2], [1, 2], []]
    targets = targets_of(true, 3)
    settings = TrainSettings(task=task, label_entropy=0.3)
    episode = roll_out(policy, targets, settings, seed=4)
    expected: dict[str, float] = collections.defaultdict(float)
    for b, labels in enumerate(true):
        left, rewards, values, log_p, entropies, means = collections.Counter(labels), [], [], [], [], []
        for t, turn in enumerate(labels):
            for i in range(2):
                logp = episode.location_logits[t, b, i].log_softmax(-1)
                cell = int(episode.glimpses[t, b, i])
                rewards.append(episode.priority[t, b].flatten()[cell].item())
                log_p.append(logp[cell].item())
                means.append((logp.exp() * episode.priority[t, b].flatten()).sum().item())
                entropies.append(-(logp.exp() * logp).sum().item())
            logp = episode.logits[t, b, :3].log_softmax(-1)
            name = int(episode.labels[t, b])
            rewarded = {turn} if task == "list" else {label for label, count in left.items() if count > 0}
            means.append(sum(p * (1 if label in rewarded else -1) for label, p in enumerate(logp.exp().tolist())))
            hit = name == turn if task == "list" else left[name] > 0
            left[name] -= hit
            rewards.append(1.0 if hit else -1.0)
            log_p.append(logp[name].item())
            entropies.append(-(logp.exp() * logp).sum().item())
            values += episode.values[t, b].tolist()
        for place in range(len(rewards)):
            gain = rewards[place]
            kind = "class" if place % 3 == 2 else "location"
            surrogate = means[place] if gradient == "expected" else log_p[place] * (gain - values[place])
            expected[kind] -= surrogate / 4
            expected["value"] += 0.5 * (gain - values[place]) ** 2 / 4
            expected["label_entropy"] -= 0.3 * entropies[place] / 4 if kind == "class" else 0.0
    terms, _ = losses(episode, targets, settings, policy.variant)
    assert {name: terms[name].item() for name in expected} == pytest.approx(dict(expected))


def test_a_policy_without_glimpses_and_an_image_without_objects_have_a_loss() -> None:
    policy, targets = tiny_policy(2, variant=dataclasses.replace(TINY, glimpses=0)), targets_of([[], []], 2)
    for objective in ("rl", "cross-entropy", "multiset"):
        settings = TrainSettings(objective=objective)
        terms, logged = losses(roll_out(policy, targets, settings), targets, settings, policy.variant)
        assert all(math.isfinite(value.item()) for value in (*terms.values(), *logged.values()))
        assert terms["stop"] > 0


# --- the multiset loss and cross-entropy ------------------------------------------------------------------------------------------


def test_the_multiset_loss_is_cross_entropy_to_the_uniform_distribution_over_what_remains() -> None:
    policy, settings = tiny_policy(3), TrainSettings(objective="multiset")
    true = [[0, 1, 1], [2], [1, 2]]
    targets = targets_of(true, 3)
    episode = roll_out(policy, targets, settings)
    expected = 0.0
    for b, labels in enumerate(true):
        left = list(labels)
        for t in range(len(labels)):
            logp = episode.logits[t, b].log_softmax(-1)
            expected -= sum(logp[one].item() for one in left) / len(left) / 3
            left.remove(int(episode.labels[t, b]))
        assert left == []
    assert losses(episode, targets, settings, policy.variant)[0]["class"].item() == pytest.approx(expected)


def test_under_the_multiset_loss_every_label_named_remains_to_be_named() -> None:
    settings, generator = TrainSettings(objective="multiset"), torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200, 4), generator=generator)
    labels = torch.where(torch.arange(4) < torch.randint(0, 5, (200, 1), generator=generator), labels, -1)
    targets = make_targets(labels, 4, settings, generator)
    namer = Namer(targets, 4, settings, TINY, generator)
    named = torch.zeros(200, 4, dtype=torch.long)
    for t in range(5):
        rows = torch.nonzero(targets.sizes >= t)[:, 0]
        names = namer(t, rows, 20 * torch.randn(len(rows), 5, generator=generator))
        assert (names[targets.sizes[rows] == t] == 4).all()
        going = targets.sizes[rows] > t
        named[rows[going], names[going]] += 1
    assert torch.equal(named, targets.counts)


def test_cross_entropy_draws_every_order_of_the_labels_anew_and_equally_often() -> None:
    settings, generator = TrainSettings(objective="cross-entropy"), torch.Generator().manual_seed(0)
    orders = make_targets(torch.tensor([[0, 1, 2, -1]]).repeat(3000, 1), 3, settings, generator).labels
    assert (orders[:, 3] == -1).all()
    counts = collections.Counter(map(tuple, orders[:, :3].tolist()))
    assert set(counts) == set(itertools.permutations(range(3)))
    assert all(420 < count < 580 for count in counts.values())  # 500 +- 4 standard deviations; the seed is fixed
    again = make_targets(torch.tensor([[0, 1, 2, -1]]).repeat(3000, 1), 3, settings, generator).labels
    assert not torch.equal(orders, again)


@pytest.mark.parametrize("objective", ["rl", "multiset"])
def test_only_cross_entropy_shuffles_and_never_the_list_task(objective: str) -> None:
    labels = torch.arange(50).view(5, 10)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(make_targets(labels, 50, TrainSettings(objective=objective), generator).labels, labels)
    assert torch.equal(make_targets(labels, 50, TrainSettings(objective="cross-entropy", task="list"), generator).labels, labels)


def test_the_cross_entropy_loss_compares_each_step_with_this_draws_label() -> None:
    policy, settings = tiny_policy(3), TrainSettings(objective="cross-entropy")
    generator = torch.Generator().manual_seed(1)
    targets = make_targets(torch.tensor([[0, 1, 1], [2, -1, -1], [1, 2, -1]]), 3, settings, generator)
    episode = roll_out(policy, targets, settings)
    expected = {"class": 0.0, "stop": 0.0}
    for b, size in enumerate([3, 1, 2]):
        for t in range(size):
            expected["class"] -= episode.logits[t, b].log_softmax(-1)[targets.labels[b, t]].item() / 3
        expected["stop"] -= episode.logits[size, b].log_softmax(-1)[3].item() / 3
    assert {name: term.item() for name, term in losses(episode, targets, settings, policy.variant)[0].items()} == pytest.approx(expected)


def test_labels_are_sampled_from_the_policys_own_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    for stop, names in (("supervised", 3), ("sampled", 4)):
        targets = targets_of([[0]] * 20_000, 3)
        named = Namer(targets, 3, TrainSettings(), dataclasses.replace(TINY, stop=stop), generator)(
            0, torch.arange(20_000), logits.expand(20_000, -1)
        )
        found = torch.bincount(named, minlength=4)[:names] / 20_000
        assert found.tolist() == pytest.approx(logits[0, :names].softmax(0).tolist(), abs=0.02)
        assert named.max() < names


def test_a_list_has_an_order_so_the_multiset_loss_refuses_it() -> None:
    with pytest.raises(UsageError, match="list"):
        TrainSettings(objective="multiset", task="list")


# --- one reward, which the gradients and the log read ------------------------------------------------------------------------------


def class_terms(policy: HSAL, targets: Targets, variant: Variant, task: str) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient of the class term, and the reward that is logged."""
    settings = dataclasses.replace(PLAIN, task=task)
    terms, logged = losses(roll_out(policy, targets, settings), targets, settings, variant)
    return gradients(terms["class"], policy), logged["reward"].item()


@pytest.mark.parametrize("task", ["multiset", "list"])
@pytest.mark.parametrize("gradient", ["sampled", "expected"])
def test_a_changed_reward_changes_the_gradient_as_it_changes_the_log(gradient: str, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, targets = tiny_policy(3), targets_of([[0, 1, 1], [2], [1]], 3)  # an odd number of labels: their mean reward is not 0
    torch.nn.init.zeros_(policy.controller.value.weight)
    torch.nn.init.zeros_(policy.controller.value.bias)  # advantages are the rewards themselves
    variant = dataclasses.replace(TINY, gradient=gradient)
    before, reward = class_terms(policy, targets, variant, task)
    one = rewards.action_rewards
    monkeypatch.setattr(own_rewards, "action_rewards", lambda left: -2 * one(left))
    after, changed = class_terms(policy, targets, variant, task)
    assert changed == pytest.approx(-2 * reward) and reward != 0
    for name, grad in before.items():
        torch.testing.assert_close(after[name], -2 * grad, rtol=1e-7, atol=1e-10)
    assert any(grad.abs().max() > 1e-3 for grad in before.values())


@pytest.mark.parametrize("gradient", ["sampled", "expected"])
@pytest.mark.parametrize("objective", ["multiset", "cross-entropy"])
def test_other_objectives_train_their_glimpses_by_reinforce_whatever_the_gradient_of_rl(objective: str, gradient: str) -> None:
    policy, targets = tiny_policy(3), targets_of([[0, 1, 1], [2]], 3)
    settings = TrainSettings(objective=objective)
    episode = roll_out(policy, targets, settings)
    found, wanted = (
        {name: term.item() for name, term in losses(episode, targets, settings, dataclasses.replace(TINY, gradient=one))[0].items()}
        for one in (gradient, "sampled")
    )
    assert found == wanted
