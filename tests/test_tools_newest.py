"""The host of the newest versions: which tag it takes, what it frees, where it lies, what is said at the end. No network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from conftest import COMFYUI, ROOT
from pack.tools import host_setup, newest_host
from pack.tools.errors import ToolError
from pack.tools.host_paths import Host
from pack.tools.host_setup import PINNED
from pack.tools.newest_host import free_pins, newest_folder, newest_tag, newest_versions, unpack_newest
from pack.tools.suite_report import report
from pack.tools.terminal import StatusLine


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path) -> str:
    """A repository like ComfyUI's: each tag has a file with its name."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for tag in ("v0.9.12", "v0.30.0", "v0.30.10", "v0.30.9", "v0.31.0-rc1", "latest", "master-v9.9.9"):
        (folder / "version").write_text(tag)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", tag)
        git(folder, "tag", tag)
    return folder.as_uri()


def test_the_newest_tag_is_that_of_the_highest_released_version(repository):
    assert newest_tag(repository) == "v0.30.10"


def test_comfyui_of_the_newest_tag_replaces_the_one_that_is_there(repository, tmp_path):
    for name in ("ComfyUI", "ComfyUI.part"):
        (tmp_path / "host" / name).mkdir(parents=True)
        (tmp_path / "host" / name / "old").write_text("")
    assert unpack_newest(tmp_path / "host", StatusLine(), repository) == "v0.30.10"
    comfyui = tmp_path / "host" / "ComfyUI"
    assert sorted(path.name for path in comfyui.iterdir()) == [".git", "version"]
    assert (comfyui / "version").read_text() == "v0.30.10"


def without_tags(folder: Path) -> str:
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder.as_uri()


@pytest.mark.parametrize(
    "make, reason",
    [(lambda folder: folder.as_uri(), "fatal: .*none"), (without_tags, "none has no tag such as v1.2.3")],
)
def test_without_the_repository_the_pinned_comfyui_is_used_and_said_to_be(make, reason, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(newest_host, "PINNED", replace(PINNED, unpack=lambda folder, status: used.append(folder)))
    said = unpack_newest(tmp_path, StatusLine(), make(tmp_path / "none"))
    assert used == [tmp_path] and said.startswith("the pinned ComfyUI 0.30.0, because its repository cannot be read (")
    with pytest.raises(ToolError, match=reason):
        newest_tag((tmp_path / "none").as_uri())


def test_a_machine_without_git_is_told_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolError, match="git"):
        newest_tag("https://127.0.0.1:9/none")


def test_every_pin_of_the_requirements_is_freed_and_no_bound_is(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("torch\na-page==1.2\nnumpy>=1.25\n# old==1\nb_kit == 0.4.1\npydantic~=2.0\n")
    options = free_pins(tmp_path, [file])
    assert options[:2] == ["--upgrade", "--override"]
    assert Path(options[2]).read_text().split() == ["a-page", "b_kit"]


def test_the_newest_host_lies_beside_the_pinned_one(tmp_path):
    assert newest_folder(tmp_path / ".host") == tmp_path / ".host-newest"
    ignored = (ROOT / ".gitignore").read_text().split() + (ROOT / ".comfyignore").read_text().split()
    assert {".host-newest/", "/.host-newest/"} <= set(ignored)


def test_what_is_newest_is_looked_up_again_the_next_day_and_what_is_pinned_is_not(tmp_path, monkeypatch):
    def stamps() -> list[list]:
        kinds = (newest_versions(), PINNED)
        return [[step.inputs for step in host_setup._build_steps(tmp_path, StatusLine(), kind)][1:] for kind in kinds]

    class Tomorrow(date):
        today = classmethod(lambda cls: date(2999, 1, 1))

    (newest, pinned), _ = stamps(), monkeypatch.setattr(newest_host, "date", Tomorrow)
    later, still = stamps()
    assert still == pinned and all(a != b for a, b in zip(newest, later))
    assert {"torch", "torchvision", "torchaudio"} <= set(later[0])


RESULTS = """<testsuites><testsuite><testcase classname="tests.test_a" name="test_x"/>
<testcase classname="tests.test_a" name="test_y[1-2]"><failure message="no"/></testcase>
<testcase classname="tests.test_b" name="test_z"><error message="no"/></testcase>
<testcase classname="tests.test_b" name="test_s"><skipped/></testcase></testsuite></testsuites>"""


def test_the_report_names_versions_counts_and_what_fell(tmp_path):
    results = tmp_path / "results.xml"
    results.write_text(RESULTS)
    lines = report(Host(tmp_path, COMFYUI, Path(sys.executable)), results).splitlines()
    import torch

    public = torch.__version__.split("+")[0]  # the metadata of a CUDA build does not name its CUDA
    assert f"torch {public}" in lines[0] and f"Python {sys.version.split()[0]}" in lines[0]
    assert "ComfyUI 0." in lines[0] and ", page 1." in lines[0]
    assert lines[1:] == [
        "1 passed, 2 failed, 1 skipped",
        "fell: tests/test_a.py::test_y[1-2]",
        "fell: tests/test_b.py::test_z",
    ]


def test_a_run_that_ended_before_its_tests_is_not_reported_as_passed(tmp_path):
    assert report(Host(tmp_path, COMFYUI, Path(sys.executable)), tmp_path / "none.xml").endswith("\nNo test was run.")


def test_a_comfyui_of_ones_own_and_the_newest_one_exclude_each_other():
    command = [sys.executable, ROOT / "dev.py", "test", "--newest", "--comfyui", COMFYUI]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2 and "leave out --comfyui" in ran.stderr
