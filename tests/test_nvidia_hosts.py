"""What ComfyUI does on NVIDIA cards before and while a model trains, as far as a CPU shows it.

Dynamic VRAM is on there by default, so a model is reloaded for training without it. Where it is off, weights that the loader has
made in inference mode move to the GPU outside of it. Moving needs two devices; converting takes the same way through PyTorch.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import comfy.memory_management
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import pytest
import torch
from pack.nodes import host
from pack.nodes.host import loading, session
from pack.nodes.host.quantized_layers import dequantize_in_forward
from pack.nodes.host.reloading import without_dynamic_memory
from pack.nodes.host.text_encoder import held_for_training
from pack.trainer.config import TrainingConfig
from pack.trainer.optimizer import create_optimizer, resume
from safetensors.torch import load_file


@pytest.fixture
def loaded(shapes_checkpoint, monkeypatch):
    """MODEL and CLIP of a file, as dynamic VRAM loads them: the model computes in another type than that of its file."""
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    monkeypatch.setattr(comfy.utils, "load_safetensors", lambda path: (load_file(path), {}))  # its own needs a GPU
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_, **__: torch.bfloat16)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_, **__: None)
    with torch.inference_mode():
        half = {"dtype": torch.bfloat16}
        model, clip = comfy.sd.load_checkpoint_guess_config(
            str(shapes_checkpoint), output_vae=False, te_model_options=half
        )[:2]
    for patcher in (model, clip.patcher):
        monkeypatch.setattr(patcher, "is_dynamic", lambda: True)
    return model, clip


def predict(denoiser, clip) -> torch.Tensor:
    prompts = host.HostTextEncoder(clip).encode(["a red circle"])
    return denoiser.predict(*(torch.ones(size, device=denoiser.device) for size in ((1, 4, 8, 8), (1,))), prompts)


def test_a_reloaded_model_computes_in_the_type_of_the_model_not_of_its_file(loaded, shapes):
    with host.open_model(loaded[0]) as (denoiser, layers):
        assert {weight.dtype for weight in layers.parameters()} == {denoiser.dtype} == {torch.bfloat16}
        assert predict(denoiser, shapes[1]).isfinite().all()


def test_a_reloaded_model_comes_after_the_others_have_left_and_is_counted_as_it_is(loaded, monkeypatch):
    model, events = loaded[0], []
    reload, *rest = model.cached_patcher_init
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda *_, **__: torch.float32)
    monkeypatch.setattr(comfy.model_management, "unload_all_models", lambda: events.append("unload"))
    monkeypatch.setattr(model, "cached_patcher_init", (lambda *a, **k: events.append("load") or reload(*a, **k), *rest))
    plain = without_dynamic_memory(model)
    assert events == ["unload", "load"]
    assert plain.model_size() == comfy.model_management.module_size(plain.model) > model.model_size()


def test_what_is_thrown_away_after_the_training_is_not_restored(loaded, shapes, monkeypatch):
    restored = []
    monkeypatch.setattr(loading, "restore_quantized", restored.append)
    for model in (loaded[0], shapes[0]):
        with host.open_model(model):
            pass
    assert restored == [shapes[0]]


def test_a_reloaded_text_encoder_has_the_type_of_the_one_that_was_loaded(loaded):
    model, clip = loaded
    plain = without_dynamic_memory(clip.patcher)
    types = {weight.dtype for name, weight in plain.model.named_parameters() if "transformer" in name}
    assert types == {torch.bfloat16}  # float16 in the file


def test_a_model_that_cannot_be_loaded_again_is_refused(loaded, monkeypatch):
    for patcher in (loaded[0], loaded[1].patcher):
        monkeypatch.setattr(patcher, "cached_patcher_init", None)
        with pytest.raises(ValueError, match="dynamic VRAM is on.*ComfyUI's own loaders"):
            without_dynamic_memory(patcher)


def test_weights_made_in_inference_mode_can_be_trained_after_they_have_moved(shapes_checkpoint, shapes, monkeypatch):
    with torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(shapes_checkpoint), output_vae=False, output_clip=False)[0]
    load = comfy.model_management.load_models_gpu

    def move_and_load(patchers, **options):
        for patcher in patchers:
            patcher.model.to(torch.float64).to(torch.float32)
        load(patchers, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", move_and_load)
    with host.open_model(model) as (denoiser, _):
        assert predict(denoiser, shapes[1]).isfinite().all()


def test_no_weight_stays_pinned_that_is_exchanged(shapes, monkeypatch):
    pinned, calls = [], []
    monkeypatch.setattr(shapes[0], "unpin_all_weights", lambda: calls.append(len(pinned)))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *_, **__: pinned.append(1))
    with host.open_model(shapes[0]):
        assert calls == [0]


def test_captions_in_training_share_the_weights_of_the_text_encoder(loaded):
    """Autograd keeps a layer's weight for the backward pass; a converted one would be another for each caption."""
    model, clip = loaded
    clip = host.trainable_clip(clip, model)
    shape, kept = (3072, 768), []  # of a layer's weight

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if sorted(tensor.shape) == sorted(shape):
            kept.append(tensor)  # so that no memory is used again
        return tensor

    held = held_for_training(clip, ["BASE.clip_l.transformer"])
    with host.open_model(model, clip=clip), held, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        word = clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight
        word.requires_grad_(True)  # as an adapter's output has gradients
        encoded = host.TrainedTextEncoder(clip).encode(["a red circle", "a blue square"])
        word.requires_grad_(False)
    assert encoded[0][0].requires_grad and len(kept) >= 2 * 12
    assert len({tensor.data_ptr() for tensor in kept}) <= 2 * 12


