"""What every test needs: the pack under a name of its own, and the host on the path."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HOST = Path(os.environ.get("TRAINTRAIN_HOST", ROOT / ".host")).absolute()
COMFYUI = Path(os.environ.get("TRAINTRAIN_COMFYUI", HOST / "ComfyUI")).absolute()

# The pack's own `nodes` folder would shadow the host's nodes.py, so the pack's root stays off sys.path, and its modules
# are imported as `pack.trainer...` without running its __init__.py.
_spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
sys.modules["pack"] = importlib.util.module_from_spec(_spec)
sys.path.insert(0, str(COMFYUI))

from pack.tools.launch import prepare_torchvision  # noqa: E402

prepare_torchvision()

from browser import browser, canvas, page, shared_page  # noqa: E402, F401
from comfy.cli_args import args  # noqa: E402

args.cpu = not torch.cuda.is_available()  # the host decides at import, and fails where there is no GPU
args.use_pytorch_cross_attention = True  # as our server is started: its default on the CPU is slow


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
