"""Samples on the way: they are what the host would sample, and they change nothing."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.sample
import pytest
import torch
from comfy.cli_args import args
from comfy.model_management import InterruptProcessingException
from pack.nodes import host, progress
from pack.nodes.kept_files import clean_up
from pack.nodes.preview_settings import PreviewSettings
from pack.nodes.sample_files import describe_samples, write_samples
from pack.nodes.train_copy_machine import TrainCopyMachine
from pack.nodes.train_difference import TrainDifference
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_slider import TrainSlider
from pack.tools.shapes.scenes import Scene
from pack.tools.shapes.train_shapes import pixels
from pack.trainer.history import History
from pack.trainer.run import Step
from PIL import Image

import nodes as host_nodes

SAMPLING = {"steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "seed": 11}
TRAINING = {"steps": 4, "batch_size": 1, "learning_rate": 5e-3, "seed": 1}


@pytest.fixture(scope="module")
def prompts(shapes):
    clip = shapes[1]
    with torch.inference_mode():
        return {t: clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("a red circle", "a blue square", "")}


@pytest.fixture
def run(shapes, prompts, monkeypatch):
    """Run a training node as the executor does, with samples every two steps."""

    def run(node, every=2, size=64, more_prompts="", **inputs):
        monkeypatch.setattr(
            node, "hidden", SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo=None), raising=False
        )
        with torch.inference_mode():
            (preview,) = PreviewSettings.execute(
                positive=prompts["a red circle"],
                negative=prompts[""],
                vae=shapes[2],
                every=every,
                width=size,
                height=size,
                clip=shapes[1],
                more_prompts=more_prompts,
                **SAMPLING,
            ).args
            return node.execute(model=shapes[0], preview=preview, **{**TRAINING, **inputs}).args

    return run


@pytest.fixture
def ileco(run, prompts):
    """Run Train iLECO."""
    prompts = {"original": prompts["a red circle"], "target": prompts["a blue square"]}
    return lambda **inputs: run(
        TrainILECO, **prompts, **{"width": 64, "height": 64, "denoise_steps": 0, "guidance": 0.0, **inputs}
    )


@pytest.fixture
def sampled(shapes, prompts):
    """Sample a MODEL as the host's KSampler and VAE Decode do."""

    def sample(model, positive="a red circle") -> torch.Tensor:
        latent = torch.zeros(1, 4, 8, 8)
        with torch.inference_mode():
            noise = comfy.sample.prepare_noise(latent, SAMPLING["seed"])
            order = [SAMPLING[key] for key in ("steps", "cfg", "sampler_name", "scheduler")]
            ends = prompts[positive], prompts[""]
            latent = comfy.sample.sample(model, noise, *order, *ends, latent, seed=SAMPLING["seed"], disable_pbar=True)
            return shapes[2].decode(latent)[0]

    return sample


def halves(path) -> tuple[torch.Tensor, torch.Tensor]:
    picture = pixels([Image.open(path)])[0].movedim(0, -1)
    return picture[:, :64], picture[:, 64:]


def close(first, second) -> bool:
    """JPEG changes a pixel by a few of 255, at sharp edges by more."""
    return (first - second).abs().mean() < 0.02


def samples_of(output_folder) -> list:
    return sorted((output_folder / "traintrain").glob("*.jpg"))


def test_samples_are_those_of_the_host_without_and_with_the_lora(ileco, sampled, shapes, output_folder):
    trained, lora, _ = ileco()
    first, last = samples_of(output_folder)
    assert first.stem.endswith("_000002") and last.stem.endswith("_000004")
    without, with_lora = halves(last)
    before, after = sampled(shapes[0]), sampled(trained)
    assert not close(before, after)
    assert close(without, before) and close(with_lora, after)


def test_each_of_several_prompts_is_sampled_and_named_in_its_file(ileco, sampled, shapes, output_folder):
    trained, *_ = ileco(more_prompts=" a blue square \n\na red circle, large\n")
    shown = {file.stem[17 + file.stem.index("_") + 1 :]: file for file in samples_of(output_folder)}
    assert list(shown) == ["000002", "000002_2", "000002_3", "000004", "000004_2", "000004_3"]
    for place, prompt in (("000004", "a red circle"), ("000004_2", "a blue square")):
        without, with_lora = halves(shown[place])
        assert close(without, sampled(shapes[0], prompt)) and close(with_lora, sampled(trained, prompt))
    described = describe_samples(shown.values())
    assert [(each["step"], each.get("prompt")) for each in described] == [
        (step, prompt) for step in (2, 4) for prompt in (None, "a blue square", "a red circle, large")
    ]


