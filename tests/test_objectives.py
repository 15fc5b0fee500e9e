"""Section 4.2: the surrogate's gradient against enumeration, the loss terms against loops, and who names which label."""

import collections
import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from hsal_cli.errors import UsageError
from hsal_cli.learning.objectives import Namer, Targets, losses, make_targets
from hsal_cli.learning.rewards import count_labels
from hsal_cli.learning.settings import TrainSettings
from hsal_cli.policy.episode import Episode
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.settings import PolicySettings

TINY = PolicySettings(
    glimpses=1, gaussians=2, meta_encode=3, meta_hidden=3, controller_encode=4, controller_hidden=4, location_hidden=3, mask="learned"
)
PLAIN = TrainSettings(label_entropy=0.0, location_entropy=0.0, location_weight=1.0)
CELLS = 4


def tiny_policy(classes: int, seed: int = 0, settings: PolicySettings = TINY) -> HSAL:
    torch.manual_seed(seed)
    policy = HSAL(settings, classes, (2, 2, 2)).double()
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


def roll_out(policy: HSAL, targets: Targets, settings: TrainSettings, seed: int = 0) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    namer = Namer(targets, policy.classes, settings, generator)
    volumes, saliency = images(len(targets.sizes), seed)
    return policy(volumes, saliency, choose=namer, steps=targets.sizes + 1, sample_glimpses=True, generator=generator)


# --- REINFORCE against enumeration ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Enumerated:
    """Every trajectory of one image: a batch of as many copies of it, each forced through its own labels and glimpses."""

    episode: Episode
    targets: Targets
    labels: Tensor  # (m, trajectories)
    log_label: Tensor  # (m, trajectories), log-probability of the label named at each step
    log_glimpse: Tensor  # (m, trajectories)
    rewards: list[list[float]]  # of the labels: a row a step, by brute force
    location_rewards: Tensor  # (m, trajectories)

    @property
    def probability(self) -> Tensor:
        return (self.log_label + self.log_glimpse).sum(0).exp()


def enumerate_all(policy: HSAL, true: list[int], stop: str, monkeypatch: pytest.MonkeyPatch) -> Enumerated:
    classes, m = policy.classes, len(true)
    names = range(classes + (stop == "sampled"))
    every = list(itertools.product(itertools.product(names, range(CELLS)), repeat=m))
    labels = torch.tensor([[one[t][0] for one in every] for t in range(m)])
    cells = torch.tensor([[one[t][1] for one in every] for t in range(m)] + [[0] * len(every)])
    steps = iter(cells)
    monkeypatch.setattr("hsal_cli.policy.hsal.draw", lambda scores, generator: next(steps))
    volumes, saliency = (one.expand(len(every), *one.shape[1:]) for one in images(1, 3))
    forced = torch.cat([labels, torch.full((1, len(every)), classes)])
    episode = policy(
        volumes, saliency, choose=lambda t, rows, logits: forced[t, rows], steps=torch.full((len(every),), m + 1), sample_glimpses=True
    )
    logits = episode.logits[:m] if stop == "sampled" else episode.logits[:m, :, :classes]
    log_label = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    log_glimpse = episode.location_logits[:m, :, 0].log_softmax(-1).gather(-1, cells[:m, :, None])[..., 0]
    rewards = []
    for one in every:
        left = collections.Counter(true)
        row = []
        for label, _ in one:
            row.append(1.0 if left[label] > 0 else -1.0)
            left[label] -= row[-1] > 0
        rewards.append(row)
    priority = episode.priority[:m].flatten(2).gather(-1, cells[:m, :, None])[..., 0].detach()
    columns = [list(column) for column in zip(*rewards, strict=True)]
    return Enumerated(episode, targets_of([true] * len(every), classes), labels, log_label, log_glimpse, columns, priority)


def estimator_mean(found: Enumerated, policy: HSAL, settings: TrainSettings) -> dict[str, Tensor]:
    """Expectation of minus the surrogate's gradient: each trajectory's own, weighted by its probability."""
    total = torch.zeros((), dtype=torch.double)
    for b, probability in enumerate(found.probability.detach()):
        parts = {field.name: getattr(found.episode, field.name)[:, b : b + 1] for field in dataclasses.fields(Episode)}
        one = Targets(*(getattr(found.targets, name)[b : b + 1] for name in ("labels", "counts", "sizes")))
        terms, _ = losses(Episode(**parts), one, settings)
        total = total - probability * (terms["class"] + terms["location"])
    return gradients(total, policy)


