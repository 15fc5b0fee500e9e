"""Documents of wrong types: each that hsal reads, changed by hand in many ways, ends in two lines that name it, and stops no other run."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from evaluation_parts import small_policy, small_table, write_features
from fault_parts import evaluation, small_run, small_scenes
from shipped_parts import use_tiny_backbone, write_backbone, write_policy

from hsal_cli import main
from hsal_cli.console import exit_code_of
from hsal_cli.errors import HsalError
from hsal_cli.models.export import export
from hsal_cli.runs.documents import Evaluation
from hsal_cli.runs.run import Run, newest
from hsal_cli.storage.files import digest_of_file
from hsal_cli.typed import LARGEST, Odd, checked, parsed

Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound document of each kind: runs, an export, a grid, a report, scenes, features and settings."""
    place = tmp_path_factory.mktemp("sound")
    policy = small_policy()
    with torch.no_grad():
        policy.controller.label.bias[policy.stop] -= 3
    run = small_run(place / "runs" / "p", epochs=1)
    write_features(place / "f.features.h5", {"train": small_table(9), "test": small_table(5)}, scenes_digest="5" * 64)
    config = {**run.config.raw, "features": "f.features.h5", "backbone": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)  # which the run moves with
        run.set_config(config)
    last = "epoch-00001-step-0000000"
    (run.path / "eval.json").write_text(
        json.dumps(evaluation(dataset="f", features="f.features.h5", checkpoint=f"runs/p/checkpoints/{last}"))
    )
    small_scenes(place / "s.h5")
    digest = write_backbone(place / "runs" / "b")
    write_policy(place / "exported" / "q", digest)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        export(["exported/q"], Path("pretrained"), Path("runs/b"))
    shutil.rmtree(place / "exported")
    (place / "grid").mkdir()
    (place / "grid" / "grid.json").write_text(json.dumps({"format": "hsal-grid", "settings": {}, "seconds": {"data": 1.0}, "options": []}))
    (place / "page").mkdir()
    (place / "page" / "report.json").write_text(json.dumps({"format": "hsal-report", "files": ["report.html"]}))
    (place / "s.toml").write_text("[train]\nepochs = 3\n")
    return place


