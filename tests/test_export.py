"""hsal export: what it writes, that nothing of the machine goes along, and what it refuses."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shipped_parts import use_tiny_backbone, write_backbone, write_policy
from typer.testing import CliRunner

from hsal_cli.errors import FileError, HsalError, UsageError
from hsal_cli.main import app
from hsal_cli.models.export import export, tidy, to_half
from hsal_cli.storage import checkpoints
from hsal_cli.upkeep.check import check_path


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """runs/ with a backbone and two policies on it."""
    monkeypatch.chdir(tmp_path)
    digest = write_backbone(Path("runs/finetune"))
    write_policy(Path("runs/a"), digest)
    write_policy(Path("runs/b"), digest, "multiset", seed=1)
    return tmp_path / "runs"


def test_every_file_is_listed_with_its_checksum_and_how_it_was_made(runs) -> None:
    export(["runs/a", "runs/b"], Path("data/pretrained"))
    folder = Path("data/pretrained")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "hsal-pretrained"
    assert sorted(manifest["policies"]) == ["mnist-toy.multiset", "mnist-toy.rl"]
    listed = {"manifest.json"}
    for name, entry in (("backbone", manifest["backbone"]), *manifest["policies"].items()):
        for file, digest in entry["sha256"].items():
            assert hashlib.sha256((folder / name / file).read_bytes()).hexdigest() == digest
            listed.add(f"{name}/{file}")
    assert listed == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    policy = manifest["policies"]["mnist-toy.rl"]
    assert policy["command"] == "hsal train --data toy.features.h5 --out=rl --epochs 3 --seed 7" and policy["seed"] == 7
    assert policy["result"]["exact_match"] == 0.75 and policy["result"]["ci95"]["macro_f1"] == [0.8, 0.9]
    assert policy["result"]["glimpse_hit"] == 0.5 and policy["result"]["examples"] == 40
    backbone = manifest["backbone"]
    assert (backbone["command"], backbone["seed"]) == ("hsal finetune --weights w.pth", 5)
    assert backbone["result"] == {"accuracy": 0.98, "test_accuracy": 0.97}
    original = runs / "finetune/checkpoints/epoch-1/weights.safetensors"
    assert backbone["made_from"] == hashlib.sha256(original.read_bytes()).hexdigest()


def test_what_was_exported_is_sound_and_a_changed_file_in_it_is_not(runs, monkeypatch) -> None:
    use_tiny_backbone(monkeypatch)
    export(["runs/a"], Path("out"))
    report = check_path(Path("out"))
    assert report.ok and report.kind == "exported models" and "mnist-toy.rl" in report.summary, report.faults
    weights = Path("out/mnist-toy.rl/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "mnist-toy.rl/weights.safetensors is damaged" in check_path(Path("out")).faults[0]


def test_a_run_that_went_on_with_more_epochs_states_both_commands(runs) -> None:
    with Path("runs/a/command.txt").open("a") as commands:
        commands.write("/some/where/hsal train --resume runs/a --epochs 6\n")
    command = export(["runs/a"], Path("out"))["policies"]["mnist-toy.rl"]["command"]
    assert command == "hsal train --data toy.features.h5 --out=rl --epochs 3 --seed 7 && hsal train --resume runs/a --epochs 6"


def test_a_policy_of_hsal_0_1_is_exported_with_what_its_open_values_meant(runs) -> None:
    place = runs / "a" / "checkpoints" / "epoch-1"
    made = checkpoints.read_checkpoint(place)
    older = made.meta.pop("variant") | {"glimpse_size": 1, "beta": None, "inhibition_width": None, "memory": "last"}
    older["location_input"] = "hidden+priority+residual"
    gone = ("reach", "cells", "stop", "gradient")
    meta = {**made.meta, "policy": {name: value for name, value in older.items() if name not in gone}}
    shutil.rmtree(place)
    checkpoints.write_checkpoint(place, made.weights, None, meta)
    export(["runs/a"], Path("out"))
    held = checkpoints.read_checkpoint(Path("out/mnist-toy.rl")).meta
    _, height, width = held["volume_shape"]
    assert "policy" not in held and None not in held["variant"].values()
    assert held["variant"]["inhibition_width"] == 2.5
    assert held["variant"]["beta"] == pytest.approx([2.0 * 49 / (height * width), 3.0 * 49 / (height * width)])


def test_weights_are_float16_in_the_file_and_float32_once_they_are_read(runs) -> None:
    export(["runs/a"], Path("out"))
    stored, before = load_file("out/mnist-toy.rl/weights.safetensors"), checkpoints.load(runs / "a" / "checkpoints", "best").weights
    read = checkpoints.read_checkpoint(Path("out/mnist-toy.rl")).weights
    assert stored.keys() == before.keys() == read.keys()
    for name, tensor in before.items():
        if tensor.numel() > 1:
            assert stored[name].dtype == torch.float16 and read[name].dtype == torch.float32
            assert torch.equal(read[name], tensor.half().float())
        else:
            assert torch.equal(read[name], tensor)
    assert not list(Path("out").rglob("state.pt"))


def test_what_float16_cannot_hold_stays_as_it_is() -> None:
    for tensor in (torch.tensor(3.1), torch.arange(3), torch.tensor([1.0, 1e6])):
        assert to_half(tensor).dtype == tensor.dtype and torch.equal(to_half(tensor), tensor)
    assert to_half(torch.tensor([1.0, -60000.0])).dtype == torch.float16


def test_nothing_of_the_machine_goes_along(runs) -> None:
    export(["runs/a", "runs/b"], Path("out"))
    for file in Path("out").rglob("*.json"):
        assert "/some/where" not in file.read_text() and str(runs) not in file.read_text(), file


def test_the_exported_policy_names_the_exported_backbone(runs) -> None:
    manifest = export(["runs/a"], Path("out"))
    meta = checkpoints.read_checkpoint(Path("out/mnist-toy.rl")).meta
    assert meta["backbone_digest"] == manifest["backbone"]["sha256"]["weights.safetensors"]
    assert checkpoints.read_checkpoint(Path("out/backbone")).digest == meta["backbone_digest"]


def test_an_export_can_be_exported_again_with_its_origin(runs) -> None:
    """A policy trained on an exported backbone goes out beside it; the backbone is the same to the byte."""
    first = export(["runs/a"], Path("first"))
    write_policy(Path("runs/c"), first["backbone"]["sha256"]["weights.safetensors"])
    again = export(["runs/c"], Path("second"), backbone=Path("first/backbone"))
    for key in ("command", "seed", "result"):
        assert again["backbone"][key] == first["backbone"][key]
    assert again["backbone"]["sha256"]["weights.safetensors"] == first["backbone"]["sha256"]["weights.safetensors"]


def test_names_can_be_given_and_must_differ(runs) -> None:
    manifest = export(["digits.rl=runs/a", "digits.other=runs/b"], Path("out"))
    assert list(manifest["policies"]) == ["digits.rl", "digits.other"]
    with pytest.raises(UsageError, match=r"two of the runs would be called mnist-toy\.rl"):
        export(["runs/a", "runs/a"], Path("x"))
    for name in ("backbone", "../x.rl", ".rl"):
        with pytest.raises(UsageError, match="not a name of the form"):
            export([f"{name}=runs/a"], Path("x"))
    assert not Path("x").exists()


def test_what_cannot_be_vouched_for_is_refused(runs) -> None:
    digest = checkpoints.load(runs / "finetune" / "checkpoints", "best").digest
    write_policy(Path("runs/unevaluated"), digest, evaluated=False)
    write_policy(Path("runs/elsewhere"), "0" * 64)
    write_policy(Path("runs/stale"), digest)
    stale = json.loads(Path("runs/stale/eval.json").read_text())
    Path("runs/stale/eval.json").write_text(json.dumps({**stale, "checkpoint": "runs/stale/checkpoints/epoch-0"}))
    write_policy(Path("runs/stopped"), digest)
    status = json.loads(Path("runs/stopped/status.json").read_text())
    Path("runs/stopped/status.json").write_text(json.dumps({**status, "state": "stopped"}))
    for sources, said in (
        (["runs/unevaluated"], "eval.json"),
        (["runs/stale"], "another checkpoint"),
        (["runs/stopped"], "not finished"),
        (["runs/finetune"], "kind backbone"),
        (["runs/nowhere"], "not a run"),
        (["runs/a", "mnist-toy.other=runs/elsewhere"], "different backbones"),
        (["runs/elsewhere"], "is not at runs/finetune"),
    ):
        with pytest.raises(FileError, match=said):
            export(sources, Path("out"))
    with pytest.raises(FileError, match="is not at runs/b"):
        export(["runs/a"], Path("out"), backbone=Path("runs/b"))
    assert not Path("out").exists()


def test_only_an_earlier_export_is_replaced_and_only_when_asked(runs) -> None:
    export(["runs/a", "runs/b"], Path("out"))
    with pytest.raises(UsageError, match="holds exported policies already"):
        export(["runs/a"], Path("out"))
    export(["runs/a"], Path("out"), overwrite=True)
    assert sorted(path.name for path in Path("out").iterdir()) == ["backbone", "manifest.json", "mnist-toy.rl"]
    assert sorted(path.name for path in Path().iterdir()) == ["out", "runs"]
    Path("out/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt was not made by hsal export"):
        export(["runs/a"], Path("out"), overwrite=True)
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="other exists and was not made"):
        export(["runs/a"], Path("other"), overwrite=True)
    assert Path("other/mine.txt").read_text() == "mine" and Path("out/notes.txt").is_file()


def test_a_network_that_looks_first_is_not_lost_without_a_word(runs) -> None:
    export(["runs/a"], Path("out"), look=Path("runs/finetune"))
    with pytest.raises(UsageError, match="looks first, and it would be lost") as refused:
        export(["runs/a"], Path("out"), overwrite=True)
    assert "--look out/look" in refused.value.hint
    export(["runs/b"], Path("out"), overwrite=True, look=Path("out/look"))
    assert sorted(path.name for path in Path("out").iterdir()) == ["backbone", "look", "manifest.json", "mnist-toy.multiset"]


def test_weights_that_are_not_finite_are_not_exported(runs) -> None:
    folder = runs / "a" / "checkpoints" / "epoch-1"
    found = checkpoints.read_checkpoint(folder)
    found.weights["controller.label.bias"][1] = torch.nan
    shutil.rmtree(folder)
    checkpoints.write_checkpoint(folder, found.weights, None, found.meta)
    with pytest.raises(FileError, match=r"controller\.label\.bias of mnist-toy\.rl has values that are not finite"):
        export(["runs/a"], Path("out"))
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_replaced_stays_whole(runs, monkeypatch) -> None:
    export(["runs/a"], Path("out"))
    before = Path("out/manifest.json").read_text()
    real = os.replace

    def fail(source, target):
        if Path(source).name == ".out.new":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(FileError, match="No space"):
        export(["runs/b"], Path("out"), overwrite=True)
    assert Path("out/manifest.json").read_text() == before
    assert sorted(path.name for path in Path().iterdir()) == ["out", "runs"]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("/x/bin/hsal eval --run runs/a", "hsal eval --run runs/a"),
        ("/x/hsal_cli/__main__.py train --seed 3", "hsal train --seed 3"),
        ("/x/reproduce.py '/x/my data/a.h5'", "reproduce.py a.h5"),
        ("hsal train '--out=/x/my runs/a'", "hsal train --out=a"),
        ("", "''"),
    ],
)
def test_a_command_is_shown_as_anyone_would_type_it(typed: str, shown: str) -> None:
    assert tidy(typed) == shown


def test_what_was_exported_stands_beside_runs(runs) -> None:
    export(["runs/a", "toy.ce=runs/b"], Path("out"))
    cli = CliRunner()
    found = cli.invoke(app, ["compare", "runs/a", "out/mnist-toy.rl", "out/toy.ce"])
    assert found.exit_code == 0 and [found.stdout.count(word) for word in ("0.750", "multiset", "out/toy.ce")] == [3, 1, 1], found.output
    rows = json.loads(cli.invoke(app, ["compare", "out/mnist-toy.rl", "runs/a", "--json"]).stdout)
    assert [(row["run"], row["macro_f1"]) for row in rows] == [("out/mnist-toy.rl", 0.875), ("runs/a", 0.875)]
    for missing, told in (
        ("out/nothing", "no pretrained policy"),
        ("nothing", "is neither a run nor a policy"),
        ("away/nothing", "is not a run"),
    ):
        said = cli.invoke(app, ["compare", missing])
        assert isinstance(said.exception, FileError) and told in said.exception.message
    manifest = json.loads(Path("out/manifest.json").read_text())
    for odd, said in (
        (["out"], "out holds 2 policies"),
        (["out/toy.ce", "--data", "other"], "out/toy.ce states no scores on other, but on mnist-toy"),
    ):
        assert said in cli.invoke(app, ["compare", *odd]).exception.message
    assert "passed over: out holds 2 policies" in cli.invoke(app, ["compare", "runs/a", "out"]).stderr
    manifest["policies"]["toy.ce"].pop("result")
    Path("out/manifest.json").write_text(json.dumps(manifest))
    said = cli.invoke(app, ["compare", "out/toy.ce"])
    assert isinstance(said.exception, FileError) and "out states no evaluation of toy.ce" in said.exception.message
    Path("out/manifest.json").write_text("{")
    for place in ("out", "out/toy.ce"):
        said = cli.invoke(app, ["compare", place])
        assert isinstance(said.exception, FileError) and "out/manifest.json is not valid JSON" in said.exception.message


def test_the_command_prints_names_sizes_and_figures(runs) -> None:
    found = CliRunner().invoke(app, ["export", "runs/a", "runs/b"])
    assert found.exit_code == 0, found.output
    for text in ("data/pretrained", "mnist-toy.rl", "mnist-toy.multiset", "0.7500", "0.8750", "hsal eval --pretrained"):
        assert text in found.stdout
    document = json.loads(CliRunner().invoke(app, ["export", "runs/a", "--overwrite", "--json"]).stdout)
    assert document["policies"]["mnist-toy.rl"]["bytes"] == sum(
        path.stat().st_size for path in Path("data/pretrained/mnist-toy.rl").iterdir()
    )
    refused = CliRunner().invoke(app, ["export", "runs/nowhere"])
    assert isinstance(refused.exception, HsalError)