def test_a_slider_is_sampled_both_ways(run, sampled, shapes, prompts, output_folder):
    ends = {"positive": prompts["a blue square"], "negative": prompts["a red circle"]}
    values = {"width": 64, "height": 64, "denoise_steps": 0, "guidance": 1.0, "steps": 6, "learning_rate": 3e-2}
    trained, *_ = run(TrainSlider, every=6, **ends, **values)
    (file,) = samples_of(output_folder)
    shown = pixels([Image.open(file)])[0].movedim(0, -1).split(64, dim=1)
    reverse = trained.clone()
    reverse.patches = {key: [(-patch[0], *patch[1:]) for patch in each] for key, each in trained.patches.items()}
    expected = [sampled(model) for model in (reverse, shapes[0], trained)]
    assert not close(expected[0], expected[1]) and not close(expected[1], expected[2])
    assert len(shown) == 3 and all(map(close, shown, expected))


def test_a_file_says_that_it_shows_both_ways_with_and_without_metadata(output_folder, monkeypatch):
    training, image = output_folder / "traintrain" / f"a_{'0' * 16}", torch.zeros(8, 24, 3)
    write_samples(training, 100, [host.Sample(prompt, image, True) for prompt in ("", "x")])
    monkeypatch.setattr(args, "disable_metadata", True)
    write_samples(training, 200, [host.Sample("x", image, True)])
    described = describe_samples(training.parent.iterdir())
    assert [(each.get("prompt"), each["both_ways"]) for each in described] == [(None, True), ("x", True), (None, True)]


def test_one_prompt_with_line_breaks_is_one_sample(ileco, output_folder):
    """A prompt that is connected as positive is not split, whatever is in it."""
    ileco()
    assert [file.stem[-7:] for file in samples_of(output_folder)] == ["_000002", "_000004"]


def test_samples_of_several_prompts_change_nothing(ileco, output_folder):
    *_, lora, loss = ileco(more_prompts="a blue square")
    for file in (output_folder / "traintrain").iterdir():
        file.unlink()
    *_, alone, loss_alone = ileco(every=99)
    assert loss == loss_alone and all(torch.equal(lora[key], alone[key]) for key in lora)


def test_more_prompts_are_encoded_as_clip_text_encode_does_with_the_guidance_of_positive(shapes, prompts):
    (weighted,) = host_nodes.CLIPTextEncode().encode(shapes[1], "a (blue:1.3) square")
    encoded = host.encode_prompt(shapes[1], "a (blue:1.3) square", prompts[""])
    assert torch.equal(encoded[0][0], weighted[0][0]) and "guidance" not in encoded[0][1]
    guided = [[prompts[""][0][0], {"guidance": 2.5}]]
    assert host.encode_prompt(shapes[1], "blue", guided)[0][1]["guidance"] == 2.5


def test_more_prompts_without_a_clip_are_refused(shapes, prompts):
    sizes = {"every": 1, "width": 64, "height": 64}
    ends = {"positive": prompts["a red circle"], "negative": prompts[""], "vae": shapes[2]}
    with pytest.raises(ValueError, match="more_prompts has 2 prompts and clip is not connected"):
        PreviewSettings.execute(**ends, **sizes, **SAMPLING, more_prompts="a\nb")
    (preview,) = PreviewSettings.execute(**ends, **sizes, **SAMPLING, more_prompts=" \n").args
    assert preview.more_prompts == () and preview.positive is prompts["a red circle"]


def test_samples_of_fewer_prompts_replace_those_of_a_step_and_leave_others(output_folder, monkeypatch):
    training = output_folder / "traintrain" / f"a_{'0' * 16}"
    images = [host.Sample(prompt, torch.zeros(8, 16, 3)) for prompt in ("", "x", "y")]
    write_samples(training, 100, images)
    write_samples(training, 1_000_000, images[:2])
    monkeypatch.setattr(args, "disable_metadata", True)
    write_samples(training, 100, images[:2])
    described = describe_samples(training.parent.iterdir())
    names = [(each["step"], each["filename"].removeprefix(training.name)) for each in described]
    assert names == [
        (100, "_000100.jpg"),
        (100, "_000100_2.jpg"),
        (1_000_000, "_1000000.jpg"),
        (1_000_000, "_1000000_2.jpg"),
    ]
    assert [each.get("prompt") for each in described] == [None, None, None, "x"]
    clean_up(0, "another")
    assert not list(training.parent.iterdir()), "with their training, all are deleted"


