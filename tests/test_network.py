"""The LoRA itself, against PEFT, against merged weights, and against kohya's count of layers."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.adapters import LoRALayer
from pack.trainer.blocks import block_id, choose_blocks, choose_layers
from pack.trainer.checkpointing import checkpointed
from pack.trainer.config import NetworkConfig
from pack.trainer.in_place import InPlaceGuard
from pack.trainer.network import LoRANetwork
from peft import LoraConfig, inject_adapter_in_model
from torch import nn


class TinyAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(4, 6, 1)
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn1": nn.Linear(6, 6), "attn2": nn.Linear(6, 4)})])

    def forward(self, x):
        x = self.proj_in(x).movedim(1, -1)
        block = self.transformer_blocks[0]
        return torch.tanh(block["attn2"](torch.tanh(block["attn1"](x)))).movedim(-1, 1)


class TinyResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_layers = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x):
        return x + torch.tanh(self.in_layers[0](x))


class TinyUNet(nn.Module):
    """Named like the host's U-Net, small enough to reason about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.time_embed = nn.Sequential(nn.Linear(4, 4))
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)]), nn.ModuleList([TinyResidual(), TinyAttention()])]
        )
        self.middle_block = nn.ModuleList([TinyResidual(), TinyAttention()])
        self.output_blocks = nn.ModuleList([nn.ModuleList([TinyResidual()])])

    def forward(self, x):
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            for layer in block:
                x = layer(x)
        return x


@pytest.fixture
def unet() -> TinyUNet:
    return TinyUNet().requires_grad_(False)


def make_network(unet: nn.Module, **config) -> LoRANetwork:
    """A network whose `up` is not zero, so that it does something."""
    config = NetworkConfig(**config)
    key_of = lambda name: "lora_unet_" + name.replace(".", "_")  # noqa: E731
    network = LoRANetwork.create(choose_layers(unet, config), config, key_of, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if name.endswith("up"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network


@pytest.mark.parametrize(
    "layer, x",
    [
        (nn.Linear(5, 7), torch.randn(2, 3, 5)),
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.randn(2, 5, 8, 8)),
        (nn.Conv2d(5, 7, 1), torch.randn(2, 5, 4, 4)),
    ],
)
def test_an_adapter_adds_what_pefts_adds(layer, x):
    adapter = LoRALayer(layer, rank=3, alpha=6.0, rng=torch.Generator().manual_seed(0))
    adapter.up.data.normal_()
    holder = nn.ModuleDict({"layer": layer})
    peft = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=["layer"]), holder)["layer"]
    peft.lora_A["default"].weight.data = adapter.down.data.clone()
    peft.lora_B["default"].weight.data = adapter.up.data.clone()
    torch.testing.assert_close(adapter(peft.get_base_layer()(x), x, strength=1.0), peft(x))


@pytest.mark.parametrize("rank, conv_rank, conv_alpha", [(4, 0, 0.0), (4, 2, 5.0), (1, 9, 0.0)])
@pytest.mark.parametrize("network_type", ["c3lier", "loha"])
def test_rs_lora_has_the_effect_of_pefts_and_in_the_file_of_every_program(
    unet, network_type, rank, conv_rank, conv_alpha
):
    sizes = {"rank": rank, "alpha": 3.0, "conv_rank": conv_rank, "conv_alpha": conv_alpha, "network_type": network_type}
    network, plain = (make_network(unet, rs_lora=on, **sizes) for on in (True, False))
    for key, tensor in network.weights().items():
        if key.endswith(".alpha"):
            is_convolution = "in_layers" in key
            own_rank = (conv_rank or rank) if is_convolution else rank
            own_alpha = (conv_alpha or 3.0) if is_convolution else 3.0
            assert tensor.item() / own_rank == pytest.approx(own_alpha / own_rank**0.5)
        else:
            assert torch.equal(tensor, plain.weights()[key])


