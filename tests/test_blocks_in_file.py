"""The blocks of a model by its file's header: those that the loaded model has, for every family that can be trained."""

from __future__ import annotations

import comfy.ops
import pytest
import torch
from more_families import MORE
from other_families import OTHERS
from pack.nodes.host.blocks_in_file import blocks_in_file
from pack.trainer.blocks import adaptable_blocks
from pack.trainer.config import NetworkConfig
from safetensors.torch import save_file
from tiny_families import FAMILIES
from tiny_models import network_shapes, set_in_host, tiny_adapter
from video_families import VIDEOS

ALL = FAMILIES | OTHERS | MORE | VIDEOS


@pytest.mark.parametrize("network_type", ["lierla", "c3lier"])
@pytest.mark.parametrize("name", ALL)
def test_the_header_of_a_file_is_enough(name, network_type, tmp_path):
    family, path, config = ALL[name], tmp_path / "a.safetensors", NetworkConfig(network_type=network_type)
    shapes = network_shapes(family, family.sizes)
    weights = {key: torch.empty(shape, dtype=torch.float8_e4m3fn) for key, shape in shapes.items()}
    save_file(weights | {f"{family.prefix}{key}": tensor for key, tensor in family.markers.items()}, path)
    layers = comfy.ops.disable_weight_init
    with tiny_adapter(family):
        network = family.network(**family.sizes, device="meta", dtype=torch.float32, operations=layers)
    with set_in_host(family):
        assert blocks_in_file(path, config) == adaptable_blocks(network, config) != []
