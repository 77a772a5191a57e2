"""Load Image Pairs: before and after images from a folder, for Train ADDifT."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.dataset.buckets import BucketConfig
from ..trainer.dataset.fill_buckets import fill_buckets
from ..trainer.dataset.image_decoding import to_unit_range
from ..trainer.dataset.image_folder import load_folder
from ..trainer.dataset.image_pairs import pair_by_suffix
from .bucket_images import bucket_inputs, max_length_input
from .input_path import check_file, find_folder
from .load_image_folder import LoadImageFolder, folder_inputs


class LoadImagePairs(io.ComfyNode):
    """Loads the image pairs of a folder and crops both images of a pair alike."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoadImagePairs",
            display_name="Load Image Pairs",
            category="TrainTrain",
            description="Loads pairs of before and after images from a folder: NAME.png and NAME_target.png. Each output is a list.",
            search_aliases=["image pairs", "before after", "multi-addift", "dataset", "difference"],
            inputs=[
                *folder_inputs(),
                io.String.Input(
                    "suffix",
                    default="_target",
                    tooltip="What the target's file name adds to the original's: cat.png and cat_target.png.",
                ),
                *bucket_inputs(),
                max_length_input(),
            ],
            outputs=[
                io.Image.Output("originals", is_output_list=True, tooltip="The images without the suffix, cropped."),
                io.Image.Output(
                    "targets", is_output_list=True, tooltip="Their targets, in the same order and cropped alike."
                ),
                io.String.Output("captions", is_output_list=True, tooltip="One caption per pair, from its original."),
            ],
        )

    @classmethod
    def execute(
        cls,
        folder: str,
        include_subfolders: bool,
        captions: str,
        trigger_word: str,
        suffix: str,
        width: int,
        height: int,
        buckets_step: int,
        min_length: int,
        max_ratio: float,
        max_length: int = 0,
    ) -> io.NodeOutput:
        root = find_folder(folder)
        loaded = load_folder(root, include_subfolders, captions, trigger_word, check_file)
        config = BucketConfig(width, height, buckets_step, min_length, max_ratio, max_length=max_length)
        pairs = pair_by_suffix(loaded, suffix, root)
        files = [image.file for pair in pairs for image in pair]
        cropped = fill_buckets(files, [""], None, config, [file.path.relative_to(root).as_posix() for file in files])
        pixels = [to_unit_range(image.pixels)[None] for image in cropped]
        return io.NodeOutput(pixels[0::2], pixels[1::2], [original.caption for original, _ in pairs])

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, include_subfolders: bool | None = None, **unused: object
    ) -> str:
        """Return a text that changes when a file of the folder does."""
        return LoadImageFolder.fingerprint_inputs(folder, include_subfolders)
