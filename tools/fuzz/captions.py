"""Captions that no one would write, and bytes that are no caption."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from PIL import Image

from ...nodes import host
from ...nodes.images import LoadImageFolder
from .case import Case
from .world import World

KIND = "captions"
LETTERS = (
    "aé\u732b\U0001f431\u200d\U0001f469\u200d\U0001f469\u200d\U0001f467\u202e\u0301\x00\x07 \t\n,()[]{}:;\\\"'|<>%$"
)
SHAPES: dict[str, Callable[[random.Random], bytes]] = {
    "binary": lambda rng: rng.randbytes(rng.choice((1, 100, 10_000))),
    "ten megabytes": lambda rng: b"a cat " * (10_000_000 // 6),
    "two thousand tokens": lambda rng: " ".join(rng.choices(("cat", "red", "hat"), k=2000)).encode(),
    "one long word": lambda rng: b"x" * rng.choice((1000, 20_000)),
    "emoji": lambda rng: (
        "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f431".encode() * rng.choice((1, 50))
    ),
    "any letters": lambda rng: "".join(rng.choices(LETTERS, k=rng.randrange(200))).encode(),
    "any code points": lambda rng: "".join(map(chr, (rng.randrange(1, 0xD800) for _ in range(80)))).encode(),
    "brackets": lambda rng: (rng.choice("([{") * rng.choice((10, 900, 5000))).encode(),
    "nested brackets": lambda rng: b"(" * (n := rng.choice((20, 900, 3000))) + b"cat" + b")" * n,
    "weights": lambda rng: f"(cat:{rng.choice(('nan', 'inf', '-1e38', '1e400', '', ':', '1:2'))})".encode(),
    "embedding": lambda rng: (
        f"embedding:{rng.choice(('nothing', '../../secret/secret', '/etc/passwd', '', '..'))}".encode()
    ),
    "another encoding": lambda rng: "größer als \u732b".encode(rng.choice(("utf-16", "utf-32", "utf-8-sig"))),
    "nothing": lambda rng: rng.choice((b"", b" ", b"\n\n", b"\xef\xbb\xbf")),
}


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a folder with a picture and its bad caption, loaded and encoded as in a graph."""
    for number in range(count):
        what = list(SHAPES)[number % len(SHAPES)]
        content, name = SHAPES[what](rng), f"caption_{number}.txt"
        yield Case(KIND, f"{number} {what}", (name, "caption"), lambda n=name, c=content: _encode(world, n, c))


def _encode(world: World, name: str, content: bytes) -> None:
    folder = world.new_folder()
    Image.new("RGB", (8, 8)).save((folder / name).with_suffix(".png"))
    (folder / name).write_bytes(content)
    captions = LoadImageFolder.execute(folder.name, True, "caption file", "sks").args[2]
    host.HostTextEncoder(world.models[1]).encode(captions)
