"""Measures how fast a folder of photographs becomes training images, and how much memory that takes (on Linux).

The contenders: `pillow` is Pillow's own decoding and scaling on all cores; `nodes` is Load Image Folder and Bucket
Images with all that they show; `engine` is what these two call, without the contact sheet and the report.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from ..host import ROOT, module_command
from .host import import_pack
from .memory import without_kept_memory

RATIOS = (4 / 3, 3 / 2, 16 / 9)
MEGAPIXELS = 1, 12
GRAIN = 6  # of 255, one deviation: gives 0.3 to 0.4 bytes per pixel, as a camera's JPEG has


@dataclass(frozen=True)
class Measured:
    """Repeated runs of one contender over the same photographs."""

    count: int  # photographs
    seconds: list[float]
    peaks: list[int]  # bytes of memory beyond those before the run

    @property
    def per_second(self) -> float:
        """Return photographs per second, by the median."""
        return self.count / statistics.median(self.seconds)


def measure_images(
    comfyui: Path, count: int, folder: Path, side: int = 1024, repeats: int = 3
) -> dict[tuple[str, int], Measured]:
    """Measure every contender over `count` photographs and over a quarter of them, by (contender, photographs).

    Each run is a process of its own; the contenders take turns. `folder` keeps the photographs.
    """
    make_photographs(folder / "all", count)
    runs: dict[tuple[str, int], list[dict]] = {}
    for _ in range(repeats):
        for number in (max(1, count // 4), count):
            for name in CONTENDERS:
                runs.setdefault((name, number), []).append(_run_alone(comfyui, name, _share(folder, number), side))
    return {
        key: Measured(key[1], [run["seconds"] for run in found], [run["peak"] for run in found])
        for key, found in runs.items()
    }


def make_photographs(folder: Path, count: int) -> None:
    """Write those of 0000.jpg, 0001.jpg, ... that are missing: 1 to 12 megapixels, upright and wide, quality 90."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:04}.jpg").is_file()]
    grain = np.random.default_rng(0).normal(128, GRAIN, (4700, 4700)).clip(0, 255).astype(np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda number: _make_photograph(folder / f"{number:04}.jpg", number, grain), missing))


def _make_photograph(path: Path, number: int, grain: np.ndarray) -> None:
    rng = np.random.default_rng(number)
    ratio, area = rng.choice(RATIOS), rng.uniform(*MEGAPIXELS) * 1e6
    size = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    size = size[:: rng.choice((1, -1))]
    image = Image.new("RGB", size, (128, 128, 128))
    for cells in (6, 24, 96, 384):
        noise = rng.normal(128, 60 / cells**0.25, (cells, cells, 3)).clip(0, 255).astype(np.uint8)
        image = ImageChops.add(image, Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), offset=-128)
    left, top = (int(rng.integers(grain.shape[0] - length)) for length in size)
    speckles = Image.fromarray(grain[top : top + size[1], left : left + size[0]])
    image = ImageChops.add(image, Image.merge("RGB", [speckles] * 3), offset=-128)
    image.save(path.with_suffix(".part"), "JPEG", quality=90)
    path.with_suffix(".part").rename(path)


def _share(folder: Path, count: int) -> Path:
    """Return a folder with the first `count` photographs, at no cost of space."""
    share = folder / str(count)
    share.mkdir(exist_ok=True)
    for number in range(count):
        name = f"{number:04}.jpg"
        if not (share / name).exists():
            os.link(folder / "all" / name, share / name)
    return share


def _run_alone(comfyui: Path, name: str, folder: Path, side: int) -> dict:
    """Run a contender in a process of its own; return its seconds and its peak."""
    command = module_command(sys.executable, "tools.bench.images", comfyui, name, folder, str(side))
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=without_kept_memory())
    return json.loads(answer.stdout.splitlines()[-1])


def _run(comfyui: Path, name: str, folder: Path, side: int) -> dict:
    import_pack(comfyui)
    run = CONTENDERS[name](folder, side)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, begun = _peak(), time.perf_counter()
    kept = run()
    return {"seconds": time.perf_counter() - begun, "peak": _peak() - before, "count": len(kept)}


def _peak() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _pillow(folder: Path, side: int) -> Callable[[], list]:
    buckets = importlib.import_module("pack.trainer.buckets")
    config = buckets.BucketConfig(side, side, min_length=side // 2)
    main = buckets.main_frames(config)

    def crop(path: Path) -> Image.Image:
        opened = Image.open(path)
        ((width, height),) = buckets.choose_frames(opened.size, main, [], config)
        scale = max(width / opened.width, height / opened.height)
        size = max(width, round(opened.width * scale)), max(height, round(opened.height * scale))
        scaled = opened.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        return scaled.crop((left, top, left + width, top + height))

    def run() -> list:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(crop, sorted(folder.iterdir())))

    return run


def _engine(folder: Path, side: int) -> Callable[[], list]:
    cropping, images = (importlib.import_module(f"pack.trainer.{name}") for name in ("cropping", "images"))
    config = importlib.import_module("pack.trainer.buckets").BucketConfig(side, side, min_length=side // 2)

    def run() -> list:
        files = [image.file for image in images.load_folder(folder, False, "trigger word only", "")]
        return cropping.fill_buckets(files, [""], files, config)

    return run


def _nodes(folder: Path, side: int) -> Callable[[], list]:
    folder_paths, images = importlib.import_module("folder_paths"), importlib.import_module("pack.nodes.images")
    folder_paths.set_input_directory(str(folder))
    shown = tempfile.TemporaryDirectory()  # goes when the process ends
    frames = {"width": side, "height": side, "buckets_step": 128, "min_length": side // 2, "max_ratio": 2.0}
    copies = {"sub_image_num": 0, "mirroring": False, "disable_upscale": False, "repeats": 1}

    def run() -> list:
        folder_paths.set_temp_directory(shown.name)
        pictures, masks, captions, names = images.LoadImageFolder.execute(".", False, "caption file", "").args
        values = {name: [value] for name, value in (frames | copies).items()}
        return images.BucketImages.execute(pictures, captions, masks=masks, names=names, **values).args[0]

    return run


CONTENDERS = {"pillow": _pillow, "nodes": _nodes, "engine": _engine}


def table(measured: dict[tuple[str, int], Measured]) -> list[str]:
    """Return the lines of a table."""
    lines = []
    for (name, count), found in measured.items():
        share = found.per_second / measured["pillow", count].per_second
        span = f"{min(found.seconds):.1f} to {max(found.seconds):.1f}"
        seconds, peak = statistics.median(found.seconds), statistics.median(found.peaks) / 2**20
        lines.append(
            f"{count:>5} photographs  {name:<7} {seconds:6.1f} s ({span})  {share:5.2f} of Pillow  {peak:.0f} MB"
        )
    return lines


if __name__ == "__main__":  # one contender, in a process of its own
    print(json.dumps(_run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))))
