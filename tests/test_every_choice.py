"""Every choice of network, layers, loss and precision trains: ten steps on one picture lower the loss."""

from __future__ import annotations

import pytest
import torch
from pack.nodes import host
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.config import ELEMENTS, LOSSES, NETWORK_TYPES, PRECISIONS, NetworkConfig, TrainingConfig
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.methods.denoise import Denoise
from pack.trainer.training_example import TrainingExample
from train_job import train_job

LAYERS = {"Full": 48, "CrossAttention": 16, "SelfAttention": 16}  # of the four attention blocks of Shapes


@pytest.fixture(scope="module")
def example(shapes) -> TrainingExample:
    """A picture that its caption does not describe, so that there is much to learn."""
    model, clip, vae = shapes
    picture = pixels([Scene("purple", "star", "gray").draw()]).movedim(1, -1)[0]
    (latent,), (prompt,) = host.encode_images(vae, model, [picture]), host.HostTextEncoder(clip).encode(["yellow"])
    return TrainingExample(latent, prompt)


@pytest.mark.parametrize(
    "network", [*({"network_type": t} for t in NETWORK_TYPES), *({"element": e} for e in ELEMENTS)]
)
def test_every_network_learns(shapes, example, network):
    lora = learns(shapes, example, NetworkConfig(rank=4, alpha=4, **network))
    if "element" in network:
        assert sum(key.endswith(".alpha") for key in lora) == LAYERS[network["element"]]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns(shapes, example, loss):
    learns(shapes, example, loss=loss)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_learns_and_computes_in_its_type(shapes, example, precision):
    seen = set()
    layer = shapes[0].model.diffusion_model.middle_block[1].proj_in
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    learns(shapes, example, precision=precision, batch_size=1)  # fp16 is slow on a CPU
    handle.remove()
    assert seen == {{"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)}


def learns(shapes, example, network=NetworkConfig(rank=4, alpha=4), **settings):
    """Train ten steps at one noise level and return the LoRA; its last losses must be well below its first."""
    values = {"steps": 10, "batch_size": 2, "learning_rate": 1e-2, "lr_scheduler": "constant", "seed": 3}
    config = TrainingConfig(**{**values, "min_timestep": 600, "max_timestep": 601, **settings})
    batches = draw_batches([0], config.batch_size, torch.Generator().manual_seed(0), [2])
    method = Denoise([example], batches, config)
    with torch.inference_mode():
        lora, history = train_job(host.Job(shapes[0], network, config, method, {}))
    assert sum(history.losses[-3:]) < 0.7 * sum(history.losses[:3]), history
    return lora
