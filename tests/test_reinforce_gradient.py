"""The surrogate of section 4.2 against the exact gradient of the expected reward, on a problem small enough to enumerate."""

import collections
import dataclasses
import itertools

import pytest
import torch
from learning_parts import PLAIN, TINY, gradients, images, targets_of, tiny_policy
from torch import Tensor

from hsal_cli.policy.episode import Episode
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import Variant
from hsal_cli.training.objectives import Targets, losses

LOCATION_HEAD = ("controller.location", "controller.priority_weight")

CELLS = 4


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
    monkeypatch.setattr("hsal_cli.policy.hsal.draw", lambda scores, source, rows: next(steps))
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


def estimator_mean(found: Enumerated, policy: HSAL, variant: Variant) -> dict[str, Tensor]:
    """Expectation of minus the surrogate's gradient: each trajectory's own, weighted by its probability."""
    total = torch.zeros((), dtype=torch.double)
    for b, probability in enumerate(found.probability.detach()):
        parts = {field.name: getattr(found.episode, field.name)[:, b : b + 1] for field in dataclasses.fields(Episode)}
        one = Targets(*(getattr(found.targets, name)[b : b + 1] for name in ("labels", "counts", "sizes")))
        terms, _ = losses(Episode(**parts), one, PLAIN, variant)
        total = total - probability * (terms["class"] + terms["location"])
    return gradients(total, policy)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert any(grad.abs().max() > 1e-3 for name, grad in expected.items() if name.startswith("meta_controller"))
    assert expected["controller.label.weight"].abs().max() > 1e-3 and expected["controller.location.2.weight"].abs().max() > 1e-4


@pytest.mark.parametrize("gradient", ["sampled", "expected"])
@pytest.mark.parametrize("stop", ["supervised", "sampled"])
@pytest.mark.parametrize("true", [[1], [0, 0], [1, 0]])
def test_the_immediate_surrogate_has_the_gradient_of_each_actions_own_expected_reward(true, stop, gradient, monkeypatch) -> None:
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
    assert_same(estimator_mean(found, policy, dataclasses.replace(TINY, stop=stop, gradient=gradient)), gradients(objective, policy))


@pytest.mark.parametrize(("gradient", "varies"), [("sampled", True), ("expected", False)])
def test_the_expected_gradient_is_the_same_whatever_the_last_action_was(gradient, varies, monkeypatch) -> None:
    """Trajectories of one label and the same glimpse: only which label was sampled differs, and all of it is noise."""
    policy = tiny_policy(2)
    found = enumerate_all(policy, [1], "sampled", monkeypatch)
    terms = []
    for b in range(0, len(found.labels[0]), CELLS):
        parts = {field.name: getattr(found.episode, field.name)[:, b : b + 1] for field in dataclasses.fields(Episode)}
        one = Targets(*(getattr(found.targets, name)[b : b + 1] for name in ("labels", "counts", "sizes")))
        terms.append(losses(Episode(**parts), one, PLAIN, dataclasses.replace(TINY, stop="sampled", gradient=gradient))[0]["class"].item())
    assert len(terms) == 3
    assert (max(terms) - min(terms) > 1e-3) == varies


def test_with_one_label_the_immediate_class_term_has_the_exact_gradient(monkeypatch) -> None:
    """Nothing follows the only label, so for all but the location head both variants are the gradient of the expected reward."""
    policy = tiny_policy(2)
    found = enumerate_all(policy, [1], "supervised", monkeypatch)
    exact = gradients((found.probability * torch.tensor(found.rewards[0]).double()).sum(), policy)
    immediate = estimator_mean(found, policy, TINY)
    for name in exact:
        if not name.startswith(LOCATION_HEAD):
            torch.testing.assert_close(immediate[name], exact[name], rtol=1e-8, atol=1e-10)
