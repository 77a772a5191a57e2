"""Bucket Images: crops images of any size to a few resolutions, so that they can be trained in batches."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..trainer.dataset.bucket_report import report_buckets
from ..trainer.dataset.buckets import BucketConfig
from ..trainer.dataset.contact_sheet import draw_contact_sheet
from ..trainer.dataset.fill_buckets import fill_buckets
from ..trainer.dataset.image_on_disk import ImageLike, ImageOnDisk
from ..trainer.dataset.tensor_on_disk import TensorOnDisk
from .input_checks import check_values

TrainingImages = io.Custom("TRAINING_IMAGES")  # a list of TrainingImage, or of EncodedImage
DEFAULTS = BucketConfig()


class BucketImages(io.ComfyNode):
    """Crops images to the bucket resolutions they are trained at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_BucketImages",
            display_name="Bucket Images",
            category="TrainTrain",
            description="Resizes and crops each image to the bucket resolution nearest to its aspect ratio. A batch holds one resolution.",
            search_aliases=["aspect ratio bucket", "dataset", "crop", "resize", "training images", "mirror"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Images of any size, as a list or in batches."),
                io.String.Input(
                    "captions", force_input=True, tooltip="One caption per image, or a single one for all of them."
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="One per image, 1 = train here. Unconnected: the whole image."
                ),
                *bucket_inputs(),
                *_copy_inputs(),
                io.String.Input(
                    "names",
                    optional=True,
                    force_input=True,
                    tooltip="Names for the report and errors. Unconnected: image 1, 2, ...",
                ),
                max_length_input(),
            ],
            outputs=[
                TrainingImages.Output("training_images", tooltip="For Train LoRA: pixels, captions and masks."),
                io.Image.Output("preview", tooltip="A contact sheet of all training images, bucket by bucket."),
                io.String.Output("report", tooltip="Which image went into which bucket, and which images to check."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        captions: list[str],
        width: list[int],
        height: list[int],
        buckets_step: list[int],
        min_length: list[int],
        max_ratio: list[float],
        sub_image_num: list[int],
        mirroring: list[bool],
        disable_upscale: list[bool],
        repeats: list[int],
        masks: list[torch.Tensor] | None = None,
        names: list[str] | None = None,
        max_length: list[int] | None = None,
    ) -> io.NodeOutput:
        check_values(cls, {"images": images, "masks": masks or [], "repeats": repeats})
        sides = width[0], height[0], buckets_step[0], min_length[0]
        copies = sub_image_num[0], mirroring[0], disable_upscale[0], repeats[0]
        config = BucketConfig(*sides, max_ratio[0], *copies, max_length[0] if max_length else 0)
        single_images = [image for batch in images for image in _split_batch(batch)]
        single_masks = None if masks is None else [mask for batch in masks for mask in _split_batch(batch)]
        filled = fill_buckets(single_images, captions, single_masks, config, names, repeats)
        sheet = draw_contact_sheet(filled)
        files = (image for image in (*single_images, *(single_masks or ())) if isinstance(image, ImageOnDisk))
        report = report_buckets(filled, [file.folder_note for file in files])
        return io.NodeOutput(filled, sheet, report, ui=ui.PreviewImage(sheet))


def bucket_inputs() -> list[io.Input]:
    """Return the inputs that say which bucket resolutions there are."""
    sizes = {"min": 8, "max": 8192, "step": 8}
    return [
        io.Int.Input(
            "width",
            default=DEFAULTS.width,
            **sizes,
            tooltip="Pixels. width x height is the largest area of a bucket: 512 for SD 1.5, 1024 for SDXL and later.",
        ),
        io.Int.Input(
            "height",
            default=DEFAULTS.height,
            **sizes,
            tooltip="Pixels. Portrait or landscape makes no difference: there are buckets for both.",
        ),
        io.Int.Input(
            "buckets_step",
            default=DEFAULTS.step,
            **sizes,
            tooltip="Pixels between one side length and the next. Smaller: less cropping, but more buckets to fill.",
        ),
        io.Int.Input(
            "min_length",
            default=DEFAULTS.min_length,
            **sizes,
            tooltip="Pixels, the shortest side of a bucket. Half of width is a good value.",
        ),
        io.Float.Input(
            "max_ratio",
            default=DEFAULTS.max_ratio,
            min=1.0,
            max=16.0,
            step=0.1,
            advanced=True,
            tooltip="Largest aspect ratio of a bucket: longer side / shorter side (no unit).",
        ),
    ]


def max_length_input() -> io.Input:
    """Return the input for the longest side of a bucket."""
    return io.Int.Input(
        "max_length",
        default=DEFAULTS.max_length,
        min=0,
        max=8192,
        step=8,
        optional=True,
        tooltip="Pixels, the longest side of a bucket. Larger than width and height: wide and tall images use the full"
        " area, as SDXL was trained: 1536 with 1024 x 1024. 0 = the longer of width and height.",
    )


def _copy_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "sub_image_num",
            default=DEFAULTS.sub_image_num,
            min=0,
            max=64,
            advanced=True,
            tooltip="Number of smaller buckets each image goes into as well. 0 = only its main bucket.",
        ),
        io.Boolean.Input(
            "mirroring",
            default=DEFAULTS.mirroring,
            tooltip="On: adds a horizontally flipped copy of each image. Off for text, logos and asymmetric faces.",
        ),
        io.Boolean.Input(
            "disable_upscale",
            default=DEFAULTS.disable_upscale,
            advanced=True,
            tooltip="On: buckets larger than the image are skipped. An image that fits no bucket is an error.",
        ),
        io.Int.Input(
            "repeats",
            default=DEFAULTS.repeats,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Times each image is used per epoch. Matters when several datasets are trained together: see more_training_images of Train LoRA. Load Image Folder's repeats can be connected, one per image.",
        ),
    ]


def _split_batch(batch: torch.Tensor) -> list[ImageLike]:
    """Return the images (H, W, 3) or masks (H, W) of a batch; one that is still on disk stays there."""
    if isinstance(batch, TensorOnDisk) and batch.file:
        return [batch.file]
    return list(batch[..., :3] if batch.dim() == 4 else batch)