@pytest.fixture
def here(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as the working folder."""
    shutil.copytree(sound, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("hsal_cli.distributed.prepare", lambda command: None)
    use_tiny_backbone(monkeypatch)
    return tmp_path / "here"


def call(words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Runs a command in this process; gives its exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hsal", *words.split()])
        try:
            code = exit_code_of(main._call)
        except SystemExit as left:
            code = int(left.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def put(**changes: Any) -> Edit:
    """Sets values in a JSON object and takes its digest away; the value "gone" removes the key, and a__b is the key b inside of a."""

    def edit(path: Path) -> None:
        document = json.loads(path.read_text())
        document.pop("digest", None)
        for name, value in changes.items():
            *outer, last = name.split("__")
            inside = document
            for key in outer:
                inside = inside[key]
            if value == "gone":
                del inside[last]
            else:
                inside[last] = value
        path.write_text(json.dumps(document))

    return edit


def text(content: str | bytes) -> Edit:
    """Replaces a whole document."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sparse(path: Path) -> None:
    os.truncate(path, LARGEST + 1)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


# What no JSON document may be, whatever it is of.
NEVER = {
    "a list": text("[]"),
    "a number": text("3"),
    "null": text("null"),
    "nothing": text(""),
    "cut off": text('{"kind": "pol'),
    "a page": text("<html>404</html>"),
    "another encoding": text('{"kind": "é"}'.encode("latin-1")),
    "nested 100,000 deep": text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "nested 900 deep": text('{"a": ' + "[" * 900 + "]" * 900 + "}"),
    "a number of 5,000 digits": text('{"a": ' + "9" * 5000 + "}"),
    "a number of 400 digits": text('{"a": ' + "9" * 400 + "}"),
    "NaN": text('{"a": NaN}'),
    "Infinity": text('{"a": {"b": [-Infinity]}}'),
    "1e999": text('{"a": 1e999}'),
    "a lone surrogate": text('{"a": "\\ud800"}'),
    "a lone surrogate as key": text('{"\\udfff": 1}'),
    "a key twice": text('{"kind": "policy", "kind": "count"}'),
    "another digest": text('{"digest": "00"}'),
    "128 MB of zeros": sparse,
    "a pipe": pipe,
}
LAST = "runs/p/checkpoints/epoch-00001-step-0000000"
EXPORTED = "eval --pretrained pretrained/mnist-toy.rl --data s.h5"
# document -> the commands that read it, and what is wrong for it alone
DOCUMENTS: dict[str, tuple[list[str], dict[str, Edit]]] = {
    "runs/p/status.json": (
        ["report runs/p", "compare runs/p", "inspect runs/p", "train --resume runs/p", "export runs/p --out x"],
        {
            "kind gone": put(kind="gone"),
            "kind 3": put(kind=3),
            "kind a list": put(kind=["policy"]),
            "kind unknown": put(kind="dream"),
            "state null": put(state=None),
            "state unknown": put(state="tired"),
            "updated a number": put(updated=5),
            "score a text": put(exact_match="0.5"),
            "workers a text": put(workers="two"),
            "workers a half": put(workers=1.5),
        },
    ),
    "runs/p/config.json": (
        ["report runs/p", "inspect runs/p", "train --resume runs/p"],
        {
            "features gone": put(features="gone"),
            "features a number": put(features=3),
            "features a list": put(features=["f.h5"]),
            "features with a NUL": put(features="f\0.h5"),
            "digest null": put(features_digest=None),
            "train gone": put(train="gone"),
            "train a list": put(train=[]),
            "train a text": put(train="epochs = 3"),
            "epochs a text": put(train__epochs="3"),
            "epochs true": put(train__epochs=True),
            "epochs below 1": put(train__epochs=0),
            "epochs an object": put(train__epochs={}),
            "variant null": put(variant=None),
            "glimpses a text": put(variant__glimpses="two"),
            "glimpses too many": put(variant__glimpses=10**9),
            "mask unknown": put(variant__mask="dark"),
            "mask an object": put(variant__mask={"a": 1}),
            "beta of three": put(variant__beta=[1, 2, 3]),
            "beta of texts": put(variant__beta=["a", "b"]),
            "backbone a number": put(backbone=3),
            "start a text": put(init_from="runs/q"),
            "start without digest": put(init_from={"path": "runs/q"}),
            "window a text": put(window="all"),
        },
    ),
    "runs/p/eval.json": (
        ["compare runs/p", "report runs/p", "inspect runs/p", "export runs/p --out x"],
        {
            "dataset gone": put(dataset="gone"),
            "dataset a list": put(dataset=[]),
            "examples a text": put(examples="40"),
            "score null": put(exact_match=None),
            "score a text": put(macro_f1="high"),
            "ci95 gone": put(ci95="gone"),
            "ci95 a list": put(ci95=[0.1, 0.2]),
            "ci95 of one": put(ci95__exact_match=[0.1]),
            "baselines a list": put(baselines=[]),
            "baselines flat": put(baselines={"count_only": 0.5}),
            "a baseline without a score": put(baselines={"count_only": {"exact_match": 0.5}}),
            "by_count a list": put(by_count=[1, 2]),
            "localization a number": put(localization=3),
            "a hit of text": put(localization__glimpse_hit="x"),
            "parameters a text": put(parameters="many"),
            "objective a list": put(objective=["rl"]),
            "checkpoint a number": put(checkpoint=3),
        },
    ),
    f"{LAST}/manifest.json": (
        ["eval --run runs/p --resamples 5"],
        {
            "sums gone": put(sha256="gone"),
            "sums a list": put(sha256=["weights.safetensors"]),
            "a sum of number": put(sha256={"weights.safetensors": 3}),
            "no sum of the weights": put(sha256={}),
            "meta null": put(meta=None),
            "meta a list": put(meta=[]),
            "kind a list": put(meta__kind=[]),
            "kind unknown": put(meta__kind="dream"),
            "kind count": put(meta__kind="count"),
            "classes a number": put(meta__classes=3),
            "classes none": put(meta__classes=[]),
            "classes of numbers": put(meta__classes=[1, 2, 3]),
            "shape of two": put(meta__volume_shape=[4, 3]),
            "shape of texts": put(meta__volume_shape=["4", "3", "3"]),
            "shape without end": put(meta__volume_shape=[10**12, 10**5, 3]),
            "shape below 0": put(meta__volume_shape=[-4, 3, 3]),
            "scale a text": put(meta__volume_scale="1"),
            "scale 0": put(meta__volume_scale=0),
            "labels a text": put(meta__max_labels="four"),
            "variant a text": put(meta__variant="learned"),
            "variant gone": put(meta__variant="gone"),
            "hidden a list": put(meta__variant__meta_hidden=[8]),
            "saliency a number": put(meta__saliency=3),
            "features a list": put(meta__features=[]),
        },
    ),
    "runs/b/checkpoints/epoch-1/manifest.json": (
        ["precompute --data s.h5 --backbone runs/b --resolution own --out x.h5 --dry-run"],
        {
            "kind a number": put(meta__kind=3),
            "arch unknown": put(meta__arch="vgg"),
            "arch a list": put(meta__arch=["resnet18"]),
            "input_size a text": put(meta__input_size="96"),
            "resolution a list": put(meta__resolution=[3, 3]),
            "resolution 0": put(meta__resolution=0),
            "classes an object": put(meta__classes={}),
            "classes none": put(meta__classes=[]),
            "dilate a number": put(meta__dilate=0.5),
        },
    ),
    "pretrained/manifest.json": (
        [EXPORTED],
        {
            "format unknown": put(format="zip"),
            "format gone": put(format="gone"),
            "version a text": put(format_version="one"),
            "version too new": put(format_version=99),
            "backbone a list": put(backbone=[]),
            "policies a list": put(policies=["mnist-toy.rl"]),
            "a policy of text": put(policies={"mnist-toy.rl": "x"}),
            "sums a list": put(backbone__sha256=[]),
            "seed a text": put(backbone__seed="7"),
            "result a list": put(backbone__result=[0.5]),
            "a score of text": put(backbone__result={"exact_match": "high"}),
        },
    ),
    "grid/grid.json": (
        ["reproduce --out grid --dry-run --datasets d --seeds 0"],
        {
            "format unknown": put(format="zip"),
            "settings a list": put(settings=[]),
            "settings flat": put(settings={"train": 3}),
            "backbone a list": put(backbone=[]),
            "seconds of text": put(seconds={"data": "long"}),
            "seconds a list": put(seconds=[1]),
            "options a text": put(options="--preset"),
        },
    ),
}
TABLE = [
    pytest.param(name, edit, commands if what in own else commands[:1], id=f"{name}: {what}")
    for name, (commands, own) in DOCUMENTS.items()
    for what, edit in {**NEVER, **own}.items()
]


@pytest.mark.fault(22, "a document of wrong types, by every command that reads it: two lines that name the file", tried=len(TABLE))
@pytest.mark.parametrize(("name", "edit", "commands"), TABLE)
def test_an_odd_document_ends_in_two_lines_that_name_it(name: str, edit: Edit, commands: list[str], here: Path, capsys) -> None:
    edit(here / name)
    for command in commands:
        code, _, said = call(command, capsys)
        lines = said.splitlines()
        assert code in (1, 2) and lines[-2].startswith("Error: ") and lines[-1].startswith("Hint: "), (command, code, said)
        assert "unexpected" not in said and len(said) < 1500, (command, said)
        named = lines[-2].replace(" ", "")
        assert any(part in named for part in (name, str(Path(name).parent), "pretrainedholds")), (command, said)


METRICS = {
    "a list": '{"epoch": 1}\n[]\n{"epoch": 3}\n',
    "a number": "3\n",
    "no epoch": '{"loss": 0.5}\n',
    "epoch a text": '{"epoch": "1", "loss": 0.5}\n',
    "a text for a number": '{"epoch": 1, "exact_match": "high"}\n',
    "null for a number": '{"epoch": 1, "exact_match": null}\n',
    "true for a number": '{"epoch": 1, "exact_match": true}\n',
    "NaN": '{"epoch": 1, "loss": NaN}\n',
    "1e999": '{"epoch": 1, "loss": -1e999}\n',
    "nested": '{"epoch": 1, "loss": {"a": 1}}\n',
    "5,000 digits": '{"epoch": 1, "loss": ' + "9" * 5000 + "}\n",
    "deep": "[" * 100_000 + "\n{}\n",
    "not UTF-8": b'{"epoch": 1}\n{"epoch": 2, "\xff": 3}\n',
}


@pytest.mark.fault(23, "metrics of wrong types: the line is named", tried=len(METRICS))
@pytest.mark.parametrize("what", METRICS)
def test_odd_metrics_are_named_by_their_line(what: str, here: Path, capsys) -> None:
    text(METRICS[what])(here / "runs/p/metrics.jsonl")
    for command in ("report runs/p", "inspect runs/p"):
        code, _, said = call(command, capsys)
        assert code == 1 and len(said.splitlines()) == 2 and "metrics.jsonl" in said and "unexpected" not in said, said
    code, out, _ = call("check runs/p", capsys)
    assert code == 1 and "metrics.jsonl" in out


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [1, 2],
    "a number": lambda state: 3,
    "nothing": lambda state: {},
    "no progress": lambda state: {"task": state["task"]},
    "no optimiser": lambda state: {"progress": state["progress"]},
    "optimiser a list": lambda state: {**state, "task": []},
    "optimiser of another kind": lambda state: {**state, "task": {"optimiser": {"param_groups": 3}}},
    "progress a list": lambda state: {**state, "progress": []},
    "epoch a text": lambda state: {**state, "progress": {**state["progress"], "epoch": "1"}},
    "epoch without end": lambda state: {**state, "progress": {**state["progress"], "epoch": 10**9}},
    "step below 0": lambda state: {**state, "progress": {**state["progress"], "step": -1}},
    "rows a number": lambda state: {**state, "progress": {**state["progress"], "rows": 3}},
    "rows of text": lambda state: {**state, "progress": {**state["progress"], "rows": ["x"]}},
    "rows without the score": lambda state: {**state, "progress": {**state["progress"], "rows": [{"epoch": 1}]}},
    "sums of text": lambda state: {**state, "progress": {**state["progress"], "sums": {"loss": "x"}}},
    "best a text": lambda state: {**state, "progress": {**state["progress"], "best": "x"}},
}


