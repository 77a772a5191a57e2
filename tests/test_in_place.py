"""Blocks that write into their tensors, as newer models' do, have the gradients of the same blocks written plainly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from pack.trainer.checkpointing import checkpointed
from pack.trainer.in_place import InPlaceGuard, OutOfPlace
from torch import nn

WIDTH = 8


class Block(nn.Module):
    """A residual block. write: how the result of the second layer is put into its input"""

    def __init__(self, write: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.norm, self.first = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gate, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.write = write

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        x = self.write(x, self.first(self.norm(x)), gate)
        return self.write(x, self.second(self.norm(x) * x), self.gate(gate))


class Model(nn.Module):
    def __init__(self, write: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.Module()
        self.inside.stages = nn.ModuleList(nn.ModuleList(Block(write) for _ in range(2)) for _ in range(2))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for stage in self.inside.stages:
            for block in stage:
                x = block(x, gate)
        return x


def add(x, y, gate):
    x += y * gate
    return x


def add_method(x, y, gate):
    x.add_(y * gate)
    return x


def add_out(x, y, gate):
    torch.add(x, y * gate, out=x)
    return x


def addcmul_out(x, y, gate):
    return torch.addcmul(x, y, gate, out=x)


def into_the_result(x, y, gate):
    """The sum goes into what a layer gave, and a scaling into what a product gave."""
    y = torch.mul(y, gate, out=y)
    return torch.add(x, y, out=y)


def slices(x, y, gate):
    """In halves, each by another way of writing."""
    x[:, :3] += (y * gate)[:, :3]
    torch.add(x[:, 3:], (y * gate)[:, 3:], out=x[:, 3:])
    return x


def slices_of_slices(x, y, gate):
    late = x[:, 2:]
    late[..., :4].add_((y * gate)[:, 2:, :4])
    late[..., 4:] = late[..., 4:] + (y * gate)[:, 2:, 4:]
    x.narrow(1, 0, 2).addcmul_(y[:, :2], gate[:, :2])
    return x


def chunks(x, y, gate):
    for part, more in zip(x.chunk(2, dim=-1), (y * gate).chunk(2, dim=-1)):
        part.add_(more)
    return x


def alias(x, y, gate):
    """Another name of the same tensor sees what is written."""
    residual = x
    x += y
    return residual - y + y * gate


def set_items(x, y, gate):
    sum_ = x + y * gate
    x[:, ::2] = sum_[:, ::2]
    x[:, 1::2].copy_(sum_[:, 1::2])
    return x


def clamped(x, y, gate):
    """An operation that has no counterpart in the table of cheap ones."""
    x.add_(y * gate).clamp_(-1e6, 1e6)
    return nn.functional.leaky_relu(x, 1.0, inplace=True)


WAYS = [
    add,
    add_method,
    add_out,
    addcmul_out,
    into_the_result,
    slices,
    slices_of_slices,
    chunks,
    alias,
    set_items,
    clamped,
]


def plain(x, y, gate):
    return x + y * gate


def gradients(write, checkpointing: bool, guard: InPlaceGuard | None, passes: int = 1) -> list[torch.Tensor]:
    """Return the gradients of the last of some passes, of the weights and of the input."""
    model = Model(write)
    rng = torch.Generator().manual_seed(1)
    given, gate = (torch.randn(2, 6, WIDTH, generator=rng) for _ in range(2))
    given.requires_grad_()
    for _ in range(passes):
        model.zero_grad()
        given.grad = None
        if guard is None:
            model(given * 1.0, gate).square().sum().backward()
        else:
            with checkpointed(model, guard) if checkpointing else nullcontext():
                with guard.forward("x") as current:
                    output = current(model(given * 1.0, gate))
                output.square().sum().backward()
    return [given.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("write", WAYS, ids=lambda write: write.__name__)
def test_gradients_match_code_without_in_place_writes(write, checkpointing, passes):
    expected = gradients(plain, False, None)
    for ours, theirs in zip(gradients(write, checkpointing, InPlaceGuard(), passes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", WAYS, ids=lambda write: write.__name__)
def test_without_the_guard_they_are_an_error_or_wrong_under_checkpointing(write):
    """What the guard is there for; `alias` alone has nothing that autograd saves, and checkpointing still goes wrong."""

    class Off(InPlaceGuard):
        def run_block(self, forward, *args, **kwargs):
            return forward(*args, **kwargs)

    model, gate = Model(write), torch.randn(2, 6, WIDTH)
    given = torch.randn(2, 6, WIDTH, requires_grad=True)
    with checkpointed(model, Off()), pytest.raises((RuntimeError, AssertionError)):
        model(given * 1.0, gate).square().sum().backward()
        expected = torch.autograd.grad(Model(plain)(given, gate).square().sum(), given)[0]
        torch.testing.assert_close(given.grad, expected, rtol=1e-4, atol=1e-4)


def test_values_match_in_place_writes():
    x, y, gate = (torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    for write in WAYS:
        expected = write(x.clone(), y.clone(), gate.clone())
        with OutOfPlace() as mode:
            leaf = x.clone().requires_grad_()
            ours = mode.current(write(leaf * 1.0, y.clone(), gate.clone()))
        torch.testing.assert_close(ours.detach(), expected)
        assert mode.has_written


def test_a_model_that_writes_nothing_is_watched_once_for_each_kind_of_pass():
    guard, entered = InPlaceGuard(), []
    layer = nn.Linear(2, 2)
    for kind in ("a", "a", "b", "a", "b"):
        with guard.forward(kind) as current:
            current(layer(torch.ones(1, 2)))
            entered.append(guard._mode is not None)
    assert entered == [True, False, True, False, False]


def test_nothing_is_changed_where_there_are_no_gradients():
    """Sampling, and a teacher's pass, save the memory that their code wants to save."""
    with OutOfPlace() as mode, torch.no_grad():
        x = torch.ones(2)
        assert x.add_(1) is x and x.tolist() == [2, 2] and not mode.has_written


def test_checkpointing_leaves_another_packs_forward_in_place_and_finds_nested_lists():
    model = Model(plain)
    blocks = [block for stage in model.inside.stages for block in stage]
    calls = []
    own = lambda *a, block=blocks[1]: calls.append(1) or type(block).forward(block, *a)  # noqa: E731
    blocks[1].forward = own
    with checkpointed(model, InPlaceGuard()):
        assert all("forward" in vars(block) for block in blocks)
        model(torch.ones(1, 6, WIDTH, requires_grad=True), torch.ones(1, 6, WIDTH)).sum().backward()
    assert len(calls) == 2  # once more for the backward pass
    assert blocks[1].forward is own and all("forward" not in vars(block) for block in blocks[::2])
