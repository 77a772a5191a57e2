"""The browser that the tests need: found, fetched, or named in a sentence. No network."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from pack.tools import browser
from pack.tools.errors import ToolError
from pack.tools.terminal import StatusLine

PYTHON = Path(sys.executable)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins are shell scripts")


def program(path: Path, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """A machine without any browser."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(browser, "MAC", ())
    monkeypatch.setattr(browser, "_of_playwright", lambda python: None)


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome", "chrome"])
def test_a_browser_on_the_path_is_taken_and_nothing_is_fetched(tmp_path, name):
    there = program(tmp_path / "bin" / name)
    shown = io.StringIO()
    assert browser.ensure_browser(PYTHON, tmp_path / "log", StatusLine(shown)) == there
    assert shown.getvalue() == "" and not (tmp_path / "log").exists()


def test_a_browser_that_does_not_run_is_passed_over(tmp_path):
    program(tmp_path / "bin" / "chromium", 1)
    there = program(tmp_path / "bin" / "google-chrome")
    assert browser.find_browser(PYTHON) == there


def test_where_there_is_none_one_is_installed_and_said(tmp_path, monkeypatch):
    failing, working = [["no-such-program"]], [["install", "it"]]
    monkeypatch.setattr(browser, "_ways", lambda python: [failing, working])
    monkeypatch.setattr(
        browser, "_run", lambda commands, log: commands == working and bool(program(tmp_path / "bin" / "chromium"))
    )
    shown = io.StringIO()
    found = browser.ensure_browser(PYTHON, tmp_path / "log", StatusLine(shown))
    assert found == tmp_path / "bin" / "chromium"
    first, last = shown.getvalue().splitlines()
    assert first.startswith("Browser for the tests (") and last == "Browser for the tests: chromium, 0 s"


def test_when_nothing_works_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(browser, "_ways", lambda python: [[["/bin/sh", "-c", "echo no network; exit 1"], ["never"]]])
    with pytest.raises(ToolError, match="none could be installed .*log\\): install Chromium or Chrome."):
        browser.ensure_browser(PYTHON, tmp_path / "log", StatusLine(io.StringIO()))
    assert "no network" in (tmp_path / "log").read_text() and "never" not in (tmp_path / "log").read_text()


def test_only_root_on_debian_uses_apt(tmp_path, monkeypatch):
    by_playwright = [[str(PYTHON), "-m", "playwright", "install", "chromium"]]
    assert browser._ways(PYTHON) == [by_playwright]
    program(tmp_path / "bin" / "apt-get")
    monkeypatch.setattr(browser.sys, "platform", "linux")
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    assert browser._ways(PYTHON)[0][-1] == ["apt-get", "install", "-y", "chromium"]
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    assert browser._ways(PYTHON) == [by_playwright]
