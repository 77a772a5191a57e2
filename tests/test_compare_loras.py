"""Compare LoRAs: what it samples is what the host samples, and what its grid, chart and words say."""

from __future__ import annotations

import logging
from dataclasses import replace
from types import SimpleNamespace

import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_train import LoraModelLoader
from pack.nodes import host
from pack.nodes.compare_loras import CompareLoRAs
from pack.nodes.comparison_grid import GAP, ImageDraw, draw_grid
from pack.nodes.effect_curve import Effect, describe_effect, measure_effects
from pack.nodes.host.similarity import image_similarities
from pack.nodes.load_lora import LoadLoRA
from pack.nodes.save_lora import SaveLoRA
from pack.nodes.strengths import describe_strength, read_strengths
from pack.nodes.unique_names import with_unique_names
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.lora_file import LoRAWeights, can_scale, load_lora
from PIL import Image
from tiny_host import TinyHost
from tiny_models import HEIGHT, WIDTH

import nodes as host_nodes

SAMPLING = {"steps": 2, "cfg": 2.0, "sampler_name": "euler_ancestral", "scheduler": "simple", "seed": 7}
GRAPH = {
    "2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {}},
    "3": {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["2", 2], "name": "styles/star"}},
    "9": {"class_type": "TrainTrain_CompareLoRAs", "inputs": {"loras.lora0": ["2", 2], "loras.lora1": ["4", 0]}},
    "4": {"class_type": "TrainTrain_LoadLoRA", "inputs": {"lora_name": "old/moon.safetensors"}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loras(tiny) -> list[LoRAWeights]:
    """Two LoRAs for the tiny model that change what it samples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tiny.family.picture.shape))  # nothing is saved
        patch.setattr("pack.nodes.run_store.RunStore._save", lambda *_: None)
        patch.setattr("pack.nodes.run_store.RunStore.check_folder", lambda _: None)
        return [tiny.train("iLECO", learning_rate=0.1, seed=seed)[1] for seed in (1, 2)]


@pytest.fixture
def compare(tiny, monkeypatch):
    """Run the node as the executor does; the LoRAs are connected in turn."""

    def compare(*loras, strengths="0, 1", prompt=GRAPH, **inputs):
        hidden = SimpleNamespace(unique_id="9", prompt=prompt)
        monkeypatch.setattr(CompareLoRAs, "hidden", hidden, raising=False)
        inputs = {"width": WIDTH, "height": HEIGHT, "milestones": False, "name": "star", **SAMPLING, **inputs}
        wired = {f"lora{slot}": lora for slot, lora in enumerate(loras)}
        models = {"model": tiny.model, "positive": tiny.prompt, "negative": tiny.blue, "vae": tiny.vae}
        with torch.inference_mode():
            return CompareLoRAs.execute(loras=wired, strengths=strengths, **{**models, **inputs})

    return compare


def sample_in_host(tiny: TinyHost, model) -> torch.Tensor:
    """Sample an image (H, W, 3) with the host's Empty Latent Image, KSampler and VAE Decode."""
    steps, cfg, sampler, scheduler, seed = SAMPLING.values()
    with torch.inference_mode():
        (empty,) = host_nodes.EmptyLatentImage().generate(WIDTH, HEIGHT)
        (latent,) = host_nodes.KSampler().sample(
            model, seed, steps, cfg, sampler, scheduler, tiny.prompt, tiny.blue, empty
        )
        return host_nodes.VAEDecode().decode(tiny.vae, latent)[0][0]


def test_every_image_is_bit_for_bit_that_of_the_hosts_nodes_and_the_model_is_unchanged(tiny, compare, loras):
    before = sample_in_host(tiny, tiny.model)
    _, images, *_ = compare(*loras, strengths="2, 0, -1, 1").args
    assert images.shape == (2 * 4, HEIGHT, WIDTH, 3)
    assert not tiny.model.patches and torch.equal(sample_in_host(tiny, tiny.model), before)
    for row, lora in zip(images.split(4), loras):
        for strength, image in zip((-1, 0, 1, 2), row):
            with torch.inference_mode():
                (patched,) = LoraModelLoader.execute(tiny.model, lora, float(strength)).args
            assert torch.equal(image, sample_in_host(tiny, patched)), strength
        assert torch.equal(row[1], before) and not torch.equal(row[2], before)


def test_strength_1_is_bit_for_bit_what_the_hosts_load_lora_makes_of_the_saved_file(tiny, compare, loras, base):
    monkey = SimpleNamespace(prompt={}, extra_pnginfo=None)
    SaveLoRA.hidden = monkey
    SaveLoRA.execute(loras[0], "star", "fp32", 1.0, False)
    folder_paths.folder_names_and_paths["loras"] = ([str(base / "output" / "loras")], {".safetensors"})
    _, images, *_ = compare(LoadLoRA.execute("star.safetensors").args[0]).args
    with torch.inference_mode():
        patched, _ = host_nodes.LoraLoader().load_lora(tiny.model, None, "star.safetensors", 1.0, 0.0)
    assert torch.equal(images[1], sample_in_host(tiny, patched))


def test_the_model_without_lora_is_sampled_once_and_the_node_shows_the_progress(compare, loras, monkeypatch):
    sampled, shown = [], []
    ours = host.sample_latent
    monkeypatch.setattr(host, "sample_latent", lambda model, *more: sampled.append(model) or ours(model, *more))
    monkeypatch.setattr("comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    monkeypatch.setattr(
        "comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, preview, node_id: shown.append((node_id, value, total))
    )
    compare(*loras, strengths="-1, 1")
    assert len(sampled) == 5 and sum(not model.patches for model in sampled) == 1
    assert list(dict.fromkeys(shown)) == [("9", value, 10) for value in range(1, 11)]


def test_cancelling_between_two_images_ends_the_node_and_leaves_the_model(tiny, compare, loras, monkeypatch):
    before, ours = sample_in_host(tiny, tiny.model), host.sample_latent

    def cancel_after_the_first(model, *more):
        if model.patches:
            raise InterruptProcessingException()
        return ours(model, *more)

    monkeypatch.setattr(host, "sample_latent", cancel_after_the_first)
    with pytest.raises(InterruptProcessingException):
        compare(*loras)
    monkeypatch.undo()
    assert torch.equal(sample_in_host(tiny, tiny.model), before)


@pytest.mark.parametrize(
    "text, strengths",
    [
        ("-2, -1, 0, 1, 2", [-2, -1, 0, 1, 2]),
        ("1", [0, 1]),
        (" 1.5;.5\n+1 -0.25,", [-0.25, 0, 0.5, 1, 1.5]),
        ("1, 1.0, 01, -0, 100, -100", [-100, 0, 1, 100]),
        ("\N{MINUS SIGN}1, 2.", [-1, 0, 2]),
    ],
)
def test_strengths_are_read_in_ascending_order_each_once_with_0(text, strengths):
    assert read_strengths(text) == strengths
    assert "strength -0" not in map(describe_strength, read_strengths(text))


@pytest.mark.parametrize(
    "text, message",
    [
        ("1, abc", "strengths has 'abc', which is not a number from -100 to 100"),
        ("1, 101", "strengths has '101', which"),
        ("nan", "'nan'"),
        ("1, inf", "'inf'"),
        ("1_0", "'1_0'"),
        ("1e3", "'1e3'"),
        ("-2:2", "'-2:2'"),
        ("", "strengths is '', which leaves nothing to compare"),
        (" , 0, -0", "nothing to compare"),
        (",".join(map(str, range(1, 40))), "has 40 different numbers, with 0: use 32 or fewer"),
        ("x" * 500, "'x{50}'"),
    ],
)
def test_bad_strengths_are_one_sentence_when_queued_and_when_they_come_by_wire(
    compare, loras, text, message, monkeypatch
):
    monkeypatch.setattr(host, "sample_latent", None)
    with pytest.raises(ValueError, match=message):
        compare(loras[0], strengths=text)
    with pytest.raises(ValueError, match=message):
        raise ValueError(CompareLoRAs.validate_inputs(strengths=text))
    assert CompareLoRAs.validate_inputs() is True and CompareLoRAs.validate_inputs(strengths="1") is True


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"width": 50}, "50x32.*multiples of 8"),
        ({"steps": 0}, "steps is 0"),
        ({"name": "../star"}, "'../star' is not a valid file name"),
        ({"scheduler": "none"}, "scheduler is 'none'. Choose one of"),
        ({"reference": torch.zeros(1, 8, 8, 3)}, "Only one of clip_vision and reference is connected"),
        (
            {"strengths": ", ".join(map(str, range(1, 32)))},
            "7 LoRAs at 32 strengths are 218 images: compare fewer, 200",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_sampling(compare, loras, monkeypatch, inputs, message):
    monkeypatch.setattr(host, "sample_latent", None)
    with pytest.raises(ValueError, match=message):
        compare(*loras * 3, loras[0], **inputs)


def test_no_lora_and_what_is_no_lora_are_refused_before_sampling(compare, monkeypatch):
    monkeypatch.setattr(host, "sample_latent", None)
    with pytest.raises(ValueError, match="No LoRA is connected: connect that of a training node"):
        compare(None)
    with pytest.raises(ValueError, match="some words is not a LoRA"):
        compare("some words")


def test_a_lora_of_another_model_is_refused_before_sampling(compare, loras, monkeypatch):
    monkeypatch.setattr(host, "sample_latent", None)
    other = {"lora_unet_other.lora_up.weight": torch.ones(2, 2), "lora_unet_other.lora_down.weight": torch.ones(2, 2)}
    with pytest.raises(RuntimeError, match="1 of the LoRA's 1 layers do not match this model"):
        compare(loras[0], other)


def test_rows_are_named_after_files_and_savers_and_equal_names_get_numbers(compare, loras, monkeypatch):
    named = []
    monkeypatch.setattr(
        "pack.nodes.compare_loras.draw_grid", lambda rows, _: named.extend(rows) or torch.zeros(1, 8, 8, 3)
    )
    compare(*loras)
    compare(*loras, prompt={})
    compare({**loras[0]}, LoRAWeights(loras[1], {"ss_output_name": "sun_0123456789abcdef"}), prompt={})
    assert named == ["star", "moon", "iLECO", "iLECO (2)", "LoRA 1", "sun"]


def test_milestones_of_the_training_are_rows_in_the_order_of_their_steps(tiny, compare, monkeypatch, output_folder):
    graph = {**GRAPH, "2": {"class_type": "TrainTrain_TrainILECO", "inputs": {}}}
    graph["3"]["inputs"]["lora"] = ["2", 1]
    settings = TrainingConfig(save_every=2)
    training = {"prompt": graph, "settings": settings, "learning_rate": 0.1}
    _, lora, _ = tiny.train("iLECO", steps=12, **training)
    tiny.train("iLECO", steps=4, **training)  # another training under the same name
    files = sorted(path.name for path in (output_folder / "loras").rglob("*.safetensors"))
    assert "star_2steps_2.safetensors" in files and "star_10steps.safetensors" in files
    rows = {}
    monkeypatch.setattr(
        "pack.nodes.compare_loras.draw_grid", lambda drawn, _: rows.update(drawn) or torch.zeros(1, 8, 8, 3)
    )
    compare(lora, milestones=True, prompt=graph)
    assert list(rows) == [*(f"star_{step}steps" for step in (2, 4, 6, 8, 10)), "star (12 steps)"]
    saved = load_lora(output_folder / "loras" / "styles" / "star_10steps.safetensors")
    with torch.inference_mode():
        assert torch.equal(rows["star_10steps"][1], sample_in_host(tiny, host.with_lora(tiny.model, saved)))


def test_a_training_without_milestones_is_compared_alone_and_the_report_says_so(compare, loras):
    *_, report = compare(loras[0], milestones=True).args
    assert "There are no milestones of these LoRAs in output/loras: set save_every in Training Settings" in report
    assert "milestones" not in compare(loras[0]).args[3]


def test_text_encoder_layers_are_left_to_the_clip_and_the_report_says_so(compare, loras):
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)}
    plain, with_text = compare(loras[0]).args, compare(LoRAWeights({**loras[0], **text})).args
    assert torch.equal(plain[1], with_text[1])
    assert "text encoder layers" in with_text[3] and "text encoder layers" not in plain[3]


