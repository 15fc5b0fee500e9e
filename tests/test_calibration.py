"""Whether a policy is as sure as it is right, and whether it tells what it does not know."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, small_policy, small_table
from PIL import Image

from hsal_cli.errors import UsageError
from hsal_cli.evaluation.attention import Tally
from hsal_cli.evaluation.calibration import add_reliability, choices, confidence, fit_temperature, measure_trust, reliability
from hsal_cli.evaluation.evaluate import evaluate
from hsal_cli.evaluation.settings import EvalSettings
from hsal_cli.models.look import look_at
from hsal_cli.models.trust import Trust, ranges_of, statistics
from hsal_cli.policy.episode import greedy
from hsal_cli.typed import checked


def rolled_out(seed=3, count=60):
    policy, table = small_policy(seed=seed), small_table(count=count)
    with torch.inference_mode():
        return policy, table, policy(table.volumes.float(), table.saliency, choose=greedy, max_steps=4)


def test_a_choice_is_right_while_its_label_is_left_and_stop_once_nothing_is():
    _, table, episode = rolled_out()
    scores, right = choices(episode, table.labels)
    wanted, sure = [], []
    for step in range(len(episode.labels)):
        for place in range(len(table)):
            if not episode.active[step, place]:
                continue
            left = Counter(label for label in table.labels[place].tolist() if label >= 0)
            for before in episode.labels[:step, place].tolist():
                left[before] = max(0, left[before] - 1)
            label = int(episode.labels[step, place])
            wanted.append(left[label] > 0 if label < len(NAMES) else left.total() == 0)
            sure.append(float(episode.scores[step, place].double().div(1.7).softmax(-1)[label]))
    assert right.tolist() == wanted and 0 < sum(wanted) < len(wanted)
    assert confidence(scores, 1.7) == pytest.approx(sure, abs=1e-6)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_the_outcomes_is_found(true):
    generator = np.random.default_rng(0)
    scores = -np.abs(generator.normal(0, 3, (20_000, 4)))
    scores[:, 0] = 0
    right = generator.random(len(scores)) < confidence(scores, true)
    assert fit_temperature(scores, right) == pytest.approx(true, rel=0.06)


def test_a_temperature_is_found_for_few_choices_and_for_none():
    assert fit_temperature(np.zeros((0, 4)), np.zeros(0, dtype=bool)) == 1.0
    always = fit_temperature(np.array([[2.0, 0.0, 0.0]] * 5), np.ones(5, dtype=bool))
    assert 0.05 < always < 20 and confidence(np.array([[2.0, 0.0, 0.0]]), always)[0] < 0.99  # five right ones prove no certainty


def test_reliability_is_what_counting_by_hand_gives():
    _, table, episode = rolled_out()
    tally = Tally()
    add_reliability(tally, episode, table.labels, 1.0)
    found = reliability(tally, 1.0)
    scores, right = choices(episode, table.labels)
    sure = confidence(scores, 1.0)
    error = 0.0
    for one in found["bins"]:
        inside = (sure >= one["low"]) & ((sure < one["high"]) | (one["high"] == 1.0))
        assert one["choices"] == inside.sum()
        if inside.any():
            assert one["confidence"] == pytest.approx(sure[inside].mean()) and one["right"] == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
        else:
            assert one["confidence"] is one["right"] is None
    assert found["ece"] == pytest.approx(error) and sum(one["choices"] for one in found["bins"]) == len(right)
    assert reliability(Tally(), 1.0)["ece"] is None


def test_a_temperature_mends_probabilities_and_changes_no_label():
    policy, table, episode = rolled_out()
    trust = measure_trust(policy, table, 4, 16)
    assert trust.temperature != 1.0
    settings = EvalSettings(resamples=5)
    plain, mended = (evaluate(policy, table, NAMES, settings, 4, trust=one) for one in (Trust(), trust))
    assert mended["calibration"]["ece"] < plain["calibration"]["ece"]
    assert mended["calibration"]["temperature"] == trust.temperature
    assert mended["calibration"]["ece_at_1"] == plain["calibration"]["ece"]
    assert {key: plain[key] for key in plain if key != "calibration"} == {key: mended[key] for key in mended if key != "calibration"}
    image = np.zeros((4, 4, 3), np.uint8)
    for place in range(5):
        before, after = (look_at(episode, place, "x", image, NAMES, t) for t in (1.0, trust.temperature))
        assert before.labels == after.labels and before.probabilities.tolist() != after.probabilities.tolist()
        assert after.lowest == min([*after.probabilities, after.stop_probability])


def test_images_like_those_known_pass_and_others_are_told_in_words():
    table = small_table(count=400)
    ranges = ranges_of(statistics(table.volumes, table.saliency))
    trust = checked(json.loads(json.dumps({"temperature": 1.5, "ranges": ranges})), Trust)  # as a checkpoint holds it
    same = small_table(count=400, seed=1)
    assert sum(map(bool, trust.unlike(same.volumes, same.saliency))) <= 4
    flat, empty = torch.ones_like(table.saliency[:3]), torch.zeros_like(table.volumes[:3])
    assert all("nothing stands out from the rest" in said for said in trust.unlike(table.volumes[:3], flat))
    assert all("fewer features respond" in said for said in trust.unlike(empty, table.saliency[:3]))
    assert Trust().unlike(empty, flat) == [[], [], []]


def test_few_known_images_leave_more_room():
    values = torch.linspace(0, 1, 1000, dtype=torch.float64)[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    few, many = (ranges_of({"contrast": part})["contrast"] for part in (values[:25], values))
    assert few[0] < many[0] and few[1] > many[1] and many == pytest.approx((-0.062, 1.062), abs=0.01)
    assert ranges_of({"contrast": values[:1]})["contrast"] == (float(values[0]),) * 2


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(UsageError, match="not above 0"):
        Trust(0.0)


def test_an_episode_that_the_cap_ended_is_told():
    _, _, episode = rolled_out()
    image, said = np.zeros((4, 4, 3), np.uint8), Counter()
    for place in range(60):
        look = look_at(episode, place, "x", image, NAMES)
        assert bool(look.warnings) == (look.end is None)
        said += Counter(look.warnings)
    assert list(said) == ["the cap of 4 meta-steps came before stop: there may be more to name"] and said.total() < 60


def test_the_model_that_comes_with_hsal_tells_noise_inverted_digits_and_colour_from_its_own_kind():
    import hsal_cli as hsal

    model, noise = hsal.load("mnist-multiset", "cpu"), np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    own = np.asarray(Image.open(Path(__file__).parents[1] / "docs" / "example.png").convert("RGB"))
    smooth = np.kron(noise[:6, :6], np.ones((20, 20, 1), dtype=np.uint8))  # patches of colour, as large as objects
    told = [bool(seen.unlike) for seen in model([own, noise, noise[..., 0], 255 - own, smooth])]
    assert told == [False, True, True, True, True]
