"""--pretrained NAME: what it loads and verifies, and eval, predict and visualize with it, from images alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_parts import NAMES
from PIL import Image
from shipped_parts import call, use_tiny_backbone, write_backbone, write_policy, write_scenes

from hsal_cli.errors import FileError, UsageError
from hsal_cli.features.precompute import precompute
from hsal_cli.features.saliency.models import ActivationSaliency
from hsal_cli.features.scene_features import SceneFeatures
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.features.table import open_features
from hsal_cli.features.two_looks import TwoLooks
from hsal_cli.models import shipped
from hsal_cli.models.export import export
from hsal_cli.models.shipped import find_shipped, load_shipped, own_folder
from hsal_cli.progress import Reporter
from hsal_cli.scenes.scene_file import open_scenes
from hsal_cli.storage import checkpoints
from hsal_cli.storage.files import digest_of_file
from hsal_cli.vision.backbone import load_backbone


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, and an hsal that came with two policies and their backbone, exported elsewhere."""
    use_tiny_backbone(monkeypatch)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    digest = write_backbone(Path("runs/finetune"))
    write_policy(Path("runs/a"), digest)
    write_policy(Path("runs/b"), digest, "multiset", seed=1)
    export(["mnist-multiset.rl=runs/a", "mnist-multiset.multiset=runs/b"], tmp_path / "package" / "pretrained")
    monkeypatch.setattr("hsal_cli.models.shipped.own_folder", lambda: tmp_path / "package" / "pretrained")
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    return folder


def test_all_that_the_manifest_names_comes_with_hsal() -> None:
    places = shipped.exports_in(own_folder())
    assert {"mnist-set.rl", "mnist-multiset.rl"} <= set(shipped.read_manifest(places[0]).policies)
    for folder in places:
        for name, entry in shipped.read_manifest(folder).parts.items():
            assert {file.name for file in (folder / name).iterdir()} == set(entry.sha256)
            for file, digest in entry.sha256.items():
                assert digest_of_file(folder / name / file) == digest, f"{name}/{file}"


def test_an_installed_hsal_says_that_a_checkout_has_more(here, monkeypatch) -> None:
    for installed, more in ((here.parent / "package" / "pretrained", True), (here, False)):
        monkeypatch.setattr("hsal_cli.models.shipped._installed", lambda place=installed: place)
        with pytest.raises(UsageError, match="no pretrained policy 'mnist-multiset") as caught:
            find_shipped("mnist-multiset.paper")
        assert ("a checkout of hsal has more" in caught.value.hint) == more


def test_an_installed_hsal_finds_what_the_checkout_has_that_it_runs_in(here, monkeypatch) -> None:
    monkeypatch.chdir(here.parent / "elsewhere")
    write_policy(Path("runs/c"), write_backbone(Path("runs/finetune")), seed=2)
    export(["mnist-multiset.paper=runs/c"], here / "data" / "pretrained")
    export(["mnist-multiset.rl=runs/c"], here / "other" / "data" / "pretrained")
    monkeypatch.chdir(here)
    assert find_shipped("mnist-multiset.paper") == (Path("data/pretrained"), "mnist-multiset.paper")
    own = here.parent / "package" / "pretrained"
    assert load_shipped("mnist-multiset.paper").policy.policy and find_shipped("mnist-multiset")[0] == own
    with pytest.raises(UsageError) as caught:
        find_shipped("nonsense")
    assert "mnist-multiset.multiset, mnist-multiset.paper, mnist-multiset.rl" in caught.value.hint
    monkeypatch.chdir(here / "other")
    assert find_shipped("mnist-multiset")[0] == own  # its own go first


def test_a_run_on_the_backbone_that_came_with_hsal_is_exported_with_it(here) -> None:
    backbone = here.parent / "package" / "pretrained" / "backbone" / "weights.safetensors"
    write_policy(Path("runs/c"), digest_of_file(backbone))
    export(["runs/c"], Path("out"))
    assert digest_of_file(Path("out/backbone/weights.safetensors")) == digest_of_file(backbone)


