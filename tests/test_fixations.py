"""Where people look, in both layouts of files, and the two scores against slow, obvious references."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from learning_parts import SMALL
from PIL import Image
from scipy.io import savemat
from test_evaluation_commands import call, place  # noqa: F401

from hsal_cli.errors import FileError
from hsal_cli.evaluation.fixations import MAPS, auc_judd, fixated_images, maps_of, nss, read_fixations
from hsal_cli.models.look import look_at
from hsal_cli.policy.episode import greedy
from hsal_cli.policy.hsal import HSAL

POINTS = [(3, 5), (20, 10), (20, 10), (29, 0)]  # column and row


def write(root, layout: str):
    """An image of 30 x 20 px and the fixations on it."""
    images, points = {"mit": ("ALLSTIMULI", "ALLFIXATIONMAPS"), "salicon": ("images/val", "fixations/val")}[layout]
    (root / images).mkdir(parents=True)
    (root / points).mkdir(parents=True)
    picture = root / images / ("a.jpeg" if layout == "mit" else "a.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(picture)
    if layout == "mit":
        white = np.zeros((20, 30), np.uint8)
        for column, row in POINTS:
            white[row, column] = 255
        Image.fromarray(white).save(root / points / "a_fixPts.jpg", quality=100)
        (root / points / "a_fixMap.jpg").write_bytes(b"not read")
        return picture, root / points / "a_fixPts.jpg"
    gaze = np.empty((1, 2), dtype=[("location", "O"), ("fixations", "O")])
    for observer, some in enumerate((POINTS[:1], POINTS[1:])):
        gaze[0, observer] = (np.zeros((4, 2)), np.array(some) + 1)
    savemat(root / points / "a.mat", {"gaze": gaze, "resolution": [20, 30]})
    return picture, root / points / "a.mat"


@pytest.mark.parametrize("layout", ["mit", "salicon"])
def test_both_layouts_give_the_points_that_were_written(tmp_path, layout) -> None:
    picture, points = write(tmp_path, layout)
    assert fixated_images(tmp_path) == [(picture, points)]
    found = {tuple(map(int, point)) for point in read_fixations(points)}
    assert found == set(POINTS)


def test_the_scores_are_those_of_their_definitions() -> None:
    draw = np.random.default_rng(1)
    saliency, points = draw.integers(0, 9, (6, 7)).astype(float), np.array([(0, 1), (3, 5), (6, 2)])
    values = [saliency[row, column] for column, row in points]
    assert nss(saliency, points) == pytest.approx(np.mean([(value - saliency.mean()) / saliency.std() for value in values]))
    others = [saliency[row, column] for row in range(6) for column in range(7) if [column, row] not in points.tolist()]
    wins = [(value > other) + 0.5 * (value == other) for value in values for other in others]
    assert auc_judd(saliency, points) == pytest.approx(np.mean(wins))
    assert nss(np.ones((6, 7)), points) == 0 and auc_judd(np.ones((6, 7)), points) == 0.5


def test_masks_and_glimpses_become_maps_of_the_image_that_are_highest_where_they_lie() -> None:
    torch.manual_seed(0)
    policy = HSAL(SMALL, 2, (2, 3, 3)).eval()
    with torch.inference_mode():
        episode = policy(torch.rand(1, 2, 3, 3), torch.rand(1, 3, 3), choose=greedy, steps=torch.tensor([1]))
    seen = look_at(episode, 0, "a", np.zeros((60, 90, 3), np.uint8), ["x", "y"])
    maps, step = maps_of(seen), seen.steps[0] if seen.steps else seen.end
    assert set(maps) == set(MAPS) and all(one.shape == (60, 90) for one in maps.values())
    row, column = np.unravel_index(maps["glimpses"].argmax(), (60, 90))
    assert (row // 20, column // 30) == step.glimpses[0]
    inner = maps_of(dataclasses.replace(seen, within=(10, 0, 80, 60)))  # a padded picture's own part
    assert all(np.array_equal(inner[name], maps[name][:, 10:80]) for name in MAPS)
    row, column = np.unravel_index(maps["masks"].argmax(), (60, 90))
    assert (row // 20, column // 30) == np.unravel_index(step.mask.argmax(), (3, 3))


def test_the_command_scores_a_policy_by_them_and_says_what_is_wrong(place, tmp_path) -> None:  # noqa: F811
    _, points = write(tmp_path, "salicon")
    found = json.loads(call("eval", "--run", place / "runs" / "policy", "--fixations", tmp_path, "--json").stdout)
    assert found["images"] == 1 and found["fixations"] == len(POINTS) and set(found["nss"]) == set(found["auc_judd"]) == set(MAPS)
    assert "AUC-Judd" in call("eval", "--run", place / "runs" / "policy", "--fixations", tmp_path).stdout
    savemat(points, {"gaze": np.array([[(np.array([[31, 1]]),)]], dtype=[("fixations", "O")])})
    assert "outside of" in call("eval", "--run", place / "runs" / "policy", "--fixations", tmp_path, code=1).said
    points.write_bytes(b"nothing of the kind")
    with pytest.raises(FileError, match="cannot be read as fixations"):
        read_fixations(points)
    assert "no images with fixations" in call("eval", "--fixations", tmp_path / "images", code=1).said
    assert "exclude each other" in call("eval", "--fixations", tmp_path, "--data", "x.h5", code=2).said
