"""LoRA files and states of trainings that are damaged, lie, or are of something else."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load, save

from ...nodes import host
from ...nodes.files import LoadLoRA, SaveLoRA
from ...nodes.host.layer_weights import sort_by_layer
from ...nodes.host.network import create_network
from ...nodes.results import FOLDER, STEP, TRAINING, state_of
from ...trainer.config import NetworkConfig
from ...trainer.state import save_state
from .case import Case
from .world import World

LORAS, STATES = "LoRA files", "states"
TRAINED = "0123456789abcdef"  # a training's fingerprint
NASTY = ("../../secret/x", "*", "**", "/etc", "..", "[", TRAINED, "0" * 16)


def cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a bad LoRA file, read, put on the model, trained on and saved again as in a graph."""
    good = good_lora(world)
    for number in range(count):
        damage = rng.choice((_cut, _flip, _header, _header_length, _foreign, _tensors, _tensors, _metadata, _metadata))
        name, content = f"bad_{number}.safetensors", damage(rng, good)
        # A LoRA that is read is spoken of as such.
        run = lambda n=name, c=content: _use(world, n, c)  # noqa: E731
        yield Case(LORAS, f"{number} {damage.__name__[1:]}", (name, "LoRA"), run)


def state_cases(world: World, rng: random.Random, count: int) -> Iterator[Case]:
    """Yield inputs: a damaged state beside a LoRA that asks for it, or a LoRA that asks for another file."""
    for number in range(count):
        damage = rng.choice((_cut, _flip, _header, _header_length, _foreign, _structure))
        labels = {TRAINING: rng.choice((TRAINED, TRAINED, rng.choice(NASTY))), STEP: "2"}
        content = damage(rng, _good_state(world))
        run = lambda c=content, la=labels: _look_up(world, c, la)  # noqa: E731
        yield Case(STATES, f"{number} {damage.__name__[1:]} {labels[TRAINING]}", ("state",), run)


def _use(world: World, name: str, content: bytes) -> None:
    (world.base / "loras" / name).write_bytes(content)
    (lora,) = LoadLoRA.execute(name).args
    SaveLoRA.hidden = SimpleNamespace(prompt={}, extra_pnginfo=None)
    model, clip, _ = world.models
    with torch.inference_mode():
        for attempt in (lambda: host.with_lora(model, lora), lambda: _train_on(model, lora)):
            attempt()
        SaveLoRA.execute(lora, "again", "fp32", 0.5, True)


def _train_on(model: Any, lora: dict) -> None:
    sort_by_layer(model, None, lora)
    with torch.inference_mode(False):
        create_network(None, lora, 0, model, None, model.model.diffusion_model)


def _look_up(world: World, content: bytes, labels: dict[str, str]) -> None:
    folder = world.base / "output" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"x_{TRAINED}.state").write_bytes(content)
    state = state_of(SimpleNamespace(metadata=labels))
    assert state is None or isinstance(state["losses"], list)


@cache
def good_lora(world: World) -> bytes:
    """Return a LoRA file for the world's model."""
    model = world.models[0]
    with torch.inference_mode(False):
        network = create_network(NetworkConfig(rank=2, alpha=1), None, 0, model, None, model.model.diffusion_model)
    return save(network.weights(), {"ss_network_dim": "2", TRAINING: TRAINED, STEP: "2"})