@pytest.mark.fault(24, "a training state of wrong types: two lines that name it", tried=len(STATES))
@pytest.mark.parametrize("what", STATES)
def test_an_odd_state_is_named(what: str, here: Path, capsys) -> None:
    folder = here / LAST
    torch.save(STATES[what](torch.load(folder / "state.pt")), folder / "state.pt")
    put(sha256=sums_of(folder))(folder / "manifest.json")
    Run(here / "runs/p").set_status("stopped")
    code, _, said = call("train --resume runs/p --device cpu", capsys)
    lines = said.splitlines()
    assert code == 1 and lines[-2].startswith("Error: ") and "state" in lines[-2] and LAST in lines[-2], said
    assert "unexpected" not in said


def sums_of(folder: Path) -> dict[str, str]:
    return {name: digest_of_file(folder / name) for name in ("weights.safetensors", "state.pt")}


ATTRIBUTES = {
    "config: a list": ("config", "[]"),
    "config: no JSON": ("config", "{"),
    "config: a number": ("config", 3),
    "config: deep": ("config", "[" * 20_000),
    "config: NaN": ("config", '{"seed": NaN}'),
    "config: 5,000 digits": ("config", '{"seed": ' + "9" * 5000 + "}"),
    "config: a lone surrogate": ("config", '{"a": "\\ud800"}'),
    "classes: an object": ("classes", '{"a": 1}'),
    "classes: a text": ("classes", '"abc"'),
    "classes: numbers": ("classes", "[1, 2, 3]"),
    "classes: none": ("classes", "[]"),
    "classes: a number": ("classes", 3),
    "classes: deep": ("classes", "[" * 20_000),
}


