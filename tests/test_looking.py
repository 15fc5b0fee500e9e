"""Whether it matters where a policy looks: parts replaced at test time, against what each replacement says it is."""

import dataclasses

import pytest
import torch
from learning_parts import SMALL, easy_table

from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.looking import GLIMPSES, MASKS, replaced, verdicts
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL
from hsal_cli.policy.variant import PAPER

SHAPE = (2, 3, 3)


def policy(variant=SMALL) -> HSAL:
    torch.manual_seed(1)
    return HSAL(variant, 2, SHAPE, 0.3).eval()


def roll(one: HSAL):
    table = easy_table(12, 2, seed=3)
    with torch.inference_mode():
        return one(table.volumes.float(), table.saliency, choose=greedy, steps=torch.full((12,), 2))


@pytest.mark.parametrize("variant", [SMALL, PAPER])
def test_where_nothing_is_replaced_nothing_changes_and_the_policy_stays_as_it_was(variant) -> None:
    own = policy(variant)
    before = roll(own)
    same = roll(replaced(own))
    for name in ("labels", "logits", "masks", "saliency", "glimpses"):
        torch.testing.assert_close(getattr(same, name), getattr(before, name))
    roll(replaced(own, glimpses="none", mask="uniform"))
    assert torch.equal(roll(own).logits, before.logits) and own.variant == policy(variant).variant


def test_each_replacement_of_glimpses_is_what_it_says() -> None:
    own = policy()
    found = {way: roll(replaced(own, glimpses=way)) for way in GLIMPSES}
    maximum = found["saliency"].saliency.flatten(2).argmax(2)
    assert torch.equal(found["saliency"].glimpses, maximum[..., None].expand_as(found["saliency"].glimpses))
    assert (found["center"].glimpses == 4).all() and len(found["random"].glimpses.unique()) > 4
    scores = found["second"].location_logits.topk(2, dim=-1).indices[..., 1]
    assert torch.equal(found["second"].glimpses, scores)
    assert torch.equal(found["none"].glimpses[0, :, 0], roll(own).glimpses[0, :, 0])
    assert not torch.allclose(found["none"].logits[0], roll(own).logits[0])  # it sees nothing there


@pytest.mark.parametrize("way", MASKS)
def test_each_replaced_mask_is_what_it_says_and_saliency_is_inhibited_by_the_own_one(way) -> None:
    own, other = roll(policy()), roll(replaced(policy(), mask=way))
    first, mask = own.masks[0], other.masks[0]
    torch.testing.assert_close(mask.sum((1, 2)), first.sum((1, 2)))
    if way == "uniform":
        torch.testing.assert_close(mask, mask[:, :1, :1].expand_as(mask))
    if way == "center":
        assert (mask.flatten(1).argmax(1) == 4).all()
    if way == "saliency":
        assert torch.equal(mask.flatten(1).argmax(1), own.saliency[0].flatten(1).argmax(1))
    if way == "turned":
        torch.testing.assert_close(mask, first.flip(1, 2))
    kept = replaced(policy(), mask=way)
    kept.masks.way = None
    torch.testing.assert_close(roll(kept).saliency, own.saliency)
    same_cells = (own.glimpses[0] == other.glimpses[0]).all(1)  # inhibition also clears the cells of glimpses
    torch.testing.assert_close(other.saliency[1][same_cells], own.saliency[1][same_cells])


def test_every_greedy_evaluation_tests_it_and_sampled_ones_do_not() -> None:
    table = easy_table(20, 2)
    found = evaluate(policy(), table, ["a", "b"], EvalSettings(batch_size=8, resamples=20), 4)
    looking = found["looking"]
    assert looking["images"] == 20 and looking["exact_match"] == pytest.approx(found["exact_match"])
    assert set(looking["glimpses"]) == set(GLIMPSES) and set(looking["masks"]) == set(MASKS)
    for one in (*looking["glimpses"].values(), *looking["masks"].values()):
        assert one["lost"] == pytest.approx(looking["exact_match"] - one["exact_match"])
        assert one["lost_ci95"][0] <= one["lost"] <= one["lost_ci95"][1]
    for changes in ({"sample": 2}, {"looking": 0}):
        assert "looking" not in evaluate(policy(), table, ["a", "b"], EvalSettings(resamples=20, **changes), 4)
    fewer = evaluate(policy(), table, ["a", "b"], EvalSettings(batch_size=8, looking=11, resamples=20), 4)
    assert fewer["looking"]["images"] == 11 and fewer["examples"] == 20


@pytest.mark.parametrize(("changes", "share"), [({"glimpses": 1}, None), ({"glimpses": 2, "glimpses_apart": "yes"}, 0.0)])
def test_the_share_of_meta_steps_whose_glimpses_fall_on_one_cell_is_told(changes, share) -> None:
    table, own = easy_table(20, 2), policy(dataclasses.replace(SMALL, **changes))
    assert evaluate(own, table, ["a", "b"], EvalSettings(batch_size=8, resamples=2), 4)["looking"]["one_cell"] == share
    if share is not None:
        together = policy(dataclasses.replace(SMALL, **changes, location_input="hidden"))
        together.controller.apart = False
        together.controller.location[2].bias.data[4] = 100.0
        assert evaluate(together, table, ["a", "b"], EvalSettings(batch_size=8, resamples=2), 4)["looking"]["one_cell"] == 1.0


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ({"random": (0.001, 0.0, 0.005), "saliency": (0.0, 0.0, 0.0)}, "glimpses fall decides nothing"),
        ({"random": (0.2, 0.1, 0.3), "saliency": (0.1, 0.0, 0.2)}, "random in its place costs 0.200"),
        ({"random": (0.2, 0.1, 0.3), "saliency": (0.0, 0.0, 0.001)}, "the maximum of the saliency map does as well"),
        (
            {"random": (-0.02, -0.04, -0.002), "saliency": (0.08, 0.06, 0.1)},
            "not shown to matter: random in its place costs nothing (-0.020",
        ),
        ({"random": (0.01, -0.005, 0.03), "saliency": (0.0, 0.0, 0.001)}, "glimpses fall is not settled: random in its place costs 0.010"),
        ({"random": (0.0, -0.005, 0.005), "none": (0.06, 0.04, 0.08), "saliency": (0.0, 0.0, 0.0)}, "glimpses fall decides nothing"),
        (
            {"random": (0.0, -0.005, 0.005), "none": (0.06, 0.04, 0.08), "saliency": (0.0, 0.0, 0.0)},
            "there are glimpses matters: none",
        ),
    ],
)
def test_what_is_found_is_said_in_words(lost, said) -> None:
    ways = {way: {"exact_match": 0.5, "lost": mean, "lost_ci95": [low, high]} for way, (mean, low, high) in lost.items()}
    assert any(said in text for text in verdicts({"images": 100, "glimpses": ways, "masks": {}}))
    assert verdicts({"images": 30, "glimpses": ways, "masks": {}}) == ["30 images are too few to say whether it matters where it looks"]
