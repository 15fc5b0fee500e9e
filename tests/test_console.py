"""Errors in two lines and exit codes, progress with and without a terminal, signals, broken pipes."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hsal_cli import console
from hsal_cli.console import TerminalReporter, exit_code_of, print_json, print_line, print_table, sparkline, stopping
from hsal_cli.errors import FileError, HsalError, Interrupted, TrainingError, UsageError
from hsal_cli.progress import SILENT, Reporter, clock


def raising(error: BaseException):
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HsalError("it broke", "mend it"), 1),
        (FileError("it broke", "mend it"), 1),
        (TrainingError("it broke", "mend it"), 1),
        (UsageError("it broke", "mend it"), 2),
        (Interrupted("it broke", "mend it"), 130),
        (Interrupted("it broke", "mend it", signal.SIGTERM), 143),
    ],
)
def test_an_error_is_two_lines_on_stderr_and_an_exit_code(error: HsalError, code: int, capsys) -> None:
    assert exit_code_of(raising(error)) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err == "Error: it broke\nHint: mend it\n"


def test_messages_of_several_lines_become_one(capsys) -> None:
    exit_code_of(raising(HsalError("one\n  two\tthree", "four\nfive")))
    assert capsys.readouterr().err == "Error: one two three\nHint: four five\n"


def test_names_with_square_brackets_are_printed_as_they_are(capsys) -> None:
    name = "data/[bold]x[/bold] [/] :cat: [red].h5"
    exit_code_of(raising(HsalError(f"{name} is missing", f"make {name}")))
    print_line(name)
    print_table(name, [name, "n"], [[name, "[1]"]])
    reporter = TerminalReporter()
    reporter.say(name)
    reporter.warn(name)
    said = capsys.readouterr()
    assert said.err.count(name) == 4 and said.out.count(name) == 4 and "[1]" in said.out


@pytest.mark.parametrize(("width", "flipped"), [(60, False), (40, True), (20, True)])
def test_a_table_too_wide_for_the_terminal_is_turned_where_that_breaks_fewer_words(width: int, flipped: bool, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table("t", ["name", *(f"column{place}" for place in range(4))], [["one", *"abcd"]])
    lines = capsys.readouterr().out.splitlines()
    assert any("name" in line and "column0" in line for line in lines) != flipped
    assert flipped == any("column3" in line and "d" in line for line in lines)


def test_a_table_too_wide_either_way_is_laid_out_in_a_few_that_break_no_word(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "50")
    runs = [[f"runs/mnist-{place}", *(f"{place}.{column}00000" for column in range(4))] for place in range(6)]
    print_table("t", ["run", *(f"column{place}" for place in range(4))], runs)
    text = capsys.readouterr().out
    assert all(cell in text for run in runs for cell in run) and text.count("column3") == 3


def test_ctrl_c_is_130_and_a_command_that_ends_well_is_0(capsys) -> None:
    assert exit_code_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.startswith("Error: interrupted\nHint: ")
    assert exit_code_of(lambda: None) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("colour"), "unexpected KeyError: 'colour'"),
        (MemoryError("no more"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out of memory"),
    ],
)
def test_what_nobody_expected_is_two_lines_too(error: Exception, said: str, capsys) -> None:
    assert exit_code_of(raising(error)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and said in lines[0] and lines[1].startswith("Hint: ")


@pytest.mark.parametrize("error", [HsalError("it broke", "mend it"), KeyError("colour")])
def test_hsal_debug_shows_the_traceback(error: Exception, monkeypatch) -> None:
    monkeypatch.setenv("HSAL_DEBUG", "1")
    with pytest.raises(type(error)):
        exit_code_of(raising(error))


def test_the_exit_code_of_the_program_itself_passes_through() -> None:
    with pytest.raises(SystemExit):
        exit_code_of(raising(SystemExit(3)))


CHATTER = """
import sys
from hsal_cli import console
def talk():
    for number in range(3000):
        {print}
