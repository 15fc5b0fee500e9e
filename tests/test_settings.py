"""Settings: their types and ranges, where values come from and which wins, and the options that commands make of them."""

import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Literal

import pytest
import typer
from typer.testing import CliRunner

from hsal_cli.commands.options import DryRun, Given, check_resumed, known_tables, one_of, options, settings_for
from hsal_cli.console import exit_code_of
from hsal_cli.errors import FileError, UsageError
from hsal_cli.policy.variant import Variant
from hsal_cli.runs.settings import FinetuneSettings, TrainSettings
from hsal_cli.scenes.settings import SceneSettings, SvhnSettings
from hsal_cli.settings import SEED_LIMIT, as_dict, build, check, check_tables, parse, preset_names, read_tables, setting
from hsal_cli.storage.atomic import write_sealed


@dataclasses.dataclass(frozen=True)
class Toy:
    """Settings of every type."""

    count: int = setting(3, "A number.", low=1, high=10)
    rate: float = setting(0.5, "A rate.", above=0, high=1)
    flag: bool = setting(True, "A flag.")
    word: Literal["alpha", "beta"] = setting("alpha", "A word.")
    size: tuple[int, int] = setting((1, 4), "A range.", low=1, high=9)
    width: tuple[float, float] | None = setting(None, "A range, if any.", above=0)
    path: str = setting("auto", "A text.")
    most: int | None = setting(None, "A number, if any.", low=0)
    seed: int = setting(0, "A seed.", low=0, high=SEED_LIMIT)

    def __post_init__(self) -> None:
        check(self)


KNOWN = {"toy": [Toy], "train": [TrainSettings]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": "2-3"}, {"size": (2, 3)}),
        ({"size": "4"}, {"size": (4, 4)}),
        ({"size": 4}, {"size": (4, 4)}),
        ({"size": [2, 5]}, {"size": (2, 5)}),
        ({"width": "0.5-2"}, {"width": (0.5, 2.0)}),
        ({"rate": 1}, {"rate": 1.0}),
        ({"count": 4.0}, {"count": 4}),
        ({"count": None, "unrelated": 1}, {}),
        ({"flag": False, "word": "beta", "path": Path("x/y"), "most": 0}, {"flag": False, "word": "beta", "path": "x/y", "most": 0}),
        ({"seed": 2**63}, {"seed": 2**63}),
    ],
)
def test_values_become_what_the_field_holds(values: dict, expected: dict) -> None:
    assert build(Toy, values) == Toy(**expected)
    assert type(build(Toy, {"rate": 1}).rate) is float and type(build(Toy, {"count": 4.0}).count) is int


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", "3", "is not an integer"),
        ("count", 2.5, "is not an integer"),
        ("count", True, "is not an integer"),
        ("count", 0, "below 1"),
        ("count", -3, "below 1"),
        ("count", 11, "above 10"),
        ("count", math.nan, "not finite"),
        ("count", math.inf, "not finite"),
        ("count", 10**400, "is not an integer"),
        ("rate", 0.0, "not above 0"),
        ("rate", 1.5, "above 1"),
        ("rate", math.nan, "not finite"),
        ("rate", -math.inf, "not finite"),
        ("rate", "fast", "is not a number"),
        ("flag", 1, "is not true or false"),
        ("flag", "yes", "is not true or false"),
        ("word", "gamma", "alpha | beta"),
        ("word", 3, "alpha | beta"),
        ("size", "4-1", "runs backwards"),
        ("size", "0-4", "below 1"),
        ("size", "1-10", "above 9"),
        ("size", "a-b", "a range such as 1-4"),
        ("size", "1-2-3", "a range such as 1-4"),
        ("size", [1, 2, 3], "a range such as 1-4"),
        ("size", [], "a range such as 1-4"),
        ("size", ["1", "2"], "a range such as 1-4"),
        ("size", True, "a range such as 1-4"),
        ("size", [1, math.nan], "not finite"),
        ("width", "0-1", "not above 0"),
        ("path", 3, "is not a text"),
        ("most", -1, "below 0"),
        ("seed", 2**64, f"above {2**63}"),
        ("seed", -1, "below 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(Toy, {name: value})
    assert name in caught.value.message and said in caught.value.message
    with pytest.raises(UsageError) as caught:
        check_tables({"toy": {name: value}}, KNOWN)
    assert f"toy.{name}" in caught.value.message and said in caught.value.message


def test_every_fault_of_a_file_is_named_at_once_with_the_nearest_names() -> None:
    tables = {"toy": {"cuont": 1, "rate": "fast", "size": "9-1", "flag": 3}, "trian": {}, "train": {"epochs": -1, "nonsense": 0}}
    with pytest.raises(UsageError) as caught:
        check_tables(tables, KNOWN)
    for said in ("toy.cuont (did you mean count?)", "toy.rate", "toy.size", "toy.flag", "[trian] (did you mean train?)", "train.epochs"):
        assert said in caught.value.message
    assert "unknown key train.nonsense" in caught.value.message and "nonsense (did" not in caught.value.message


def test_all_fields_out_of_range_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Toy(count=0, rate=7.0)
    assert "count = 0" in caught.value.message and "rate = 7.0" in caught.value.message


@pytest.mark.parametrize("kind", [Toy, TrainSettings, FinetuneSettings, Variant])
def test_settings_survive_json(kind: type) -> None:
    import json

    assert build(kind, json.loads(json.dumps(as_dict(kind())))) == kind()
    sizes = SceneSettings(digit_size=(10, 20))
    assert build(SceneSettings, json.loads(json.dumps(as_dict(sizes)))) == sizes


def test_parse_gives_a_pair_for_one_number() -> None:
    assert parse("x", tuple[int, int], 7) == (7, 7)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_holds_settings_that_exist(name: str) -> None:
    tables = read_tables(name, None)
    check_tables(tables, known_tables())
    built = {table: [as_dict(build(kind, tables.get(table, {}))) for kind in kinds] for table, kinds in known_tables().items()}
    for table, values in tables.items():
        for key, value in values.items():
            assert value in [settings[key] for settings in built[table] if key in settings], f"{table}.{key}"


def test_every_setting_has_its_sentence_and_a_default_inside_its_range() -> None:
    for kinds in known_tables().values():
        for kind in kinds:
            kind()
            assert all(field.metadata["help"].endswith((".", ")")) for field in dataclasses.fields(kind)), kind


@pytest.mark.parametrize("text", ["[train", "epochs = 3", "[train]\nepochs = "])
def test_a_settings_file_that_is_not_toml_tables_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="mine"):
        read_tables(None, file)