@pytest.mark.fault(25, "config or classes of an HDF5 file of wrong types: two lines that name both", tried=2 * len(ATTRIBUTES))
@pytest.mark.parametrize("name", ["s.h5", "f.features.h5"])
@pytest.mark.parametrize("what", ATTRIBUTES)
def test_an_odd_attribute_is_named(name: str, what: str, here: Path, capsys) -> None:
    attribute, value = ATTRIBUTES[what]
    with h5py.File(here / name, "r+") as file:
        del file.attrs["attributes_digest"]
        del file.attrs[attribute]
        file.attrs[attribute] = value
    reader = (
        "eval --run runs/p --data f.features.h5"
        if "features" in name
        else "precompute --data s.h5 --backbone runs/b --resolution own --dry-run"
    )
    for command in (f"inspect {name}", reader):
        code, _, said = call(command, capsys)
        lines = said.splitlines()
        assert code == 1 and lines[-2].startswith("Error: ") and name in lines[-2] and attribute in lines[-2], said
        assert "unexpected" not in said and len(said) < 1500


@pytest.mark.fault(25, "settings of a scene file of wrong types, in features", tried=4)
@pytest.mark.parametrize(
    "config",
    [
        {"scenes": 3},
        {"scenes_config": []},
        {"scenes_config": {"dataset": ["x"]}},
        {"scenes_config": {"dataset": "mnist-set", "count": "x"}},
    ],
)
def test_odd_settings_inside_features_are_named_by_the_sweep(config: dict[str, Any], here: Path, capsys) -> None:
    with h5py.File(here / "f.features.h5", "r+") as file:
        del file.attrs["attributes_digest"]
        file.attrs["config"] = json.dumps(config)
    code, _, said = call("sweep --run runs/p --data f.features.h5 --dry-run", capsys)
    assert code == 1 and said.splitlines()[-2].startswith("Error: f.features.h5") and "unexpected" not in said, said


