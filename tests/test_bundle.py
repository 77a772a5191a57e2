"""The bundle for a machine without a network: what is in it, in parts that go back together."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from pack.tools import bundle

LISTED = "torch==2.11.0+cu130\nruamel.yaml==0.18.6\n# a comment\n-e git+https://example.com/x\nPyYAML @ file:///y.whl\n"


@pytest.fixture
def comfyui(tmp_path) -> Path:
    """A host of a few files."""
    for name in ("comfy/sd.py", "main.py", "output/picture.png", "comfy/__pycache__/sd.pyc", "comfy/models/layers.py"):
        file = tmp_path / "ComfyUI" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    return tmp_path / "ComfyUI"


def test_the_parts_are_small_and_together_an_archive(comfyui, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PART", 100_000)
    monkeypatch.setattr(bundle, "_tracked_files", lambda: ["dev.py", "tools/bundle.py"])
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a.whl").write_bytes(bytes(range(256)) * 4)
    parts = bundle.write_parts(tmp_path / "parts", comfyui, wheels)
    assert all(part.stat().st_size <= 100_000 for part in parts)
    whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(fileobj=whole) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}
    here = {f"pack/{name}": (bundle.ROOT / name).read_bytes() for name in ("dev.py", "tools/bundle.py")}
    host = {f"ComfyUI/{name}": name.encode() for name in ("comfy/sd.py", "main.py", "comfy/models/layers.py")}
    assert files == {**here, **host, "wheels/a.whl": bytes(range(256)) * 4, "run.sh": bundle.RUN.encode()}


def test_the_parts_are_cut_where_they_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "PART", 4)
    parts = list(bundle._split(io.BytesIO(b"0123456789"), tmp_path))
    assert [part.read_bytes() for part in parts] == [b"0123", b"4567", b"89"]


def test_what_the_machine_has_is_not_packed():
    has = bundle.package_names(LISTED)
    assert {"torch", "ruamel-yaml", "pyyaml"} <= has
    names = {package.partition("==")[0] for package in bundle.packages_to_pack(has)}
    assert {"transformers", "safetensors", "pytorch-optimizer"} <= names
    assert not names & {"torch", "pyyaml", "playwright", "comfyui-frontend-package"}
