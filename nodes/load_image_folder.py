"""Load Image Folder: every image of a folder with its caption and mask."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.dataset.image_captions import CAPTION_SOURCES
from ..trainer.dataset.image_folder import fingerprint_folder, load_folder
from ..trainer.dataset.tensor_on_disk import alpha_on_disk, pixels_on_disk
from .input_path import check_file, find_folder


class LoadImageFolder(io.ComfyNode):
    """Loads all images of a folder with their captions and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoadImageFolder",
            display_name="Load Image Folder",
            category="TrainTrain",
            description="Loads every image in a folder with its caption and mask. Each output is a list.",
            search_aliases=["dataset", "load images from directory", "training images", "captions", "image folder"],
            inputs=[
                *folder_inputs(),
                io.Boolean.Input(
                    "kohya_folders",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="On: folder names such as 10_ohwx cat are read as kohya's scripts do: each image 10 times per"
                    " epoch, and ohwx cat as its caption if it has no caption file. Connect repeats to Bucket Images.",
                ),
                io.Boolean.Input(
                    "caption_lines",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="On: each line of a caption file is a caption of its own, with the trigger word in front. Train LoRA"
                    " draws one of them in each step.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, upright, each in its own size."),
                io.Mask.Output(
                    "masks",
                    is_output_list=True,
                    tooltip="The alpha channel: 1 = train here. 1 everywhere if the image has no alpha.",
                ),
                io.String.Output("captions", is_output_list=True, tooltip="One caption per image."),
                io.String.Output(
                    "names", is_output_list=True, tooltip="File names, for the report and errors of Bucket Images."
                ),
                io.Int.Output(
                    "repeats",
                    is_output_list=True,
                    tooltip="Times each image is used per epoch, for Bucket Images. 1 unless kohya_folders is on.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        folder: str,
        include_subfolders: bool,
        captions: str,
        trigger_word: str,
        kohya_folders: bool = False,
        caption_lines: bool = False,
    ) -> io.NodeOutput:
        root = find_folder(folder)
        loaded = load_folder(root, include_subfolders, captions, trigger_word, check_file, kohya_folders, caption_lines)
        return io.NodeOutput(
            [pixels_on_disk(image.file) for image in loaded],
            [alpha_on_disk(image.file) for image in loaded],
            [image.caption for image in loaded],
            [image.file.path.relative_to(root).as_posix() for image in loaded],
            [image.repeats for image in loaded],
        )

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, include_subfolders: bool | None = None, **unused: object
    ) -> str:
        """Return a text that changes when a file of the folder does; "" if the folder's name comes by wire (None)."""
        try:
            return fingerprint_folder(find_folder(folder), include_subfolders is not False) if folder else ""
        except ValueError:
            return ""  # execute reports what is wrong with the folder


def folder_inputs() -> list[io.Input]:
    """Return the inputs that choose which images are loaded and where their captions come from."""
    return [
        io.String.Input(
            "folder",
            default="training_images",
            tooltip="Folder inside ComfyUI's input folder, for example my_cat. Full paths work inside the input and"
            " output folders, and inside folders listed under training_images in extra_model_paths.yaml.",
        ),
        io.Boolean.Input("include_subfolders", default=True, tooltip="On: images in subfolders are loaded too."),
        io.Combo.Input(
            "captions",
            options=list(CAPTION_SOURCES),
            default="caption file",
            tooltip="Where captions come from. caption file: NAME.txt or else NAME.caption next to the image."
            " file name: the name up to _id_, with underscores turned into commas."
            " trigger word only: nothing but the trigger word.",
        ),
        io.String.Input(
            "trigger_word",
            default="",
            tooltip="Put in front of every caption, separated by a comma. May be empty.",
        ),
    ]