@cache
def _good_state(world: World) -> bytes:
    path = world.base / "temp" / "good.state"
    state = {"losses": [0.5, 0.25], "weights": [torch.ones(2)], "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    save_state(path, state, {TRAINING: TRAINED, STEP: "2"})
    return path.read_bytes()


def _read(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write(header: dict[str, Any] | str, body: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + body


def _cut(rng: random.Random, content: bytes) -> bytes:
    header = 8 + struct.unpack("<Q", content[:8])[0]
    return content[: rng.choice((0, 1, 7, 8, 9, header - 1, header, rng.randrange(len(content)), len(content) - 1))]


def _flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    end = min(len(changed), rng.choice((8, 400, len(changed))))
    for _ in range(rng.choice((1, 1, 20))):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _header_length(rng: random.Random, content: bytes) -> bytes:
    return struct.pack("<Q", rng.choice((0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1))) + content[8:]


def _header(rng: random.Random, content: bytes) -> bytes:
    """Lie about a tensor: its type, its shape, its place; twice the same; or no JSON at all."""
    header, body = _read(content)
    key = rng.choice([name for name in header if name != "__metadata__"])
    text = json.dumps(header)
    lies = [
        {**header, key: {**header[key], "dtype": rng.choice(("F64", "F8_E4M3", "BOOL", "F4", "C64", "X", "", 3))}},
        {**header, key: {**header[key], "shape": rng.choice(([-1], [0], [2**62, 2**62], [1] * 70, "ab", [0.5], None))}},
        {**header, key: {**header[key], "data_offsets": rng.choice(([0, 0], [8, 4], [-1, 3], [0, 2**63], [0], "x"))}},
        {**header, "__metadata__": rng.choice(({"a": 1}, [], "x", None, {"a": {"b": "c"}}))},
        text[:-1] + f', "{key}": {json.dumps(header[key])}}}',
        rng.choice(("[" * 100_000, "{" * 100_000, "null", "[]", "{}", '"x"', "\x00", "{'a': 1}", '{"a": NaN}')),
    ]
    return _write(rng.choice(lies), body)


def _foreign(rng: random.Random, content: bytes) -> bytes:
    pickled, archive = pickle.dumps({"a": 1}), io.BytesIO()
    torch.save({"a": torch.ones(1)}, archive)
    return rng.choice((pickled, archive.getvalue(), b"", b"{}", b"version https://git-lfs", rng.randbytes(5000)))


def _tensors(rng: random.Random, content: bytes) -> bytes:
    """Whole files whose tensors do not go together, or are of no model that is here."""
    header, body = _read(content)
    metadata = header.pop("__metadata__")
    tensors = load(content)
    key = rng.choice(list(tensors))
    base = key.rpartition(".lora_")[0] or key.removesuffix(".alpha")
    change = rng.choice(
        (
            {key: torch.full_like(tensors[key], rng.choice((float("nan"), float("inf"), -float("inf"))))},
            {key: tensors[key].reshape(-1)},
            {key: torch.ones(3, 5)},
            {key: torch.ones(())},
            {key: torch.ones(0)},
            {key: torch.ones(2, 2, 2, 2, 2)},
            {key: tensors[key].to(rng.choice((torch.int32, torch.float8_e4m3fn, torch.bool, torch.complex64)))},
            {f"{base}.alpha": torch.tensor(rng.choice((0.0, -1.0, 1e30, 1e-30)))},
            {f"{base}.alpha": torch.ones(rng.choice((0, 2)))},
            {
                f"{base}.{rng.choice(('diff', 'dora_scale', 'hada_w1_a', 'lokr_w1', 'lora_mid.weight'))}": torch.ones(
                    2, 2
                )
            },
            {"lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(4, 2)},
            {rng.choice(("", ".", "x" * 5000, "a\x00b", "lora_te_x.alpha", "\u732b.lora_up.weight")): torch.ones(2, 2)},
        )
    )
    changed = {**tensors, **change}
    if rng.random() < 0.2:
        del changed[key]
    if rng.random() < 0.1:
        changed = change
    return save({name: tensor.contiguous() for name, tensor in changed.items()}, metadata)


def _metadata(rng: random.Random, content: bytes) -> bytes:
    """Metadata of diffusers that cannot be read, or wants much time."""
    header, body = _read(content)
    part = rng.choice(["unet", next(iter(header)).partition(".")[0]])
    values = "[" * 5000, "{", "[]", "null", "3", '"x"', "{}", "NaN", json.dumps({part: 1})
    settings = [
        {f"{part}.lora_alpha": value}
        for value in ("x", None, [], {}, 1e308, float("nan"), float("inf"), True, -1, 0, 10**400)
    ]
    patterns = ("(a|a)*b", "(.*)*x", "[", "(", "a{9999999}", "conv1", "^x$", "", "\\", "x" * 5000)
    settings += [{f"{part}.lora_alpha": 2, f"{part}.alpha_pattern": {pattern: 1}} for pattern in patterns]
    settings += [{f"{part}.lora_alpha": 2, f"{part}.alpha_pattern": value} for value in ([], 3, "x", {"x": None})]
    text = rng.choice((rng.choice(values), json.dumps(rng.choice(settings))))
    nasty = {TRAINING: rng.choice(NASTY), STEP: rng.choice(("2", "", "x")), "lora_adapter_metadata": text}
    return _write({**header, "__metadata__": nasty}, body)


def _structure(rng: random.Random, content: bytes) -> bytes:
    """A whole file whose description of the state is none."""
    header, body = _read(content)
    structures = "", "{", "[]", "null", "3", '{"dict": 3}', '{"dict": [[1]]}', '{"tensor": 99}', '{"tensor": "../x"}'
    structures += (
        '{"a": 1, "b": 2}',
        "[" * 5000,
        '{"list": [' * 3000,
        '{"dict": [["losses", 3]]}',
        '{"dict": [[{}, 1]]}',
    )
    header["__metadata__"]["structure"] = rng.choice(structures)
    return _write(header, body)
