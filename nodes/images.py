"""The picture side of a training graph: a folder goes in, training images in frames come out."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..trainer.bucket_report import draw_contact_sheet, report_buckets
from ..trainer.buckets import BucketConfig
from ..trainer.cropping import Picture, fill_buckets
from ..trainer.images import CAPTION_SOURCES, fingerprint_folder, load_folder
from ..trainer.on_disk import TensorOnDisk, alpha_on_disk, pixels_on_disk
from .allowed import check_file, find_folder
from .inputs import check_values

TrainingImages = io.Custom("TRAINING_IMAGES")  # a list of trainer.data.TrainingImage
DEFAULTS = BucketConfig()


class LoadImageFolder(io.ComfyNode):
    """Reads all pictures of a folder with their captions and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoadImageFolder",
            display_name="Load Image Folder",
            category="TrainTrain",
            description="Loads every picture of a folder with its caption and mask. Each output is a list.",
            search_aliases=["dataset", "load images from directory", "training images", "captions", "image folder"],
            inputs=folder_inputs(),
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The pictures, upright, each in its own size."),
                io.Mask.Output("masks", is_output_list=True, tooltip="1 = train here: the alpha, or 1 without alpha."),
                io.String.Output("captions", is_output_list=True, tooltip="One caption per picture."),
                io.String.Output("names", is_output_list=True, tooltip="File names, for messages of Bucket Images."),
            ],
        )

    @classmethod
    def execute(cls, folder: str, include_subfolders: bool, captions: str, trigger_word: str) -> io.NodeOutput:
        root = find_folder(folder)
        loaded = load_folder(root, include_subfolders, captions, trigger_word, check_file)
        return io.NodeOutput(
            [pixels_on_disk(image.file) for image in loaded],
            [alpha_on_disk(image.file) for image in loaded],
            [image.caption for image in loaded],
            [image.file.path.relative_to(root).as_posix() for image in loaded],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, include_subfolders: bool | None = None, **unused: object
    ) -> str:
        """Return what changes when a file of the folder does; a wired folder (None) follows its wire alone."""
        try:
            return fingerprint_folder(find_folder(folder), include_subfolders is not False) if folder else ""
        except ValueError:
            return ""  # execute says what is wrong with the folder


class BucketImages(io.ComfyNode):
    """Crops pictures to the frames they are trained in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_BucketImages",
            display_name="Bucket Images",
            category="TrainTrain",
            description="Scales and crops each picture to the frame nearest to its shape. A batch holds one frame.",
            search_aliases=["aspect ratio bucket", "dataset", "crop", "resize", "training images", "mirror"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="Pictures of any size; lists and batches both work."),
                io.String.Input(
                    "captions", force_input=True, tooltip="One caption per picture, or a single one for all of them."
                ),
                io.Mask.Input("masks", optional=True, tooltip="One per picture, 1 = train here. Unwired: everywhere."),
                *frame_inputs(),
                *_copy_inputs(),
                io.String.Input(
                    "names", optional=True, force_input=True, tooltip="Names for the report; unwired: image 1, 2, ..."
                ),
            ],
            outputs=[
                TrainingImages.Output("training_images", tooltip="For Train LoRA: pixels, captions and masks."),
                io.Image.Output("preview", tooltip="A contact sheet of all training images by frame."),
                io.String.Output("report", tooltip="Which picture went to which frame, and what to look at."),
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
    ) -> io.NodeOutput:
        check_values(cls, {"images": images, "masks": masks or []})
        sides = width[0], height[0], buckets_step[0], min_length[0]
        config = BucketConfig(*sides, max_ratio[0], sub_image_num[0], mirroring[0], disable_upscale[0], repeats[0])
        pictures = [picture for batch in images for picture in _take_apart(batch)]
        flat_masks = None if masks is None else [mask for batch in masks for mask in _take_apart(batch)]
        filled = fill_buckets(pictures, captions, flat_masks, config, names)
        sheet = draw_contact_sheet(filled)
        return io.NodeOutput(filled, sheet, report_buckets(filled), ui=ui.PreviewImage(sheet))


def folder_inputs() -> list[io.Input]:
    """Return the inputs that say which pictures are read, and where their captions come from."""
    return [
        io.String.Input(
            "folder",
            default="training_images",
            tooltip="Folder inside ComfyUI's input folder, for example my_cat. Full paths work inside the input"
            " and output folders and in folders listed under training_images in extra_model_paths.yaml.",
        ),
        io.Boolean.Input("include_subfolders", default=True, tooltip="On: pictures in folders below count too."),
        io.Combo.Input(
            "captions",
            options=list(CAPTION_SOURCES),
            default="caption file",
            tooltip="Where the words come from. caption file: NAME.txt, else NAME.caption, beside the picture."
            " file name: the name up to _id_, with a comma for each underscore. trigger word only: no others.",
        ),
        io.String.Input(
            "trigger_word",
            default="",
            tooltip="Word or words put in front of every caption, joined with a comma; may stay empty.",
        ),
    ]


def frame_inputs() -> list[io.Input]:
    """Return the inputs that say which frames pictures are cropped to."""
    sizes = {"min": 8, "max": 8192, "step": 8}
    return [
        io.Int.Input(
            "width",
            default=DEFAULTS.width,
            **sizes,
            tooltip="Pixels. width x height is the largest area of a frame: 512 for SD 1.5, 1024 for SDXL and later.",
        ),
        io.Int.Input(
            "height",
            default=DEFAULTS.height,
            **sizes,
            tooltip="Pixels. Upright or wide does not matter: frames are made for both.",
        ),
        io.Int.Input(
            "buckets_step",
            default=DEFAULTS.step,
            **sizes,
            tooltip="Pixels between one frame side and the next. Smaller: less cropping, but more frames to fill.",
        ),
        io.Int.Input(
            "min_length",
            default=DEFAULTS.min_length,
            **sizes,
            tooltip="Pixels, the shortest side of a frame. Half of width suits most.",
        ),
        io.Float.Input(
            "max_ratio",
            default=DEFAULTS.max_ratio,
            min=1.0,
            max=16.0,
            step=0.1,
            advanced=True,
            tooltip="Longest shape of a frame, longer side / shorter side (no unit).",
        ),
    ]


def _take_apart(batch: torch.Tensor) -> list[Picture]:
    """Return the pictures (H, W, 3) or masks (H, W) of a batch; one that is still on disk stays there."""
    if isinstance(batch, TensorOnDisk) and batch.file:
        return [batch.file]
    return list(batch[..., :3] if batch.dim() == 4 else batch)


def _copy_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "sub_image_num",
            default=DEFAULTS.sub_image_num,
            min=0,
            max=64,
            advanced=True,
            tooltip="Number of smaller frames each picture goes to as well; 0 = only its main one.",
        ),
        io.Boolean.Input(
            "mirroring",
            default=DEFAULTS.mirroring,
            tooltip="On: a flipped copy of each picture. Off for writing, logos and faces that are not symmetrical.",
        ),
        io.Boolean.Input(
            "disable_upscale",
            default=DEFAULTS.disable_upscale,
            advanced=True,
            tooltip="On: frames larger than the picture are left out; a picture that fits none is an error.",
        ),
        io.Int.Input(
            "repeats",
            default=DEFAULTS.repeats,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Times each picture counts in one epoch; matters when several sets are trained together.",
        ),
    ]