class Encoder(torch.nn.Module):
    """An encoder of three weights, one of them in no file, that notes to where it is moved."""

    def __init__(self) -> None:
        super().__init__()
        kinds = torch.float16, torch.bfloat16, torch.float32
        self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False).to(kind) for kind in kinds])
        unused = torch.tensor([0x7C01], dtype=torch.int16).view(torch.float16)  # a signalling NaN
        self.unused = torch.nn.Parameter(unused, requires_grad=False)
        self.moved: list[torch.device] = []

    def to(self, device):
        self.moved.append(device)
        return self

    def kinds(self) -> list[torch.dtype]:
        return [layer.weight.dtype for layer in self.layers]


@pytest.fixture
def clip():
    encoders = torch.nn.ModuleDict({"clip_l": Encoder(), "t5xxl": Encoder()})
    pinned = ["a weight"]
    patcher = SimpleNamespace(load_device=torch.device("cuda"), unpin_all_weights=pinned.clear, pinned=pinned)
    return SimpleNamespace(cond_stage_model=SimpleNamespace(**encoders), patcher=patcher)


def test_a_text_encoder_gets_its_types_back_bit_for_bit(clip):
    """Also a weight that no file has: its memory may hold any NaN, of which a conversion makes another."""
    encoder = clip.cond_stage_model.clip_l
    before = [weight.detach().clone() for weight in encoder.parameters()]
    with held_for_training(clip, ["BASE.clip_l.layers.0", "IN01.x"]):
        assert encoder.kinds() == [torch.float32] * 3
    for new, old in zip(encoder.parameters(), before):
        assert new.dtype == old.dtype and torch.equal(new.detach().view(torch.uint8), old.view(torch.uint8))


def test_only_encoders_that_are_trained_are_held_and_on_the_device(clip):
    """Also where the model waits outside; nothing stays pinned that is moved."""
    trained, other = clip.cond_stage_model.clip_l, clip.cond_stage_model.t5xxl
    kinds = other.kinds()
    with held_for_training(clip, ["BASE.clip_l.layers.0"]):
        assert trained.moved == [torch.device("cuda")] and not clip.patcher.pinned
        assert other.kinds() == kinds and not other.moved


def test_encoders_are_held_anew_after_the_host_has_loaded_them_again(clip):
    encoder = clip.cond_stage_model.clip_l
    with held_for_training(clip, ["BASE.clip_l.layers.0"]) as hold:
        encoder.layers[0].weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.float16))  # as it puts a LoRA on it
        hold()
        assert encoder.kinds() == [torch.float32] * 3
    assert encoder.kinds() == [torch.float16, torch.bfloat16, torch.float32]