def gradients(value: Tensor, policy: HSAL) -> dict[str, Tensor]:
    names = dict(policy.named_parameters())
    found = torch.autograd.grad(value, list(names.values()), retain_graph=True, allow_unused=True)
    return {name: torch.zeros_like(names[name]) if grad is None else grad for name, grad in zip(names, found, strict=True)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert any(grad.abs().max() > 1e-3 for name, grad in expected.items() if name.startswith("meta_controller"))
    assert expected["controller.label.weight"].abs().max() > 1e-3 and expected["controller.location.2.weight"].abs().max() > 1e-4


@pytest.mark.parametrize("stop", ["supervised", "sampled"])
@pytest.mark.parametrize("true", [[1], [0, 0], [1, 0]])
def test_the_surrogate_with_return_to_go_has_the_gradient_of_the_expected_total_reward(true, stop, monkeypatch) -> None:
    policy = tiny_policy(2)
    found = enumerate_all(policy, true, stop, monkeypatch)
    assert found.probability.sum().item() == pytest.approx(1.0)
    # J, where P at the glimpse is a reward and not a function of the weights, as in the paper's surrogate.
    expected_reward = (found.probability * (torch.tensor(found.rewards).double() + found.location_rewards).sum(0)).sum()
    settings = dataclasses.replace(PLAIN, stop=stop, return_to_go=True)
    assert_same(estimator_mean(found, policy, settings), gradients(expected_reward, policy))


def test_the_enumerated_gradient_is_that_of_finite_differences(monkeypatch) -> None:
    """The heads change probabilities alone, so nudging one weight must move the expected total reward by its gradient."""
    policy = tiny_policy(2)

    def expected_reward() -> float:
        found = enumerate_all(policy, [1, 0], "supervised", monkeypatch)
        return (found.probability * (torch.tensor(found.rewards).double() + found.location_rewards).sum(0)).sum().item()

    found = estimator_mean(enumerate_all(policy, [1, 0], "supervised", monkeypatch), policy, dataclasses.replace(PLAIN, return_to_go=True))
    for name, place in (
        ("controller.label.weight", (0, 1)),
        ("controller.location.2.bias", (2,)),
        ("controller.location.0.weight", (1, 3)),
    ):
        weight = policy.get_parameter(name)
        step, values = 1e-5, []
        for sign in (1, -2):
            with torch.no_grad():
                weight[place] += sign * step
            values.append(expected_reward())
        with torch.no_grad():
            weight[place] += step
        assert found[name][place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-6), name


@pytest.mark.parametrize("stop", ["supervised", "sampled"])
@pytest.mark.parametrize("true", [[1], [0, 0], [1, 0]])
def test_the_immediate_surrogate_has_the_gradient_of_each_actions_own_expected_reward(true, stop, monkeypatch) -> None:
    """The paper's estimator: sum over actions of grad log p times their own reward; what led there counts as given."""
    policy = tiny_policy(2)
    found = enumerate_all(policy, true, stop, monkeypatch)
    objective = torch.zeros((), dtype=torch.double)
    given = torch.zeros_like(found.log_label[0])  # log-probability of all that came before, without gradient
    for t in range(len(true)):
        later = (found.log_label[t + 1 :] + found.log_glimpse[t + 1 :]).sum(0).detach()  # sums to one over what follows
        label, glimpse = found.log_label[t], found.log_glimpse[t]
        objective = objective + ((given + glimpse + label.detach() + later).exp() * found.location_rewards[t]).sum()
        objective = objective + ((given + glimpse.detach() + label + later).exp() * torch.tensor(found.rewards[t]).double()).sum()
        given = given + (label + glimpse).detach()
    assert_same(estimator_mean(found, policy, dataclasses.replace(PLAIN, stop=stop)), gradients(objective, policy))


def test_with_one_label_the_immediate_class_term_has_the_exact_gradient(monkeypatch) -> None:
    """Nothing follows the only label, so for all but the location head both variants are the gradient of the expected reward."""
    policy = tiny_policy(2)
    found = enumerate_all(policy, [1], "supervised", monkeypatch)
    exact = gradients((found.probability * torch.tensor(found.rewards[0]).double()).sum(), policy)
    immediate = estimator_mean(found, policy, PLAIN)
    for name in exact:
        if not name.startswith("controller.location"):
            torch.testing.assert_close(immediate[name], exact[name], rtol=1e-8, atol=1e-10)


# --- what each term reaches -------------------------------------------------------------------------------------------------------

BODY = {
    "controller.encode_context.weight",
    "controller.gru.weight_ih",
    "meta_controller.encode.weight",
    "meta_controller.attention.layer.weight",
}


@pytest.mark.parametrize("objective", ["rl", "multiset"])
def test_class_and_stop_reach_the_attention_and_the_other_terms_only_their_heads(objective: str) -> None:
    policy = tiny_policy(2)
    settings = TrainSettings(objective=objective, location_entropy=0.1)
    targets = targets_of([[0], [1, 1], [0, 1]], 2)
    terms, _ = losses(roll_out(policy, targets, settings), targets, settings)
    reached = {
        name: {key for key, grad in gradients(term, policy).items() if grad.abs().max() > 0}
        for name, term in terms.items()
        if term.requires_grad
    }
    for name in ("class", "stop"):
        assert reached[name] >= BODY | {"controller.label.weight"}, name
        assert not any(key.startswith(("controller.location.", "controller.value.")) for key in reached[name])
    for name, head in (("location", "controller.location."), ("location_entropy", "controller.location."), ("value", "controller.value.")):
        assert reached[name] and all(key.startswith(head) for key in reached[name]), name


def test_cross_entropy_gives_glimpses_no_reward() -> None:
    settings = TrainSettings(objective="cross-entropy")
    targets = targets_of([[0], [1, 1]], 2)
    assert set(losses(roll_out(tiny_policy(2), targets, settings), targets, settings)[0]) == {"class", "stop"}


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
        logged = losses(episode, targets, settings)[1]
        assert logged["early_stops"] == 1.0  # every step before m+1 finds stop likelier than not


def test_supervised_stop_is_learned_at_every_step() -> None:
    policy, targets = tiny_policy(2), targets_of([[0], [1, 1]], 2)
    episode = roll_out(policy, targets, PLAIN)
    expected = 0.0
    for b, size in enumerate([1, 2]):
        for t in range(size + 1):
            p = episode.logits[t, b].softmax(-1)[2].item()
            expected -= math.log(p if t == size else 1 - p) / 2
    assert losses(episode, targets, PLAIN)[0]["stop"].item() == pytest.approx(expected)


def test_the_stop_loss_stays_finite_and_useful_where_the_policy_is_sure_to_stop() -> None:
    policy, targets = tiny_policy(2).float(), targets_of([[0], [1, 1]], 2)
    with torch.no_grad():
        policy.controller.label.bias[2] = 300.0
    generator = torch.Generator().manual_seed(0)
    namer = Namer(targets, 2, PLAIN, generator)
    episode = policy(*(part.float() for part in images(2)), choose=namer, steps=targets.sizes + 1)
    loss = losses(episode, targets, PLAIN)[0]["stop"]
    assert loss.item() == pytest.approx(300 * 3 / 2, rel=0.05)
    assert gradients(loss, policy)["controller.label.bias"][2].item() == pytest.approx(1.5, rel=0.01)


def test_sampled_stop_earns_minus_one_when_it_comes_early_and_is_supervised_once() -> None:
    policy, targets = tiny_policy(2), targets_of([[0], [1, 1]], 2)
    with torch.no_grad():
        policy.controller.label.bias[2] = 50.0
    settings = dataclasses.replace(PLAIN, stop="sampled")
    episode = roll_out(policy, targets, settings)
    terms, logged = losses(episode, targets, settings)
    assert logged["early_stops"] == 1.0 and logged["reward"] == -1.0
    expected = -sum(episode.logits[size, b].log_softmax(-1)[2].item() for b, size in enumerate([1, 2])) / 2
    assert terms["stop"].item() == pytest.approx(expected)


def test_early_stops_are_the_share_of_naming_steps_that_stopped() -> None:
    policy, targets = tiny_policy(2, seed=5), targets_of([[0, 1, 1]] * 40, 2)
    settings = dataclasses.replace(PLAIN, stop="sampled")
    episode = roll_out(policy, targets, settings)
    share = losses(episode, targets, settings)[1]["early_stops"].item()
    assert 0 < share < 1 and share == pytest.approx((episode.labels[:3] == 2).double().mean().item())


# --- rewards, returns, values in the loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multiset", "list"])
@pytest.mark.parametrize("to_go", [False, True])
def test_the_rl_terms_are_those_of_a_plain_loop(to_go: bool, task: str) -> None:
    policy = tiny_policy(3, settings=dataclasses.replace(TINY, glimpses=2))
    true = [[0, 1, 1], [2], [1, 2], []]
    targets = targets_of(true, 3)
    settings = TrainSettings(return_to_go=to_go, task=task, label_entropy=0.3, location_entropy=0.2, location_weight=0.7, value_weight=0.4)
    episode = roll_out(policy, targets, settings, seed=4)
    expected: dict[str, float] = collections.defaultdict(float)
    for b, labels in enumerate(true):
        left, rewards, values, log_p, entropies = collections.Counter(labels), [], [], [], []
        for t, turn in enumerate(labels):
            for i in range(2):
                logp = episode.location_logits[t, b, i].log_softmax(-1)
                cell = int(episode.glimpses[t, b, i])
                rewards.append(episode.priority[t, b].flatten()[cell].item())
                log_p.append(logp[cell].item())
                entropies.append(-(logp.exp() * logp).sum().item())
            logp = episode.logits[t, b, :3].log_softmax(-1)
            name = int(episode.labels[t, b])
            hit = name == turn if task == "list" else left[name] > 0
            left[name] -= hit
            rewards.append(1.0 if hit else -1.0)
            log_p.append(logp[name].item())
            entropies.append(-(logp.exp() * logp).sum().item())
            values += episode.values[t, b].tolist()
        for place in range(len(rewards)):
            gain = sum(rewards[place:]) if to_go else rewards[place]
            kind = "class" if place % 3 == 2 else "location"
            expected[kind] -= log_p[place] * (gain - values[place]) * (0.7 if kind == "location" else 1) / 4
            expected["value"] += 0.4 * (gain - values[place]) ** 2 / 4
            entropy = "label_entropy" if kind == "class" else "location_entropy"
            expected[entropy] -= (0.3 if kind == "class" else 0.2) * entropies[place] / 4
    terms, _ = losses(episode, targets, settings)
    assert {name: terms[name].item() for name in expected} == pytest.approx(dict(expected))


def test_a_policy_without_glimpses_and_an_image_without_objects_have_a_loss() -> None:
    policy, targets = tiny_policy(2, settings=dataclasses.replace(TINY, glimpses=0)), targets_of([[], []], 2)
    for objective in ("rl", "cross-entropy", "multiset"):
        settings = TrainSettings(objective=objective)
        terms, logged = losses(roll_out(policy, targets, settings), targets, settings)
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
    assert losses(episode, targets, settings)[0]["class"].item() == pytest.approx(expected)


def test_under_the_multiset_loss_every_label_named_remains_to_be_named() -> None:
    settings, generator = TrainSettings(objective="multiset"), torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200, 4), generator=generator)
    labels = torch.where(torch.arange(4) < torch.randint(0, 5, (200, 1), generator=generator), labels, -1)
    targets = make_targets(labels, 4, settings, generator)
    namer = Namer(targets, 4, settings, generator)
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


