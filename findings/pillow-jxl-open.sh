#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8 with Pillow 13.0.0: JPEG XL images that Image.open reads wrong
# One would expect: an image is read with its pixels and its metadata, or there is an error.
# What happens, all without a message:
# - Gray with alpha of 16 bits, or in floating point, is scrambled: the plugin says mode LA, 8 bits, and hands over 16
#   or 32 bits, so each value becomes several pixels and the lower half or three quarters of the image are not shown. An
#   opaque, even gray turns into stripes that are partly transparent. RGB and RGBA of 16 bits are right.
# - Floating point gray comes as mode F from 0 to 1, RGB of the same values as 0 to 255. Made RGB, the gray one is
#   black.
# - Exif in a compressed box (brob) is not found: no caption, no date, no orientation. The encoder of libjxl (cjxl)
#   compresses the boxes unless told otherwise, and so does the plugin itself with compress_metadata=True.
# Why it matters: gray with alpha in 16 bits is what masks and depth maps are, and captions or orientations that are not
# found are taken as not there.
# What to do: read with imagecodecs.jpegxl_decode, which returns every value as it was written; multiply mode F by 255.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0 numpy==2.4.6 packaging==26.4 imagecodecs==2026.3.6
"$work/venv/bin/pip" install -qq --no-deps pillow-jxl-plugin==1.3.8
"$work/venv/bin/python" - <<'EOF'
import io
import warnings

import imagecodecs
import numpy
import pillow_jxl  # noqa: F401, registers the format
from PIL import Image

warnings.simplefilter("error")
CHANNELS = {"gray": 1, "gray and alpha": 2, "RGB": 3, "RGBA": 4}
TYPES = {numpy.uint8: 255, numpy.uint16: 65535, numpy.float32: 1}


def read(pixels):
    """Return the image that Pillow reads of these pixels, after seeing that the file holds them."""
    data = imagecodecs.jpegxl_encode(pixels, lossless=True)
    assert numpy.array_equal(imagecodecs.jpegxl_decode(data), pixels)
    return Image.open(io.BytesIO(data))


errors = {}
for kind, largest in TYPES.items():
    for name, channels in CHANNELS.items():
        light = numpy.linspace(0, 1, 64 * channels).reshape(8, 8, channels)
        pixels = (light * largest).astype(kind).squeeze()
        image = read(pixels)
        found = numpy.asarray(image).astype(float) / {"I;16": 257, "F": 1 / 255}.get(image.mode, 1)
        errors[kind, name] = numpy.abs(found - pixels / largest * 255).max()
        print(f"{kind.__name__:8} {name:14} is mode {image.mode:5} off by up to {errors[kind, name]:.1f} of 255")
        assert (errors[kind, name] > 100) == (name == "gray and alpha" and kind is not numpy.uint8), (kind, name)
        assert errors[kind, name] <= 1 or errors[kind, name] > 100

even = numpy.full((4, 4, 2), 65535, numpy.uint16)
even[..., 0] = 0x3075
found = {pixel for pixel in zip(*(channel.tobytes() for channel in read(even).split()))}
print("an even gray of", 0x3075 // 257, "and opaque is read as pixels of gray and alpha", sorted(found))
assert found == {(0x75, 0x30), (255, 255)}
halves = numpy.full((4, 4, 2), 65535, numpy.uint16)
halves[2:, :, 0] = 0
assert min(read(halves).getchannel("L").tobytes()) == 255, "the lower half, black, is not shown"

gray = numpy.full((4, 4), 0.7, numpy.float32)
found = [read(pixels).convert("RGB").getpixel((0, 0)) for pixels in (gray, numpy.stack([gray] * 3, -1))]
print("0.7 in floating point, made RGB: gray", found[0], "and RGB", found[1])
assert found == [(0, 0, 0), (178, 178, 178)]

exif = Image.Exif()
exif[0x010E], exif[0x0112] = "a caption", 6
for compressed in (False, True):
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "JXL", exif=exif.tobytes(), compress_metadata=compressed)
    assert (b"brob" in data.getvalue()) == compressed and (b"a caption" in data.getvalue()) != compressed
    found = dict(Image.open(data).getexif())
    print(f"Exif in a {'compressed' if compressed else 'plain'} box:", found)
    assert found == ({} if compressed else dict(exif))
EOF
