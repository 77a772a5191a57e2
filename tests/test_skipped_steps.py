"""A step that overflows, through the node: it is skipped and said so; ten in a row end the training and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from pack.nodes import progress
from pack.nodes.loss_table import read_table
from pack.trainer.config import TrainingConfig
from pack.trainer.lora_file import load_lora
from pack.trainer.run import NonFiniteLoss
from pack.trainer.state import load_state
from tiny_host import TinyHost

CONSTANT = TrainingConfig(lr_scheduler="constant")
FP16 = TrainingConfig(lr_scheduler="constant", precision="fp16")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"))


@contextmanager
def overflowing(tiny: TinyHost, first: int, last: int) -> Iterator[list[torch.dtype]]:
    """Let a layer's output be beyond what its type holds in the student's passes of some steps; give the types it has."""
    seen: list[torch.dtype] = []

    def hook(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if not torch.is_grad_enabled():
            return None
        seen.append(output.dtype)
        return output * torch.finfo(output.dtype).max * 2 if first <= len(seen) <= last else None

    handle = tiny.model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc2.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("settings", [CONSTANT, FP16], ids=["fp32", "fp16"])
def test_an_overflow_in_step_3_of_10_is_skipped_and_the_chart_says_so(tiny, output_folder, settings):
    with overflowing(tiny, 3, 3) as seen:
        *_, lora, loss = tiny.train("iLECO", steps=10, settings=settings)
    assert len(seen) == 10 and set(seen) == {torch.float16 if settings is FP16 else torch.float32}
    assert loss["skipped"] == [3] and len(loss["loss"]) == 10
    assert all(tensor.isfinite().all() for tensor in lora.values()) and lora.metadata["traintrain_step"] == "10"
    shown = progress._shown[None, "2"]
    assert (shown["skipped"], shown["step"]) == (1, 10)
    (table,) = (output_folder / "traintrain").glob("*.csv")
    (history,) = read_table(table).values()
    assert history.skipped == [3] and len(history) == 10
    progress._shown.clear()
    tiny.train("iLECO", steps=10, settings=settings)  # from disk
    assert progress._shown[None, "2"]["skipped"] == 1


def test_ten_in_a_row_are_one_sentence_with_lora_and_state_on_disk_and_the_next_try_goes_past_them(tiny, output_folder):
    with overflowing(tiny, 4, 99), pytest.raises(NonFiniteLoss) as error:
        tiny.train("LoRA", steps=30, settings=CONSTANT)
    message = str(error.value)
    assert "10 steps in a row, up to step 13" in message and "up to step 3 is saved" in message
    assert "precision to bf16 or fp32" in message and "\n" not in message
    trained = output_folder / "traintrain"
    (file,), (state,) = trained.glob("*.safetensors"), trained.glob("*.state")
    assert load_lora(file).metadata["traintrain_step"] == "13" and load_state(state)["skipped"] == list(range(4, 14))
    with overflowing(tiny, 99, 99) as seen:
        *_, lora, loss = tiny.train("LoRA", steps=30, settings=CONSTANT)
    assert len(seen) == 17 and loss["skipped"] == list(range(4, 14)) and len(loss["loss"]) == 30


def test_the_graph_has_no_nan_even_where_the_table_has(tiny, output_folder: Path):
    """The host's own nodes draw what the loss output has, and know no NaN."""
    with overflowing(tiny, 2, 2):
        *_, loss = tiny.train("copy machine", steps=3, settings=CONSTANT)
    assert all(torch.tensor(loss["loss"]).isfinite()) and loss["loss"][1] == loss["loss"][0]
    (table,) = (output_folder / "traintrain").glob("*.csv")
    assert table.read_text(encoding="utf-8").splitlines()[2].split(",")[2] in ("nan", "inf")