def test_a_missing_settings_file_and_an_unknown_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_tables(None, tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="binary"):
        read_tables(None, tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="there is no preset 'nonsense'"):
        read_tables("nonsense", None)


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.toml").write_text("[train]\nepochs = 5\nclip = 2.0\nseed = 4\n")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path / "presets")


@pytest.mark.usefixtures("presets")
def test_the_command_line_goes_before_the_file_the_file_before_the_preset_the_preset_before_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[train]\nclip = 3.0\nseed = 6\n")
    found = settings_for(TrainSettings, "mine", file, seed=8, batch_size=None)
    assert (found.epochs, found.clip, found.seed, found.batch_size) == (5, 3.0, 8, TrainSettings().batch_size)
    assert preset_names() == ["mine"]


@pytest.fixture
def call(tmp_path: Path):
    """A command made of two settings, called as from the command line; gives its exit code and what it received."""
    received = {}
    app = typer.Typer()

    @options(settings=TrainSettings, scenes=SceneSettings, svhn=SvhnSettings)
    def toy(settings: TrainSettings, scenes: SceneSettings, svhn: SvhnSettings, *, dry_run: DryRun = False) -> None:
        """A toy command."""
        received.update(settings=settings, scenes=scenes, svhn=svhn, dry_run=dry_run)

    app.command("toy")(toy)
    app.callback()(lambda: None)

    def run(*words: str) -> tuple[int, dict]:
        received.clear()
        return exit_code_of(lambda: app(["toy", *words], standalone_mode=False)), dict(received)

    return run