def test_weights_of_others_name_them() -> None:
    for folder in shipped.exports_in(own_folder()):
        meta = json.loads((folder / "backbone" / "manifest.json").read_text())["meta"]
        if meta["arch"].startswith("timm:"):
            assert "EfficientNet-Lite0" in (folder / "NOTICE").read_text()
            assert "TERMS AND CONDITIONS" in (folder / "LICENSE.Apache-2.0").read_text()


def test_the_street_numbers_that_come_with_hsal_are_read(tmp_path, monkeypatch) -> None:
    pytest.importorskip("timm", reason="their backbone is one of timm's")
    monkeypatch.chdir(tmp_path)
    right, look = {}, own_folder() / "street-numbers" / "look"
    for frame, looks in (("number", ()), ("found", ("--look", look))):
        made = ("--train", 0, "--test", 60, "--typefaces", "bundled", "--seed", 11, "--out", f"{frame}.h5")
        call("make-data", "street-numbers", *made, "--frame", frame, *looks)
        scored = ("--data", f"{frame}.h5", "--looking", 0, "--resamples", 9, "--json")
        right[frame] = json.loads(call("eval", "--pretrained", "street-numbers", *scored).stdout)["exact_match"]
    assert right["number"] > 0.8 and right["found"] > 0.6, f"{right}; 0.95 and 0.83 where the system has typefaces"


def test_a_data_set_alone_means_its_rl_policy(here) -> None:
    assert load_shipped("mnist-multiset").name == "mnist-multiset.rl"
    assert load_shipped("mnist-multiset.multiset").name == "mnist-multiset.multiset"
    assert load_shipped("mnist-multiset").dataset == "mnist-multiset"


def test_policy_and_backbone_come_back_in_float32_as_they_were_up_to_rounding(here) -> None:
    found, runs = load_shipped("mnist-multiset"), here.parent / "elsewhere" / "runs"
    for model, run in ((found.policy.policy, "a"), (found.backbone.model, "finetune")):
        before = checkpoints.load(runs / run / "checkpoints", "best").weights
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == before[name].dtype, name
            wanted = before[name].half().float() if before[name].numel() > 1 else before[name]
            assert torch.equal(tensor, wanted), name
    assert found.stated.result.exact_match == 0.75


def test_a_model_made_with_an_option_that_there_is_no_more_is_loaded(here) -> None:
    path = here.parent / "package" / "pretrained" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["backbone"]["command"] = "hsal finetune --distort 0.5 --out runs/finetune"
    path.write_text(json.dumps(manifest))
    assert load_shipped("mnist-multiset").backbone.model.arch


def test_an_unknown_name_is_answered_with_those_that_there_are(here) -> None:
    for name in ("nonsense", "mnist-multiset.count", "mnist"):
        for command in (("eval",), ("predict", "image.png"), ("visualize", "image.png")):
            error = call(*command, "--pretrained", name, code=2).error
            assert name in error.message and "mnist-multiset.multiset, mnist-multiset.rl" in error.hint


def test_policies_of_another_backbone_come_in_a_folder_within(here, monkeypatch) -> None:
    monkeypatch.chdir(here.parent / "elsewhere")
    write_policy(Path("runs/c"), write_backbone(Path("runs/other"), seed=3))
    within = here.parent / "package" / "pretrained" / "street-numbers"
    export(["street-numbers.rl=runs/c"], within)
    assert find_shipped("street-numbers") == (within, "street-numbers.rl")
    found = load_shipped("street-numbers")
    digest = digest_of_file(within / "backbone" / "weights.safetensors")
    assert found.backbone.digest == digest != load_shipped("mnist-multiset").backbone.digest
    assert "street-numbers.rl" in call("eval", "--pretrained", "nonsense", code=2).error.hint
    call("check", str(within.parent))