def test_the_grid_shows_each_image_under_its_name_and_strength(monkeypatch):
    written = []
    ours = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, **more: written.append((at, text)) or ours(self, at, text, **more),
    )
    colors = [[torch.tensor([r / 4, c / 4, 0.5]).expand(64, 96, 3) for c in range(3)] for r in range(2)]
    grid = draw_grid({"star": colors[0], "a very " + "long " * 40: colors[1]}, ["strength -1", "no LoRA", "strength 1"])
    # 96 is enlarged to twice its size; a label is a seventh of a tile high, and a line 1.4 times that.
    width, height, line = 192, 128, 38
    assert grid.shape == (1, GAP + 2 * (2 * line + height + GAP), GAP + 3 * (width + GAP), 3)
    for row in range(2):
        for column in range(3):
            top, left = GAP + row * (2 * line + height + GAP) + 2 * line, GAP + column * (width + GAP)
            tile = grid[0, top : top + height, left : left + width]
            assert (tile - colors[row][column][0, 0]).abs().max() < 0.003
            assert ((left, top - line), ["strength -1", "no LoRA", "strength 1"][column]) in written
            assert grid[0, top - line : top, left : left + width].max() > 0.8, "there is no ink"
    names = [text for (left, _), text in written if text not in ("strength -1", "no LoRA", "strength 1")]
    assert names[0] == "star" and names[1].startswith("a very long") and names[1].endswith("...")


