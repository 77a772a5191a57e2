"""The host's own training nodes and ours, wired together."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import comfy.utils
import folder_paths
import pytest
import torch
from comfy_extras.nodes_dataset import MakeTrainingDataset, ResolutionBucket
from comfy_extras.nodes_train import LoraModelLoader, LossGraphNode, SaveLoRA
from pack.nodes.encoded_images import EncodedTrainingImages
from pack.nodes.train_lora import TrainLoRA
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.config import NetworkConfig
from pack.trainer.dataset.training_image import TrainingImage

from nodes import SetLatentNoiseMask

CAPTIONS = ["red circle", "blue square", "a green triangle"]


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    scenes = [Scene("red", "circle", "white"), Scene("blue", "square", "gray"), Scene("green", "triangle", "black")]
    images = list(pixels([scene.draw() for scene in scenes]).movedim(1, -1))
    return [images[0], images[1][:48].contiguous(), images[2]]  # two sizes


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


def encode_natively(shapes, images, bucketed):
    _, clip, vae = shapes
    with torch.inference_mode():
        latents, prompts = MakeTrainingDataset.execute([p[None] for p in images], [vae], [clip], CAPTIONS).args
        if bucketed:
            latents, prompts = ResolutionBucket.execute(latents, prompts).args
        return EncodedTrainingImages.execute(latents, prompts).args[0]


@pytest.mark.parametrize("bucketed", [False, True])
def test_latents_encoded_by_the_host_train_the_same_lora(shapes, images, bucketed):
    order = [0, 2, 1] if bucketed else [0, 1, 2]  # Resolution Bucket sorts by size
    ours = [TrainingImage(images[i], CAPTIONS[i], None, "", (64, 64)) for i in order]
    *_, expected, _ = train(shapes, ours)
    *_, lora, _ = train(shapes, encode_natively(shapes, images, bucketed))
    assert lora.keys() == expected.keys() and lora["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"].any()
    assert all(torch.equal(lora[key], expected[key]) for key in expected)


def test_a_mask_on_a_latent_says_where_it_is_trained_as_one_on_the_image_does(shapes, images):
    mask = torch.zeros(64, 64)
    mask[:, :30] = 0.2
    ours = [TrainingImage(images[0], CAPTIONS[0], mask > 0.1, "", (64, 64))]
    *_, expected, _ = train(shapes, ours)
    _, clip, vae = shapes
    with torch.inference_mode():
        latents, prompts = MakeTrainingDataset.execute([images[0][None]], [vae], [clip], CAPTIONS[:1]).args
        (masked,) = SetLatentNoiseMask().set_mask(latents[0], mask)
        encoded = EncodedTrainingImages.execute([masked], prompts).args[0]
        (empty,) = SetLatentNoiseMask().set_mask(latents[0], mask * 0)
        with pytest.raises(ValueError, match="mask on a latent leaves nothing to train"):
            EncodedTrainingImages.execute([empty], prompts)
    *_, lora, _ = train(shapes, encoded)
    *_, whole, _ = train(shapes, [replace(encoded[0], mask=None)])
    assert all(torch.equal(lora[key], expected[key]) for key in lora)
    assert any(not torch.equal(whole[key], expected[key]) for key in lora)


def test_lists_of_different_length_and_text_encoder_training_without_captions_are_refused(shapes, images):
    encoded = encode_natively(shapes, images, False)
    with pytest.raises(ValueError, match=r"number of prompts \(1\) must match the number of latents \(2\)"):
        EncodedTrainingImages.execute([{"samples": torch.zeros(2, 4, 8, 8)}], [[[torch.zeros(1, 77, 768), {}]]])
    with pytest.raises(ValueError, match="cannot be trained on prompts that are encoded already"):
        train(shapes, encoded, network=NetworkConfig(rank=2, blocks="all, BASE"))


def test_the_host_nodes_accept_our_lora_and_loss(shapes, images, output_folder):
    model, _, lora, loss = train(shapes, [TrainingImage(images[0], "red circle", None, "", (64, 64))])
    with torch.inference_mode():
        native = LoraModelLoader.execute(shapes[0], lora, 1.0).args[0]
    assert native.patches.keys() == model.patches.keys()
    SaveLoRA.execute(lora, "loras/native", 4)
    (file,) = (output_folder / "loras").glob("native*.safetensors")
    saved = comfy.utils.load_torch_file(str(file))
    assert all(torch.equal(saved[key], lora[key]) for key in lora) and saved.keys() == lora.keys()
    folder_paths.get_temp_directory()
    assert LossGraphNode.execute(loss, "loss").ui is not None
