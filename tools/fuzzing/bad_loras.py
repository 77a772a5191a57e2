"""LoRA files and states of trainings that are damaged, lie, or are of something else.

The damage is our own, for hypothesis knows no file formats; it draws each choice of the damage, and so shrinks it.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

from ...nodes import host
from .case import Case
from .sandbox import Sandbox
from .wiring import Loaded, by_name

TRAININGS = "output/traintrain"
TRAINING, STEP = "traintrain_training", "traintrain_step"  # metadata: the fingerprint, and the steps that are done
NASTY = ("../../secret/x", "*", "**", "/etc", "..", "[", "0" * 16)


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a bad LoRA file, read, put on the model, trained on and saved again as in a graph."""
    loaded = Loaded(sandbox)
    _, good, _ = train_step(sandbox)

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        damage = draw(st.sampled_from((_cut, _flip, _header, _header_length, _foreign, _tensors, _metadata)))
        content = damage(draw(st.randoms(use_true_random=False)), good)
        # A LoRA that is read is spoken of as such.
        return Case("LoRA files", damage.__name__[1:], ("bad.safetensors", "LoRA"), lambda: _use(loaded, content))

    return draw_case()


def state_cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a damaged state beside a LoRA that asks for it, or a LoRA that asks for another file."""
    loaded = Loaded(sandbox)
    name, lora, good = train_step(sandbox)

    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        damage = draw(st.sampled_from((_cut, _flip, _header, _header_length, _foreign, _structure)))
        content = damage(draw(st.randoms(use_true_random=False)), good)
        asked = draw(st.just(name.rpartition("_")[2]) | st.sampled_from(NASTY))
        run = lambda: _resume(loaded, name, lora, content, asked)  # noqa: E731
        return Case("states", f"{damage.__name__[1:]} {asked}", ("state", "LoRA"), run)

    return draw_case()


@cache
def train_step(sandbox: Sandbox) -> tuple[str, bytes, bytes]:
    """Train one step; return the name of the files that it leaves on disk, and its LoRA and its state."""
    loaded, train = Loaded(sandbox), by_name("TrainLoRA")
    with sandbox.in_host():
        loaded.run(train, loaded.inputs(train))
    (lora,) = (sandbox.base / TRAININGS).glob("*.safetensors")
    return lora.stem, lora.read_bytes(), lora.with_suffix(".state").read_bytes()


def _use(loaded: Loaded, content: bytes) -> None:
    path = loaded.sandbox.base / "loras" / "bad.safetensors"
    path.write_bytes(content)
    try:
        (lora,) = loaded.run(by_name("LoadLoRA"), {"lora_name": path.name})
    finally:
        path.unlink()  # or other kinds would read it
    with torch.inference_mode():
        host.with_lora(loaded.sandbox.models[0], lora)
    _train_on(loaded, lora)
    save = by_name("SaveLoRA")
    loaded.run(save, loaded.inputs(save) | {"lora": lora, "save_precision": "fp32", "strength": 0.5})


def _resume(loaded: Loaded, name: str, lora: bytes, state: bytes, asked: str) -> None:
    (loaded.sandbox.base / TRAININGS / f"{name}.state").write_bytes(state)
    header, body = _read(lora)
    header["__metadata__"][TRAINING] = asked
    (loaded.sandbox.base / "loras" / "resumed.safetensors").write_bytes(_write(header, body))
    _train_on(loaded, loaded.run(by_name("LoadLoRA"), {"lora_name": "resumed.safetensors"})[0])


def _train_on(loaded: Loaded, lora: dict) -> None:
    train = by_name("TrainLoRA")
    with loaded.sandbox.until_first_step():
        loaded.run(train, {**loaded.inputs(train), "lora": lora, "network": None, "steps": 2})


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
    return rng.choice(
        (pickled, archive.getvalue(), b"", b"{}", b"version https://git-lfs", random.Random(1).randbytes(5000))
    )


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
