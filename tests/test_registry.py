"""The pack as the registry publishes it: what its programs and those of the field say, its pictures, its routes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from conftest import COMFYUI, HOST, ROOT
from pack.tools.checkers import checker
from PIL import Image

FOR_USERS = ["LICENSE", "README.md", "requirements.txt", "__init__.py", "nodes/__init__.py", "trainer/run.py"]
FOR_USERS += ["web/training_panel.js", "web/docs/TrainTrain_TrainLoRA.md", "web/docs/TrainTrain_TrainLoRA/ja.md"]
FOR_USERS += [
    "locales/zh/nodeDefs.json",
    "example_workflows/1_Train_a_LoRA.json",
    "example_workflows/1_Train_a_LoRA.jpg",
]


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    """Run a program, which must succeed, and return what it says."""
    ran = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    said = ran.stdout + ran.stderr  # comfy-cli writes for people to the latter
    assert ran.returncode == 0, said
    return said


def check(name: str, *arguments: str | Path, folder: Path) -> str:
    """Run one of the checkers, which must be content, with settings of its own; return what it says."""
    program = checker(HOST, name)
    assert program.with_name("comfy").exists(), f"{program} is missing: run python3 dev.py test once"
    home = str(folder.parent)
    return run([program, *arguments], folder, HOME=home, USERPROFILE=home, DO_NOT_TRACK="1", PYTHONUTF8="1")


def git(*arguments: str | Path, folder: Path) -> str:
    return run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], folder)


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A copy of this repository with the files as they are now."""
    copy = tmp_path_factory.mktemp("registry") / "traintrain"
    copy.mkdir()
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    git("init", "--quiet", folder=copy)
    git("add", "--all", folder=copy)
    return copy


@pytest.fixture(scope="module")
def published(repository) -> Path:
    """The pack as users get it, among the custom nodes of a ComfyUI."""
    check("comfy", "--skip-prompt", "node", "pack", folder=repository)
    pack = repository.parent / "install" / "custom_nodes" / "traintrain"
    with zipfile.ZipFile(repository / "node.zip") as file:
        file.extractall(pack)
    return pack


def test_comfy_cli_finds_nothing_to_warn_of_before_it_publishes(repository):
    said = check("comfy", "--skip-prompt", "node", "validate", folder=repository)
    assert "All validation checks passed" in said and "arning" not in said, said


def test_users_get_what_runs_and_what_they_read_and_nothing_of_the_workshop(published):
    assert [name for name in FOR_USERS if not (published / name).is_file()] == []
    workshop = {"tests", "tools", "docs", "findings", "dev.py", ".ci", ".git"}
    assert workshop & {path.name for path in published.iterdir()} == set()


def test_comfy_test_finds_no_fault(published):
    said = check("comfy-test", "lint", "--strict", folder=published)
    assert "[JAVASCRIPT] PASSED" in said and "[SYNTAX] PASSED" in said and "Warnings" not in said, said


def test_every_name_and_call_of_comfyui_fits_the_one_that_is_installed(published, tmp_path):
    clone = tmp_path / "ComfyUI"
    clone.mkdir()
    git("init", "--quiet", folder=clone)
    git("--work-tree", COMFYUI, "add", "--force", "--", ":(glob)*.py", "comfy*/**.py", folder=clone)
    git("commit", "--quiet", "--message", "As it is installed", folder=clone)
    options = ["--offline", "--cache-dir", tmp_path, "check", "--target", "HEAD", "--strict"]
    said = check("comfy-import-guard", *options, "--comfy-dir", published.parent.parent, folder=tmp_path)
    (references,) = re.findall(r"(\d+) comfy\.\* reference", said)
    assert int(references) > 50 and "1 safe, 0 warn" in said, said


@pytest.mark.parametrize("field, shape, limit_kb", [("Icon", (400, 400), 100), ("Banner", (1260, 540), 100)])
def test_the_registry_shows_pictures_of_the_shape_that_it_asks_for(field, shape, limit_kb):
    """A square of at most 400 pixels, and 21:9."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (repository,) = re.findall(r'^Repository = "https://github\.com/(.+)"$', text, re.MULTILINE)
    (address,) = re.findall(rf'^{field} = "(.+)"$', text, re.MULTILINE)
    start = f"https://raw.githubusercontent.com/{repository}/main/"
    assert address.startswith(start)
    path = ROOT / address.removeprefix(start)
    with Image.open(path) as image:
        assert image.size == shape and image.format in ("PNG", "JPEG")
    assert path.stat().st_size < limit_kb * 1024


def test_the_readme_gives_a_reason_for_each_route():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "nodes").rglob("*.py")]
    routes = {route for text in sources for route in re.findall(r'"(/traintrain/\w+)"', text)}
    rows = dict(
        re.findall(r"^\| `(/traintrain/\w+)` \| (.+) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    )
    assert "/traintrain/stop" in routes and set(rows) == routes
    assert [route for route, reason in rows.items() if len(reason) < 40] == []