def test_every_field_becomes_an_option_with_its_help_range_and_default(call, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    call("--help")
    said = capsys.readouterr().out
    words = ("A toy command.", "--objective", "--digit-size", "--dry-run", "--preset", "--config", "--extra", "--no-extra")
    shown = ("fewer than 2,000 images. (1 to 100000)", f"default: ({TrainSettings().epochs})", "norm of the gradient. (above 0)")
    assert [word for word in (*words, *shown) if word not in said] == []


def test_options_reach_the_settings(call, tmp_path: Path) -> None:
    code, found = call()
    assert code == 0 and found == {"settings": TrainSettings(), "scenes": SceneSettings(), "svhn": SvhnSettings(), "dry_run": False}
    words = ("--objective", "multiset", "--epochs", "4", "--extra", "--count", "2-3", "--clutter", "3", "--dry-run")
    code, found = call(*words, "--learning-rate", "1e-3")
    assert code == 0 and found["dry_run"] is True
    assert found["settings"] == TrainSettings(objective="multiset", epochs=4, learning_rate=1e-3)
    assert found["scenes"] == SceneSettings(count=(2, 3), clutter=3) and found["svhn"] == SvhnSettings(extra=True)
    (tmp_path / "mine.toml").write_text("[train]\nepochs = 7\n[svhn-multiset]\nextra = true\n[make-data]\nclutter = 1\n")
    code, found = call("--config", str(tmp_path / "mine.toml"), "--no-extra")
    assert found["settings"] == TrainSettings(epochs=7) and found["scenes"] == SceneSettings(clutter=1) and not found["svhn"].extra


@pytest.mark.parametrize(
    "words", [("--epochs", "0"), ("--learning-rate", "nan"), ("--seed", str(2**64)), ("--count", "2-1"), ("--preset", "x")]
)
def test_options_that_cannot_be_used_are_refused_in_two_lines(words, call, capsys) -> None:
    code, found = call(*words)
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and not found and len(said) == 2 and said[0].startswith("Error: ") and words[1].split("-")[0] in said[0]


def test_one_of_takes_its_words_alone() -> None:
    assert [str(choice) for choice in one_of(("a", "b-c"))] == ["a", "b-c"]


def test_settings_beside_resume_are_refused_where_they_are_not_the_runs(tmp_path: Path) -> None:
    held = TrainSettings(epochs=30, seed=2)
    run = tmp_path / "run"
    run.mkdir()
    write_sealed(run / "status.json", {"kind": "policy", "state": "stopped"})
    tables = {"train": as_dict(held), "variant": as_dict(Variant())}
    write_sealed(run / "config.json", {"features": "f.h5", "features_digest": "f" * 64, **tables})
    check = functools.partial(check_resumed, run, "policy")
    for asked, given in ((TrainSettings(), set()), (held, {"epochs", "seed"}), (TrainSettings(epochs=30), {"epochs"})):
        assert check(None, {"train": given}, train=asked, variant=Variant()).train.epochs == 30
    changed = TrainSettings(epochs=40, seed=3)
    with pytest.raises(UsageError, match="epochs is 30, not 40; seed is 2, not 3"):
        check(None, {"train": {"epochs", "seed"}}, train=changed)
    with pytest.raises(UsageError, match="settings: seed is 2, not 3"):
        check(None, {"train": {"epochs", "seed"}}, ("epochs",), train=changed)
    with pytest.raises(UsageError, match="seed is 2, not 0"):  # the default, but asked for
        check(None, {"train": {"seed"}}, train=TrainSettings())
    with pytest.raises(UsageError, match="exclude each other"):
        check(tmp_path, {}, train=held)
    with pytest.raises(FileError, match="is not a run"):
        check_resumed(tmp_path / "nowhere", "policy", None, {})


def test_a_key_of_another_table_is_told_where_it_stands() -> None:
    with pytest.raises(UsageError, match=re.escape("unknown key train.stop (it stands in [variant])")):
        check_tables({"train": {"stop": "sampled"}}, known_tables())


def test_a_command_learns_which_settings_the_user_gave(tmp_path: Path) -> None:
    app, found = typer.Typer(), []

    @app.command()
    @options(settings=TrainSettings, scenes=SceneSettings)
    def go(settings: TrainSettings, scenes: SceneSettings, *, given: Given) -> None:
        found.append(given)

    (tmp_path / "s.toml").write_text("[train]\nepochs = 12\n[finetune]\ncrowd = 2\n")
    CliRunner().invoke(app, ["--seed", "0", "--clutter", "3", "--config", str(tmp_path / "s.toml")])
    assert found[0]["train"] == {"epochs", "seed"} and found[0]["make-data"] == {"seed", "clutter"} and found[0]["finetune"] == set()