sys.exit(console.exit_code_of(talk))
"""


@pytest.mark.parametrize("call", ["console.print_line('x' * 50)", "console.print_table('t', ['a'], [['x' * 50]] * 20)"])
def test_a_reader_that_leaves_is_no_error(call: str) -> None:
    script = CHATTER.format(print=call)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout.readline() != ""
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == ""
    process.stderr.close()


def test_json_is_one_document_without_nan(capsys) -> None:
    print_json({"name": "é", "value": 0.5})
    assert json.loads(capsys.readouterr().out) == {"name": "é", "value": 0.5}
    with pytest.raises(ValueError, match="JSON"):
        print_json({"value": float("nan")})


def test_without_a_terminal_progress_is_a_line_every_few_seconds(capsys, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with TerminalReporter().track("reading", 1000, "images", done=200) as advance:
        for _ in range(12):
            now[0] += 1.0
            advance(20, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "reading: 300/1,000 images, 20.0/s, 0:35 left  loss 0.5",
        "reading: 400/1,000 images, 20.0/s, 0:30 left  loss 0.5",
    ]
    assert all("\x1b" not in line and "\r" not in line for line in lines)


def test_on_a_terminal_progress_is_a_bar_that_goes_away(monkeypatch) -> None:
    from rich.console import Console

    reporter = TerminalReporter()
    text = io.StringIO()
    reporter.console = Console(file=text, force_terminal=True, width=120)
    with reporter.track("reading [a]", 10, "images", done=2) as advance:
        advance(3, "loss [0.5]")
        advance(5, "loss [0.5]")
    said = text.getvalue()
    assert "reading [a]" in said and "10/10" in said and "images/s" in said and "loss [0.5]" in said
    assert said.rstrip().endswith("\x1b[2K") or "\x1b[1A" in said  # the bar's line is erased


def on_a_terminal(encoding: str = "utf-8", width: int = 120) -> tuple[TerminalReporter, io.TextIOWrapper]:
    from rich.console import Console

    reporter, stream = TerminalReporter(), io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    reporter.console = Console(file=stream, force_terminal=True, width=width, legacy_windows=False)
    return reporter, stream


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


def test_on_a_terminal_curves_stand_below_the_bar_while_it_is_there() -> None:
    reporter, stream = on_a_terminal()
    with reporter.track("training", 10, "steps") as advance:
        reporter.plot({"reward": [-1.0, 0.0, 1.0], "exact [match]": [0.25], "none yet": []})
        advance(10)
    said = written(stream)
    assert "▁▅█" in said and "1.000" in said and "exact [match]" in said and "0.250" in said and "none yet" not in said
    reporter, stream = on_a_terminal()
    reporter.plot({"reward": [0.0, 1.0]})
    with reporter.track("reading", 10, "images") as advance:
        advance(10)
    assert "reward" not in written(stream)  # of work that is over


def test_a_terminal_of_80_columns_shows_count_time_left_and_note_whole() -> None:
    reporter, stream = on_a_terminal(width=80)
    with reporter.track("training", 2320, "steps") as advance:
        advance(1500, "epoch 4/5, loss 0.131, 398 examples/s")
    said = written(stream)
    assert "1500/2320" in said and "-:--:--" in said and "epoch 4/5, loss 0.131, 398 examples/s" in said and "…" not in said


def test_a_terminal_without_unicode_shows_numbers_alone() -> None:
    reporter, stream = on_a_terminal("ascii")
    with reporter.track("training", 10, "steps") as advance:
        reporter.plot({"reward": [0.0, 0.5]})
        advance(10)
    assert "0.500" in written(stream)


def test_without_a_terminal_curves_are_not_shown(capsys) -> None:
    reporter = TerminalReporter()
    with reporter.track("training", 10, "steps") as advance:
        reporter.plot({"reward": [0.0, 1.0]})
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_sparkline_runs_from_the_lowest_value_to_the_highest_and_averages_what_is_too_long() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█" and sparkline([2.0, 2.0]) == "▁▁" and sparkline([5]) == "▁"
    assert sparkline([0, 0, 7, 7, 0, 0], width=3) == "▁█▁" and len(sparkline(list(range(1000)))) == 40
    assert sparkline([0.0, float("nan"), 1.0]) == "▁?█" and sparkline([float("inf")]) == "?"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (-3, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (7384, "2:03:04")]
)
def test_times_are_minutes_or_hours(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_asks_long_work_to_stop_at_its_next_safe_point(number: int, code: int) -> None:
    reporter, before = Reporter(), signal.getsignal(number)
    with pytest.raises(Interrupted) as caught, stopping(reporter):
        reporter.check_stop("run it again")
        os.kill(os.getpid(), number)
        while not reporter.stop_signal:
            pass
        reporter.check_stop("run it again")
    assert caught.value.exit_code == code and caught.value.hint == "run it again"
    assert signal.getsignal(number) == before


def test_the_second_signal_leaves_at_once() -> None:
    script = (
        "import os, signal\nfrom hsal_cli.progress import Reporter; from hsal_cli.console import stopping\n"
        "with stopping(Reporter()):\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
        "    while True: pass\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], timeout=60).returncode == 130


def test_the_silent_reporter_says_nothing_and_never_stops(capsys) -> None:
    SILENT.say("x")
    SILENT.warn("x")
    with SILENT.track("x", 1, "y") as advance:
        advance(1)
        advance(1, note="z")
    SILENT.check_stop("x")
    assert capsys.readouterr() == ("", "")
