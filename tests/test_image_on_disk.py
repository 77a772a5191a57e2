"""Images that stay on disk: what their headers say, what happens when a file changes, and how little memory they need."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from bucketing import WHOLE_CAT, crop, save, to_bytes
from pack.trainer.dataset.buckets import BucketConfig
from pack.trainer.dataset.fill_buckets import fill_buckets
from pack.trainer.dataset.image_folder import load_folder
from pack.trainer.dataset.image_on_disk import read_header
from pack.trainer.dataset.tensor_on_disk import pixels_on_disk
from PIL import Image, ImageFile


def damage(path: Path) -> None:
    """Flip a byte in the middle of a file; its beginning and end stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_one_error_names_every_file_that_is_damaged_or_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packs leave it
    for name in ("b", "a", "changed", "good", "gone"):
        save(tmp_path / f"{name}.png")
    damage(tmp_path / "a.png")
    damage(tmp_path / "b.png")
    files = [image.file for image in load_folder(tmp_path, False, "file name", "")]
    os.utime(tmp_path / "changed.png", ns=(1, 1))
    (tmp_path / "gone.png").unlink()
    with pytest.raises(ValueError) as caught:
        crop(*files, masks=files)
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 files cannot be used. Repair or remove them."
    assert [line.split(": ")[0] for line in lines[1:]] == [
        f"- {tmp_path / name}.png" for name in ("a", "b", "changed", "gone")
    ]
    assert "broken data stream" in lines[1] and "No such file" in lines[4]
    with pytest.raises(ValueError, match="a.png broken data stream"):
        pixels_on_disk(files[0]).clone()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert lines[3].endswith("has changed since it was loaded: run Load Image Folder again")


def test_a_jpeg_with_extra_bytes_at_its_end_is_complete(tmp_path):
    save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"what a phone appends")
    (image,) = load_folder(tmp_path, False, "file name", "")
    assert image.file.size == (451, 300)


def test_an_orientation_behind_the_pixels_of_a_png_is_used(tmp_path):
    save(tmp_path / "a.png")
    content, exif = (tmp_path / "a.png").read_bytes(), Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:-12] + packed + content[-12:])
    file = read_header(tmp_path / "a.png")
    assert file.size == (300, 451)
    assert np.array_equal(to_bytes(file.pixels()), np.rot90(WHOLE_CAT, -1))
    assert crop(file)[0].resolution == (192, 256)


def resident() -> int:
    """Return the most memory the process has held since the last call, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
def test_a_folder_of_photos_is_never_in_memory_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for number in range(12):
        Image.new("RGB", (4000, 3000), (number, 99, 99)).save(tmp_path / f"{number}.jpg")
    resident()
    before = resident()
    files = [image.file for image in load_folder(tmp_path, False, "file name", "")]
    assert len(fill_buckets(files, [""], files, BucketConfig(1024, 1024))) == 12
    # 36 MB each in the file's own 8 bits, 144 MB as IMAGE; the crops are 2 or 3 MB each.
    assert resident() - before < 6 * 36e6 < 12 * 36e6