def test_a_sample_does_not_end_it(shapes, monkeypatch):
    """The session holds the encoders of its own CLIP, and again after each sample."""
    model, clip, vae = shapes
    held = []
    monkeypatch.setattr(session, "held_for_training", lambda *given: nullcontext(lambda: held.append(given)))
    job = SimpleNamespace(clip=clip, config=TrainingConfig(), model=model)
    owner = session.Session.__new__(session.Session)
    owner._job, owner._network = job, SimpleNamespace(layer_names=lambda: ["BASE.clip_l.a"])
    owner._previewer = SimpleNamespace(is_due=lambda number: True, sample=lambda weights: [])
    owner._run, owner._model = SimpleNamespace(eval_weights=None), SimpleNamespace(patcher=model)
    monkeypatch.setattr(session, "load", lambda *_: held.append("loaded"))
    with owner.text_encoders_held():
        owner.sample(SimpleNamespace(number=1))
    assert held == ["loaded", (clip, ["BASE.clip_l.a"])]


def test_a_model_in_training_has_no_copies_on_other_gpus(shapes, monkeypatch):
    model = shapes[0].clone()
    model.set_additional_models("multigpu", [shapes[0].clone()])
    with host.open_model(model) as (denoiser, _):
        assert not denoiser.patcher.get_additional_models()
    assert len(model.get_additional_models()) == 1


def test_sums_of_products_are_exact_while_a_model_trains(shapes):
    products = torch.backends.cuda.matmul
    before = products.allow_fp16_accumulation
    try:
        for setting in (True, False):
            products.allow_fp16_accumulation = setting
            with host.open_model(shapes[0]):
                assert not products.allow_fp16_accumulation
            assert products.allow_fp16_accumulation is setting
    finally:
        products.allow_fp16_accumulation = before


def test_what_a_text_encoder_in_training_makes_stays_on_its_device(shapes, monkeypatch):
    asked = []
    host_asks = comfy.model_management.intermediate_device
    monkeypatch.setattr(comfy.model_management, "intermediate_device", lambda: asked.append(1) or host_asks())
    with host.open_model(shapes[0], clip=shapes[1]):
        host.TrainedTextEncoder(shapes[1]).encode(["a red circle"])
    assert not asked
    host.HostTextEncoder(shapes[1]).encode(["a circle that is red"])
    assert asked


def test_a_text_encoder_on_another_device_than_the_model_is_refused(shapes, monkeypatch):
    model, clip, _ = shapes
    monkeypatch.setattr(clip.patcher, "load_device", torch.device("meta"))
    with pytest.raises(ValueError, match="text encoder runs on meta and the model on .*device of the node"):
        host.trainable_clip(clip, model)


@pytest.mark.parametrize("name", ["DAdaptAdam", "DAdaptLion", "DAdaptAdaGrad", "DAdaptAdan", "DAdaptSGD", "Prodigy"])
def test_what_an_optimizer_has_found_for_all_weights_moves_to_their_device(name):
    config = TrainingConfig(optimizer=name, learning_rate=1.0, lr_scheduler="constant")
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = create_optimizer(config, [weight])
    for _ in range(2):
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    resume(optimizer, optimizer.state_dict(), torch.device("meta"))
    found = [value for value in optimizer.param_groups[0].values() if isinstance(value, torch.Tensor)]
    assert found and all(tensor.device.type == "meta" for tensor in found)


def test_a_layer_that_multiplies_in_float8_gives_its_input_a_gradient(monkeypatch):
    monkeypatch.setattr(comfy.ops, "fp8_linear", lambda layer, x: x.detach())  # rounding the input breaks its graph
    with torch.no_grad():
        layer = comfy.ops.fp8_ops.Linear(16, 16, bias=False, dtype=torch.float8_e4m3fn)
        layer.weight = torch.nn.Parameter(torch.randn(16, 16).to(torch.float8_e4m3fn), requires_grad=False)
    dequantize_in_forward(layer)
    x = torch.randn(2, 16, requires_grad=True)
    layer(x).sum().backward()
    assert torch.equal(x.grad, layer.weight.float().sum(0).expand(2, 16))


@pytest.mark.parametrize("offload_device, said", [("its own", 1), ("meta", 0)])
def test_offload_is_said_to_have_no_effect_where_weights_never_leave_the_gpu(
    shapes, monkeypatch, caplog, offload_device, said
):
    monkeypatch.setattr(comfy.model_management, "is_device_cpu", lambda device: False)
    device = shapes[0].load_device if offload_device == "its own" else torch.device(offload_device)
    monkeypatch.setattr(shapes[0], "offload_device", device)
    config = TrainingConfig(offload="all", gradient_checkpointing=True, batch_size=2)
    with host.open_model(shapes[0]) as (denoiser, _):
        session._log_ignored_settings(config, denoiser, None)
    assert sum("offload has no effect" in record.getMessage() for record in caplog.records) == said
