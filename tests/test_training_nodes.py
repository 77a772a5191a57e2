"""The nodes of iLECO, copy machine, difference and ADDifT in the host: what they refuse, and what they give."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pack.nodes import host
from pack.nodes.load_image_pairs import LoadImagePairs
from pack.nodes.train_addift import TrainADDifT
from pack.nodes.train_copy_machine import TrainCopyMachine
from pack.nodes.train_difference import TrainDifference
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.training_node import draw_batches
from pack.tools.shapes.scenes import random_scene
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.lora_file import load_lora, save_lora
from pack.trainer.training_example import TrainingExample
from PIL import Image

ENCODED: dict[str, list] = {}  # the encoder is slow on a CPU
TRAINING = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "seed": 4}


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """IMAGEs of one picture each."""
    rng = random.Random(2)
    return [torch.from_numpy(np.asarray(random_scene(rng).draw(), dtype=np.float32) / 255)[None] for _ in range(4)]


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    """The executor gives every node its id; there is none here."""
    for node in (TrainILECO, TrainCopyMachine, TrainDifference, TrainADDifT):
        monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="1", prompt={}), raising=False)


def encode(shapes, *texts: str) -> list:
    """CONDITIONING with a prompt for each text, as Conditioning (Combine) joins them."""
    clip = shapes[1]
    with torch.inference_mode():
        for text in texts:
            if text not in ENCODED:
                ENCODED[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return [entry for text in texts for entry in ENCODED[text]]


def execute(node, **inputs):
    with torch.inference_mode():  # as the executor runs nodes
        return node.execute(**inputs).args


def train_ileco(shapes, original, target, **inputs):
    values = {"width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0, **TRAINING, **inputs}
    prompts = {"original": encode(shapes, *original), "target": encode(shapes, *target)}
    return execute(TrainILECO, model=shapes[0], **prompts, **values)


def train_copy(shapes, image, **inputs):
    values = {"model": shapes[0], "vae": shapes[2], "conditioning": encode(shapes, "a shape"), **TRAINING, **inputs}
    return execute(TrainCopyMachine, image=image, **values)


def train_difference(shapes, image, copy_machine, **inputs):
    values = {"model": shapes[0], "vae": shapes[2], "conditioning": encode(shapes, "a shape"), **TRAINING, **inputs}
    return execute(TrainDifference, image=image, copy_machine=copy_machine, **values)


def train_addift(shapes, originals, targets, **inputs):
    prompts = [encode(shapes, "a shape")]
    values = {"swap": False, "difference_mask": False, "alternation_ratio": 1.0, "bands": 10, **TRAINING, **inputs}
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return execute(
        TrainADDifT,
        model=[shapes[0]],
        vae=[shapes[2]],
        original=originals,
        target=targets,
        **{"original_conditioning": prompts, "target_conditioning": prompts, **lists},
    )


def learned(lora: dict) -> bool:
    return all(tensor.any() for key, tensor in lora.items() if key.endswith("lora_up.weight"))


def test_the_presets_are_used_for_unconnected_inputs(shapes, pictures):
    *_, ileco, loss = train_ileco(shapes, ["red"], ["blue"])
    assert len(loss["loss"]) == 3 and learned(ileco)
    *_, copy, _ = train_copy(shapes, pictures[0])
    *_, difference, _ = train_difference(shapes, pictures[1], copy)
    *_, addift, _ = train_addift(shapes, pictures[:1], pictures[1:2], learning_rate=0.0)
    trained = {"iLECO": ileco, "copy": copy, "difference": difference, "ADDifT": addift}
    sizes = {
        name: (lora.metadata["ss_network_dim"], lora.metadata["ss_network_alpha"]) for name, lora in trained.items()
    }
    assert sizes == {"iLECO": ("4", "8.0"), "copy": ("16", "16.0"), "difference": ("4", "4.0"), "ADDifT": ("4", "1.0")}
    assert addift.metadata["ss_optimizer"] == "CAME" and addift.metadata["ss_learning_rate"] == "0.0001"
    assert copy.metadata["traintrain_method"] == "copy machine"


def test_an_empty_target_and_several_prompts_train(shapes):
    *_, lora, _ = train_ileco(
        shapes, ["red", "a red shape"], [""], preserve=encode(shapes, "blue", "green", "yellow"), guidance=1.0
    )
    assert learned(lora)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"original": ["a", "b", "c"], "target": ["d", "e"]}, "original has 3 prompts and target has 2"),
        ({"original": ["a"], "target": ["b"], "width": 60}, "60x64.*multiples of 8"),
        ({"original": ["a"], "target": ["b"], "network": NetworkConfig(blocks="IN08")}, "no block 'IN08'"),
        ({"original": [], "target": ["b"]}, "has no prompt"),
    ],
)
def test_invalid_ileco_inputs_are_refused(shapes, inputs, message):
    with pytest.raises(ValueError, match=message):
        train_ileco(shapes, **inputs)


def test_sampling_only_parts_of_a_conditioning_are_ignored_with_a_warning(shapes, caplog):
    (plain,) = host.read_conditioning(encode(shapes, "red"))
    conditioning = [[entry, {**extra, "area": (8, 8, 0, 0), "strength": 0.5}] for entry, extra in encode(shapes, "red")]
    (read,) = host.read_conditioning(conditioning)
    assert read[1].keys() == plain[1].keys() and "area, strength" in caplog.text


def test_the_difference_comes_without_the_copy_machine(shapes, pictures):
    *_, copy, _ = train_copy(shapes, pictures[0])
    before = {key: tensor.clone() for key, tensor in shapes[0].model.state_dict().items()}
    model, lora, _ = train_difference(shapes, pictures[1], copy)
    assert len(model.patches) == 48 == sum(key.endswith("alpha") for key in lora)
    assert all(len(patches) == 1 for patches in model.patches.values())
    model.unpatch_model()
    after = shapes[0].model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_the_difference_is_trained_on_the_copy_machine(shapes, pictures):
    """The same seed without the copy machine's effect gives another LoRA."""
    *_, copy, _ = train_copy(shapes, pictures[0], learning_rate=1e-2)
    nothing = {key: tensor * 0 if key.endswith("lora_up.weight") else tensor for key, tensor in copy.items()}
    *_, with_copy, losses = train_difference(shapes, pictures[1], copy)
    *_, without, others = train_difference(shapes, pictures[1], nothing)
    assert losses["loss"][0] != pytest.approx(others["loss"][0], rel=1e-3)
    assert not all(torch.equal(with_copy[key], without[key]) for key in with_copy)


