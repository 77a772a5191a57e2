"""Pairs the images of a folder by the suffix of their names, as in cat.png and cat_target.png."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from .image_folder import CaptionedImage

Key = tuple[Path, str]  # folder and the name without suffix and extension


def pair_by_suffix(
    images: Sequence[CaptionedImage], suffix: str, folder: Path
) -> list[tuple[CaptionedImage, CaptionedImage]]:
    """Return (original, target) pairs: NAME and NAME<suffix> in the same folder, of whatever formats.

    folder: that the images were loaded from; errors name files by their paths in it

    Raises ValueError naming every image without a partner, with the name of another one, or of another size than its
    partner.
    """
    if not suffix:
        raise ValueError("The suffix is empty. Enter what the file names of the targets end with, such as _target.")
    originals = _by_name((image for image in images if not _stem(image).endswith(suffix)), "", folder)
    targets = _by_name((image for image in images if _stem(image).endswith(suffix)), suffix, folder)
    alone = sorted(_name((originals | targets)[key], folder) for key in originals.keys() ^ targets.keys())
    if alone:
        raise ValueError(
            f"No partner with the suffix {suffix!r:.200} for {', '.join(alone)}."
            f" Name the target of each image NAME{suffix:.200}."
        )
    pairs = [(image, targets[key]) for key, image in originals.items()]
    wrong = [f"{_name(a, folder)} and {_name(b, folder)}" for a, b in pairs if a.file.size != b.file.size]
    if wrong:
        raise ValueError(f"The two images of a pair differ in size: {'; '.join(wrong)}. Resize or crop one of them.")
    return pairs


def _by_name(images: Iterable[CaptionedImage], suffix: str, folder: Path) -> dict[Key, CaptionedImage]:
    found: dict[Key, list[CaptionedImage]] = {}
    for image in images:
        found.setdefault((image.file.path.parent, _stem(image).removesuffix(suffix)), []).append(image)
    doubles = [" and ".join(_name(image, folder) for image in group) for group in found.values() if len(group) > 1]
    if doubles:
        raise ValueError(
            f"Images with the same name but for the format: {'; '.join(doubles)}."
            " A pair has one original and one target: rename or remove the others."
        )
    return {key: group[0] for key, group in found.items()}


def _stem(image: CaptionedImage) -> str:
    return image.file.path.stem


def _name(image: CaptionedImage, folder: Path) -> str:
    return image.file.path.relative_to(folder).as_posix()
