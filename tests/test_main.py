"""The command line as a whole: help, start-up time, wrong words."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from hsal_cli.main import app

COMMANDS = (
    "make-data",
    "finetune",
    "precompute",
    "train",
    "eval",
    "compare",
    "visualize",
    "predict",
    "export",
    "reproduce",
    "check",
    "doctor",
    "saliency",
    "sweep",
)


def hsal(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hsal_cli", *words], capture_output=True, text=True, timeout=60)


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "h5py", "numpy", "PIL", "matplotlib"}
    code = f"import sys\nfrom hsal_cli import main\nprint(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_help_imports_no_command_but_the_one_asked_for() -> None:
    code = "import sys\nfrom hsal_cli.main import run\nsys.argv = ['hsal', *{}]\ntry: run()\nfinally: print(*sys.modules, sep='\\n')"

    def imported(*words: str) -> set[str]:
        return set(subprocess.run([sys.executable, "-c", code.format(words)], capture_output=True, text=True).stdout.splitlines())

    def commands(modules: set[str]) -> set[str]:
        return {name for name in COMMANDS if f"hsal_cli.commands.{name.replace('-', '_')}" in modules}

    assert commands(imported("--help")) == set()
    of_one = imported("doctor", "--help")
    assert commands(of_one) == {"doctor"} and not {"pydantic", "tomllib"} & of_one


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("make-data", "--help"), ("make-data", "folder", "--help")])
def test_help_imports_no_part_of_rich_that_draws_none_of_it(words: tuple[str, ...]) -> None:
    code = f"""
import sys
from hsal_cli.main import run
sys.argv = ["hsal", *{words}]
try: run()
except SystemExit as end: assert end.code == 0
assert "typer.rich_utils" in sys.modules
print({{"markdown_it", "pygments", "rich.markdown", "rich.pretty", "rich.traceback"}} & set(sys.modules), file=sys.stderr)
import rich.markdown, rich.traceback  # whoever needs them gets the real ones
rich.markdown.Heading, rich.traceback.Frame
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "set()\n")


def test_help_lists_what_each_command_says_of_itself() -> None:
    from typer.main import get_command

    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).stdout.split())
    for name, command in get_command(app).commands.items():
        said = command.help.partition("\n\n")[0].split()
        assert " ".join([name, *said]) in shown


def test_help_answers_in_little_more_processor_time_than_typer_and_rich_take() -> None:
    import resource

    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # else each start compiles all

    def best(*command: str) -> float:  # of three: what is measured is hsal, not what else the machine is doing
        least = 9.0
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert subprocess.run(command, capture_output=True, env=compiled).returncode == 0
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return least

    floor = best(sys.executable, "-c", "import typer.rich_utils")
    assert best(sys.executable, "-m", "hsal_cli", "--help") < max(0.3, 1.5 * floor)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0 and "Usage" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("train", "--objective", "luck"),
        ("train", "--epochs", "0"),
        ("train", "--learning-rate", "nan"),
        ("finetune", "--batch-size", "-3"),
        ("make-data", "mnist-multiset", "--seed", str(2**64)),
        ("make-data", "mnist-multiset", "--count", "4-1"),
        ("make-data", "nonsense"),
        ("make-data", "folder", "--images", "here"),
        ("eval", "--no-such-option"),
        ("train", "--preset", "nonsense"),
        ("train", "--device", "abacus"),
        ("train", "--objective", "multiset", "--task", "list"),
        ("reproduce", "--seeds", "2-1"),
        ("reproduce", "--objectives", "rl,luck"),
        ("saliency", "image.png", "--saliency", "iti"),
        ("sweep", "--parts", "counts"),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_code_2(words: tuple[str, ...], tmp_path, monkeypatch) -> None:
    import os
    from pathlib import Path

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "hsal_cli", *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("Error: ") and lines[1].startswith("Hint: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [(), ("make-data",)])
def test_where_nothing_was_typed_help_is_all_that_is_said(words: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-m", "hsal_cli", *words], capture_output=True, text=True, timeout=60)
    assert "Usage" in done.stdout and not done.stderr and done.returncode == 2


def test_version() -> None:
    assert hsal("--version").stdout.startswith("hsal ")


def every_command() -> list[tuple[str, ...]]:
    from typer.main import get_command

    found, open_ = [], [((), get_command(app))]
    while open_:
        words, command = open_.pop()
        found.append(words)
        open_ += [((*words, name), below) for name, below in getattr(command, "commands", {}).items()]
    return sorted(found)


@pytest.mark.parametrize("words", every_command(), ids=" ".join)
def test_help_of_80_columns_cuts_no_name_and_long_ones_have_panels_and_examples(words, monkeypatch) -> None:
    from typer import rich_utils
    from typer.main import get_command

    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 80)
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    assert max(map(len, shown.splitlines())) <= 80
    options = [param for param in command.params if param.param_type_name == "option"]
    for param in options:
        assert all(f"{name} " in shown for name in (*param.opts, *param.secondary_opts)), param.name
    if len(options) > 8:
        panels = {getattr(param, "rich_help_panel", None) for param in options}
        assert len(panels) > 2 and "Example" in shown
        assert [param.name for param in options if getattr(param, "rich_help_panel", None) is None] in ([], ["help"]), "none is left over"


def test_help_begins_with_making_data() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    assert shown.index("make-data") == min(shown.index(f"{name} ") for name in COMMANDS)