def test_a_saved_copy_machine_can_be_used_again(shapes, pictures, tmp_path):
    *_, copy, _ = train_copy(shapes, pictures[0])
    save_lora(tmp_path / "copy.safetensors", copy, "fp32", 1.0, copy.metadata)
    again = load_lora(tmp_path / "copy.safetensors")
    *_, wired, _ = train_difference(shapes, pictures[1], copy)
    *_, loaded, _ = train_difference(shapes, pictures[1], again)
    assert all(torch.equal(wired[key], loaded[key]) for key in wired)
    with pytest.raises(ValueError, match="64x64.*72x64"):
        train_difference(shapes, torch.zeros(1, 64, 72, 3), again)


def test_more_than_one_image_for_the_copy_machine_is_refused(shapes, pictures):
    with pytest.raises(ValueError, match="has 2 images"):
        train_copy(shapes, torch.cat(pictures[:2]))


def test_many_pairs_of_two_sizes_train_with_a_prompt_for_each(shapes, pictures):
    wide = torch.rand(2, 64, 80, 3)
    prompts = [encode(shapes, "red"), encode(shapes, "blue", "green")]  # three prompts in two CONDITIONINGs
    *_, lora, loss = train_addift(
        shapes, [*pictures[:2], wide[:1]], [*pictures[2:4], wide[1:]], original_conditioning=prompts, steps=6
    )
    assert len(loss["loss"]) == 6 and learned(lora)


