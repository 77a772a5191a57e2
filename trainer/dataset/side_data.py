"""Takes away from image files what stands beside the pixels and could make Pillow refuse the image."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
JP2_SIGNATURE, AVIF_SIGNATURE = b"\0\0\0\x0cjP  ", re.compile(b"....ftyp(avi[fs]|mif1|msf1)", re.DOTALL)
MAX_ORIENTATION, MAX_PROFILE = 2**20, 2**25  # bytes; the first is Pillow's own limit for a text
SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xFF)}  # markers that a length follows, up to the pixels
# Bytes that Pillow reads without looking of JFIF, ICC_PROFILE and Adobe segments; all of Photoshop's go, nothing needs them.
SHORTEST_SEGMENTS = {0xE0: 7, 0xE2: 14, 0xED: 2**16, 0xEE: 7}
CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000; how large the image is follows
AVIF_HEAD = 2**16  # bytes, which hold the list of what is in the file
AVIF_EXIF = re.compile(rb"(infe[\x02\x03].{7,9}?)Exif", re.DOTALL)  # an entry of that list


@dataclass(frozen=True)
class Chunk:
    """A part of a PNG; its bytes are still in the file."""

    kind: bytes  # four letters, the first one lowercase if the pixels can be read without it
    start: int  # of its length, bytes from the start of the file
    length: int  # bytes of its content

    @property
    def end(self) -> int:
        """Return where the next chunk starts."""
        return self.start + 12 + self.length

    def read(self, file: BinaryIO) -> bytes:
        """Return the content."""
        file.seek(self.start + 8)
        return file.read(self.length)


def drop_side_data(file: BinaryIO) -> tuple[BinaryIO, bytes | None]:
    """Return an image file without texts and damaged side data, and the color profile that Pillow would not read itself.

    Pixels, transparency and orientation stay. A file that needs no change is returned itself, at its start.
    """
    start = file.read(12)
    if start.startswith(PNG_SIGNATURE):
        chunks = list(png_chunks(file))
        profile = next((_read_profile(chunk, file) for chunk in chunks if chunk.kind == b"iCCP"), None)
        return _without([(c.start, c.end) for c in chunks if not _is_needed(c, file)], file), profile
    if AVIF_SIGNATURE.match(start):  # turned upright by its own boxes, not by EXIF
        head = AVIF_EXIF.sub(rb"\1none", start + file.read(AVIF_HEAD))
        return io.BytesIO(head + file.read()), None
    profile = _find_jp2_profile(file) if start.startswith(JP2_SIGNATURE) else None
    return _without(list(_damaged_segments(file)) if start.startswith(JPEG_SIGNATURE) else [], file), profile


def png_chunks(file: BinaryIO) -> Iterator[Chunk]:
    """Yield the chunks of a PNG up to its end or to where it is damaged."""
    position = len(PNG_SIGNATURE)
    while len(head := _read_at(file, position, 8)) == 8 and head[4:].isalpha():
        chunk = Chunk(head[4:], position, struct.unpack(">I", head[:4])[0])
        yield chunk
        if chunk.kind == b"IEND":
            return
        position = chunk.end


def _is_needed(chunk: Chunk, file: BinaryIO) -> bool:
    is_critical = not chunk.kind[0] & 0x20
    return is_critical or chunk.kind == b"tRNS" or _holds_orientation(chunk, file)


def _holds_orientation(chunk: Chunk, file: BinaryIO) -> bool:
    """Tell whether a chunk may hold an orientation, in EXIF or XMP, and can be read by Pillow."""
    if chunk.kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") or chunk.length > MAX_ORIENTATION:
        return False
    content = chunk.read(file)
    if zlib.crc32(chunk.kind + content) != int.from_bytes(file.read(4), "big"):
        return False
    keyword, _, text = content.partition(b"\0")
    if chunk.kind == b"iTXt":
        return keyword == b"XML:com.adobe.xmp" and text.startswith(b"\0")  # not compressed
    if chunk.kind == b"zTXt" and _inflate(text, MAX_ORIENTATION) is None:
        return False
    return chunk.kind == b"eXIf" or keyword == b"Raw profile type exif"


def _read_profile(chunk: Chunk, file: BinaryIO) -> bytes:
    """Return a PNG's color profile; what cannot be unpacked is returned as it is, to be reported as damaged."""
    content = chunk.read(file) if chunk.length <= MAX_PROFILE else b"too large"
    return _inflate(content.partition(b"\0")[2], MAX_PROFILE) or content or b"empty"


def _inflate(text: bytes, most: int) -> bytes | None:
    """Return what stands packed behind the number of the method, or None for damage or more than `most` bytes."""
    unpack = zlib.decompressobj()
    try:
        content = unpack.decompress(text[1:], most)
    except zlib.error:
        return None
    return content if text.startswith(b"\0") and not unpack.unconsumed_tail else None


def _find_jp2_profile(file: BinaryIO) -> bytes | None:
    """Return the color profile in the header of a JPEG 2000 file."""
    for kind, start, end in _boxes(file, 0, 2**63):
        for inner, position, after in _boxes(file, start, end) if kind == b"jp2h" else ():
            if inner == b"colr" and _read_at(file, position, 1) in (b"\2", b"\3"):  # else a number names the colors
                return _read_at(file, position + 3, min(after - position - 3, MAX_PROFILE))
        if kind == b"jp2c":  # the pixels
            break
    return None


def jpeg2000_bits(file: BinaryIO) -> int:
    """Return how many bits the deepest channel of a JPEG 2000 file has; 0 if it does not say."""
    file.seek(0)
    _, _, size = file.read().partition(CODESTREAM)
    if len(size) < 38:
        return 0
    channels = int.from_bytes(size[36:38], "big")
    return max(((depth & 0x7F) + 1 for depth in size[38 : 38 + 3 * channels : 3]), default=0)


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the content of each box between two positions."""
    while position < end and len(head := _read_at(file, position, 8)) == 8:
        length = int.from_bytes(head[:4], "big")
        if length < 8:  # to the end of the file, or longer than any header
            return
        yield head[4:], position + 8, position + length
        position += length


def _damaged_segments(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield start and end of each segment of a JPEG that is too short for what it calls itself, or may be misread."""
    position = 2
    while len(head := _read_at(file, position, 4)) == 4 and head[0] == 0xFF and head[1] in SEGMENTS:
        length = int.from_bytes(head[2:], "big")
        if length - 2 < SHORTEST_SEGMENTS.get(head[1], 0):
            yield position, position + 2 + length
        position += 2 + length


def _without(ranges: list[tuple[int, int]], file: BinaryIO) -> BinaryIO:
    """Return the file without the bytes of these ranges, which are in their order."""
    if not ranges:
        file.seek(0)
        return file
    starts, ends = [0, *(end for _, end in ranges)], [start for start, _ in ranges]
    kept = [_read_at(file, start, end - start) for start, end in zip(starts, ends)]
    return io.BytesIO(b"".join([*kept, _read_at(file, starts[-1], -1)]))


def _read_at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)
