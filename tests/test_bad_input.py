"""Captions, LoRAs, states, values and requests of a stranger's making: none ends in a bare error, or is searched for ever."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pack.nodes import host
from pack.nodes.bucket_images import BucketImages
from pack.nodes.fingerprint import fingerprint
from pack.nodes.input_checks import check_values
from pack.nodes.kept_files import FOLDER
from pack.nodes.load_lora import LoadLoRA
from pack.nodes.plot_loss import PlotLoss
from pack.nodes.progress import TrainingProgress
from pack.nodes.resume import _find_state
from pack.nodes.run_store import RunStore
from pack.nodes.save_lora import SaveLoRA
from pack.nodes.train_addift import TrainADDifT
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_slider import TrainSlider
from pack.trainer.lora_file import STEP, TRAINING, WEIGHTS, LoRAWeights, load_lora
from pack.trainer.run import Step
from pack.trainer.state import State, load_state, save_state
from pack.trainer.weights_digest import weights_digest
from safetensors.torch import save_file

LAYER = "unet.mid_block.attentions.0.proj_in"
FINGERPRINT = "0123456789abcdef"


def training_node(name: str, **extra) -> SimpleNamespace:
    saving = {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["1", 0], "name": name}}
    prompt = {"1": {"class_type": "X", "inputs": {}}, "2": saving}
    hidden = SimpleNamespace(unique_id="1", prompt=prompt, extra_pnginfo=extra.get("sent"))
    return SimpleNamespace(hidden=hidden, __name__="TrainX")


# Captions


def test_a_caption_that_is_too_long_is_refused(shapes):
    for encoder in (host.HostTextEncoder, host.TrainedTextEncoder):
        with pytest.raises(ValueError, match=r"The caption '.* \.\.\. has 12000 characters: shorten it"):
            encoder(shapes[1]).encode(["cat " * 3000])


# LoRA files and states


def lora_file(path: Path, settings: object = None, **tensors: torch.Tensor) -> Path:
    weights = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)} | tensors
    metadata = {"lora_adapter_metadata": settings if isinstance(settings, str) else json.dumps(settings)}
    save_file({f"{LAYER}.{key}": tensor for key, tensor in weights.items()}, path, metadata if settings else None)
    return path


def test_a_hostile_regular_expression_in_metadata_takes_no_time(tmp_path):
    """(a|a)*b on thirty letters a takes minutes in Python, and hours on forty."""
    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a|a)*b$": 1, "a+": 6}}
    layers = {"a" * 40: 3.0, "b.aab": 0.5, "b.aac": 1.0}
    tensors = {f"unet.{layer}.lora_B.weight": torch.ones(4, 2) for layer in layers}
    save_file(tensors, tmp_path / "evil.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    started = time.monotonic()
    lora = load_lora(tmp_path / "evil.safetensors")
    assert {key: tensor[0, 0].item() for key, tensor in lora.items()} == {
        f"unet.{layer}.lora_B.weight": scale for layer, scale in layers.items()
    }
    assert time.monotonic() - started < 30


def test_a_pattern_that_cannot_be_read_is_named(tmp_path):
    path = lora_file(tmp_path / "odd.safetensors", {"unet.lora_alpha": 2, "unet.alpha_pattern": {r"(a)\1": 6}})
    with pytest.raises(ValueError, match=r"odd.safetensors cannot be parsed \(the pattern \(a\)\\1 has an unknown"):
        load_lora(path)


@pytest.mark.parametrize(
    "pattern, matches",
    [("proj_in", True), ("attentions.0.proj_in", True), (r"attentions\.0\.proj_in$", True), ("roj_in", False)]
    + [("^mid_block.attentions.0.proj_in", True), ("^proj_in", False), ("mid_block", False)],
)
def test_a_pattern_is_a_layers_name_or_its_end(tmp_path, pattern, matches):
    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 6}}
    lora = load_lora(lora_file(tmp_path / "a.safetensors", settings))
    assert lora[f"{LAYER}.lora_B.weight"].unique().tolist() == [3.0 if matches else 1.0]


@pytest.mark.parametrize("settings", ["{", "[" * 5000, "3", {"unet.lora_alpha": "x"}, {"unet.lora_alpha": None}])
def test_metadata_that_cannot_be_parsed_is_named(tmp_path, settings):
    with pytest.raises(ValueError, match="lora_adapter_metadata in odd.safetensors cannot be parsed"):
        load_lora(lora_file(tmp_path / "odd.safetensors", settings))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lora_with_nan_or_inf_is_named(tmp_path, value):
    path = lora_file(tmp_path / "nan.safetensors", **{"lora_A.weight": torch.full((2, 4), value)})
    with pytest.raises(ValueError, match="nan.safetensors is damaged, because .*lora_A.weight has NaN or Inf values"):
        load_lora(path)


@pytest.mark.parametrize(
    "parts",
    [
        {"lora_up.weight": torch.ones(4, 2)},
        {"lora_up.weight": torch.ones(()), "lora_down.weight": torch.ones(())},
        {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 4), "alpha": torch.ones(3)},
        {"hada_w1_a": torch.ones(2, 2)},
    ],
)
def test_a_lora_whose_tensors_do_not_match_is_refused_in_a_sentence(shapes, parts):
    lora = {f"lora_unet_mid_block_attentions_0_proj_in.{key}": tensor for key, tensor in parts.items()}
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"The LoRA is damaged, because its tensors .* again\.$"),
    ):
        host.with_lora(shapes[0], lora)


@pytest.mark.parametrize("name", ["../outside/secret.txt", "nothing.safetensors", "a\0b", "x" * 5000, ""])
def test_a_lora_that_is_not_in_the_folders_is_refused_by_name(base, name):
    with pytest.raises(ValueError, match="There is no LoRA .* in ComfyUI's LoRA folders"):
        LoadLoRA.execute(name)


@pytest.mark.parametrize("label", ["*", "**/*", "../../../outside/x", "/etc/x", "[", "", FINGERPRINT.upper()])
def test_a_lora_finds_no_state_but_its_own(base, label):
    (base / "output" / FOLDER).mkdir(parents=True)
    for folder in ("output/" + FOLDER, "outside"):
        save_state(base / folder / f"x_{FINGERPRINT}.state", {"losses": [1.0]}, {TRAINING: label or "x", STEP: "1"})
    (base / "outside" / f"x_{FINGERPRINT}.state").rename(base / "outside" / "x.state")
    (base / "output" / FOLDER / "x_..").mkdir()
    assert find_state(label) == (None, "it has no training state of this pack")


@pytest.mark.parametrize(
    "structure", ["", "[]", "{", "null", '{"tensor": 99}', '{"dict": [[1]]}', "[" * 5000, '{"list": []}']
)
def test_a_state_that_cannot_be_loaded_is_ignored(base, structure):
    path = base / "output" / FOLDER / f"x_{FINGERPRINT}.state"
    path.parent.mkdir(parents=True)
    save_file({"0": torch.ones(1)}, path, {TRAINING: FINGERPRINT, STEP: "1", "structure": structure})
    with pytest.raises(ValueError, match=rf"{path.name} is not a training state.*: delete it\.$"):
        load_state(path)
    state, reason = find_state(FINGERPRINT)
    assert state is None and reason.startswith("its training state cannot be read")


def find_state(label: str) -> tuple[State | None, str]:
    """Look for the training state of a LoRA that has a label."""
    metadata = {TRAINING: label, STEP: "1", WEIGHTS: weights_digest({})}
    return _find_state(SimpleNamespace(lora=LoRAWeights({}, metadata), labels={}), None)


# Values, and what a client sends along


def test_connected_values_out_of_range_are_refused():
    for node, values in (
        (TrainILECO, {"steps": -1}),
        (TrainILECO, {"seed": 2**64}),
        (TrainILECO, {"guidance": float("nan")}),
        (TrainSlider, {"guidance": 0.0}),
        (TrainSlider, {"start": "closed"}),
        (TrainADDifT, {"bands": [0]}),
        (SaveLoRA, {"save_precision": "fp8"}),
        (SaveLoRA, {"lora": {"a": [1]}}),
        (SaveLoRA, {"lora": None}),
        (BucketImages, {"images": ["x"]}),
    ):
        ((name, _),) = values.items()
        with pytest.raises(ValueError, match=rf"^{name} is .*\. (Set it to a value from|Choose one of|Connect a node)"):
            check_values(node, values)


def test_nodes_check_their_values(shapes, base):
    with pytest.raises(ValueError, match="smoothing is 0. Set it to a value from 1 to 10000"):
        PlotLoss.execute(0, "x", {"run1": {"loss": [1.0]}})
    with pytest.raises(ValueError, match="strength is nan"):
        SaveLoRA.execute({"a.lora_up.weight": torch.ones(1)}, "x", "fp16", float("nan"), True)
    with pytest.raises(ValueError, match="images is x. Connect a node"):
        BucketImages.execute(["x"], ["a"], *([64], [64], [8], [32], [2.0], [0], [False], [False], [1]))
    with pytest.raises(ValueError, match="preview is 0.0. Connect a node's output to it"):
        TrainILECO.execute(preview=0.0, steps=1)
    with pytest.raises(ValueError, match="3 is not a loss"):
        PlotLoss.execute(1, "x", {"run1": 3})


@pytest.mark.parametrize("sent", [None, [], "x", {"workflow": 3}, {"workflow": {"id": [1]}}, {"workflow": {"id": {}}}])
def test_what_a_client_sends_along_cannot_end_a_training_or_a_save(base, monkeypatch, sent):
    node = training_node("mine", sent=sent)
    progress = TrainingProgress(node, 3, RunStore(node, {"steps": 3}))
    with progress.shown():
        progress.report(Step(1, 0.5, 1e-4, False, False))
    monkeypatch.setattr(SaveLoRA, "hidden", SimpleNamespace(prompt={}, extra_pnginfo=sent), raising=False)
    assert Path(SaveLoRA.execute({"a.lora_up.weight": torch.ones(1)}, "x", "fp16", 1.0, True).args[0]).is_file()


def test_a_graph_of_any_shape_has_a_fingerprint():
    prompt = {"1": {"class_type": "X", "inputs": {"a": [], "b": ["9", 0], "c": ["1"], "d": [1, "1"], "e": {"f": None}}}}
    assert len(fingerprint({}, prompt, "1")) == 16


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"node": ' * 50_000, b"\xff\xfe", b'{"node": {}}', b'{"node": null}', b""]
)
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=none"])
def test_a_request_to_stop_that_is_garbage_is_answered_in_a_sentence(server, body, kind):
    status, answer = server.request("POST", "/traintrain/stop", body, kind)
    assert status in (400, 404) and json.loads(answer)["error"].endswith(".")