def test_samples_of_a_difference_are_without_its_copy_machine(run, sampled, shapes, prompts, output_folder):
    pictures = pixels([Scene("red", "circle", "white").draw(), Scene("blue", "circle", "white").draw()]).movedim(1, -1)
    inputs = {"vae": shapes[2], "conditioning": prompts["a red circle"]}
    strong = {"steps": 12, "learning_rate": 3e-2}
    copying, copy_machine, _ = run(TrainCopyMachine, every=99, image=pictures[:1], **inputs, **strong)
    trained, *_ = run(TrainDifference, image=pictures[1:], copy_machine=copy_machine, **inputs)
    without, with_lora = halves(samples_of(output_folder)[-1])
    assert not close(sampled(copying), sampled(shapes[0]))
    assert close(without, sampled(shapes[0])) and close(with_lora, sampled(trained))


def test_samples_change_nothing(ileco, output_folder):
    before = torch.random.get_rng_state()
    *_, with_samples, loss = ileco()
    assert torch.equal(torch.random.get_rng_state(), before)
    for file in (output_folder / "traintrain").iterdir():
        file.unlink()
    *_, alone, loss_alone = ileco(every=99)
    assert loss == loss_alone and samples_of(output_folder) == []
    assert all(torch.equal(with_samples[key], alone[key]) for key in with_samples)


def test_a_preview_does_not_affect_the_training(ileco, monkeypatch):
    ileco()
    monkeypatch.setattr(host, "open_session", None)
    ileco(every=3)  # taken from disk


@pytest.mark.parametrize(
    "error, reason",
    [
        (torch.cuda.OutOfMemoryError("no memory"), "out of memory, use a smaller width and height"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "without samples: mat1 and mat2 shapes"),
    ],
)
def test_a_failed_sample_ends_sampling_but_not_training(ileco, shapes, output_folder, caplog, error, reason):
    calls = []

    def decode(samples):
        calls.append(samples)
        raise error

    shapes[2].decode = decode
    try:
        *_, loss = ileco()
    finally:
        del shapes[2].decode
    assert len(loss["loss"]) == 4 and len(calls) == 1 and samples_of(output_folder) == []
    assert reason in caplog.text


def test_cancelling_while_a_sample_is_made_keeps_the_lora_and_the_model(ileco, sampled, shapes, output_folder):
    before = sampled(shapes[0])
    shapes[2].decode = lambda _: (_ for _ in ()).throw(InterruptProcessingException())
    try:
        with pytest.raises(InterruptProcessingException):
            ileco()
    finally:
        del shapes[2].decode
    assert len(list((output_folder / "traintrain").glob("*.state"))) == 1
    assert torch.equal(sampled(shapes[0]), before)


def test_a_size_that_cannot_be_sampled_is_refused_before_the_training(ileco, output_folder):
    with pytest.raises(ValueError, match="60x60.*multiples of 8"):
        ileco(size=60)
    assert not list((output_folder / "loras").rglob("*.*"))


def test_samples_of_a_deleted_training_are_not_shown():
    """Its files may still be there when the same is trained anew."""
    files = [{"step": step, "filename": f"{step}.jpg", "subfolder": "x"} for step in (2, 4)]
    node = SimpleNamespace(hidden=SimpleNamespace(unique_id="77", prompt={}, extra_pnginfo=None))
    store = SimpleNamespace(fingerprint="f", name="n", samples=lambda: files, save_samples=lambda *_: None)
    shown = progress.TrainingProgress(node, 4, store)
    shown.begin(SimpleNamespace(size=(1, 1), blocks=[], history=History([1.0, 1.0], [0.1, 0.1])))
    shown.show(Step(2, 1.0, 0.1, False, False), torch.zeros(1))
    assert [sample["step"] for sample in progress._shown[None, "77"]["samples"]] == [2]
    shown.recall(History([1.0] * 4, [0.1] * 4))
    assert [sample["step"] for sample in progress._shown[None, "77"]["samples"]] == [2, 4]
