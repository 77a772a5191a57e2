"""What some devices have not: float64, and operations that Apple's chips lack."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import COMFYUI, HOST, ROOT
from pack.nodes import host
from pack.trainer import in_place, noise
from pack.trainer.config import TrainingConfig
from tiny_families import FAMILIES
from tiny_host import TinyHost
from torch.utils._python_dispatch import TorchDispatchMode

# Methods and precisions, together all of the trainer's code. With --long each family is trained in all of them, else in one of
# them in turn: the operations that are looked at are ours, and nearly the same for every family.
TRAININGS = (("LoRA", "fp32"), ("ADDifT", "fp16"))
MORE = {"SD3": (("iLECO", "bf16"), ("difference", "as loaded"))}


# Files through which an operation of others comes.
PASSED_ON = (str(Path(torch.__file__).parent), in_place.__file__, contextlib.__file__, "<")


class Watch(TorchDispatchMode):
    """Notes each operation of our code, and whether it makes float64. What is drawn is on the CPU, and not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.doubles: dict[str, str] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        caller = _caller()
        if caller.startswith(str(ROOT)) and not caller.startswith((noise.__file__, str(COMFYUI), str(HOST))):
            self.names.add(func.overloadpacket.__name__)
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                    self.doubles[func.overloadpacket.__name__] = caller
        return result


def _caller() -> str:
    """Return the file and line, of ours or of the host, that an operation comes from: what the host has, it guards."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(PASSED_ON):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@pytest.fixture(scope="module")
def watched(tmp_path_factory, is_long) -> dict[str, Watch]:
    """The first step that is not skipped of trainings on each family."""
    seen: dict[str, Watch] = defaultdict(Watch)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for number, name in enumerate(FAMILIES):
        trainings = TRAININGS if is_long else (TRAININGS[number % len(TRAININGS)],)
        tiny = TinyHost(tmp_path_factory.mktemp("model"), name)
        for method, precision in trainings + MORE.get(name, ()):
            job = tiny.job(method, steps=5, batch_size=2, settings=TrainingConfig(precision=precision))
            with seen[name], host.open_session(job, lambda session: None) as session:
                assert any(not step.skipped for step in session.steps())  # in fp16 the first ones may overflow
                session.lora()
    torch.set_num_threads(before)
    return seen


def test_no_family_makes_float64_outside_its_draws(watched):
    assert {name: watch.doubles for name, watch in watched.items() if watch.doubles} == {}
    assert all(len(watch.names) > 20 for watch in watched.values())


def test_no_operation_of_ours_is_missing_on_apples_chips(watched):
    missing = set(re.findall(r'^ +"(\w+)": None,', _lists_of_torch(), re.MULTILINE))
    ours = set().union(*(watch.names for watch in watched.values()))
    assert {"hash_tensor", "mode"} < missing and {"addmm", "mul"} < ours and not ours & missing


def _lists_of_torch() -> str:
    """Return the source of torch's lists of operations that have no implementation on MPS in any type."""
    spec = importlib.util.find_spec("torch.testing._internal")
    file = Path(spec.submodule_search_locations[0]) / "common_mps.py"
    if not file.is_file():
        pytest.skip("This PyTorch comes without its lists of what MPS lacks.")
    code = file.read_text(encoding="utf-8")
    start = code.index("UNIMPLEMENTED_XFAILLIST")
    return code[start : code.index("}", start)]


def test_the_same_seed_draws_the_same_on_every_device():
    """There is no other device here, so: all draws are made by a CPU's generator, before they move."""
    drawn = noise.draw_noise((2, 4), "meta", torch.Generator().manual_seed(1))
    assert drawn.device.type == "meta"
    assert torch.equal(
        noise.draw_noise((2, 4), "cpu", torch.Generator().manual_seed(1)),
        torch.randn((2, 4), generator=torch.Generator().manual_seed(1)),
    )
