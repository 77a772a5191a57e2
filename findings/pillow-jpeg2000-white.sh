#!/usr/bin/env bash
# Pillow 13.0.0: JPEG 2000 of more than 8 bits with several channels
# One would expect: white is read as white, and an opaque pixel as opaque; so it is with 16-bit PNG, with JPEG 2000 of 8
# bits, and with gray JPEG 2000 of up to 16 bits.
# What happens: with 9 to 16 bits in RGB, RGBA or gray with alpha, the topmost half level of 255 comes out as 0. Of 16 bits
# that are the values from 65408 up: 65407 is read as 255, 65408 as 0. The values are rounded to 8 bits, and 255.5 becomes
# 256, which does not fit a byte. White turns black; with alpha opaque turns transparent, the whole image. No message.
# All else is right to a level, and imagecodecs (the same OpenJPEG) reads every value as it was written.
# Why it matters: blown highlights, white backgrounds and the white of masks are exactly the topmost value. JPEG 2000 of
# 10 to 16 bits comes from archives, museums, satellites and digital cinema.
# What to do: read these files with imagecodecs.jpeg2k_decode and divide oneself, or convert them to 16-bit PNG first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0 numpy==2.4.6 imagecodecs==2026.3.6
"$work/venv/bin/python" - <<'EOF'
import io

import imagecodecs
import numpy
from PIL import Image

MODES = {"gray": 1, "gray and alpha": 2, "RGB": 3, "RGBA": 4}


def jpeg2000(pixels, bits):
    return imagecodecs.jpeg2k_encode(pixels, level=0, bitspersample=bits, codecformat="jp2", reversible=True)


def png(pixels, bits):
    return imagecodecs.png_encode(pixels)


def read(data):
    """Return what Pillow makes of a file, as values from 0 to 255."""
    with Image.open(io.BytesIO(data)) as image:
        values = numpy.asarray(image).astype(float)
    return values / 257 if image.mode == "I;16" else values


seen = {}
for write, bits, name in [
    *((jpeg2000, bits, name) for bits in (8, 10, 12, 16) for name in MODES),
    *((png, 16, name) for name in ("RGB", "RGBA")),
]:
    # Every value there is, the same in all channels.
    values = numpy.arange(2**bits, dtype=numpy.uint8 if bits == 8 else numpy.uint16).reshape(2 ** (bits // 2), -1)
    pixels = values if name == "gray" else numpy.stack([values] * MODES[name], axis=-1)
    data = write(pixels, bits)
    if write is jpeg2000:
        assert (imagecodecs.jpeg2k_decode(data) == pixels).all()
    wrong = numpy.abs(read(data).reshape(values.size, -1)[:, 0] - values.ravel() / (2**bits - 1) * 255) > 2
    first = int(wrong.argmax()) if wrong.any() else None
    seen[write, bits, name] = int(wrong.sum()), first
    assert not wrong.any() or wrong[first:].all() and (read(data).reshape(values.size, -1)[first:] == 0).all()
    print(f"{write.__name__:8} {bits:2} bits, {name:14} of {values.size:5} values {wrong.sum():3} are read as 0, from {first} up")

for (write, bits, name), (count, first) in seen.items():
    if write is jpeg2000 and bits > 8 and name != "gray":
        assert count == 2 ** (bits - 9) and first == 2**bits - count, (bits, name, count, first)
    else:
        assert count == 0, (bits, name)

# A white square on gray, opaque.
pixels = numpy.full((8, 8, 4), 30000, numpy.uint16)
pixels[2:6, 2:6, :3] = 65535
pixels[..., 3] = 65535
with Image.open(io.BytesIO(jpeg2000(pixels, 16))) as image:
    found = image.getpixel((0, 0)), image.getpixel((3, 3))
print("opaque gray and opaque white, RGBA of 16 bits, are read as", found)
assert found == ((117, 117, 117, 0), (0, 0, 0, 0)), found
EOF