SETTINGS = {
    "deep": "[train]\nepochs = " + "[" * 20_000,
    "5,000 digits": "[train]\nepochs = " + "9" * 5000,
    "400 digits": "[train]\nlearning_rate = " + "9" * 400,
    "NaN": "[train]\nlearning_rate = nan",
    "infinity": "[train]\nepochs = inf",
    "a list": "[train]\nepochs = [3]",
    "a table": "[train.epochs]\na = 1",
    "a date": "[train]\nepochs = 2020-01-01",
    "a text": '[train]\nepochs = "3"',
    "tables in a list": "[[train]]\nepochs = 3",
    "no table": "train = 3",
    "a key twice": "[train]\nepochs = 3\nepochs = 4",
    "not UTF-8": b"[train]\nobjective = '\xff'",
    "choice a list": '[train]\nobjective = ["rl"]',
    "pair of tables": "[variant]\nbeta = [{a = 1}, 2]",
    "pair a table": "[variant]\nbeta = {a = 1}",
    "pair of pairs": "[variant]\nbeta = [[1, 2], [3, 4]]",
    "pair of true": "[variant]\nbeta = true",
}


@pytest.mark.fault(26, "a settings file of wrong types: two lines, exit code 2", tried=len(SETTINGS))
@pytest.mark.parametrize("what", SETTINGS)
def test_an_odd_settings_file_is_wrong_usage(what: str, here: Path, capsys) -> None:
    text(SETTINGS[what])(here / "s.toml")
    code, _, said = call("train --config s.toml --dry-run", capsys)
    assert code == 2 and len(said.splitlines()) == 2 and "unexpected" not in said and len(said) < 500, said


def test_a_settings_file_without_an_end_is_given_up(here: Path, capsys) -> None:
    code, _, said = call("train --config /dev/zero --dry-run", capsys)
    assert code == 2 and len(said.splitlines()) == 2 and "/dev/zero" in said