def test_an_rs_lora_layer_adds_what_pefts_adds():
    layer, x, config = nn.Linear(5, 7), torch.randn(2, 3, 5), NetworkConfig(rank=3, alpha=6, rs_lora=True)
    adapter = LoRALayer(layer, 3, config.alpha_in_file(False), torch.Generator().manual_seed(0))
    adapter.up.data.normal_()
    to = LoraConfig(r=3, lora_alpha=6, target_modules=["layer"], use_rslora=True)
    peft = inject_adapter_in_model(to, nn.ModuleDict({"layer": layer}))["layer"]
    peft.lora_A["default"].weight.data = adapter.down.data.clone()
    peft.lora_B["default"].weight.data = adapter.up.data.clone()
    torch.testing.assert_close(adapter(peft.get_base_layer()(x), x, strength=1.0), peft(x))
    file = adapter.tensors()
    merged = (
        layer.weight + file["lora_up.weight"] @ file["lora_down.weight"] * file["alpha"] / 3
    )  # as kohya's format says
    torch.testing.assert_close(nn.functional.linear(x, merged, layer.bias), peft(x))


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (2, 3, 2, 5)])
def test_gradients_are_those_of_the_merged_weight(shape):
    layer, strength = nn.Linear(5, 7), -0.7
    x = torch.randn(shape, requires_grad=True)
    adapter = LoRALayer(layer, rank=2, alpha=3.0, rng=torch.Generator().manual_seed(0))
    adapter.up.data.normal_()
    down, up = (p.detach().clone().requires_grad_() for p in (adapter.down, adapter.up))
    adapter(layer(x), x, strength).square().sum().backward()
    twin = x.detach().clone().requires_grad_()
    (twin @ (layer.weight + strength * 3.0 / 2 * up @ down).T + layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(adapter.down.grad, down.grad)
    torch.testing.assert_close(adapter.up.grad, up.grad)


def test_a_new_lora_changes_nothing(unet):
    x = torch.randn(2, 4, 8, 8)
    before = unet(x)
    config = NetworkConfig()
    with LoRANetwork.create(choose_layers(unet, config), config, str, seed=0).injected():
        assert torch.equal(unet(x), before)


def test_strength_zero_is_the_bare_model_and_strength_comes_back(unet):
    x, network = torch.randn(2, 4, 8, 8), make_network(unet)
    bare = unet(x)
    with network.injected():
        full = unet(x)
        assert not torch.allclose(full, bare, atol=1e-3)
        with network.scaled(0.0):
            assert torch.equal(unet(x), bare)
            with network.scaled(1.0):
                assert torch.equal(unet(x), full)
            assert torch.equal(unet(x), bare)
        assert torch.equal(unet(x), full)


def test_at_strength_zero_no_adapter_is_computed(unet, monkeypatch):
    network = make_network(unet)
    monkeypatch.setattr(LoRALayer, "forward", lambda *_: pytest.fail("an adapter was run for nothing"))
    with network.injected(), network.scaled(0.0):
        unet(torch.randn(1, 4, 8, 8))


def test_two_loras_taken_off_out_of_order_leave_nothing_behind(unet):
    x = torch.randn(2, 4, 8, 8)
    bare = unet(x)
    first, second = make_network(unet).injected(), make_network(unet, rank=4).injected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(unet(x), bare)
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_layer_that_is_never_run_is_named(unet):
    unet.middle_block[1].forward = lambda x: x
    network = make_network(unet)
    with network.injected():
        unet(torch.randn(1, 4, 8, 8))
    with pytest.raises(RuntimeError, match=r"3 of 6 .*middle_block\.1\.proj_in"):
        network.check_reached()


@pytest.mark.parametrize("strength", [1.0, -0.5, 0.0])
def test_gradient_checkpointing_gives_the_same_gradients(unet, strength):
    x, network = torch.randn(2, 4, 8, 8), make_network(unet, network_type="c3lier")

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        with network.injected(), network.scaled(strength):
            (unet(x).square().sum() + 0 * sum(p.sum() for p in network.parameters())).backward()
        return [p.grad.clone() for p in network.parameters()]

    plain = gradients()
    with checkpointed(unet, InPlaceGuard()):
        recomputed = gradients()
    assert all("forward" not in vars(module) for module in unet.modules())
    for ours, theirs in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_lierla_takes_attention_and_c3lier_the_convolutions_too(unet):
    lierla = set(choose_layers(unet, NetworkConfig()))
    assert lierla == {
        f"{block}.1.{layer}"
        for block in ("input_blocks.1", "middle_block")
        for layer in ("proj_in", "transformer_blocks.0.attn1", "transformer_blocks.0.attn2")
    }
    c3lier = set(choose_layers(unet, NetworkConfig(network_type="c3lier")))
    assert c3lier - lierla == {
        "input_blocks.1.0.in_layers.0",
        "middle_block.0.in_layers.0",
        "output_blocks.0.0.in_layers.0",
    }


def test_conv_rank_and_alpha_fall_back_to_the_linear_ones(unet):
    def figures(**config):
        weights = make_network(unet, network_type="c3lier", rank=4, alpha=2.0, **config).weights()
        key = "lora_unet_input_blocks_1_0_in_layers_0"
        return weights[f"{key}.lora_down.weight"].shape[0], weights[f"{key}.alpha"].item()

    assert figures() == (4, 2.0)
    assert figures(conv_rank=3, conv_alpha=1.0) == (3, 1.0)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("all", {"IN00", "IN01", "IN02", "M00", "OUT00"}),
        ("", {"IN00", "IN01", "IN02", "M00", "OUT00"}),
        ("IN01-M00", {"IN01", "IN02", "M00"}),
        ("in00, out00", {"IN00", "OUT00"}),
        ("-M00", {"IN00", "IN01", "IN02", "OUT00"}),
        ("all, -IN00-IN02", {"M00", "OUT00"}),
    ],
)
def test_blocks_are_parsed_as_written(text, expected):
    assert choose_blocks(text, ["IN00", "IN01", "IN02", "M00", "OUT00"]) == expected


