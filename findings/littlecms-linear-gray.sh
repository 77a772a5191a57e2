#!/usr/bin/env bash
# LittleCMS 2.19 in Pillow 13.0.0: linear gray of 8 bits to sRGB
# One would expect: a gray profile with a linear curve is converted as exactly as an RGB one, to within a level.
# What happens: with the default flags the shadows come out too dark, by up to 9.7 of 255 levels: gray 2 becomes 12
# instead of 21.7. The same curve in an RGB profile is right to half a level. The transform is replaced by a table that
# is interpolated; HIGHRESPRECALC makes it 6.7 levels, NOOPTIMIZE 0.5. Gray of gamma 1.8 to 2.2 is off by 1.5 at most.
# Why it matters: linear gray comes from renderers, height and depth maps, and microscopes.
# What to do: build the transform of gray images with ImageCms.Flags.NOOPTIMIZE (ten times as slow).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq pillow==13.0.0
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import io
import struct

from PIL import Image, ImageCms
from PIL.ImageCms import Flags, Intent

WHITE = (0.9642, 1, 0.8249)
# sRGB's primaries adapted to D50, as in every sRGB profile.
PRIMARIES = {b"rXYZ": (0.43607, 0.22249, 0.01392), b"gXYZ": (0.38515, 0.71687, 0.09708), b"bXYZ": (0.14307, 0.06061, 0.7141)}


def fixed(values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(gamma):
    return b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))


def profile(space, tags):
    tags |= {b"wtpt": b"XYZ " + bytes(4) + fixed(WHITE)}
    directory, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        directory += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    head = struct.pack(">I", 128 + len(directory) + len(body)) + bytes(4) + bytes([2, 64, 0, 0]) + b"mntr" + space
    head += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(WHITE)
    return ImageCms.ImageCmsProfile(io.BytesIO(head.ljust(128, b"\0") + directory + body))


def largest_error(space, mode, gamma, flags):
    """Return by how many levels the 256 grays come out wrong, at most."""
    tags = {b"kTRC": curve(gamma)}
    if mode == "RGB":
        tags = {name: b"XYZ " + bytes(4) + fixed(values) for name, values in PRIMARIES.items()}
        tags |= {name: curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(profile(space, tags), srgb, mode, "RGB", Intent.RELATIVE_COLORIMETRIC, flags)
    grays = Image.frombytes("L", (256, 1), bytes(range(256))).convert(mode)
    green = ImageCms.applyTransform(grays, transform).getchannel("G").tobytes()
    errors = []
    for level, found in enumerate(green):
        light = (level / 255) ** gamma
        expected = light * 12.92 if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055
        errors.append(abs(found - 255 * expected))
    return round(max(errors), 1)


found = {
    "gray, linear": largest_error(b"GRAY", "L", 1, Flags.NONE),
    "gray, linear, HIGHRESPRECALC": largest_error(b"GRAY", "L", 1, Flags.HIGHRESPRECALC),
    "gray, linear, NOOPTIMIZE": largest_error(b"GRAY", "L", 1, Flags.NOOPTIMIZE),
    "RGB, linear": largest_error(b"RGB ", "RGB", 1, Flags.NONE),
    "gray, gamma 2.2": largest_error(b"GRAY", "L", 2.2, Flags.NONE),
    "gray, gamma 1.8": largest_error(b"GRAY", "L", 1.8, Flags.NONE),
}
for what, error in found.items():
    print(f"{what:30} off by up to {error} levels of 255")
assert found["gray, linear"] > 9 and found["gray, linear, HIGHRESPRECALC"] > 6, found
assert max(list(found.values())[2:4]) <= 0.6, found
EOF
