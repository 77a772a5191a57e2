"""The host's own training nodes and ours, wired together."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_dataset import MakeTrainingDataset, ResolutionBucket
from comfy_extras.nodes_train import LoraModelLoader, LossGraphNode, SaveLoRA
from pack.nodes.encoded import EncodedTrainingImages
from pack.nodes.train import TrainLoRA
from pack.tools.shapes.train import pixels
from pack.tools.shapes.world import Scene
from pack.trainer.config import NetworkConfig
from pack.trainer.data import TrainingImage

CAPTIONS = ["red circle", "blue square", "a green triangle"]


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    scenes = [Scene("red", "circle", "white"), Scene("blue", "square", "gray"), Scene("green", "triangle", "black")]
    pictures = list(pixels([scene.draw() for scene in scenes]).movedim(1, -1))
    return [pictures[0], pictures[1][:48].contiguous(), pictures[2]]  # two sizes


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    monkeypatch.setattr(TrainLoRA, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)


def train(shapes, training_images, **inputs):
    model, clip, vae = shapes
    values = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "seed": 1, "network": NetworkConfig(rank=2)}
    with torch.inference_mode():
        return TrainLoRA.execute(
            model=model, clip=clip, vae=vae, training_images=training_images, **{**values, **inputs}
        ).args


def encode_natively(shapes, pictures, bucketed):
    _, clip, vae = shapes
    with torch.inference_mode():
        latents, prompts = MakeTrainingDataset.execute([p[None] for p in pictures], [vae], [clip], CAPTIONS).args
        if bucketed:
            latents, prompts = ResolutionBucket.execute(latents, prompts).args
        return EncodedTrainingImages.execute(latents, prompts).args[0]


@pytest.mark.parametrize("bucketed", [False, True])
def test_what_the_host_has_encoded_trains_as_what_we_encode(shapes, pictures, bucketed):
    order = [0, 2, 1] if bucketed else [0, 1, 2]  # Resolution Bucket sorts by size
    ours = [TrainingImage(pictures[i], CAPTIONS[i], None, "", (64, 64)) for i in order]
    *_, expected, _ = train(shapes, ours)
    *_, lora, _ = train(shapes, encode_natively(shapes, pictures, bucketed))
    assert lora.keys() == expected.keys() and lora["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"].any()
    assert all(torch.equal(lora[key], expected[key]) for key in expected)


def test_unlike_lists_and_a_text_encoder_without_text_are_refused(shapes, pictures):
    encoded = encode_natively(shapes, pictures, False)
    with pytest.raises(ValueError, match="2 latents and 1 prompts"):
        EncodedTrainingImages.execute([{"samples": torch.zeros(2, 4, 8, 8)}], [[[torch.zeros(1, 77, 768), {}]]])
    with pytest.raises(ValueError, match="cannot be trained on prompts that are encoded already"):
        train(shapes, encoded, network=NetworkConfig(rank=2, blocks="all, BASE"))


def test_our_lora_and_loss_feed_the_hosts_nodes(shapes, pictures, output_folder):
    model, _, lora, loss = train(shapes, [TrainingImage(pictures[0], "red circle", None, "", (64, 64))])
    with torch.inference_mode():
        native = LoraModelLoader.execute(shapes[0], lora, 1.0).args[0]
    assert native.patches.keys() == model.patches.keys()
    SaveLoRA.execute(lora, "loras/native", 4)
    (file,) = (output_folder / "loras").glob("native*.safetensors")
    saved = comfy.utils.load_torch_file(str(file))
    assert all(torch.equal(saved[key], lora[key]) for key in lora) and saved.keys() == lora.keys()
    folder_paths.get_temp_directory()
    assert LossGraphNode.execute(loss, "loss").ui is not None