@pytest.mark.parametrize("feedback", ["sampled", "teacher"])
def test_the_cross_entropy_loss_compares_each_step_with_this_draws_label(feedback: str) -> None:
    policy, settings = tiny_policy(3), TrainSettings(objective="cross-entropy", feedback=feedback)
    generator = torch.Generator().manual_seed(1)
    targets = make_targets(torch.tensor([[0, 1, 1], [2, -1, -1], [1, 2, -1]]), 3, settings, generator)
    episode = roll_out(policy, targets, settings)
    expected = {"class": 0.0, "stop": 0.0}
    for b, size in enumerate([3, 1, 2]):
        for t in range(size):
            expected["class"] -= episode.logits[t, b].log_softmax(-1)[targets.labels[b, t]].item() / 3
        expected["stop"] -= episode.logits[size, b].log_softmax(-1)[3].item() / 3
    assert {name: term.item() for name, term in losses(episode, targets, settings)[0].items()} == pytest.approx(expected)


def test_teacher_feedback_names_the_true_labels_of_this_draw() -> None:
    policy, settings = tiny_policy(3), TrainSettings(objective="cross-entropy", feedback="teacher")
    generator = torch.Generator().manual_seed(1)
    targets = make_targets(torch.tensor([[0, 1, 1], [2, -1, -1]]), 3, settings, generator)
    episode = roll_out(policy, targets, settings)
    assert episode.labels[:3, 0].tolist() == targets.labels[0].tolist() and episode.labels[3, 0] == 3
    assert episode.labels[:2, 1].tolist() == [2, 3]


def test_labels_are_sampled_from_the_policys_own_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    for stop, names in (("supervised", 3), ("sampled", 4)):
        settings = TrainSettings(stop=stop)
        targets = targets_of([[0]] * 20_000, 3)
        named = Namer(targets, 3, settings, generator)(0, torch.arange(20_000), logits.expand(20_000, -1))
        found = torch.bincount(named, minlength=4)[:names] / 20_000
        assert found.tolist() == pytest.approx(logits[0, :names].softmax(0).tolist(), abs=0.02)
        assert named.max() < names


def test_a_list_has_an_order_so_the_multiset_loss_refuses_it() -> None:
    with pytest.raises(UsageError, match="list"):
        TrainSettings(objective="multiset", task="list")
