"""Hints are whole commands: every command that a hint of the code gives is read as the command line would read it."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import parse
from typer.main import get_command

import hsal_cli
from hsal_cli import errors
from hsal_cli.app import COMMANDS, app

ROOT = Path(hsal_cli.__file__).parent
RAISED = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.HsalError)}
# A command begins at `hsal NAME` behind a colon or the hint's first word, or in back quotes, and ends with the clause.
COMMAND = re.compile(rf"(?:^hsal (?={'|'.join(COMMANDS)})|(?:: |`|, or |, )hsal )([a-z][a-z-]*(?: [^`;,]*)?)")


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = ("--help", "--nproc-per-node", "--upgrade", "--force-reinstall")  # of every command, torchrun and pip


def said(node: ast.expr, names: dict[str, str], stands_for: str) -> str:
    """The text of an expression, with something in the place of every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else said(part.value, names, stands_for) if _named(part) in names else stands_for
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return said(node.left, names, stands_for) + said(node.right, names, stands_for)
    if isinstance(node, ast.IfExp):
        return said(node.body, names, stands_for)
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _named(part: ast.FormattedValue) -> str:
    return part.value.id if isinstance(part.value, ast.Name) else ""


def constants_of(trees: dict[Path, ast.Module], stands_for: str) -> dict[str, str]:
    """Texts that modules give names in capitals, such as TRAIN_HINT, of all modules together."""
    found: dict[str, str] = {}
    for _ in range(2):  # some are made of others
        for tree in trees.values():
            for node in tree.body:
                named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper()
                if named and (text := said(node.value, found, stands_for)):
                    found.setdefault(node.targets[0].id, text)
    return found


def hints(stands_for: str) -> Iterator[tuple[str, str]]:
    """(where, text) of every hint in the code: of errors, of findings, and what a line calls `hint`, or ends with `next: `."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    shared = constants_of(trees, stands_for)
    for path, tree in trees.items():
        own = shared | constants_of({path: tree}, stands_for)  # AGAIN is a name of several modules
        for node in ast.walk(tree):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in RAISED and len(node.args) > 1:
                texts.append(node.args[1])
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and len(node.args) > 3:
                texts.append(node.args[3])
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("hint", "way", "again", "following"):
                texts.append(node.value)
            if isinstance(node, ast.JoinedStr) and "next: " in said(node, own, stands_for):
                texts.append(node)
            for text in texts:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", said(text, own, stands_for)


def commands_in(hint: str) -> list[str]:
    return [found.strip() for found in COMMAND.findall(hint.replace("next: ", ": "))]


def cases() -> list[tuple[str, str, str]]:
    """(where, command with a word in the place of values, the same with a number)."""
    worded, numbered = (list(hints(stand)) for stand in ("PLACE", "1"))
    return [
        (where, *both)
        for (where, first), (_, second) in zip(worded, numbered, strict=True)
        for both in zip(commands_in(first), commands_in(second), strict=True)
    ]


CASES = cases()


def test_the_code_gives_many_commands_as_hints() -> None:
    assert len(CASES) > 30 and {"make-data", "finetune", "train", "eval", "precompute"} <= {command.split()[0] for _, command, _ in CASES}


@pytest.mark.parametrize(("where", "worded", "numbered"), CASES, ids=[f"{where}-{command}" for where, command, _ in CASES])
def test_a_command_in_a_hint_can_be_typed(where, worded, numbered) -> None:
    worded, numbered = (
        command.removesuffix(" --help").replace("make-data PLACE", "make-data mnist-set").replace("make-data 1", "make-data mnist-set")
        for command in (worded, numbered)
    )
    try:
        parse(shlex.split(worded))
    except Exception as error:
        if "PLACE" not in worded:
            raise AssertionError(f"{where}: hsal {worded}: {error}") from error
        parse(shlex.split(numbered))


def test_an_option_in_a_hint_is_one_of_some_command() -> None:
    known, open_ = set(ELSEWHERE), [get_command(app)]
    while open_:
        command = open_.pop()
        open_ += getattr(command, "commands", {}).values()
        known |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [(where, option) for where, hint in hints("PLACE") for option in OPTION.findall(hint) if option not in known]
    assert not unknown


def test_a_command_that_lacks_a_word_is_noticed() -> None:
    for text in ("make it with: hsal make-data", "hsal train --epochs", "look: `hsal visualise x.png`"):
        (command,) = commands_in(text)
        with pytest.raises(Exception, match=r".*"):
            parse(shlex.split(command))
