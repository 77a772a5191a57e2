"""Train LoRA keeps what it should: prompts whose prediction must not change, and regularization images with a weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pack.nodes import host
from pack.nodes.train_lora import TrainLoRA
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.training_image import TrainingImage
from pack.trainer.distributed import ALONE, Peers
from pack.trainer.loss import step_loss
from pack.trainer.methods.denoise import Denoise, Preserved
from pack.trainer.run import TrainingRun
from pack.trainer.training_example import TrainingExample
from tiny_host import TinyHost
from tiny_training import EXAMPLES, TinyModel, make_network

IMAGE = TrainingImage(torch.rand(64, 64, 3), "blue", None, "b", (64, 64))
CONFIG = TrainingConfig(steps=6, batch_size=2, learning_rate=1e-2, seed=7, snr_gamma=0)


def learned_network(model):
    """A LoRA that changes what the model predicts."""
    network = make_network(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return network


def run_one(preserved: Preserved | None, examples=EXAMPLES, batch=(0, 1), peers=ALONE):
    model = TinyModel()
    network = learned_network(model)
    method = Denoise(examples, iter([list(batch)]), CONFIG, preserved=preserved)
    with network.injected(), network.scaled(1.0):
        return model, network, method.run_step(peers.shard(model), network, 0, torch.Generator().manual_seed(5))


def test_each_image_is_followed_by_the_same_noise_under_a_preserved_prompt():
    model, network, output = run_one(Preserved([0.7, 0.9], weight=0.5))
    _, _, plain = run_one(None)
    torch.testing.assert_close(output.prediction[::2], plain.prediction)
    torch.testing.assert_close(output.target[::2], plain.target)
    # The prediction of this model is layer(x_t) + prompt, and the captions of the two examples are 0 and 0.1.
    change = torch.tensor([0.7 - 0.0, 0.9 - 0.1]).view(-1, 1, 1, 1)
    torch.testing.assert_close(output.prediction[1::2], plain.prediction + change)
    assert torch.equal(output.sigma[1::2], output.sigma[::2])


def test_the_target_of_a_preserved_prompt_is_the_prediction_without_the_lora():
    model, network, output = run_one(Preserved([0.7]))
    rng = torch.Generator().manual_seed(5)
    method = Denoise([replace(each, conditioning=0.7) for each in EXAMPLES], iter([[0, 1]]), CONFIG)
    with network.injected(), network.scaled(0.0):
        without = method.run_step(model, network, 0, rng).prediction
    torch.testing.assert_close(output.target[1::2], without)
    assert not torch.allclose(output.prediction[1::2], without)


def test_the_loss_is_that_of_the_images_and_weight_times_that_of_the_prompts():
    model, _, output = run_one(Preserved([0.7], weight=0.25))
    squares = (output.prediction - output.target).square().flatten(1).mean(1)
    expected = squares[::2].mean() + 0.25 * squares[1::2].mean()
    torch.testing.assert_close(step_loss(output, model, CONFIG), expected)


def test_regularization_images_count_by_their_weight():
    examples = [EXAMPLES[0], replace(EXAMPLES[1], weight=0.25)]
    model, _, output = run_one(None, examples)
    squares = (output.prediction - output.target).square().flatten(1).mean(1)
    torch.testing.assert_close(step_loss(output, model, CONFIG), (squares[0] + 0.25 * squares[1]) / 2)


def test_a_mask_is_for_the_images_alone():
    mask = torch.zeros(4, 4)
    mask[0, 0] = 1
    examples = [TrainingExample(each.latent, each.conditioning, mask) for each in EXAMPLES]
    _, _, output = run_one(Preserved([0.7]), examples)
    assert torch.equal(output.mask, torch.stack([mask, torch.ones(4, 4), mask, torch.ones(4, 4)]))


def test_without_either_there_is_no_weight():
    assert run_one(None)[2].weight is None


@pytest.mark.parametrize("count", range(2, 5))
@pytest.mark.parametrize("batch", range(1, 5))
def test_processes_that_share_a_batch_have_the_targets_of_its_preserved_prompts(batch, count):
    model, _, whole = run_one(Preserved([0.7, 0.9], weight=0.5), batch=range(batch))
    losses = []
    for rank in range(count):
        peers = Peers(rank, count)
        _, _, output = run_one(Preserved([0.7, 0.9], weight=0.5), batch=range(batch), peers=peers)
        own, share = peers.shard_output(output)
        losses.append(share * step_loss(own, model, CONFIG))
    torch.testing.assert_close(sum(losses), step_loss(whole, model, CONFIG))


def test_what_is_preserved_stays_while_the_images_are_learned():
    changes = {}
    for preserved in (None, Preserved([0.7])):
        model = TinyModel()
        network = make_network(model)
        config = replace(CONFIG, steps=150)
        batches = iter(lambda: [0, 1], None)
        run = TrainingRun(model, network, Denoise(EXAMPLES[:2], batches, config, preserved=preserved), config)
        for _ in run.steps():
            pass
        x_t = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), network.injected():
            on, off = (model.predict(x_t, torch.ones(4), [0.7] * 4) for _ in run_scales(network))
        changes[preserved] = (on - off).square().mean()
    assert changes[None] > 2 * min(changes.values())


def run_scales(network):
    """Yield twice: with the LoRA and without it."""
    for strength in (1.0, 0.0):
        with network.scaled(strength):
            yield


def test_a_resumed_training_goes_on_with_the_same_prompts():
    def prompts(skipped: int) -> list[float]:
        batches = iter([[0, 1], [2], [3, 0], [1]])
        method = Denoise(EXAMPLES, batches, CONFIG, preserved=Preserved([0.1, 0.2, 0.3]))
        method.skip(skipped)
        return method._draw_batch()[2]

    assert [prompts(n) for n in range(4)] == [[0.1, 0.2], [0.3], [0.1, 0.2], [0.3]]


class Words:
    """A text encoder that is trained: a prompt is the number that it says, plus what the LoRA has made of it."""

    def __init__(self, network) -> None:
        self.network, self.seen = network, []

    def encode(self, captions):
        self.seen.append((list(captions), self.network._strength))
        return [float(text) for text in captions]


def test_a_text_encoder_in_training_encodes_the_preserved_prompts_with_the_lora_and_without():
    model = TinyModel()
    network = learned_network(model)
    examples, words = [replace(each, conditioning="0.3") for each in EXAMPLES], Words(network)
    method = Denoise(examples, iter([[0, 1]]), CONFIG, words, preserved=Preserved(["0.7"]))
    with network.injected(), network.scaled(1.0):
        method.run_step(model, network, 0, torch.Generator().manual_seed(5))
    assert words.seen == [(["0.7"], 0.0), (["0.3", "0.7", "0.3", "0.7"], 1.0)]


def test_each_preserved_prompt_is_encoded_without_the_lora_once():
    model = TinyModel()
    network = learned_network(model)
    examples, words = [replace(each, conditioning="0.3") for each in EXAMPLES], Words(network)
    method = Denoise(examples, iter([[0, 1], [2], [3, 0]]), CONFIG, words, preserved=Preserved(["0.7", "0.9", "0.1"]))
    with network.injected(), network.scaled(1.0):
        for step in range(3):
            method.run_step(model, network, step, torch.Generator().manual_seed(5))
    assert [captions for captions, strength in words.seen if not strength] == [["0.7", "0.9"], ["0.1"]]


def test_while_the_text_encoder_is_trained_the_teacher_gets_each_preserved_prompt_in_its_turn(shapes):
    model, clip, vae = shapes
    texts = ["a blue square", "a green triangle"]
    with torch.inference_mode():
        job = TrainLoRA.prepare(
            model=model,
            clip=clip,
            vae=vae,
            training_images=[TrainingImage(torch.rand(64, 64, 3), "red circle", None, "a", (64, 64))],
            network=NetworkConfig(rank=2, blocks="OUT01, BASE"),
            preserve="; ".join(texts),
            **{"steps": 6, "batch_size": 1, "learning_rate": 1e-3, "seed": 1},
        )
    prompts = host.HostTextEncoder(clip).encode(texts)
    seen: list[torch.Tensor] = []
    with host.open_session(job, lambda session: None) as session:
        predict = session._model._predict_group

        def note(x_t, sigma, conds):
            if not torch.is_grad_enabled() and session._network._strength == 0:
                seen.append(conds[0]["c_crossattn"].cond.cpu())
            return predict(x_t, sigma, conds)

        session._model._predict_group = note
        for _ in session.steps():
            pass
    assert len(seen) == 6
    for place, prompt in enumerate(seen):
        torch.testing.assert_close(prompt, prompts[place % 2][0], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), "SD1")


def test_the_node_preserves_prompts(tiny):
    plain, kept = (tiny.train("LoRA", preserve=text)[2] for text in ("", "a woman ;a portrait; "))
    assert kept.keys() == plain.keys() and any(not torch.equal(kept[key], plain[key]) for key in kept)


def test_the_node_gives_both_prompts_and_the_weight_to_the_method(tiny):
    job = tiny.job("LoRA", preserve="a woman ;a portrait; ", preserve_weight=0.5)
    assert len(job.method.preserved.prompts) == 2 and job.method.preserved.weight == 0.5
    assert tiny.job("LoRA", preserve=" ; ").method.preserved is None


def test_the_node_trains_on_regularization_images_too(tiny):
    job = tiny.job("LoRA", regularization_images=[IMAGE], preserve_weight=0.5)
    assert [each.weight for each in job.method.examples] == [1.0, 0.5]


def test_the_tags_in_the_metadata_are_those_that_are_learned(tiny):
    learned = replace(IMAGE, caption="ohwx, cat")
    kept = [replace(IMAGE, caption=f"cat, {n}") for n in range(3)]
    labels = tiny.job("LoRA", training_images=[learned], regularization_images=kept).labels
    assert labels["ss_tag_frequency"] == '{"1_ohwx": {"ohwx": 1, "cat": 1}}'


@pytest.mark.parametrize("seed", range(4))
def test_regularization_images_of_no_weight_end_no_training(tiny, seed):
    image = replace(IMAGE, pixels=torch.rand(64, 64, 3), caption="red")
    lora = tiny.train("LoRA", training_images=[image], regularization_images=[IMAGE], preserve_weight=0.0, seed=seed)[2]
    assert any(tensor.any() for key, tensor in lora.items() if "lora_up" in key)


def test_only_captions_that_are_learned_are_dropped(tiny):
    job = tiny.job("LoRA", regularization_images=[IMAGE], caption_dropout=1.0)
    learned, kept = job.method.captions.draw([0, 1])
    assert learned is not kept and kept is job.method.examples[1].conditioning
