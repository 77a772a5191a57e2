"""The documents name what there is: files, tests, commands, links, the version, and every node."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from pack.nodes import NODES

HELP = ROOT / "web" / "docs"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *HELP.glob("**/*.md")]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
TEST = re.compile(r"test_\w+")
SOURCE = (".py", ".js", ".md", ".toml")
CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"dev\.py (\w+)([^`#|\n]*)")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
help_page = pytest.mark.parametrize(
    "page", sorted(HELP.glob("**/*.md")), ids=lambda page: page.relative_to(HELP).as_posix()
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def words(text: str) -> set[str]:
    """Return what stands in code of a Markdown text, word by word."""
    return {word.strip("`,:()'\"") for code in CODE.findall(text) for word in code.split()}


@cache
def files() -> set[str]:
    """Return the names of all files of the repository."""
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")} | {p.name for p in ROOT.iterdir()}


@cache
def defined_tests() -> set[str]:
    """Return the names of all tests."""
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob("tests/test_*.py")]
    return {name for text in texts for name in re.findall(r"def (test_\w+)", text)}


def is_there(word: str) -> bool:
    """Tell whether a path or the name of a test exists; True for a word that is neither."""
    if TEST.fullmatch(word):
        return word in defined_tests()
    if not PATH.fullmatch(word):
        return True
    if "/" in word:
        return word.split("/")[0] not in FOLDERS or (ROOT / word).exists()
    return not word.endswith(SOURCE) or word in files()


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def help_of(*command: str) -> str:
    """Return what a command says of itself; neither ComfyUI nor a set-up is needed for it."""
    return subprocess.check_output([sys.executable, ROOT / "dev.py", *command, "--help"], text=True)


def test_a_wrong_name_is_noticed():
    assert [w for w in ("nodes/no.py", "no.py", "test_no", "test_no.py", "tests/test_no.py") if is_there(w)] == []
    assert all(
        map(is_there, ("nodes/", "dev.py", "test_a_wrong_name_is_noticed", "output/loras", "NAME.txt", "docs/*"))
    )


@each_page
def test_paths_and_tests_exist(page):
    assert [word for word in sorted(words(page.read_text(encoding="utf-8"))) if not is_there(word)] == []


@each_page
def test_links_lead_somewhere(page):
    folder = HELP if HELP in page.parents else page.parent  # as ComfyUI resolves those of translated help pages
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if not re.match(r"[a-z]+:", name):
            target = folder / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@help_page
def test_tables_fit_the_help_panel(page):
    """It is 285 pixels wide: enough for two columns."""
    rows = re.findall(r"^\|.*\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row for row in rows if row.replace("\\|", "").count("|") > 3] == []
    codes = [code for row in rows for code in re.findall(r"`([^`]+)`", row)]
    assert [code for code in codes if max(map(len, code.split())) > 16] == [], "the panel breaks a code only at spaces"


@help_page
def test_code_blocks_fit_the_help_panel(page):
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 32] == []


def test_modules_that_are_run_exist():
    named = {name for page in PAGES for name in re.findall(r"python -m (tools\.\w+)", page.read_text(encoding="utf-8"))}
    paths = {name: ROOT / name.replace(".", "/") for name in named}
    is_module = lambda path: path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()  # noqa: E731
    assert named and [name for name, path in paths.items() if not is_module(path)] == []


def test_the_readme_lists_the_commands_of_dev_py():
    listed = set(re.findall(r"^    (\w+) ", help_of(), re.MULTILINE))
    block = read("README.md").partition("## Commands")[2]
    assert "demo" in listed and {name for name, _ in COMMAND.findall(block.partition("## ")[0])} == listed


@each_page
def test_commands_and_their_options_exist(page):
    for name, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
        for option in re.findall(r"--[\w-]+", rest):
            assert name == "test" or option in help_of(name), f"{name} {option}"
        assert f"\n    {name} " in help_of(), name


def test_the_changelog_begins_with_the_version_of_the_pack():
    (version,) = re.findall(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)
    assert re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[0] == version


@pytest.mark.parametrize("node", NODES)
def test_every_node_is_in_the_readme_and_every_method_on_its_page(node):
    schema = node.define_schema()
    assert schema.display_name in read("README.md")
    if any(output.io_type == "LOSS_MAP" for output in schema.outputs):
        assert schema.display_name in read("docs/methods.md")


@pytest.mark.parametrize("workflow", sorted(ROOT.glob("example_workflows/*.json")), ids=lambda path: path.stem)
def test_every_template_is_described(workflow):
    assert f"`{workflow.stem}`" in read("docs/methods.md")
