"""Pictures that are damaged, lie about their size, or are something else."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from ...nodes import folders
from ...nodes.images import BucketImages, LoadImageFolder
from .case import Case
from .world import World

KIND = "pictures"
FORMATS = ("jpg", "png", "gif", "tif", "bmp", "webp", "pcx", "ico")
MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F")
SIZES = [(1, 1), (1, 9), (64, 48), (50_000, 1), (1, 50_000), (50_000, 40)]
# Where a format keeps width and height: offset, and how they are packed.
HEADERS = {"png": (16, ">II"), "gif": (6, "<HH"), "bmp": (18, "<ii"), "pcx": (8, "<HH"), "webp": (26, "<HH")}
FRAME = {"width": 64, "height": 64, "buckets_step": 16, "min_length": 32, "max_ratio": 16.0}
COPIES = {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a folder with one bad picture, loaded and cropped as in a graph, or shown by the folder chooser."""
    for number in range(count):
        what, extension, content = _draw(rng)
        name = f"bad_{number}.{extension}"
        yield Case(KIND, f"{number} {what} {extension}", (name,), lambda n=name, c=content: _load(world, n, c))


def _load(world: World, name: str, content: bytes) -> None:
    folder = world.new_folder()
    (folder / name).write_bytes(content)
    folders._show(folder.name)
    images, masks, captions, names = LoadImageFolder.execute(folder.name, True, "caption file", "x").args
    values = {key: [value] for key, value in {**FRAME, **COPIES}.items()}
    BucketImages.execute(images, captions, masks=masks, names=names, **values)


def _draw(rng: random.Random) -> tuple[str, str, bytes]:
    extension = rng.choice(FORMATS)
    content = _picture(rng, extension)
    damage = rng.choice((_whole, _cut, _flip, _lie, _bomb, _foreign, _noise, _append))
    return damage.__name__[1:], extension, damage(rng, extension, content)


def _picture(rng: random.Random, extension: str, size: tuple[int, int] | None = None) -> bytes:
    size, written = size or rng.choice(SIZES[:3]), io.BytesIO()
    image = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
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
    return _picture(rng, extension, size if extension not in ("ico", "webp") else (64, 48))


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
    """What is no picture, or one that a decoder we do not allow would open."""
    other = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"P6 9 9 255\n" + bytes(243), b"<svg/>", b"PK\x03\x04"
    return rng.choice((*other, b"\x80\x02}q\x00.", b"MZ" + bytes(200), _picture(rng, rng.choice(FORMATS))))


def _noise(rng: random.Random, extension: str, content: bytes) -> bytes:
    return content[: rng.choice((0, 4, 12, 40))] + rng.randbytes(rng.choice((1, 100, 100_000)))


def _append(rng: random.Random, extension: str, content: bytes) -> bytes:
    return content + rng.randbytes(1000)


def _with_checksum(png: bytearray) -> bytes:
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