@pytest.mark.fault(22, "a path in a document that no file can have", tried=3)
@pytest.mark.parametrize("command", ["report runs/p", "train --resume runs/p", "eval --run runs/p"])
def test_a_recorded_path_that_is_too_long_is_said(command: str, here: Path, capsys) -> None:
    put(features="f" * 5000, features_digest="f" * 64)(here / "runs/p/config.json")
    put(meta__features="f" * 5000)(here / LAST / "manifest.json")
    Run(here / "runs/p").set_status("stopped")
    code, _, said = call(command, capsys)
    assert code == 1 and "File name too long" in said.splitlines()[-2] and "unexpected" not in said and len(said) < 1500, said


@pytest.mark.fault(27, "an odd report.json: the folder is nobody's report, and nothing in it is replaced", tried=len(NEVER) + 3)
@pytest.mark.parametrize("what", [*NEVER, "format unknown", "files a text", "files of numbers"])
def test_a_folder_with_an_odd_report_is_left_alone(what: str, here: Path, capsys) -> None:
    own = {"format unknown": put(format="x"), "files a text": put(files="report.html"), "files of numbers": put(files=[1])}
    {**NEVER, **own}[what](here / "page/report.json")
    code, _, said = call("report runs/p --out page", capsys)
    assert code == 2 and len(said.splitlines()) == 2 and "page exists and is not a report" in said, said


# --- one odd run stops no command ------------------------------------------------------------------------------------------------


ODD_RUNS: dict[str, tuple[str, Edit]] = {
    "status a list": ("status.json", text("[]")),
    "status of wrong types": ("status.json", put(updated=3)),
    "status of an unknown kind": ("status.json", put(kind="dream")),
    "status a pipe": ("status.json", pipe),
}


@pytest.mark.fault(28, "an odd run beside others: named, and passed over", tried=len(ODD_RUNS))
@pytest.mark.parametrize("what", ODD_RUNS)
def test_the_newest_run_is_found_though_another_one_is_odd(what: str, here: Path, capsys) -> None:
    shutil.copytree(here / "runs/p", here / "runs/odd")
    name, edit = ODD_RUNS[what]
    edit(here / "runs/odd" / name)
    code, out, said = call("eval --resamples 5 --device cpu --data f.features.h5", capsys)
    assert code == 0 and "passed over: runs/odd/status.json" in said and "runs/p/eval.json" in out, said
    assert newest("policy").path == Path("runs/p")


@pytest.mark.fault(28, "an odd run among those that are compared or reported on: named, and passed over", tried=6)
@pytest.mark.parametrize("name", ["status.json", "config.json", "eval.json"])
@pytest.mark.parametrize("command", ["compare", "report"])
def test_an_odd_run_among_several_is_named_and_passed_over(command: str, name: str, here: Path, capsys) -> None:
    shutil.copytree(here / "runs/p", here / "runs/odd")
    text("[]")(here / "runs/odd" / name)
    code, out, said = call(f"{command} runs/odd runs/p --json", capsys)
    found = json.loads(out)
    assert code == 0 and [row["run"] for row in (found if command == "compare" else found["runs"])] == ["runs/p"]
    assert f"passed over: runs/odd/{name}" in said
    code, _, said = call(f"{command} runs/odd", capsys)
    assert code == 1 and f"runs/odd/{name}" in said.splitlines()[-2]


@pytest.mark.fault(28, "an odd run of a grid: named in the plan, and passed over", tried=2)
@pytest.mark.parametrize("name", ["status.json", "config.json"])
def test_an_odd_run_of_a_grid_is_passed_over(name: str, here: Path, capsys, seconds_given) -> None:
    shutil.copytree(here / "runs/p", here / "grid/runs/d.rl.seed0")
    put(**{"kind" if name == "status.json" else "train": 3})(here / "grid/runs/d.rl.seed0" / name)
    code, out, said = call("reproduce --out grid --datasets d --objectives rl --seeds 0-1 --dry-run --json", capsys)
    assert code == 0, said
    states = {step["step"]: step["state"] for step in json.loads(out)["steps"]}
    assert states["train d.rl.seed0"] == "odd" and states["train d.rl.seed1"] == "missing", said


