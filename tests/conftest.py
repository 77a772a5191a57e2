"""What every test needs: the pack under a name of its own, and the host on the path."""

from __future__ import annotations

import os
import runpy
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("TRAINTRAIN_HOST", ROOT / ".host")).absolute()
COMFYUI = Path(os.environ.get("TRAINTRAIN_COMFYUI", HOST / "ComfyUI")).absolute()

# What a script starts in the background ignores Ctrl-C, and so would the programs that tests send it to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As a file, for the repository stays off sys.path.
runpy.run_path(str(ROOT / "tools" / "load_pack.py"))["load_pack"](COMFYUI)

from page_fixtures import browser, canvas, page, shared_page  # noqa: E402, F401


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the slow proofs in their long form too")


@pytest.fixture(scope="session")
def is_long(request) -> bool:
    """Whether slow proofs are wanted in their long form, which takes over an hour; the short one can still fail."""
    return request.config.getoption("--long")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "one_canvas(name): what both canvases take from the same code; --long tries both"
    )


def _is_wanted(item: pytest.Item) -> bool:
    """Say whether a test is of the short form: not on the other canvas than the one it names."""
    marker, case = item.get_closest_marker("one_canvas"), getattr(item, "callspec", None)
    return not marker or not case or case.params.get("canvas", marker.args[0]) == marker.args[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose and sort the tests.

    Files of few tests come first: they are the long ones, and one that starts last leaves the other processes idle. A page on
    a busy machine can miss a click, or take longer than any wait: a browser's test that has timed out is run once more before
    it counts as failed.
    """
    if not config.getoption("--long"):
        items[:] = filter(_is_wanted, items)
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (sizes[item.path], item.path))
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun=["TimeoutError"]))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sharing work this small between threads takes longer than the work, many times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def output_folder(tmp_path, monkeypatch) -> Path:
    """ComfyUI's output folder for nodes that run in the test's own process: an empty one."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """Give the host folders in a new place: input with a picture in `cats`, and a folder outside."""
    import folder_paths
    from PIL import Image

    for name in ("input/cats", "output", "outside", "loras"):
        (tmp_path / name).mkdir(parents=True)
    for place in ("input/cats/a.png", "outside/b.png"):
        Image.new("RGB", (64, 64)).save(tmp_path / place)
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    known = {key: value for key, value in folder_paths.folder_names_and_paths.items() if key != "training_images"}
    known["loras"] = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return tmp_path


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """The demonstration model as the set-up assembles it."""
    path = HOST / "base" / "models" / "checkpoints" / "shapes.safetensors"
    assert path.is_file(), f"{path} is missing: run python3 dev.py setup"
    return path


@pytest.fixture(scope="module")
def shapes(shapes_checkpoint):
    """MODEL, CLIP and VAE, loaded as the executor loads them: in inference mode."""
    import comfy.sd

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(shapes_checkpoint))[:3]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running ComfyUI with the pack, the demonstration model and folders of its own."""
    from pack.tools.base_folder import make_folders, share_model
    from pack.tools.server import Server

    base = tmp_path_factory.mktemp("base")
    make_folders(base)
    share_model(HOST / "base", base)
    with Server(COMFYUI, base) as running:
        yield running
