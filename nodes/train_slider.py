"""Train Slider: learns the direction from one prompt to another."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.lora_file import METHOD
from ..trainer.methods.closed_form import ClosedForm, Move
from ..trainer.methods.slider import Slider
from . import host
from .closed_form_start import NOTHING, is_closed_form, start_input
from .input_checks import size_inputs
from .poles import match_poles
from .resume import resume_inputs
from .training_node import (
    HIDDEN,
    Preset,
    TrainingNode,
    lora_outputs,
    merge_configs,
    model_input,
    model_output,
    training_inputs,
)


class TrainSlider(TrainingNode, io.ComfyNode):
    """Trains a slider between two prompts."""

    preset = Preset(NetworkConfig(rank=4, alpha=4.0), TrainingConfig(steps=400, batch_size=2, learning_rate=5e-4))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainSlider",
            display_name="Train Slider",
            category="TrainTrain",
            description="Learns the direction from one prompt to another, such as from young to old: a slider for both directions, from prompts alone.",
            search_aliases=["concept slider", "text slider", "leco", "age slider", "attribute", "direction"],
            inputs=[
                model_input("train"),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Where positive strengths lead: a very old person. Several phrasings, joined with Conditioning (Combine), generalize better than one.",
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="Where negative strengths lead: a very young person. One for all of positive, or one each in the same order.",
                ),
                *size_inputs(
                    "Pixels. Size of the images that the LoRA is for: 512 for SD 1.5, 1024 for SDXL and later. Smaller is faster."
                ),
                *training_inputs(
                    cls.preset,
                    "300 to 1000, an even number; after the closed form 0 to 50.",
                    "5e-4 is usual, 1e-4 to 1e-3 works.",
                    least_steps=0,
                ),
                io.Float.Input(
                    "guidance",
                    default=1.0,
                    min=0.1,
                    max=20,
                    step=0.1,
                    tooltip="How far strength 1 moves, as a multiple of the difference of the two prompts (no unit). 0.5 to 4 is usual.",
                ),
                io.Conditioning.Input(
                    "target",
                    optional=True,
                    tooltip="What the slider acts on, in words that fit both ends: a person. Unconnected, or an empty prompt: everything. One for all, or one each.",
                ),
                io.Conditioning.Input(
                    "preserve",
                    optional=True,
                    tooltip="What must not move along: male, female. Each prompt is added to both ends and to the target; they take turns.",
                ),
                io.Int.Input(
                    "denoise_steps",
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Denoising steps. 0 trains on pure noise, the fastest. 10 to 20 trains on partly denoised images of the target and is several times slower.",
                ),
                start_input(),
                *resume_inputs(),
            ],
            outputs=[model_output(), *lora_outputs()],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        model,
        positive,
        negative,
        width,
        height,
        guidance,
        denoise_steps,
        target=None,
        preserve=None,
        network=None,
        settings=None,
        lora=None,
        start=NOTHING,
        **training,
    ) -> host.Job:
        """Match the prompts. Raises ValueError if the inputs do not fit together."""
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        solve = is_closed_form(start, config.steps, lora)
        host.check_network(model, network)
        prompts = {"positive": positive, "negative": negative, "target": target, "preserve": preserve}
        read = {name: host.read_conditioning(each, name) for name, each in prompts.items() if each is not None}
        poles, shape = match_poles(**read), host.latent_shape(model, width, height)
        method = Slider(poles, shape, denoise_steps, guidance, config)
        named = poles if target is not None or preserve is not None else []  # a blank prompt has no token to change
        moves = [Move(each.acts_on, each.positive, each.negative) for each in named]
        solution = ClosedForm(moves, [], guidance, shape[0]) if solve else None
        return host.Job(model, network, config, method, {METHOD: "slider"}, lora=lora, start=solution)
