"""The documents: the pictures that they show are there and small, the commands that they name exist and take these options."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import typer
from PIL import Image

from hsal_cli.main import app

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST, ALL = 300_000, 3_000_000  # bytes of a picture, and of all those of the gallery


def pictures_of(page: Path) -> list[Path]:
    return [page.parent / place for place in re.findall(r"!\[[^\]]*\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))]


def commands_of(page: Path) -> list[list[str]]:
    """The words of every hsal command that begins a line of a code block, without `hsal`."""
    found = []
    for line in re.findall(r"^ {4}(hsal .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        joined = itertools.groupby(shlex.split(line, comments=True), lambda word: word == "&&")
        found += [list(words)[1:] for is_joint, words in joined if not is_joint]
    return found


def parse(words: list[str]) -> None:
    """Reads a command's words as hsal would, and does nothing."""
    command, context = typer.main.get_command(app), None
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, parent=context)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_are_there_and_small(page):
    for picture in pictures_of(page):
        assert picture.is_file(), picture
        assert picture.stat().st_size < MOST, picture
        with Image.open(picture) as opened:
            opened.verify()


def test_the_gallery_shows_every_picture_of_its_folder_and_stays_small():
    folder = set((ROOT / "docs" / "gallery").iterdir())
    assert folder == {picture for picture in pictures_of(GALLERY) if picture.parent.name == "gallery"}
    assert sum(picture.stat().st_size for picture in folder) < ALL


@pytest.mark.parametrize("page", [ROOT / "README.md", GALLERY], ids=lambda page: page.name)
def test_commands_exist_and_take_these_options(page):
    commands = commands_of(page)
    assert len(commands) > 5
    for words in commands:
        parse(words)


def test_a_command_with_an_option_that_does_not_exist_is_noticed():
    with pytest.raises(Exception, match="--no-such-option"):
        parse(["visualize", "image.png", "--no-such-option"])