def test_large_images_are_reduced_and_labels_fit_their_tiles():
    (grid,) = draw_grid({"a": [torch.zeros(2048, 1024, 3)] * 2}, ["strength -0.125", "no LoRA"])
    assert grid.shape[1] == GAP + 2 * (256 + GAP)
    assert grid[: -GAP - 512, GAP + 256 : 2 * GAP + 256].max() < 0.2, "a label reaches into the next column"


def test_effects_are_differences_of_the_latents_as_a_share_of_their_size():
    # Root mean squares: of (3, -4, 0, 0) 2.5, of (0, 0, 3, 4) 2.5, of (1.5, 2, 0, 0) 1.25, of (0, 0, 6, 8) 5.
    plain, step = torch.tensor([3.0, -4.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 3.0, 4.0])
    latents, image = [plain / 2, plain, plain + step, plain - step], torch.rand(8, 8, 3)
    assert measure_effects([-1, 0, 1, 2], latents, [image] * 4) == [
        Effect(-1, distance=0.5, change=0.5),
        Effect(0, distance=0, change=0),
        Effect(1, distance=1, change=1),
        Effect(2, distance=1, change=2),
    ]


@pytest.mark.parametrize("scale, edges, is_broken", [(3.9, 1, 0), (4.1, 1, 1), (1, 3.9, 0), (1, 4.1, 1), (1, 0.2, 1)])
def test_an_image_is_broken_with_latents_or_edges_four_times_as_strong_or_hardly_any_edges(scale, edges, is_broken):
    latent, image = torch.ones(4), torch.arange(8.0).remainder(2)[:, None, None].expand(8, 8, 3) * 0.2

    def breaks(latents, images) -> list[bool]:
        return [effect.is_broken for effect in measure_effects([0, 1], latents, images)]

    assert breaks([latent, latent * scale], [image, image * edges]) == [False, is_broken]
    assert breaks([latent, latent * float("nan")], [image, image]) == [False, True]
    assert breaks([latent, latent], [image, image * float("nan")]) == [False, True]
    assert breaks([latent, latent], [torch.zeros(8, 8, 3)] * 2) == [False, False]


