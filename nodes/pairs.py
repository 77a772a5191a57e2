"""Load Image Pairs: a folder of pictures before and after, for ADDifT."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.buckets import BucketConfig
from ..trainer.cropping import fill_buckets
from ..trainer.images import load_folder, pair_by_suffix
from ..trainer.picture import to_unit_range
from .allowed import check_file, find_folder
from .images import LoadImageFolder, folder_inputs, frame_inputs


class LoadImagePairs(io.ComfyNode):
    """Reads the pairs of a folder and crops both pictures of each alike."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainTrain_LoadImagePairs",
            display_name="Load Image Pairs",
            category="TrainTrain",
            description="Loads pictures before and after from a folder: NAME.png and NAME_target.png. Each output is a list.",
            search_aliases=["image pairs", "before after", "multi-addift", "dataset", "difference"],
            inputs=[
                *folder_inputs(),
                io.String.Input(
                    "suffix",
                    default="_target",
                    tooltip="What the name of a target has more than its original's: cat.png and cat_target.png.",
                ),
                *frame_inputs(),
            ],
            outputs=[
                io.Image.Output("originals", is_output_list=True, tooltip="The pictures without the suffix, cropped."),
                io.Image.Output(
                    "targets", is_output_list=True, tooltip="Their partners in the same order, cropped alike."
                ),
                io.String.Output(
                    "captions", is_output_list=True, tooltip="One caption per pair: that of its original."
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
        suffix: str,
        width: int,
        height: int,
        buckets_step: int,
        min_length: int,
        max_ratio: float,
    ) -> io.NodeOutput:
        loaded = load_folder(find_folder(folder), include_subfolders, captions, trigger_word, check_file)
        frames = BucketConfig(width, height, buckets_step, min_length, max_ratio)
        pairs = pair_by_suffix(loaded, suffix)
        images = [image for pair in pairs for image in pair]
        files = [image.file for image in images]
        cropped = fill_buckets(files, [""], None, frames, [file.path.name for file in files])
        pixels = [to_unit_range(image.pixels)[None] for image in cropped]
        return io.NodeOutput(pixels[0::2], pixels[1::2], [original.caption for original, _ in pairs])

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None = None, include_subfolders: bool | None = None, **unused: object
    ) -> str:
        return LoadImageFolder.fingerprint_inputs(folder, include_subfolders)
