"""What stands beside the pixels of an image never refuses it: texts, EXIF, profiles and sizes that are damaged or huge."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from icc_profiles import DISPLAY_P3
from image_files import CAT, load_one, to_bytes
from PIL import Image, TiffImagePlugin

HUGE = zlib.compress(bytes(2_000_000))
EXIF = Image.Exif()
EXIF[0x0112] = 6
TURNED = EXIF.tobytes().removeprefix(b"Exif\0\0")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(*chunks: bytes, behind: bytes = b"") -> bytes:
    """Return the cat as PNG with chunks before its pixels and behind them."""
    written = io.BytesIO()
    Image.fromarray(CAT).save(written, "PNG")
    content = written.getvalue()
    return content[:33] + b"".join(chunks) + content[33:-12] + behind + content[-12:]


def jpeg(marker: int, content: bytes, **options: object) -> bytes:
    """Return the cat as JPEG with a segment at its start."""
    written = io.BytesIO()
    Image.fromarray(CAT).save(written, "JPEG", quality=95, **options)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    return b"\xff\xd8" + segment + written.getvalue()[2:]


def load_bytes(folder: Path, content: bytes):
    (folder / "cat.png").write_bytes(content)
    return load_one(folder).file


PNG_CHUNKS = {
    **{f"text {key}": chunk(b"tEXt", key.encode() + b"\0some words") for key in ("exif", "xmp", "icc_profile", "dpi")},
    "text transparency": chunk(b"tEXt", b"transparency\0some words"),
    "text that says it is EXIF": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nnot hexadecimal"),
    "packed text of 2 MB": chunk(b"zTXt", b"parameters\0\0" + HUGE),
    "packed text of 2 MB that says it is EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + HUGE),
    "international text of 2 MB": chunk(b"iTXt", b"workflow\0\1\0\0\0" + HUGE),
    "XMP of 2 MB": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + HUGE),
    "70 MB of texts": b"".join(chunk(b"zTXt", b"p\0\0" + zlib.compress(bytes(1_000_000))) for _ in range(70)),
    "text packed in an unknown way": chunk(b"zTXt", b"parameters\0\7abc"),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b")[:-4] + b"1234",
    "profile of 2 MB": chunk(b"iCCP", b"x\0\0" + HUGE),
    "profile packed in an unknown way": chunk(b"iCCP", b"x\0\5abc"),
    "profile without content": chunk(b"iCCP", b"x"),
    "empty profile": chunk(b"iCCP", b""),
    "EXIF without its header": chunk(b"eXIf", b"words"),
    "EXIF with a wrong checksum": chunk(b"eXIf", TURNED)[:-4] + b"1234",
    "empty EXIF": chunk(b"eXIf", b""),
    **{f"short {kind}": chunk(kind.encode(), b"\1") for kind in ("pHYs", "gAMA", "cHRM", "acTL", "fcTL", "tIME")},
    "empty sRGB": chunk(b"sRGB", b""),
    "an animation that ends at once": chunk(b"acTL", struct.pack(">II", 3, 0)),
}


@pytest.mark.parametrize("added", PNG_CHUNKS.values(), ids=PNG_CHUNKS)
@pytest.mark.parametrize("where", ["before the pixels", "behind them"])
def test_nothing_beside_the_pixels_of_a_png_refuses_it(tmp_path, added, where):
    image = load_bytes(tmp_path, png(added) if where == "before the pixels" else png(behind=added))
    assert np.array_equal(to_bytes(image.pixels()), CAT) and not image.has_alpha
    assert image.resize([(85, 50)])[0].shape == (50, 85, 3)


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"eXIf", TURNED),
        chunk(b"tEXt", b"parameters\0steps: 20") + chunk(b"eXIf", TURNED),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='1' tiff:Orientation=\"6\"/>"),
        chunk(
            b"zTXt",
            b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 10\n" + (b"Exif\0\0" + TURNED).hex().encode()),
        ),
    ],
    ids=["EXIF", "EXIF beside a text", "XMP", "EXIF in a text"],
)
@pytest.mark.parametrize("where", ["before the pixels", "behind them"])
def test_the_orientation_of_a_png_counts_wherever_it_stands(tmp_path, added, where):
    image = load_bytes(tmp_path, png(added) if where == "before the pixels" else png(behind=added))
    assert image.size == (100, 170) and np.array_equal(to_bytes(image.pixels()), np.rot90(CAT, -1))


def test_a_profile_of_a_png_that_is_larger_than_pillow_takes_is_used(tmp_path):
    size = struct.pack(">I", 2_000_000)
    profile = size + DISPLAY_P3[4:] + bytes(2_000_000 - len(DISPLAY_P3))
    image = load_bytes(tmp_path, png(chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))))
    small = load_bytes(tmp_path, png(chunk(b"iCCP", b"x\0\0" + zlib.compress(DISPLAY_P3))))
    assert image.has_own_colors and np.abs(small.pixels().numpy() * 255 - CAT).max() > 10


SEGMENTS = {"nothing": b"", "noise": b"noise", "EXIF": b"Exif\0\0noise", "empty EXIF": b"Exif\0\0"}
SEGMENTS |= {"cut EXIF": b"Exif\0\0II*\0\x08\0\0\0\xff\xff", "profile": b"ICC_PROFILE\0", "JFIF": b"JFIF\0"}
SEGMENTS |= {
    "part of a profile": b"ICC_PROFILE\0\1\1noise",
    "Adobe": b"Adobe",
    "Photoshop": b"Photoshop 3.0\0008BIM\4\4",
}
SEGMENTS |= {"more images": b"MPF\0noise", "XMP": b"http://ns.adobe.com/xap/1.0/\0noise"}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about the other images in a file
@pytest.mark.parametrize("content", SEGMENTS.values(), ids=SEGMENTS)
def test_nothing_beside_the_pixels_of_a_jpeg_refuses_it(tmp_path, content):
    for marker in (*range(0xE0, 0xF0), 0xFE):
        image = load_bytes(tmp_path, jpeg(marker, content))
        assert np.abs(to_bytes(image.pixels()).astype(int) - CAT).mean() < 4, hex(marker)
    kept = load_bytes(tmp_path, jpeg(0xE2, content, exif=EXIF))
    assert kept.size == (100, 170)


@pytest.mark.parametrize("form", ["WEBP", "AVIF"])
@pytest.mark.parametrize("kind", ["exif", "xmp", "icc_profile"])
def test_noise_beside_the_pixels_of_other_formats_refuses_none(tmp_path, form, kind):
    written = io.BytesIO()
    noise = TURNED if (form, kind) == ("AVIF", "exif") else b"noise"  # Pillow writes no other into AVIF
    Image.fromarray(CAT).save(written, form, quality=95, **{kind: noise})
    image = load_bytes(tmp_path, written.getvalue().replace(TURNED, bytes(len(TURNED))))
    assert (
        np.abs(to_bytes(image.pixels()).astype(int) - (np.rot90(CAT, -1) if image.size[0] == 100 else CAT)).mean() < 5
    )


TAGS = [(700, 2, "words"), (34675, 2, "words"), (34665, 4, 10**8), (34665, 2, "words"), (34853, 4, 4_000_000)]
TAGS += [(274, 2, "words"), (274, 3, 77), (282, 2, "words"), (296, 2, "words"), (37724, 7, b"noise")]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, about broken TIFF tags
@pytest.mark.parametrize("tag, kind, value", TAGS)
def test_no_tag_beside_the_pixels_of_a_tiff_refuses_it(tmp_path, tag, kind, value):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[tag] = kind
    tags[tag] = value
    written = io.BytesIO()
    Image.fromarray(CAT).save(written, "TIFF", tiffinfo=tags)
    assert np.array_equal(to_bytes(load_bytes(tmp_path, written.getvalue()).pixels()), CAT)


def test_the_log_names_the_image_whose_exif_data_is_ignored(tmp_path, caplog):
    load_bytes(tmp_path, png(chunk(b"eXIf", b"words")))
    (record,) = caplog.records
    assert re.search("cat.png: its EXIF data is ignored", record.message)
