"""Train iLECO: makes one prompt act like another."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.denoiser import Conditioning
from ..trainer.lora_file import METHOD
from ..trainer.methods.closed_form import ClosedForm, Move
from ..trainer.methods.ileco import ILECO
from . import host
from .closed_form_start import NOTHING, is_closed_form, start_input
from .input_checks import size_inputs
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


class TrainILECO(TrainingNode, io.ComfyNode):
    """Trains a LoRA that makes one prompt act like another."""

    preset = Preset(NetworkConfig(rank=4, alpha=8.0), TrainingConfig(steps=300, batch_size=2, learning_rate=5e-4))

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs, outputs and texts."""
        return io.Schema(
            node_id="TrainTrain_TrainILECO",
            display_name="Train iLECO",
            category="TrainTrain",
            description="Makes one prompt act like another, or like an empty one: erases or replaces a concept, from prompts alone.",
            search_aliases=[
                "leco",
                "ileco",
                "concept erase",
                "concept replace",
                "concept editing",
                "unlearn",
                "slider",
            ],
            inputs=[
                model_input("change"),
                io.Conditioning.Input(
                    "original",
                    tooltip="The prompt to change. Several phrasings, joined with Conditioning (Combine), generalize better than one.",
                ),
                io.Conditioning.Input(
                    "target",
                    tooltip="The prompt it should act like. An empty prompt erases the concept. One for all originals, or one per original in the same order.",
                ),
                *size_inputs(
                    "Pixels. Size of the images that the LoRA is for: 512 for SD 1.5, 1024 for SDXL and later. Smaller is faster."
                ),
                *training_inputs(cls.preset, "300 to 500.", "5e-4 is usual, 1e-4 to 1e-3 works.", least_steps=0),
                io.Int.Input(
                    "denoise_steps",
                    default=0,
                    min=0,
                    max=100,
                    advanced=True,
                    tooltip="Denoising steps. 0 is instant: it trains on pure noise. 10 to 20 trains on partly denoised images of the original prompt, as LECO does, and is several times slower.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0,
                    max=10,
                    step=0.1,
                    advanced=True,
                    tooltip="How far to go beyond the target, away from the original (no unit). 0 acts like the target; 1 to 2 erases a concept until it appears less often than by chance.",
                ),
                io.Conditioning.Input(
                    "preserve",
                    optional=True,
                    tooltip="One or more prompts that must not change, such as concepts close to the erased one. Doubles the time per step.",
                ),
                *resume_inputs(),
                start_input(),
            ],
            outputs=[model_output(), *lora_outputs()],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(
        cls,
        model,
        original,
        target,
        width,
        height,
        denoise_steps,
        guidance,
        preserve=None,
        network=None,
        settings=None,
        lora=None,
        start=NOTHING,
        **training,
    ) -> host.Job:
        """Pair the prompts. Raises ValueError if the inputs do not fit together."""
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        solve = is_closed_form(start, config.steps, lora)
        host.check_network(model, network)
        pairs = _pair_prompts(host.read_conditioning(original, "original"), host.read_conditioning(target, "target"))
        preserved = host.read_conditioning(preserve, "preserve") if preserve is not None else []
        shape = host.latent_shape(model, width, height)
        method = ILECO(pairs, preserved, shape, denoise_steps, guidance, config)
        moves = [Move(original, target, original) for original, target in pairs]
        solution = ClosedForm(moves, preserved, 1 + guidance, shape[0]) if solve else None
        return host.Job(model, network, config, method, {METHOD: "iLECO"}, lora=lora, start=solution)


def _pair_prompts(
    originals: list[Conditioning], targets: list[Conditioning]
) -> list[tuple[Conditioning, Conditioning]]:
    """Return (original, target) pairs: in order, or with one target for all."""
    if len(targets) not in (1, len(originals)):
        raise ValueError(
            f"original has {len(originals)} prompts and target has {len(targets)}: connect one target for all originals, or "
            "one per original."
        )
    return list(zip(originals, targets * len(originals) if len(targets) == 1 else targets))
