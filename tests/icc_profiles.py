"""Color profiles made by hand: from primaries and curves (ICC.1:2001), and what they mean by matrix arithmetic."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

SRGB_PRIMARIES = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
P3_PRIMARIES = [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)]
ADOBE_PRIMARIES = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
D50 = np.array([0.9642, 1, 0.8249])
D65 = np.array([0.3127, 0.3290, 0.3583]) / 0.3290
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
GAMMA = 563 / 256  # Adobe RGB


def srgb_to_linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * np.clip(values, 0, None) ** (1 / 2.4) - 0.055)


def to_xyz(primaries: list[tuple[float, float]]) -> np.ndarray:
    """Return the matrix from linear RGB with the white point D65 to XYZ with the white point D50."""
    directions = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD
    return adapt @ (directions * np.linalg.solve(directions, D65))


def expected_srgb(pixels: np.ndarray, primaries: list, linear: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what pixels (..., 3) uint8 of these primaries and this curve are in sRGB, in levels from 0 to 255."""
    matrix = np.linalg.inv(to_xyz(SRGB_PRIMARIES)) @ to_xyz(primaries)
    return linear_to_srgb(np.clip(linear(pixels / 255) @ matrix.T, 0, 1)) * 255


def make_profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    directory, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        directory += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    size = struct.pack(">I", 128 + len(directory) + len(body))
    version, white = bytes([2, 0x40, 0, 0]), _fixed(D50)
    head = size + bytes(4) + version + kind + space + pcs + bytes(12) + b"acsp" + bytes(28) + white
    return head.ljust(128, b"\0") + directory + body


def rgb_profile(primaries: list[tuple[float, float]], curve: bytes) -> bytes:
    matrix = to_xyz(primaries)
    tags = {f"{channel}XYZ".encode(): _xyz(column) for channel, column in zip("rgb", matrix.T)}
    return make_profile(b"RGB ", tags | {f"{channel}TRC".encode(): curve for channel in "rgb"} | {b"wtpt": _xyz(D50)})


def gray_profile(gamma: float) -> bytes:
    return make_profile(b"GRAY", {b"kTRC": gamma_curve(gamma), b"wtpt": _xyz(D50)})


def cmyk_profile(lightness: Callable[[tuple[int, ...]], float]) -> bytes:
    """Return a profile in which each full combination of inks (c, m, y, k), 0 or 1, is gray of a CIE lightness."""
    corners = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    grid = b"".join(bytes([round(lightness(corner) * 2.55), 128, 128]) for corner in corners)
    identity = b"".join(_fixed(row) for row in np.eye(3))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + grid + bytes(range(256)) * 3
    return make_profile(b"CMYK", {b"A2B0": table, b"wtpt": _xyz(D50)}, pcs=b"Lab ", kind=b"prtr")


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def table_curve(values: np.ndarray) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">I", len(values)) + (values * 65535).round().astype(">u2").tobytes()


def _fixed(values: np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(values)


SRGB_CURVE = table_curve(srgb_to_linear(np.linspace(0, 1, 1024)))
DISPLAY_P3 = rgb_profile(P3_PRIMARIES, SRGB_CURVE)
ADOBE_RGB = rgb_profile(ADOBE_PRIMARIES, gamma_curve(GAMMA))
SRGB = rgb_profile(SRGB_PRIMARIES, SRGB_CURVE)