def test_a_network_that_looks_first_comes_with_its_policies_and_is_the_one_that_looks(here, monkeypatch) -> None:
    monkeypatch.chdir(here.parent / "elsewhere")
    look = write_backbone(Path("runs/look"), seed=5)
    within = here.parent / "package" / "pretrained" / "street-numbers"
    call("export", "street-numbers.rl=runs/a", "--look", "runs/look", "--out", str(within))
    assert json.loads((within / "manifest.json").read_text())["look"]["made_from"] == look
    call("export", "street-numbers.rl=runs/a", "--look", "runs/look", "--out", str(within), "--overwrite")
    assert "not backbone" in call("export", "runs/a", "--look", "runs/a", "--out", "x", code=1).error.message
    stated = json.loads((within / "manifest.json").read_text())
    stated["look"]["seed"] = 77
    (within / "manifest.json").write_text(json.dumps(stated))
    call("export", "street-numbers.rl=runs/a", "--look", str(within / "look"), "--out", "again")
    assert json.loads(Path("again/manifest.json").read_text())["look"]["seed"] == 77, "its own, not the backbone's"
    monkeypatch.chdir(here)
    asked = ("predict", "image.png", "--pretrained", "street-numbers", "--frame", "found", "--json")
    used, start = [], TwoLooks.__init__
    monkeypatch.setattr(TwoLooks, "__init__", lambda self, look, settings: used.append(look.path) or start(self, look, settings))
    assert json.loads(call(*asked).stdout) == json.loads(call(*asked, "--look", str(within / "look")).stdout)
    assert "no network that looks first came with" not in call(*asked).stderr
    assert used == [within / "look"] * 3
    call("check", str(within))
    (within / "look" / "weights.safetensors").write_bytes(b"another")
    assert "damaged" in call(*asked, code=1).error.message


def test_a_run_and_a_pretrained_policy_exclude_each_other(here) -> None:
    for command in (("eval",), ("predict", "image.png"), ("visualize", "image.png")):
        assert "exclude each other" in call(*command, "--pretrained", "mnist-multiset", "--run", "runs/x", code=2).error.message


def test_an_export_of_ones_own_is_named_by_its_folder(here, monkeypatch) -> None:
    folder = here.parent / "package" / "pretrained"
    monkeypatch.setattr("hsal_cli.models.shipped.own_folder", lambda: None)
    with pytest.raises(UsageError, match="came without any"):
        load_shipped("mnist-multiset")
    assert find_shipped(f"{folder}/mnist-multiset") == (folder, "mnist-multiset.rl")
    with pytest.raises(FileError, match="nowhere holds no trained policies"):
        find_shipped("nowhere/mnist-multiset")


def test_the_installed_package_goes_before_the_checkout(tmp_path, monkeypatch) -> None:
    package = tmp_path / "checkout" / "hsal_cli"
    monkeypatch.setattr("importlib.resources.files", lambda name: package)
    assert own_folder() is None
    for folder in (tmp_path / "checkout" / "data" / "pretrained", package / "pretrained"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        assert own_folder() == folder


@pytest.mark.parametrize(
    "file", ["backbone/weights.safetensors", "mnist-multiset.rl/weights.safetensors", "mnist-multiset.rl/manifest.json"]
)
def test_a_damaged_or_missing_file_is_named_before_anything_is_used(here, file) -> None:
    place = here.parent / "package" / "pretrained" / file
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)
    error = call("predict", "image.png", "--pretrained", "mnist-multiset", code=1).error
    assert file in error.message and "damaged" in error.message and error.hint == shipped.AGAIN
    place.unlink()
    assert file in call("predict", "image.png", "--pretrained", "mnist-multiset", code=1).error.message


def test_a_manifest_that_is_none_or_of_a_newer_hsal_is_refused(here) -> None:
    place = here.parent / "package" / "pretrained" / "manifest.json"
    good = json.loads(place.read_text())
    for text in ("no json", "[]", "{}", json.dumps({**good, "format": "other"}), json.dumps({**good, "policies": 3})):
        place.write_text(text)
        with pytest.raises(FileError, match="holds no trained policies"):
            load_shipped("mnist-multiset")
    place.write_text(json.dumps({**good, "format_version": 99}))
    with pytest.raises(FileError, match="format version 99"):
        load_shipped("mnist-multiset")