@pytest.mark.fault(28, "a folder with odd runs: every one is checked, the odd ones are named", tried=5)
def test_a_folder_with_odd_runs_is_checked_to_its_end(here: Path, capsys) -> None:
    odd = {"status.json": put(state=3), "config.json": put(train=[]), "eval.json": put(ci95=3), "env.json": text("3")}
    for name, edit in odd.items():
        shutil.copytree(here / "runs/p", here / "runs" / f"odd-{name}")
        edit(here / "runs" / f"odd-{name}" / name)
    shutil.copytree(here / "runs/p", here / "runs/odd-manifest")
    put(meta__classes=3)(here / "runs/odd-manifest" / Path(LAST).relative_to("runs/p") / "manifest.json")
    code, out, _ = call("check runs --json", capsys)
    found = {Path(part["path"]).name: part for part in json.loads(out)}
    assert code == 1 and len(found) == 7
    for name in odd:
        assert any(name in fault for fault in found[f"odd-{name}"]["faults"]), found[f"odd-{name}"]
    assert any("meta.classes is 3" in fault for fault in found["odd-manifest"]["faults"])
    assert found["p"]["ok"], found["p"]


# --- the mechanism ---------------------------------------------------------------------------------------------------------------


def test_places_are_named_in_full_and_values_in_short() -> None:
    for changes, said in (
        ({"ci95": {"exact_match": [0.1, 0.2], "macro_f1": [0, "x"]}}, "ci95.macro_f1[1] is 'x', not a number"),
        (
            {"baselines": {"a": {"exact_match": 1, "macro_f1": {"b": [1] * 9}}}},
            "baselines.a.macro_f1 is {'b': [1, 1, 1, ...]}, not a number",
        ),
        ({"dataset": 10**400}, "not a text"),
        ({"split": ["x" * 9000]}, "not a text"),
    ):
        with pytest.raises(Odd) as caught:
            checked(evaluation(**changes), Evaluation)
        assert said in str(caught.value) and len(str(caught.value)) < 120


def test_unknown_keys_are_ignored_and_kept_and_missing_ones_get_what_they_had() -> None:
    old = evaluation(dream={"a": 1})
    for later in ("parameters", "sample", "max_steps", "baselines", "objective"):
        del old[later]
    found = checked(old, Evaluation)
    assert (found.parameters, found.sample, found.baselines) == (None, 0, {}) and found.raw["dream"] == {"a": 1}
    assert found.ci95.exact_match == (0.4, 0.6) and found.examples == 40


@pytest.mark.parametrize("good", ['{"a": [1, 2.5, "é😀", null, true, {"b": 9223372036854775807}]}', "[" * 40 + "]" * 40])
def test_sound_json_is_read_as_json_reads_it(good: str) -> None:
    assert parsed(good) == json.loads(good)


VALUES = ("x", -1, 2.5, True, None, ["x"], [[1], [2]], {"a": {"b": []}}, 10**18)


@pytest.mark.fault(29, "every value of every document replaced by each of 9 others: done, or two lines", tried=600)
@pytest.mark.parametrize("name", ["runs/p/status.json", "runs/p/config.json", "runs/p/eval.json", f"{LAST}/manifest.json"])
def test_no_value_in_a_document_ends_unexpectedly(name: str, here: Path, capsys) -> None:
    from hsal_cli.models.load import load_model
    from hsal_cli.runs.record import read_record, run_summary
    from hsal_cli.training.verdicts import verdicts

    whole = json.loads((here / name).read_text())

    def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        for key, part in document.items():
            yield (*path, key)
            if isinstance(part, dict):
                yield from places(part, (*path, key))

    refused = 0
    for place in places(whole):
        for value in VALUES:
            put(**{"__".join(place): value})(here / name)
            try:
                record = read_record(here / "runs/p")
                verdicts(record), run_summary(record), load_model(here / "runs/p") if "manifest" in name else None
            except HsalError as error:
                refused += "\n" not in error.message and len(error.message) < 700
            (here / name).write_text(json.dumps(whole))
    assert refused > 20