def test_swap_exchanges_the_images_and_their_prompts(shapes, pictures):
    sides = {"original_conditioning": [encode(shapes, "red")], "target_conditioning": [encode(shapes, "blue")]}
    turned = {
        "original_conditioning": sides["target_conditioning"],
        "target_conditioning": sides["original_conditioning"],
    }
    *_, swapped, _ = train_addift(shapes, pictures[:1], pictures[1:2], swap=True, **sides)
    *_, crossed, _ = train_addift(shapes, pictures[1:2], pictures[:1], **turned)
    *_, straight, _ = train_addift(shapes, pictures[:1], pictures[1:2], **sides)
    assert all(torch.equal(swapped[key], crossed[key]) for key in swapped)
    assert not all(torch.equal(swapped[key], straight[key]) for key in swapped)


def test_the_difference_mask_excludes_what_is_identical(shapes, pictures):
    """Where the pictures are alike the prediction may be anything: its error does not reach the loss."""
    other = pictures[0].clone()
    other[:, 40:56, 40:56] = 1 - other[:, 40:56, 40:56]
    losses = [train_addift(shapes, pictures[:1], [other], difference_mask=mask)[2]["loss"] for mask in (False, True)]
    assert losses[0][0] != pytest.approx(losses[1][0], rel=1e-2)
    slightly = (pictures[0] + 0.01).clamp(0, 1)
    with pytest.raises(ValueError, match="two images of pair 2, 3 are almost identical"):
        train_addift(shapes, pictures[:1] * 3, [other, slightly, slightly], difference_mask=True)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "originals, targets, prompts, message",
    [
        ([(64, 64)], [(64, 64), (64, 64)], 1, "1 originals and 2 targets"),
        ([(64, 64), (64, 64)], [(64, 64), (72, 64)], 1, "pair 2 is 64x64 and 72x64"),
        ([(60, 64)], [(60, 64)], 1, "60x64.*multiples of 8"),
        (
            [(64, 64), (64, 64), (64, 64)],
            [(64, 64), (64, 64), (64, 64)],
            2,
            "^original_conditioning has 2 prompts for 3",
        ),
    ],
)
def test_images_that_are_not_pairs_are_refused(shapes, originals, targets, prompts, message, swap):
    images = [[torch.rand(1, height, width, 3) for width, height in side] for side in (originals, targets)]
    with pytest.raises(ValueError, match=message):
        train_addift(shapes, *images, original_conditioning=[encode(shapes, *["red"] * prompts)], swap=swap)


def test_pairs_come_from_a_folder_by_their_suffix(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    for name, size in (
        ("cat.png", (70, 64)),
        ("cat_after.jpg", (70, 64)),
        ("dog.webp", (64, 64)),
        ("dog_after.png", (64, 64)),
    ):
        Image.new("RGB", size, "red" if "after" in name else "blue").save(tmp_path / name)
    (tmp_path / "cat.txt").write_text("a cat")
    values = {"include_subfolders": True, "captions": "caption file", "trigger_word": "", "suffix": "_after"}
    values |= {"width": 64, "height": 64, "buckets_step": 8, "min_length": 64, "max_ratio": 2.0}
    originals, targets, captions = LoadImagePairs.execute(folder=".", **values).args
    assert captions == ["a cat", ""] and [image.shape for image in originals] == [(1, 64, 64, 3)] * 2
    assert all(image[0, 0, 0, 2] > 0.9 for image in originals) and all(image[0, 0, 0, 0] > 0.9 for image in targets)

    Image.new("RGB", (64, 64)).save(tmp_path / "bird.png")
    with pytest.raises(ValueError, match="No partner with the suffix '_after' for bird.png"):
        LoadImagePairs.execute(folder=".", **values)
    Image.new("RGB", (64, 72)).save(tmp_path / "bird_after.png")
    with pytest.raises(ValueError, match="bird.png and bird_after.png"):
        LoadImagePairs.execute(folder=".", **values)


@pytest.mark.parametrize(
    "sizes, repeats, logged", [([1, 1, 2], None, ["acts as 2"]), ([1, 1, 2], [1, 1, 3], []), ([1], None, ["acts as 1"])]
)
def test_a_batch_size_that_no_images_fill_is_said(caplog, sizes, repeats, logged):
    caplog.set_level("INFO")
    draw_batches(
        [TrainingExample(torch.zeros(4, 8, 8 * size), None) for size in sizes], TrainingConfig(batch_size=3), repeats
    )
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(logged) and all(text in line for text, line in zip(logged, said))