def test_a_model_that_samples_nan_without_the_lora_is_described_too():
    bad = torch.full((4,), float("nan"))
    assert describe_effect(measure_effects([0, 1], [bad, bad], [torch.rand(8, 8, 3)] * 2)) == [
        "positive: 1 breaks the image. Compare smaller strengths."
    ]


def effects_of(distances: list[float], broken: list[int]) -> list[Effect]:
    """Return the effects of latents that move along a line, at strengths 0, 0.5, 1 and so on."""
    before = [0, *distances]
    return [Effect(i / 2, at, abs(at - before[i]), i in broken) for i, at in enumerate(distances)]


@pytest.mark.parametrize(
    "distances, broken, said",
    [
        # Changes of 4, 4, 0.8 and 0.4 a strength: the last two are less than a quarter of 4.
        (
            [0, 2, 4, 4.4, 4.6],
            [],
            "more strength adds little from 1 on.",
        ),
        ([0, 2, 4, 4.4, 7], [], "the image still changes at 2, the last strength compared."),
        ([0, 1, 2, 3, 4], [3, 4], "more strength breaks the image from 1.5 on."),
        ([0, 2, 2.1, 2.2, 9], [4], "adds little from 0.5 on and breaks the image from 2 on. Saved with strength 0.5"),
        ([0, 9, 9, 9, 9], [1, 2, 3, 4], "0.5 breaks the image. Compare smaller strengths."),
        ([0, 0.001, 0.002, 0.003, 0.004], [], "changes nothing that can be seen up to 2."),
        (
            [0, 0.001, 0.002, 0.003, 9],
            [4],
            "changes nothing that can be seen up to 1.5 and breaks the image from 2 on.",
        ),
        ([0, 3, 1, 3, 1], [], "the image still changes at 2"),  # it stays as far away and goes on changing
    ],
)
def test_the_words_follow_from_the_curve(distances, broken, said):
    effects = effects_of(distances, broken)
    (sentence,) = describe_effect(effects)
    assert sentence.startswith("positive: ") and said in sentence
    mirrored = [replace(effect, strength=-effect.strength) for effect in reversed(effects)]
    (sentence,) = describe_effect(mirrored)
    assert sentence.startswith("negative: ") and len(describe_effect([*mirrored[:-1], *effects])) == 2