def test_a_policy_of_another_export_is_refused(here) -> None:
    """Files put together by hand: every checksum is right, and still the policy never saw this backbone."""
    folder = here.parent / "package" / "pretrained"
    write_backbone(Path("runs/other"), seed=1)
    write_policy(Path("runs/c"), checkpoints.load(Path("runs/other/checkpoints"), "best").digest)
    strange = export(["mnist-multiset.rl=runs/c"], Path("strange"), backbone=Path("runs/other"))
    for name in ("weights.safetensors", "manifest.json"):
        (folder / "mnist-multiset.rl" / name).write_bytes(Path("strange/mnist-multiset.rl", name).read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["policies"]["mnist-multiset.rl"] = strange["policies"]["mnist-multiset.rl"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileError, match="two exports"):
        load_shipped("mnist-multiset")


def test_features_of_scenes_are_those_that_precompute_writes(here, monkeypatch) -> None:
    monkeypatch.setattr("hsal_cli.features.scene_features.BATCH", 4)
    folder = here.parent / "package" / "pretrained" / "backbone"
    precompute(write_scenes(Path("s.h5")), folder, Path("f.h5"), PrecomputeSettings(), torch.device("cpu"))
    with open_scenes(Path("s.h5")) as scenes, open_features(Path("f.h5")) as features:
        table, found = features.table("test"), SceneFeatures(scenes.split("test"), load_backbone(folder), ActivationSaliency())
        assert len(found) == len(table) == 41 and found.image_size == table.image_size
        for rows in (slice(0, 41), slice(3, 10), slice(38, 60)):
            mine, theirs = found.select(rows), table.select(rows)
            for part in ("labels", "boxes"):
                assert torch.equal(getattr(mine, part), getattr(theirs, part))
            # Convolutions of batches of other sizes may round differently.
            torch.testing.assert_close(mine.volumes, theirs.volumes, rtol=2e-3, atol=1e-5)
            torch.testing.assert_close(mine.saliency, theirs.saliency, rtol=1e-4, atol=1e-4)
        whole = found.in_memory(10)
        assert torch.equal(whole.labels, table.labels) and torch.equal(whole.volumes, found.select(slice(0, 41)).volumes)


def test_eval_needs_nothing_but_a_scene_file(here) -> None:
    """The figures are those of features computed before, and nothing is written."""
    write_scenes(Path("s.h5"))
    words = ("eval", "--pretrained", "mnist-multiset", "--resamples", 20, "--batch-size", 9, "--json")
    found = json.loads(call(*words, "--data", "s.h5").stdout)
    assert sorted(path.name for path in here.iterdir()) == ["image.png", "s.h5"]
    folder = here.parent / "package" / "pretrained" / "backbone"
    precompute(Path("s.h5"), folder, Path("s.features.h5"), PrecomputeSettings(), torch.device("cpu"))
    features = json.loads(call(*words, "--data", "s.features.h5").stdout)
    assert found.pop("scenes") == "s.h5" and features.pop("features") == "s.features.h5" and features.pop("features_digest")
    for part in ("attn_saliency", "localization"):
        assert found.pop(part) == pytest.approx(features.pop(part), rel=1e-3)
    assert found == features
    assert found["pretrained"] == "mnist-multiset.rl" and found["stated"]["exact_match"] == 0.75 and found["examples"] == 41
    said = call("eval", "--pretrained", "mnist-multiset", "--resamples", 5, "--data", "s.h5", "--out", "eval.json").stdout
    assert f"stated for mnist-toy, test split, 40 images: exact match 0.7500, here {found['exact_match']:.4f}" in said
    assert Path("eval.json").is_file()


def test_memory_is_bounded_by_a_batch_and_sampling_computes_each_image_once(here, monkeypatch) -> None:
    write_scenes(Path("s.h5"))
    real, sizes = SceneFeatures.select, []
    monkeypatch.setattr(SceneFeatures, "select", lambda self, rows: sizes.append(len(range(*rows.indices(len(self))))) or real(self, rows))
    words = ("eval", "--pretrained", "mnist-multiset", "--resamples", 2, "--batch-size", 16, "--data", "s.h5")
    call(*words)
    assert sizes == [16, 16, 9]
    sizes.clear()
    call(*words, "--sample", 3)
    assert sizes == [16, 16, 9]


def test_eval_without_data_takes_the_data_set_of_the_name_and_makes_it_if_missing(here, monkeypatch) -> None:
    asked = []

    def ensure_scenes(scenes, settings, reporter):
        asked.append((str(scenes), settings.train))
        scenes.parent.mkdir()
        return write_scenes(scenes)

    monkeypatch.setattr("hsal_cli.experiments.pipeline.ensure_scenes", ensure_scenes)
    call("eval", "--pretrained", "mnist-multiset.multiset", "--resamples", 2, "--preset", "quick")
    assert asked == [("data/mnist-multiset.h5", 3500)]


def test_eval_refuses_features_of_another_backbone_and_scenes_of_other_classes(here) -> None:
    write_backbone(Path("runs/other"), seed=1)
    precompute(write_scenes(Path("s.h5")), Path("runs/other"), Path("f.h5"), PrecomputeSettings(), torch.device("cpu"))
    assert "another backbone" in call("eval", "--pretrained", "mnist-multiset", "--data", "f.h5", code=1).error.message
    write_scenes(Path("s.h5"), classes=["a", *NAMES[1:]])
    assert "has classes ['a'" in call("eval", "--pretrained", "mnist-multiset", "--data", "s.h5", code=1).error.message
    assert "missing" in call("eval", "--pretrained", "mnist-multiset", "--data", "nowhere.h5", code=1).error.message


def test_images_work_with_no_run_at_all(here) -> None:
    named = json.loads(call("predict", "image.png", "--pretrained", "mnist-multiset", "--json").stdout)[0]
    assert named["labels"] and set(named["labels"]) <= set(NAMES)
    drawn = json.loads(call("visualize", "image.png", "--pretrained", "mnist-multiset", "--json").stdout)[0]
    assert drawn["labels"] == named["labels"] and Path(drawn["picture"]).is_file()
    write_scenes(Path("s.h5"))
    asked = ("visualize", "--data", "s.h5", "--rows", "0-1", "--max-steps", 1, "--out", "two.png", "--json")
    found = call(*asked, "--pretrained", "mnist-multiset.multiset")
    warned = [why for seen in json.loads(found.stdout) for why in seen["warnings"]]
    assert Path("two.png").is_file() and warned and all(why in found.stderr for why in warned)


def test_without_a_run_the_pretrained_policy_is_taken_and_said_and_a_run_goes_before_it(here) -> None:
    for command in ("predict", "visualize"):
        found = call(command, "image.png")
        assert [line for line in found.stderr.splitlines() if "pretrained mnist-multiset" in line] and "image.png: " in found.stdout
    wanted = call("predict", "image.png", "--pretrained", "mnist-multiset", "--json").stdout
    assert call("predict", "image.png", "--json").stdout == wanted
    digest = write_backbone(Path("runs/finetune"), seed=1)
    write_policy(Path("runs/mine"), digest, seed=2)
    found = call("predict", "image.png", "--json")
    assert "pretrained" not in found.stderr and json.loads(found.stdout)[0]["steps"] != json.loads(wanted)[0]["steps"]


def test_an_evaluation_can_be_stopped(here) -> None:
    from hsal_cli.errors import Interrupted
    from hsal_cli.evaluation.files import evaluate_scenes
    from hsal_cli.evaluation.settings import EvalSettings

    reporter, found = Reporter(), load_shipped("mnist-multiset")
    reporter.stop_signal = 2
    for sample in (0, 2):
        with pytest.raises(Interrupted):
            evaluate_scenes(found.policy, found.backbone, write_scenes(Path("s.h5")), EvalSettings(sample=sample), "cpu", reporter)