def test_an_unknown_block_gives_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="IN09.*IN00, M00"):
        choose_blocks("M00, IN09", ["IN00", "M00"])


def test_a_selection_without_layers_is_refused(unet):
    with pytest.raises(ValueError, match="No layer"):
        choose_layers(unet, NetworkConfig(blocks="-all"))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("input_blocks.4.1.proj_in", "IN04"),
        ("middle_block.1.proj_in", "M00"),
        ("output_blocks.11.0.out_layers.3", "OUT11"),
        ("double_blocks.7.img_attn.qkv", "double_blocks.07"),
        ("time_embed.0", None),
        ("x_embedder.proj", None),
    ],
)
def test_blocks_have_the_ids_people_know(name, expected):
    assert block_id(name) == expected


def host_unet(**config) -> nn.Module:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        use_spatial_transformer=True,
        legacy=False,
        device="meta",
        dtype=torch.float16,
        operations=comfy.ops.disable_weight_init,
        **config,
    )


SD15 = dict(
    num_res_blocks=[2] * 4,
    transformer_depth=[1] * 6 + [0] * 2,
    channel_mult=[1, 2, 4, 4],
    transformer_depth_middle=1,
    use_linear_in_transformer=False,
    context_dim=768,
    num_heads=8,
    transformer_depth_output=[1] * 9 + [0] * 3,
)
SDXL = dict(
    num_res_blocks=[2] * 3,
    transformer_depth=[0, 0, 2, 2, 10, 10],
    channel_mult=[1, 2, 4],
    transformer_depth_middle=10,
    use_linear_in_transformer=True,
    context_dim=2048,
    num_head_channels=64,
    num_classes="sequential",
    adm_in_channels=2816,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
)


@pytest.mark.parametrize(
    "config, layers, blocks",
    [
        (SD15, 192, "IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"),
        (SDXL, 722, "IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05"),
    ],
    ids=["SD1.5", "SDXL"],
)
def test_lierla_adapts_as_many_layers_as_kohyas_trainer_in_the_blocks_that_hold_attention(config, layers, blocks):
    chosen = choose_layers(host_unet(**config), NetworkConfig())
    assert len(chosen) == layers  # what kohya's trainer prints when it makes a LoRA for these models
    assert sorted({block_id(name) for name in chosen}) == blocks.split()


def test_elements_are_the_two_attentions_of_a_block():
    unet = host_unet(**SD15)
    cross = choose_layers(unet, NetworkConfig(element="CrossAttention"))
    own = choose_layers(unet, NetworkConfig(element="SelfAttention"))
    assert len(cross) == len(own) == 16 * 4
    assert all(".attn2." in name for name in cross) and all(".attn1." in name for name in own)
