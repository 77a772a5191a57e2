#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8 with Pillow 13.0.0: what save("image.jxl") writes
# One would expect: save() writes the image as it is in memory, with the quality, the colour profile and the orientation
# that it is given, as it does for the other formats.
# What happens:
# - An image that was opened from a JPEG file and changed in place (thumbnail, paste, ImageDraw, putpixel) is saved as
#   if it had not been touched: the JPEG on the disk is read again and packed, in its old size and with its old pixels.
#   quality, lossless and exif are ignored with it. The only message is that JPEG reconstruction is the default. What
#   makes a new image (resize, crop, convert) is saved right, and so is a JPEG that was opened from memory.
# - icc_profile is ignored, and the file says that it is sRGB: of a Display P3 photo the numbers are kept and their
#   meaning is lost. PNG, TIFF and AVIF take it from the image by themselves, JPEG and WebP as an argument.
# - The orientation is written into Exif and not into the header. Pillow goes by Exif; the standard and libjxl go by the
#   header, so a portrait lies on its side in other programs. (With JPEG reconstruction the header has it, too.)
# Why it matters: masks, watermarks and faces painted over are still in what one saved, and nothing looks wrong until
# the file is opened.
# What to do: save image.copy(), which knows no file; convert to sRGB and apply ImageOps.exif_transpose before.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0 numpy==2.4.6 packaging==26.4 imagecodecs==2026.3.6
"$work/venv/bin/pip" install -qq --no-deps pillow-jxl-plugin==1.3.8
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import io
import warnings

import imagecodecs
import numpy
import pillow_jxl  # noqa: F401, registers the format
from PIL import Image, ImageCms, ImageDraw

WHITE = (255, 255, 255)
messages = set()


def saved(image, kind="JXL", **options):
    """Return what is read again after saving."""
    data = io.BytesIO()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        image.save(data, kind, **options)
    messages.update(str(message.message) for message in found)
    data.seek(0)
    return Image.open(data)


def draw(image):
    ImageDraw.Draw(image).rectangle((0, 0, 95, 63), fill="blue")


Image.new("RGB", (96, 64), WHITE).save("white.jpg", quality=95)
CHANGES = {
    "thumbnail": lambda image: image.thumbnail((16, 16)),
    "paste": lambda image: image.paste((0, 0, 255), (0, 0, 96, 64)),
    "ImageDraw": draw,
    "putpixel": lambda image: image.putpixel((5, 5), (0, 0, 255)),
}
for name, change in CHANGES.items():
    for options in ({}, {"lossless": True}, {"quality": 30}):
        image = Image.open("white.jpg")
        change(image)
        found, copied, png = saved(image, **options), saved(image.copy(), **options), saved(image, "PNG")
        if not options:
            print(f"{name:10} in memory {image.size} {image.getpixel((5, 5))}", end=", ")
            print(f"saved {found.size} {found.getpixel((5, 5))}, PNG {png.size} {png.getpixel((5, 5))}")
        assert (found.size, found.getpixel((5, 5))) == ((96, 64), WHITE), (name, options)
        assert png.tobytes() == image.tobytes() and copied.size == image.size, name
        assert name == "thumbnail" or copied.getpixel((5, 5))[0] < 200, (name, options)
print("messages:", messages)
assert len(messages) == 1 and "Using JPEG reconstruction" in messages.pop()

with open("white.jpg", "rb") as file:
    image = Image.open(io.BytesIO(file.read()))
image.thumbnail((16, 16))
assert saved(image).size == image.size

# sRGB with red and green exchanged: a profile whose loss nobody overlooks.
profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
image = Image.new("RGB", (8, 8), (255, 0, 0))
image.info["icc_profile"] = profile = bytes(profile)


def shown(image):
    """Return the sRGB color of an image with a profile."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    return ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), outputMode="RGB").getpixel((0, 0))


for kind, options in [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JXL", {"lossless": True})]:
    found = saved(image, kind, icc_profile=profile, **options)
    kept = found.info["icc_profile"] == profile
    print(f"{kind:5} profile kept {kept}, the color is {shown(found)} of {shown(image)}")
    assert kept == (kind != "JXL"), kind
    assert (max(abs(a - b) for a, b in zip(shown(found), shown(image))) > 200) == (kind == "JXL"), kind

# A photo taken upright: lying pixels, and the orientation 6.
upright = Image.Exif()
upright[0x0112] = 6
Image.new("RGB", (96, 64), WHITE).save("upright.jpg", exif=upright.tobytes())
for options, shape in [({"lossless_jpeg": True}, (96, 64)), ({"lossless_jpeg": False}, (64, 96))]:
    Image.open("upright.jpg").save("upright.jxl", **options)
    with open("upright.jxl", "rb") as file:
        found = imagecodecs.jpegxl_decode(file.read())
    print(f"{options}: libjxl shows {found.shape[1]} x {found.shape[0]}")
    assert found.shape[:2] == shape and isinstance(found, numpy.ndarray)
    assert Image.open("upright.jxl").getexif()[0x0112] == 6
EOF
