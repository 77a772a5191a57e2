#!/usr/bin/env bash
# Pillow 13.0.0: a PNG with one transparent color (a tRNS chunk) that is not gray or RGB of 8 bits
# One would expect: convert("RGBA") makes the pixels of that color transparent at every bit depth.
# What happens: gray of 1 and 8 bits and RGB of 8 bits are right. Gray of 2 and 4 bits is spread to 0..255 while the
# transparent color stays 0..3 or 0..15, so none but black can match. Gray of 16 bits (mode I;16) loses its
# transparency. RGB of 16 bits is read as its upper 8 bits, which are not compared with those of the color.
# No message in any case, and has_transparency_data is True in all of them.
# Why it matters: what is cut out of an image counts as part of it: a mask for training, a cut-out on a page.
# What to do: multiply info["transparency"] by 85 or 17 for rawmode L;2 or L;4, take its upper 8 bits for RGB;16B, and
# compare the values of a 16-bit image with it oneself.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import io
import struct
import zlib

from PIL import Image


def alphas(depth, color, row, transparent):
    """Return the alphas of a PNG of four pixels in one row, of which the second has the transparent color."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, color, 0, 0, 0))
    content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    content += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(content))
    assert image.has_transparency_data
    return list(image.convert("RGBA").getchannel("A").tobytes())


GRAY, RGB = 0, 2
deep = (0x1234, 0x5678, 0x9ABC)
seen = {
    "gray, 1 bit": alphas(1, GRAY, bytes([0b01000000]), (1,)),
    "gray, 2 bits": alphas(2, GRAY, bytes([0b00_10_01_11]), (2,)),
    "gray, 4 bits": alphas(4, GRAY, bytes([0x0A, 0x5F]), (10,)),
    "gray, 8 bits": alphas(8, GRAY, bytes([0, 7, 8, 255]), (7,)),
    "gray, 16 bits": alphas(16, GRAY, struct.pack(">4H", 0, 300, 301, 65535), (300,)),
    "RGB, 8 bits": alphas(8, RGB, bytes([0, 0, 0, 9, 8, 7, 9, 8, 6, 1, 2, 3]), (9, 8, 7)),
    "RGB, 16 bits": alphas(16, RGB, struct.pack(">12H", 0, 0, 0, *deep, 1, 1, 1, 2, 2, 2), deep),
}
for kind, found in seen.items():
    print(f"{kind:14} alphas {found}")
right = {kind for kind, found in seen.items() if found == [255, 0, 255, 255]}
assert right == {"gray, 1 bit", "gray, 8 bits", "RGB, 8 bits"}, right
EOF
