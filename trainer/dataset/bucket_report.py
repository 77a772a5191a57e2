"""Reports in a few lines which image went into which bucket, and which images to check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .buckets import Resolution, format_megapixels, format_size, from_tall_to_wide
from .image_captions import KOHYA_FOLDER
from .training_image import TrainingImage

NAMES_PER_LINE = 20
MUCH_CROPPED = 0.25  # more of an image cropped away is reported


def report_buckets(images: Sequence[TrainingImage], folder_notes: Iterable[str] = ()) -> str:
    """Return each bucket with its images, then those to check: enlarged, cropped a lot, masked, without a caption.

    folder_notes: what else to say, of the folders that the images come from; repeated ones are said once
    """
    originals = [image for image in images if not image.mirrored]
    sources = list(dict.fromkeys(image.name for image in originals))
    buckets = group_by_resolution(images)
    total = f"{_count(images, 'training image')} in {_count(buckets, 'bucket')}"
    head = f"{_count(sources, 'image')} -> {total}; {sum(image.repeats for image in images)} per epoch"
    lines = [
        f"{describe_bucket(key, bucket, format_megapixels(key))}: {_list_names(bucket, lambda i: '')}"
        for key, bucket in buckets.items()
    ]
    return "\n".join([head, *lines, *_remarks(originals), *filter(None, dict.fromkeys(folder_notes))])


def group_by_resolution(images: Sequence[TrainingImage]) -> dict[Resolution, list[TrainingImage]]:
    """Return the images of each resolution in their order, the resolutions from tall to wide."""
    resolutions = from_tall_to_wide({image.resolution for image in images})
    return {resolution: [image for image in images if image.resolution == resolution] for resolution in resolutions}


def describe_bucket(resolution: Resolution, bucket: Sequence[TrainingImage], area: str = "") -> str:
    """Return a bucket's resolution, area if given, and count: "512x640 (0.33 MP), 2 images (1 mirrored)"."""
    mirrored = sum(image.mirrored for image in bucket)
    size = format_size(resolution) + (f" ({area})" if area else "")
    return f"{size}, {_count(bucket, 'image')}" + (f" ({mirrored} mirrored)" if mirrored else "")


def _remarks(images: list[TrainingImage]) -> list[str]:
    enlarged, cropped = [i for i in images if i.scale > 1], [i for i in images if i.cropped_fraction > MUCH_CROPPED]
    remarks = {
        "enlarged, may be blurry": (enlarged, lambda i: f" {i.scale:.2g}x at {format_size(i.resolution)}"),
        f"more than {MUCH_CROPPED:.0%} cropped away": (
            cropped,
            lambda i: f" {i.cropped_fraction:.0%} at {format_size(i.resolution)}",
        ),
        "trained only inside the mask": ([i for i in images if i.mask is not None], lambda i: ""),
        "without a caption": ([i for i in images if not i.caption], lambda i: ""),
        "in folders named like kohya's, with repeats and a caption: turn on kohya_folders in Load Image Folder, and connect its repeats": (
            [i for i in images if i.repeats == 1 and KOHYA_FOLDER.match(i.name) and "/" in i.name],
            lambda i: "",
        ),
    }
    return [f"{remark}: {_list_names(found, detail)}" for remark, (found, detail) in remarks.items() if found]


def _list_names(images: Sequence[TrainingImage], detail: Callable[[TrainingImage], str]) -> str:
    names = list(dict.fromkeys(f"{image.name}{detail(image)}" for image in images))
    more = f" and {len(names) - NAMES_PER_LINE} more" if len(names) > NAMES_PER_LINE else ""
    return ", ".join(names[:NAMES_PER_LINE]) + more


def _count(items: Sequence[object] | dict, noun: str) -> str:
    return f"{len(items)} {noun}" + ("" if len(items) == 1 else "s")
