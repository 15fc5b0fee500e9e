"""The documents: pictures are there and small, links lead somewhere, commands parse, options exist, README.md stays short."""

import functools
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from PIL import Image

from hsal_cli.main import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GALLERY = ROOT / "docs" / "gallery.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What CHANGELOG.md says was true of its day.
LIVING = [page for page in PAGES if page.name != "CHANGELOG.md"]
# Options of other programs (git, tests/reliability.py, torchrun), named in running text.
FOREIGN = {"--depth", "--quick", "--nnodes", "--nproc-per-node", "--run-path"}
MOST, ALL = 350_000, 3_000_000  # bytes of a picture, and of all those of the gallery

by_page = functools.partial(pytest.mark.parametrize, "page", ids=lambda page: str(page.relative_to(ROOT)))


def pictures_of(page: Path) -> list[Path]:
    return [page.parent / place for place in re.findall(r"!\[[^\]]*\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))]


def blocks_of(text: str) -> str:
    """The lines of all code blocks, fenced or indented by four, with continued lines joined."""
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}(\S.*)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return re.sub(r"\\\n\s*", " ", "\n".join([*fenced, *indented]))


def commands_of(text: str) -> list[list[str]]:
    """The words of every hsal command in a code block, or of torchrun's, without `hsal`; what may be left out, [--so], is given."""
    found = []
    for line in re.findall(r"^\s*(?:\S*/)?(?:hsal|torchrun .*-m hsal_cli) (.*)$", blocks_of(text), re.MULTILINE):
        joined = itertools.groupby(shlex.split(re.sub(r"[\[\]]", "", line), comments=True), lambda word: word == "&&")
        parts = [list(words) for is_joint, words in joined if not is_joint]
        found += [words[1:] if words[0] == "hsal" else words for words in parts if words[0] == "hsal" or words is parts[0]]
    return found


def options_of(text: str) -> set[str]:
    """Every --option in a line of code that is not another program's."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    return {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)}


def parse(words: list[str]) -> None:
    """Reads a command's words as hsal would, and does nothing."""
    command, context = typer.main.get_command(app), None
    while hasattr(command, "resolve_command"):
        context = command.context_class(command, parent=context)
        name, command, words = command.resolve_command(context, words)
    command.make_context(name, list(words), parent=context)


@functools.cache
def all_options() -> frozenset[str]:
    found, open_ = {"--help"}, [typer.main.get_command(app)]
    while open_:
        command = open_.pop()
        found |= {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        open_ += getattr(command, "commands", {}).values()
    return frozenset(found)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@by_page(PAGES)
def test_pictures_are_there_and_small(page):
    for picture in pictures_of(page):
        assert picture.is_file(), picture
        assert picture.stat().st_size < MOST, picture
        with Image.open(picture) as opened:
            opened.verify()


@by_page(PAGES)
def test_links_lead_to_a_file_and_to_a_heading_of_it(page):
    for place, anchor in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        target = page.parent / place if place else page
        assert target.exists(), f"{page.name} -> {place}"
        assert not anchor or anchor in anchors_of(target), f"{page.name} -> {place}#{anchor}"


def test_the_gallery_shows_every_picture_of_its_folder_and_stays_small():
    folder = set((ROOT / "docs" / "gallery").iterdir())
    assert folder == {picture for picture in pictures_of(GALLERY) if picture.parent.name == "gallery"}
    assert sum(picture.stat().st_size for picture in folder) < ALL


def test_nothing_below_docs_is_left_that_no_page_points_to():
    named = {
        (page.parent / place).resolve() for page in PAGES for place in re.findall(r"\]\(([^)#:\s]+)", page.read_text(encoding="utf-8"))
    }
    # README has `hsal visualize docs/example.png`, which draws beside it.
    files = {path.resolve() for path in (ROOT / "docs").rglob("*") if path.is_file() and ".hsal." not in path.name}
    # A report's figures as JSON stand beside its page.
    assert {path for path in files - named if path.suffix != ".json" or path.with_suffix(".md") not in named} == set()


@by_page(LIVING)
def test_commands_exist_and_take_these_options(page):
    for words in commands_of(page.read_text(encoding="utf-8")):
        parse(words)


@by_page(LIVING)
def test_options_that_are_named_exist(page):
    assert options_of(page.read_text(encoding="utf-8")) <= all_options() | FOREIGN


@by_page([page for page in LIVING if page.stem in ("method", "experiments", "finer-maps")])
def test_values_of_a_variant_that_are_named_exist(page):
    from hsal_cli.policy.variant import DEFAULT, changed, values_of

    named = set(re.findall(r"(?:--set |`)([a-z_]+=[^`\s]+)", page.read_text(encoding="utf-8"))) - {"name=value"}
    assert named
    for text in named:
        changed(DEFAULT, values_of([text]))


def test_a_command_with_an_option_that_does_not_exist_is_noticed():
    text = "Text.\n\n    hsal eval && hsal visualize image.png --no-such-option\n"
    assert commands_of(text) == [["eval"], ["visualize", "image.png", "--no-such-option"]]
    with pytest.raises(Exception, match="--no-such-option"):
        parse(commands_of(text)[1])
    assert options_of("`hsal eval --no-such-option`") - all_options() == {"--no-such-option"}


def test_the_readme_is_short_and_says_how_to_begin():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    assert [words[0] for words in commands_of(text.split("## The five commands")[1])][:5] == [
        "make-data",
        "finetune",
        "train",
        "eval",
        "visualize",
    ]
    tables = [list(rows) for is_row, rows in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")) if is_row]
    assert all(len(rows) - 2 <= 8 for rows in tables)


def test_the_picture_of_the_house_shows_the_layers_that_the_contract_holds():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    picture = re.search(r"^```\n(.*?)^```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [re.split(r" {2,}", line)[0] for line in picture[1].splitlines()] == layers