def test_what_is_saved_with_the_advised_strength_has_that_effect_at_1():
    effects = [Effect(-1, 2.1, 0.1), Effect(-0.5, 2, 2), Effect(0, 0, 0), Effect(0.5, 2, 2), Effect(2, 2.1, 0.1)]
    assert describe_effect(effects) == [
        "positive: more strength adds little from 0.5 on. Saved with strength 0.5 in Save LoRA, 1 acts like 0.5 here.",
        "negative: more strength adds little from -0.5 on.",  # a file is saved with one strength
    ]


def test_no_strength_is_advised_for_a_lora_that_cannot_be_saved_with_another(tiny):
    effects = [Effect(0, 0, 0), Effect(0.5, 2, 2), Effect(2, 2.1, 0.1)]
    assert describe_effect(effects, can_be_saved=False) == ["positive: more strength adds little from 0.5 on."]
    dora = tiny.train("iLECO", network=NetworkConfig(rank=2, alpha=2, dora=True))[1]
    assert not can_scale(dora) and can_scale(tiny.train("iLECO", network=NetworkConfig("lokr", 2, 2))[1])


def test_a_name_that_ends_like_a_number_hides_no_other():
    names = ["star (2)", "star", "star", "moon", "moon"]
    named = with_unique_names([(name, place) for place, name in enumerate(names)])
    shown = ["star (2)", "star (3)", "star (4)", "moon", "moon (2)"]
    assert list(named.items()) == list(zip(shown, range(5)))


def test_the_chart_and_the_report_show_what_was_measured_and_the_pictures_are_saved(
    compare, loras, caplog, output_folder
):
    with caplog.at_level(logging.INFO):
        result = compare(loras[0], strengths="-1, 1, 2")
    grid, _, curve, report = result.args
    assert report.startswith("star, positive: ") and "\nstar, negative: " in report
    assert "Adds little: with more strength, the latents change less than a quarter" in report and report in caplog.text
    assert curve.shape[0] == 1 and curve.shape[2:] == (900, 3) and 0 <= curve.min() < curve.max() <= 1
    again = compare(loras[0], name="more/star").ui["images"], compare(loras[0], name="more/star").ui["images"]
    assert [file["filename"] for files in again for file in files] == [
        "star.png", "star_curve.png", "star_2.png", "star_2_curve.png"
    ]  # fmt: skip
    assert again[1][0] == {"filename": "star_2.png", "subfolder": "compare/more", "type": "output"}
    for image, file in zip((grid, curve), result.ui["images"]):
        saved = Image.open(output_folder / "compare" / file["filename"])
        assert torch.equal(torch.from_numpy(np.array(saved)), image[0].mul(255).round().byte())


class EightPixels:
    """A CLIP vision model that embeds an image as the mean of its colors."""

    def encode_image(self, images: torch.Tensor) -> dict:
        return {"image_embeds": images.mean(dim=(1, 2))}


def test_similarity_is_the_cosine_to_the_mean_of_the_references(compare, loras):
    red, green, gray = torch.eye(3)[0], torch.eye(3)[1], torch.ones(3)
    images = [color.expand(8, 8, 3) for color in (red, green, gray)]
    assert image_similarities(EightPixels(), images[0][None], images) == pytest.approx([1, 0, 3**-0.5])
    both = torch.stack(images[:2])
    assert image_similarities(EightPixels(), both, images) == pytest.approx([0.5**0.5, 0.5**0.5, (2 / 3) ** 0.5])
    plain = compare(loras[0]).args
    chosen = plain[1][1:]
    *_, curve, report = compare(loras[0], clip_vision=EightPixels(), reference=chosen).args
    assert curve.shape[1] > plain[2].shape[1]
    assert "Most like the reference: star, strength 1 (similarity 1.00)." in report
