"""The replay page without a browser: it stands alone, and holds the episode as it was."""

import base64
import io
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_parts import NAMES, small_policy, small_table
from picture_parts import a_look
from PIL import Image

from hsal_cli.models.look import look_at
from hsal_cli.pictures.replay import data_uri, replay_page
from hsal_cli.pictures.trajectory import hits, remaining
from hsal_cli.pictures.writing import write_bytes
from hsal_cli.policy.episode import greedy
from hsal_cli.storage.files import bears_mark

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Elements, ids, addresses and the data of a page; fails where a tag is not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            key = self.open[-1][1] or self.open[-1][0]
            self.text[key] = self.text.get(key, "") + data

    def find(self, name):
        return next((tag, attributes) for tag, attributes in self.elements if attributes.get("id") == name)


def data_of(page):
    return json.loads(Page(page).text["data"])


def test_the_page_asks_nothing_of_a_network(tmp_path):
    page = replay_page([a_look()], [["3"]])
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("link", "iframe", "object") and not {"src", "href", "srcset"} & attributes.keys(), tag
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    write_bytes(page.encode(), tmp_path / "a.html")
    (tmp_path / "b.html").write_text("<html></html>")
    assert bears_mark(tmp_path / "a.html") and not bears_mark(tmp_path / "b.html")


def test_the_page_holds_every_step_and_stop_as_the_last_one():
    look = a_look(labels=("5", "5", "3"))
    found = data_of(replay_page([look], [["3", "5", "3"]]))["looks"][0]
    assert found["title"] == "predicted {3, 5, 5}, true {3, 3, 5}" and found["name"] == "scene.png"
    assert found["size"] == [90, 60] and found["grid"] == [3, 4] and found["classes"] == ["3", "5", "a <b> & 'c'", "stop"]
    assert [step["hit"] for step in found["steps"]] == [True, False, True, None]
    assert [step["remaining"] for step in found["steps"]] == [["3", "3", "5"], ["3", "3"], ["3", "3"], ["3"]]
    assert [step["stop"] for step in found["steps"]] == [False, False, False, True]
    for step, document in zip([*look.steps, look.end], found["steps"], strict=True):
        for name in ("saliency", "mask", "priority", "gaussians"):
            np.testing.assert_allclose(document[name], getattr(step, name), atol=6e-5)
        assert document["glimpses"] == [[0, 1], [2, 0]] and document["classes"] == pytest.approx([p for _, p in step.classes], abs=6e-5)
    unknown = data_of(replay_page([look]))["looks"][0]
    assert not unknown["known"] and unknown["steps"][0]["hit"] is None


def test_no_name_ends_the_script_or_the_title_early():
    wicked = "</script><b>"
    look = a_look(labels=(wicked,), classes=(wicked, "stop"), name=f"x{wicked}.png")
    page = replay_page([look], [[wicked]])
    assert data_of(page)["looks"][0]["classes"][0] == wicked
    assert page.count("</script>") == 2 and "&lt;b&gt;" in Page(page).text.get("title", "") + page


def test_remaining_multisets_and_hits_agree_with_counting():
    generator = np.random.default_rng(0)
    for _ in range(50):
        truth, named = (list(map(str, generator.integers(0, 4, generator.integers(0, 6)))) for _ in range(2))
        left = remaining(named, truth)
        assert len(left) == len(named) + 1
        for place, label in enumerate(named):
            right = named[:place].count(label) < truth.count(label)
            assert hits(named, truth)[place] == right
            assert sorted(left[place + 1]) == sorted(truth_without(truth, named[: place + 1]))


def truth_without(truth, named):
    return [label for label in set(truth) for _ in range(max(0, truth.count(label) - named.count(label)))]


def test_images_are_embedded_whole_or_reduced_in_proportion():
    small = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    uri = data_uri(small)
    assert uri.startswith("data:image/png;base64,") and (opened(uri) == small).all()
    large = np.kron(np.random.default_rng(1).integers(0, 256, (15, 20, 3)), np.ones((100, 100, 1))).astype(np.uint8)
    uri = data_uri(large)
    assert uri.startswith("data:image/jpeg;base64,") and opened(uri).shape == (900, 1200, 3)
    assert np.abs(opened(uri).mean() - large.mean()) < 2


def opened(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_controls_have_names_and_the_step_is_announced():
    parsed = Page(replay_page([a_look()]))
    for name in ("first", "back", "forward", "play"):
        tag, _ = parsed.find(name)
        assert tag == "button" and parsed.text[name].strip()
    assert parsed.find("said")[1]["role"] == "status" and parsed.find("said")[1]["aria-live"] == "polite"
    assert parsed.find("slider")[1]["aria-label"] and parsed.find("cells")[1]["role"] == "grid" and parsed.find("cells")[1]["aria-label"]
    assert ("html", {"lang": "en"}) in parsed.elements
    assert any(attributes.get("name") == "viewport" for _, attributes in parsed.elements)


def test_the_page_is_packaged():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert "*.html" in project["tool"]["setuptools"]["package-data"]["hsal_cli.pictures"]


def test_a_look_keeps_all_class_probabilities_and_the_meta_step_that_named_stop():
    policy, table = small_policy(seed=3), small_table(count=40)
    with torch.inference_mode():
        episode = policy(table.volumes.float(), table.saliency, choose=greedy, max_steps=4)
    stopped = 0
    for place in range(40):
        look = look_at(episode, place, "x", np.zeros((4, 4, 3), np.uint8), NAMES)
        taken = [step for step in range(4) if step < len(episode.labels) and episode.labels[step, place] >= 0]
        kept = [*look.steps, *([look.end] if look.end else [])]
        assert len(kept) == len(taken)
        for step, one in zip(taken, kept, strict=True):
            scores = episode.scores[step, place].double()
            wanted = (scores.exp() / scores.exp().sum()).tolist()
            assert [name for name, _ in one.classes] == [*NAMES, "stop"]
            assert [p for _, p in one.classes] == pytest.approx(wanted, abs=1e-6)
            assert one.label == [*NAMES, "stop"][int(episode.labels[step, place])] and one.probability == max(p for _, p in one.classes)
        ends = int(episode.labels[taken[-1], place]) == len(NAMES)
        assert (look.end is not None) == ends and (not ends or look.end.label == "stop")
        assert look.stop_probability == pytest.approx(kept[-1].classes[-1][1])
        stopped += ends
    assert 0 < stopped < 40
