"""The variants: what the paper's is, that nothing in them is open, how a user changes them, and what stored ones mean for ever."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hsal_cli.commands.options import recipe_for, variant_for
from hsal_cli.console import exit_code_of
from hsal_cli.errors import FileError, UsageError
from hsal_cli.features.settings import PrecomputeSettings
from hsal_cli.main import _call, app
from hsal_cli.policy.variant import (
    COLUMNS,
    DEFAULT,
    FIXED_MASK,
    PAPER,
    PAPER_CELLS,
    VARIANTS,
    Variant,
    changed,
    named,
    stored_variant,
    value_names,
    values_of,
)
from hsal_cli.settings import as_dict
from hsal_cli.storage.atomic import write_sealed
from hsal_cli.storage.files import digest_of_file

PRETRAINED = Path(__file__).parents[1] / "data" / "pretrained"

# What hsal 0.1.0 stored of a policy for which nothing was chosen.
OPEN = {
    "glimpses": 2,
    "glimpse_size": 1,
    "gaussians": 5,
    "meta_encode": 128,
    "meta_hidden": 128,
    "controller_encode": 512,
    "controller_hidden": 512,
    "location_hidden": 64,
    "mask": "anchored",
    "beta": None,
    "anchor_reach": None,
    "spread": None,
    "inhibition": "normalized",
    "inhibition_width": None,
    "location_input": "hidden+priority+residual",
    "memory": "last",
    "controller_state": "reset",
    "stop_input": None,
    "saliency_transform": "sqrt",
}


def values(text: str) -> dict:
    return {name: value for name, value in as_dict(named(text)).items() if name in value_names()}


@pytest.mark.parametrize("name", VARIANTS)
def test_no_value_of_a_variant_is_open_and_it_survives_json(name):
    assert None not in as_dict(named(name)).values()
    stored = json.loads(json.dumps({"variant": as_dict(named(name).on_map(196))}))
    assert stored_variant(stored, 1, "x") == named(name).on_map(196)


def test_the_papers_variant_is_section_3_and_appendix_a():
    wanted = {"glimpses": 2, "gaussians": 5, "meta_encode": 128, "meta_hidden": 128, "controller_encode": 512, "controller_hidden": 512}
    wanted |= {"location_hidden": 64, "mask": "learned", "beta": [1.5, 2.0], "inhibition": "mask", "inhibition_width": 1.0}
    wanted |= {"location_input": "hidden", "aspect": 1.0, "update": "normalized", "controller_state": "carry"}
    wanted |= {"saliency_transform": "none", "glimpse": "column", "glimpses_apart": "no"}
    wanted |= {"stop_input": "state", "stop": "sampled", "gradient": "sampled"}
    assert values("paper") == wanted
    assert recipe_for("paper", None).variant == PAPER and recipe_for("quick", None).variant == DEFAULT
    assert recipe_for("paper", None).train.label_entropy == 0


@pytest.mark.parametrize(
    ("variant", "base", "values"),
    [
        (FIXED_MASK, COLUMNS, {"mask": "winner-take-all", "gaussians": 1, "beta": (2.5, 2.5)}),
        (DEFAULT, FIXED_MASK, {"glimpse": "fine", "glimpses_apart": "yes"}),
    ],
)
def test_the_control_differs_from_its_base_in_its_mask_alone_and_the_default_from_it_in_its_glimpses(variant, base, values):
    assert {name: getattr(variant, name) for name in value_names() if getattr(variant, name) != getattr(base, name)} == values


def test_features_are_what_the_variant_reads_or_what_was_asked_for():
    found = {name: recipe_for(None, None, variant=named(name)).precompute.resolution for name in ("default", "columns", "paper")}
    assert found == {"default": "fine", "columns": None, "paper": None}
    for asked, resolution in (("own", None), ("14", "14")):
        assert recipe_for(None, None, precompute=PrecomputeSettings(resolution=asked)).precompute.resolution == resolution


def test_the_command_line_goes_before_the_file_and_every_value_before_the_variant_that_it_changes(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[variant]\nname = "paper"\nmask = "winner-take-all"\nbeta = [0.5, 1.0]\n')
    assert variant_for(None, None) == DEFAULT
    assert variant_for(None, file) == dataclasses.replace(PAPER, mask="winner-take-all", beta=(0.5, 1.0))
    assert variant_for(None, file, "default", ["beta=2", "glimpses=3"]) == dataclasses.replace(DEFAULT, beta=(2.0, 2.0), glimpses=3)
    assert variant_for("paper", None, None, ["mask=anchored"]) == dataclasses.replace(PAPER, mask="anchored")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--variant", "papr"), "there is no variant 'papr' (did you mean paper?)"),
        (("--set", "msk=learned"), "a variant has no value 'msk' (did you mean mask?)"),
        (("--set", "mask=lerned"), "mask = 'lerned' is not learned | anchored | winner-take-all (did you mean learned?)"),
        (("--set", "glimpses=two"), "glimpses = 'two' is not an integer"),
        (("--set", "glimpses=99"), "glimpses = 99 is above 64"),
        (("--set", "beta=nan"), "beta = nan is not finite"),
        (("--set", "beta=3-2"), "beta = 3.0-2.0 runs backwards"),
        (("--set", "reach=2"), "a variant has no value 'reach'"),
        (("--set", "cells=9"), "a variant has no value 'cells'"),
        (("--set", "mask"), "--set mask is not of the form NAME=VALUE"),
        (("--set", "=learned"), "--set =learned is not of the form NAME=VALUE"),
        (("--set", "stop=sampled"), "stop is sampled, and a head that reads the saliency map can only be trained by supervision"),
        (("--mask", "learned"), "No such option: --mask"),
        (("--objective", "count", "--set", "mask=learned"), "objective count trains no policy, so --set mask=learned says nothing"),
    ],
)
def test_wrong_names_and_values_are_two_lines_with_the_nearest_name(words, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hsal", "train", "--dry-run", *words])
    assert exit_code_of(_call) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"Error: {said}") and second.startswith("Hint: ")
    assert ("--set mask=VALUE" in second) == (words[0] == "--mask")


@pytest.mark.parametrize("hint", [("--set", "stop_input=state"), ("--set", "stop=supervised")])
def test_what_the_error_of_a_sampled_stop_advises_helps(hint):
    assert CliRunner().invoke(app, ["train", "--dry-run", "--set", "stop=sampled", *hint]).exit_code == 0


@pytest.mark.parametrize(
    "text", ['[variant]\nname = "papr"', "[variant]\nreach = 2.0", "[variant]\nmsak = 'learned'", "[policy]\nmask = 1"]
)
def test_a_wrong_table_of_a_settings_file_is_refused(text, tmp_path):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=r"variant.name = 'papr'|variant.reach|variant.msak \(did you mean mask\?\)|\[policy\]"):
        variant_for(None, tmp_path / "s.toml")


def test_help_shows_few_options_in_panels_and_two_examples(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    said = CliRunner().invoke(app, ["train", "--help"]).output
    options = set(re.findall(r"^│ (--[a-z-]+)", said, re.M))
    assert {"--variant", "--set", "--help", "--json"} <= options and len(options) <= 30
    titles = re.findall(r"^╭─ ([A-Za-z ]+?) ─", said, re.M)
    assert titles == ["Options", "What", "How long", "Variant", "Where", "Output"]
    assert re.findall(r"^╭─ Options ─.*\n(?:│ .*\n)", said, re.M)[0].count("--") == 1  # nothing but --help is without a panel
    examples = re.findall(r"^ hsal train (.*?) *$", said.partition("Examples:")[2], re.M)
    assert len(examples) == 2
    for words in examples:
        assert CliRunner().invoke(app, ["train", "--dry-run", *words.split()]).exit_code == 0, words


def test_settings_that_a_resumed_run_does_not_have_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    write_sealed(tmp_path / "run" / "status.json", {"kind": "policy", "state": "stopped"})
    held = {"train": {}, "variant": as_dict(DEFAULT.on_map(196))}
    write_sealed(tmp_path / "run" / "config.json", {"features": "f.h5", "features_digest": "f" * 64, **held})

    def resumed(*words: str):
        return CliRunner().invoke(app, ["train", "--dry-run", "--resume", "run", *words])

    for same in ((), ("--variant", "default"), ("--set", "beta=2.5-2.5"), ("--set", "mask=winner-take-all")):
        assert resumed(*same).exit_code == 0, same
    for other, named_there in (
        (("--variant", "paper"), "mask is winner-take-all, not learned"),
        (("--set", "glimpses=3"), "glimpses is 2, not 3"),
    ):
        found = resumed(*other)
        assert isinstance(found.exception, UsageError) and named_there in found.exception.message


# --- what is stored ---------------------------------------------------------------------------------------------------------------


def test_a_later_default_changes_no_stored_policy(monkeypatch):
    stored = {"variant": as_dict(DEFAULT)}
    monkeypatch.setattr("hsal_cli.policy.variant.DEFAULT", PAPER)
    assert stored_variant(stored, PAPER_CELLS, "x") == DEFAULT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": None}, "lacks mask"),
        ({"magic": 1}, "has magic, which this hsal does not know"),
        ({"mask": "round"}, "is not one: mask = 'round'"),
        ({"beta": [3.0, 2.0]}, "is not one: beta = 3.0-2.0 runs backwards"),
        ({"glimpses": "two"}, "is not one: glimpses = 'two' is not an integer"),
        ({"stop": "sampled"}, "is not one: stop is sampled"),
    ],
)
def test_a_stored_variant_that_is_not_whole_is_refused(change, said):
    with pytest.raises(FileError, match=f"the variant of runs/x {said}"):
        stored_variant({"variant": as_dict(DEFAULT) | change}, PAPER_CELLS, "runs/x")


@pytest.mark.parametrize("held", [{}, {"variant": None}, {"variant": [1]}, {"policy": "learned"}])
def test_where_no_variant_is_stored_that_is_said(held):
    with pytest.raises(FileError, match="runs/x holds no variant"):
        stored_variant(held, PAPER_CELLS, "runs/x")


@pytest.mark.parametrize(
    ("policy", "train", "cells", "expected"),
    [
        ({}, None, 49, {"beta": (2.0, 3.0), "reach": 3.0, "inhibition_width": 2.5, "stop_input": "state+saliency"}),
        ({}, None, 196, {"beta": (0.5, 0.75), "reach": 6.0, "cells": 196}),
        ({"inhibition_width": 1.0}, None, 49, {"beta": (0.3, 1.0), "inhibition_width": 1.0}),
        ({"mask": "learned"}, None, 49, {"beta": (1.5, 2.0), "inhibition_width": 1.0}),
        ({"mask": "winner-take-all"}, None, 196, {"beta": (0.075, 0.075), "inhibition_width": 1.0}),
        ({"beta": [0.5, 0.7], "anchor_reach": 2.0}, None, 784, {"beta": (0.5, 0.7), "reach": 2.0, "cells": 784}),
        ({"location_input": "hidden"}, None, 49, {"location_input": "hidden"}),
        ({}, None, 49, {"location_input": "priority", "stop": "supervised", "gradient": "expected"}),
        ({}, {"objective": "rl", "stop": "supervised", "gradient": None, "return_to_go": False}, 49, {"gradient": "expected"}),
        ({}, {"objective": "multiset", "stop": "supervised", "gradient": None}, 49, {"gradient": "sampled"}),
        ({}, {"objective": "rl", "stop": "supervised"}, 49, {"gradient": "sampled"}),
        ({}, {"stop": "sampled", "gradient": None}, 49, {"stop_input": "state"}),
        ({"stop_input": "state"}, {"stop": "sampled", "gradient": "sampled"}, 49, {"stop": "sampled", "stop_input": "state"}),
    ],
)
def test_what_hsal_0_1_left_open_means_what_it_meant_then(policy, train, cells, expected):
    document = {"policy": OPEN | policy} | ({"train": train} if train else {})
    found = stored_variant(document, cells, "x")
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.cells == cells


def test_tables_of_before_there_was_a_choice_have_the_only_value_there_was():
    older = {name: value for name, value in OPEN.items() if name not in ("inhibition_width", "glimpse_size", "stop_input")}
    found = stored_variant({"policy": older}, 49, "x")
    assert (found.inhibition_width, found.stop_input, found.beta) == (1.0, "state", (0.3, 1.0))


@pytest.mark.parametrize(
    ("name", "value"), [("glimpse_size", 3), ("location_input", "hidden+priority"), ("memory", "counts"), ("memory", None)]
)
def test_a_policy_with_a_value_that_there_is_no_more_is_refused_by_name(name, value):
    with pytest.raises(FileError, match=re.escape(f"runs/x was trained with {name} {value or 'counts'}, which this hsal no longer has")):
        stored_variant({"policy": OPEN | {name: value}}, 49, "runs/x")


def test_a_stored_variant_may_hold_what_every_policy_does_now_and_nothing_else_of_what_is_gone():
    held = {"variant": as_dict(DEFAULT) | {"shape": "round"}}
    assert stored_variant(held, 49, "runs/x") == DEFAULT
    held["variant"]["shape"] = "elliptic"
    with pytest.raises(FileError, match="runs/x was trained with shape elliptic, which this hsal no longer has"):
        stored_variant(held, 49, "runs/x")


@pytest.mark.parametrize("name", ["mnist-multiset.rl", "mnist-set.rl"])
def test_the_policies_that_come_with_hsal_are_of_the_default(name):
    place = PRETRAINED / name / "manifest.json"
    assert stored_variant(json.loads(place.read_text())["meta"], 1, place) == dataclasses.replace(DEFAULT.on_map(196), fine=512)


@pytest.mark.parametrize("name", ["mnist-multiset.multiset", "mnist-set.multiset"])
def test_the_policies_that_come_with_hsal_hold_every_value_as_hsal_0_1_took_them(name):
    place = PRETRAINED / name / "manifest.json"
    meta = json.loads(place.read_text())["meta"]
    objective = name.rpartition(".")[2]
    assert stored_variant(meta, 1, place) == stored_variant({"policy": OPEN, "objective": objective}, 49, place)
    assert {"memory"} == set(meta["variant"]) - {field.name for field in dataclasses.fields(Variant)} and None not in meta[
        "variant"
    ].values()
    stated = json.loads((PRETRAINED / "manifest.json").read_text())["policies"][name]["sha256"]
    assert stated["manifest.json"] == digest_of_file(place)


def test_changing_a_value_leaves_the_others():
    assert changed(PAPER, values_of(["location-input=priority"])) == dataclasses.replace(PAPER, location_input="priority")
    with pytest.raises(UsageError, match="has no value"):
        changed(PAPER, {"spread": 8.0})
