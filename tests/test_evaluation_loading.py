"""Loading a policy: the round trip, and every way in which a checkpoint does not fit is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from evaluation_parts import NAMES, policy_meta, small_policy, small_table, write_run

from hsal_cli.errors import FileError
from hsal_cli.models.load import LoadedPolicy, PolicyMeta, find_backbone, load_policy
from hsal_cli.policy.episode import greedy
from hsal_cli.storage.checkpoints import Checkpoint, write_checkpoint
from hsal_cli.vision.backbone import LoadedBackbone


def test_a_policy_comes_back_as_it_was(tmp_path):
    policy, table = small_policy(), small_table(6)
    run = write_run(tmp_path / "run", policy)
    for place in (run, run / "checkpoints" / "epoch-1"):
        loaded = load_policy(place)
        assert loaded.classes == NAMES and loaded.max_steps == 5 and not loaded.policy.training
        assert loaded.policy.variant == policy.variant
        with torch.no_grad():
            episodes = [p(table.volumes, table.saliency, choose=greedy, max_steps=3) for p in (policy, loaded.policy)]
        assert torch.equal(episodes[0].logits, episodes[1].logits)


def test_weights_that_do_not_fit_are_named_with_their_shapes(tmp_path):
    policy = small_policy()
    weights = policy.state_dict()
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    wrong = {**weights, name: torch.zeros(3, 5), "extra.weight": torch.zeros(1)}
    write_checkpoint(tmp_path / "a", wrong, None, policy_meta(policy))
    with pytest.raises(FileError) as raised:
        load_policy(tmp_path / "a")
    rows, columns = weights[name].shape
    assert f"{name} is 3 x 5, not {rows} x {columns}" in raised.value.message and "extra.weight is unknown" in raised.value.message
    missing = {key: value for key, value in weights.items() if key != name}
    write_checkpoint(tmp_path / "b", missing, None, policy_meta(policy))
    with pytest.raises(FileError, match=f"{name} is missing"):
        load_policy(tmp_path / "b")


def test_what_is_not_a_policy_is_refused(tmp_path):
    policy = small_policy()
    write_checkpoint(tmp_path / "other", policy.state_dict(), None, {"kind": "backbone"})
    with pytest.raises(FileError, match="kind backbone, not policy"):
        load_policy(tmp_path / "other")
    for nowhere in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileError, match="neither a run"):
            load_policy(nowhere)
    meta = policy_meta(policy)
    del meta["volume_shape"]
    write_checkpoint(tmp_path / "vague", policy.state_dict(), None, meta)
    with pytest.raises(FileError, match="volume_shape"):
        load_policy(tmp_path / "vague")


def test_a_damaged_best_checkpoint_is_passed_over_and_said(tmp_path):
    run = write_run(tmp_path / "run", small_policy())
    shutil.copytree(run / "checkpoints" / "epoch-1", run / "checkpoints" / "epoch-2")
    (run / "checkpoints" / "index.json").write_text(json.dumps({"last": "epoch-2", "best": "epoch-2"}))
    weights = run / "checkpoints" / "epoch-2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    assert "using epoch-1" in load_policy(run).checkpoint.note


@pytest.fixture
def backbones(tmp_path, monkeypatch):
    """Two backbone runs of which only the manifests matter; loading makes no model. Gives the digest of each."""
    monkeypatch.setattr("hsal_cli.vision.backbone.load_backbone", lambda path, device="cpu": LoadedBackbone(None, None, "", path))
    monkeypatch.setattr("hsal_cli.vision.resolution.giving", lambda backbone, *_: backbone)
    monkeypatch.chdir(tmp_path)
    digests = {}
    for name in ("old", "new"):
        folder = tmp_path / "runs" / name / "checkpoints" / "epoch-1"
        write_checkpoint(folder, {"w": torch.tensor([float(len(digests))])}, None, {"kind": "backbone"})
        digests[name] = json.loads((folder / "manifest.json").read_text())["sha256"]["weights.safetensors"]
    return digests


def trained_on(digest: str | None, recorded: str | None, checkpoint: Path = Path("models/rl/checkpoints/epoch-1")) -> LoadedPolicy:
    """A policy of which only the backbone that it names matters."""
    policy = small_policy()
    meta = PolicyMeta("policy", ["a"], (4, 3, 3), 1.0, 3, variant=policy.variant, backbone=recorded, backbone_digest=digest)
    return LoadedPolicy(policy, meta, Checkpoint(checkpoint, {}, None, {}, ""))


def test_the_backbone_is_found_where_it_was_and_where_it_went(backbones, tmp_path):
    for recorded in ("runs/new", "runs/gone", None, "runs/old"):  # old holds other weights: the digest decides
        found = find_backbone(trained_on(backbones["new"], recorded))
        assert found.path.resolve() == tmp_path / "runs" / "new" / "checkpoints" / "epoch-1"
    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs" / "new", elsewhere)
    assert find_backbone(trained_on(backbones["new"], str(elsewhere))).path.parents[1] == elsewhere


def test_the_backbone_is_found_beside_the_run_and_beside_an_exported_policy_from_any_folder(backbones, tmp_path, monkeypatch):
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    place = tmp_path / "runs" / "new" / "checkpoints" / "epoch-1"
    assert find_backbone(trained_on(backbones["new"], None, tmp_path / "runs" / "rl" / "checkpoints" / "epoch-3")).path == place
    shutil.copytree(place, tmp_path / "exported" / "backbone")
    assert find_backbone(trained_on(backbones["new"], None, tmp_path / "exported" / "x.rl")).path == tmp_path / "exported" / "backbone"


def test_a_backbone_that_is_named_is_taken_from_nowhere_else(backbones):
    with pytest.raises(FileError, match="not at runs/old") as caught:
        find_backbone(trained_on(backbones["new"], "runs/new"), named=Path("runs/old"))
    assert caught.value.hint == "name that one"


def test_a_backbone_that_is_nowhere_is_named(backbones):
    with pytest.raises(FileError, match="neither at runs/gone nor under runs/"):
        find_backbone(trained_on("0" * 64, "runs/gone"))
    with pytest.raises(FileError, match="not under runs/"):
        find_backbone(trained_on("0" * 64, None))
    with pytest.raises(FileError, match="name no backbone"):
        find_backbone(trained_on(None, None))
