"""Images that are damaged, lie about their size, or are something else.

The damage is our own, for hypothesis knows no file formats; it draws each choice of the damage, and so shrinks it.
"""

from __future__ import annotations

import io
import random
import struct
import zlib

from hypothesis import strategies as st
from PIL import Image

from ...nodes import folders
from .case import Case
from .sandbox import Sandbox
from .wiring import by_name

FORMATS = ("jpg", "png", "gif", "tif", "bmp", "webp", "pcx", "ico", "avif", "jp2")
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F")
SIZES = [(1, 1), (1, 9), (64, 48), (50_000, 1), (1, 50_000), (50_000, 40)]
# Where a format keeps width and height: offset, and how they are packed.
HEADERS = {"png": (16, ">II"), "gif": (6, "<HH"), "bmp": (18, "<ii"), "pcx": (8, "<HH"), "webp": (26, "<HH")}
FRAME = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "max_ratio": 16.0}
COPIES = {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a folder with one bad image, loaded and cropped as in a graph, or shown by the folder chooser."""

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        extension = draw(st.sampled_from(FORMATS))
        damage = draw(st.sampled_from((_whole, _cut, _flip, _lie, _bomb, _foreign, _noise, _append)))
        rng = draw(st.randoms(use_true_random=False))
        content = damage(rng, extension, _image(rng, extension))
        name = f"bad.{extension}"
        return Case("images", f"{damage.__name__[1:]} {extension}", (name,), lambda: _load(sandbox, name, content))

    return draw_case()


def _load(sandbox: Sandbox, name: str, content: bytes) -> None:
    folder = sandbox.new_folder()
    (folder / name).write_bytes(content)
    folders._show(folder.name)
    images, masks, captions, names, _ = by_name("LoadImageFolder").execute(folder.name, True, "caption file", "x").args
    values = {key: [value] for key, value in {**FRAME, **COPIES}.items()}
    by_name("BucketImages").execute(images, captions, masks=masks, names=names, **values)


def _image(rng: random.Random, extension: str, size: tuple[int, int] | None = None) -> bytes:
    size, written = size or rng.choice(SIZES[:3]), io.BytesIO()
    image = Image.frombytes("RGB", size, _noisy_bytes(rng, size[0] * size[1] * 3))
    try:
        mode = rng.choice(MODES)
        image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
        image.save(written, Image.registered_extensions()[f".{extension}"])
    except (OSError, ValueError):  # a format does not take every mode
        written = io.BytesIO()
        image.convert("RGB").save(written, Image.registered_extensions()[f".{extension}"])
    return written.getvalue()


def _whole(rng: random.Random, extension: str, content: bytes) -> bytes:
    size = rng.choice(SIZES)
    return _image(rng, extension, size if extension not in ("ico", "webp") else (64, 48))


def _cut(rng: random.Random, extension: str, content: bytes) -> bytes:
    return content[: rng.choice((0, 1, 8, rng.randrange(len(content)), len(content) - 1))]


def _flip(rng: random.Random, extension: str, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(min(len(changed), rng.choice((64, 10**9))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _lie(rng: random.Random, extension: str, content: bytes) -> bytes:
    """Say another size in the header, from nothing to all that it can say."""
    if extension not in HEADERS:
        return _flip(rng, extension, content)
    changed, (offset, form) = bytearray(content), HEADERS[extension]
    most = 2**31 - 1 if form[1] in "Ii" else 2**16 - 1
    sizes = [rng.choice((0, 1, 65_535 % (most + 1), 20_000, most, rng.randrange(most))) for _ in range(2)]
    if offset + struct.calcsize(form) <= len(changed):
        struct.pack_into(form, changed, offset, *sizes)
    return _with_checksum(changed) if extension == "png" else bytes(changed)


def _bomb(rng: random.Random, extension: str, content: bytes) -> bytes:
    """A PNG of few bytes and very many pixels, all of them there, under whatever name."""
    width, height = rng.choice(((60_000, 60_000), (30_000, 10_000), (10_000, 9_000)))
    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + width // 8) * 100) for _ in range(height // 100)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _foreign(rng: random.Random, extension: str, content: bytes) -> bytes:
    """What is no image, or one that a decoder we do not allow would open."""
    other = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 9 9 255\n" + bytes(243), b"<svg/>", b"PK\x03\x04"
    return rng.choice((*other, b"\x80\x02}q\x00.", b"MZ" + bytes(200), _image(rng, rng.choice(FORMATS))))


def _noise(rng: random.Random, extension: str, content: bytes) -> bytes:
    return content[: rng.choice((0, 4, 12, 40))] + _noisy_bytes(rng, rng.choice((1, 100, 100_000)))


def _append(rng: random.Random, extension: str, content: bytes) -> bytes:
    return content + _noisy_bytes(rng, 1000)


def _noisy_bytes(rng: random.Random, count: int) -> bytes:
    """Return bytes that hypothesis need not remember and shrink one by one."""
    return random.Random(rng.randrange(100)).randbytes(count)


def _with_checksum(png: bytearray) -> bytes:
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
