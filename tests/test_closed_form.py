"""iLECO and sliders in closed form: against numpy's least squares, and as the host reads the LoRA."""

from __future__ import annotations

import comfy.lora
import comfy.sd
import numpy as np
import pytest
import torch
from pack.nodes import host
from pack.trainer.config import NetworkConfig
from pack.trainer.methods import closed_form
from pack.trainer.methods.closed_form import READS_PROMPT, cut_to_rank, read_tokens, solve
from tiny_host import TinyHost
from tiny_models import make_prompt

pytestmark = pytest.mark.usefixtures("one_thread")

UNETS = ["SD1", "SD2", "SDXL"]


@pytest.fixture(scope="module", params=UNETS)
def unet(request, tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), "SDXL")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def least_squares(weight, originals, targets, preserved) -> np.ndarray:
    """Return the change (out, in) as numpy's solver finds it for the stacked equations of the three terms."""
    lam, mu = closed_form.PRESERVE_WEIGHT, closed_form.DAMPING
    w, c, t, k = (np.asarray(each, dtype=np.float64) for each in (weight, originals, targets, preserved))
    rows = np.concatenate([c, lam**0.5 * k, mu**0.5 * np.eye(c.shape[1])])
    wanted = np.concatenate([(t - c) @ w.T, np.zeros((len(k) + c.shape[1], len(w)))])
    return np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def product(lora: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    up, down = (lora[f"{layer}.lora_{side}.weight"] for side in ("up", "down"))
    return (lora[f"{layer}.alpha"] / len(down) * up @ down).double()


def tokens_of(unet: TinyHost, *texts: str) -> list[torch.Tensor]:
    return [make_prompt(unet.family.name, text)[0][0][0].double() for text in texts]


def expected_changes(unet: TinyHost, keys, originals, targets, preserved) -> dict[str, np.ndarray]:
    """Return the change of each layer as numpy's solver finds it: the layers differ only in their weights, so all at once."""
    weights = [comfy.utils.get_attr(unet.model.model, key).double() for key in keys]
    solved = least_squares(torch.cat(weights), originals, targets, preserved)
    return dict(zip(keys, np.split(solved, np.cumsum([len(weight) for weight in weights])[:-1])))


def changes(unet: TinyHost, model) -> dict[str, torch.Tensor]:
    """Return by how much a MODEL's patches change the layers that read the prompt."""
    with torch.inference_mode():
        return {
            key: comfy.lora.calculate_weight(patches, torch.zeros_like(weight, dtype=torch.float32), key)
            for key, patches in model.patches.items()
            for weight in [comfy.utils.get_attr(model.model, key)]
            if READS_PROMPT.search(key.removeprefix("diffusion_model.").removesuffix(".weight"))
        }


@pytest.mark.parametrize("kept", [0, 5])
def test_the_change_is_the_least_squares_solution(kept):
    weight, originals, targets, preserved = draw(6, 9), 5 * draw(12, 9), draw(12, 9), draw(kept, 9)
    moves, solution = solve(originals, targets - originals, preserved)
    expected = least_squares(weight, originals, targets, preserved)
    np.testing.assert_allclose((weight @ moves.T) @ solution, expected, rtol=1e-9, atol=1e-12)


def test_preserved_tokens_keep_what_the_layer_gives():
    weight, originals, targets, preserved = draw(6, 20), 5 * draw(4, 20), draw(4, 20), 100 * draw(3, 20)
    moves, solution = solve(originals, targets - originals, preserved)
    change = (weight @ moves.T) @ solution
    moved, wanted = originals @ change.T, (targets - originals) @ weight.T
    assert (preserved @ change.T).norm() < 0.01 * (preserved @ weight.T).norm()
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


def test_the_cut_is_that_of_the_whole_matrix():
    left, right = draw(10, 7), draw(7, 12)
    up, down, lost = cut_to_rank(left, right, 3)
    u, s, vh = np.linalg.svd((left @ right).numpy())
    np.testing.assert_allclose(up @ down, u[:, :3] * s[:3] @ vh[:3], atol=1e-12)
    assert lost == pytest.approx((s[3:] ** 2).sum() / (s**2).sum())
    np.testing.assert_allclose(up.norm(dim=0), down.norm(dim=1))


def test_without_steps_the_host_reads_the_solution_from_the_lora(unet):
    network = NetworkConfig(rank=8, alpha=2)  # two prompts of 5 tokens differ in up to 5
    model, lora, loss = unet.train("iLECO", steps=0, start="closed form", guidance=0.5, network=network)
    assert loss["loss"] == []
    red, blue = tokens_of(unet, "red", "blue")
    found = changes(unet, model)
    assert len(found) == sum(bool(READS_PROMPT.search(name)) for name in layer_names(unet))
    for key, expected in expected_changes(unet, found, red, blue + 0.5 * (blue - red), red[:0]).items():
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-3 * abs(expected).max())


def layer_names(unet: TinyHost) -> list[str]:
    network = unet.model.model.diffusion_model
    return [name for name, layer in network.named_modules() if isinstance(layer, torch.nn.Linear)]


def test_the_network_reads_every_token_of_a_prompt(unet):
    (prompt,) = host.read_conditioning(make_prompt(unet.family.name, "red", 9))
    with host.open_model(unet.model) as (model, network):
        layers = [layer for name, layer in network.named_modules() if READS_PROMPT.search(name)]
        tokens = read_tokens(model, layers, prompt, 4)
    assert torch.allclose(tokens, prompt[0][0].double(), rtol=2e-3, atol=2e-3)  # the model is in fp16


def test_several_phrasings_and_preserve_are_solved_together(sdxl):
    originals, targets = (
        sum((make_prompt("SDXL", t) for t in texts), []) for texts in (("red", "a red"), ("blue", "green"))
    )
    keep = make_prompt("SDXL", "circle")
    wired = {"original": originals, "target": targets, "preserve": keep, "guidance": 0.0}
    model, _, _ = sdxl.train("iLECO", steps=0, start="closed form", network=NetworkConfig(rank=16, alpha=16), **wired)
    red, other, blue, green, circle = tokens_of(sdxl, "red", "a red", "blue", "green", "circle")
    found = changes(sdxl, model)
    solved = expected_changes(sdxl, found, torch.cat([red, other]), torch.cat([blue, green]), circle)
    for key, expected in solved.items():
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-3 * abs(expected).max())


def test_a_slider_moves_its_target_by_the_difference_of_its_poles(unet):
    wired = {
        "target": make_prompt(unet.family.name, "circle"),
        "guidance": 0.5,
        "network": NetworkConfig(rank=8, alpha=2),
    }
    model, lora, loss = unet.train("slider", steps=0, start="closed form", **wired)
    assert loss["loss"] == []
    red, blue, circle = tokens_of(unet, "red", "blue", "circle")
    found = changes(unet, model)
    for key, expected in expected_changes(unet, found, circle, circle + 0.5 * (blue - red), red[:0]).items():
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=2e-3 * abs(expected).max())


@pytest.mark.parametrize("steps", [0, 2])
def test_a_slider_of_everything_has_no_tokens_to_solve_for(sdxl, caplog, steps):
    caplog.set_level("INFO")
    if steps:
        lora = sdxl.train("slider", steps=steps, start="closed form")[1]
        plain = sdxl.train("slider", steps=steps)[1]
        assert "There is no closed form, because no target is connected" in caplog.text
        assert all(torch.equal(lora[key], plain[key]) for key in plain)
    else:
        with pytest.raises(ValueError, match="steps is 0 and there is no closed form, because no target is connected"):
            sdxl.train("slider", steps=steps, start="closed form")


def test_a_shorter_target_is_repeated(sdxl):
    wired = {"original": make_prompt("SDXL", "red", 6), "target": make_prompt("SDXL", "blue", 3), "guidance": 0.0}
    model, _, _ = sdxl.train("iLECO", steps=0, start="closed form", network=NetworkConfig(rank=8, alpha=8), **wired)
    red, blue = (wired[side][0][0][0].double() for side in ("original", "target"))
    key, change = next(iter(changes(sdxl, model).items()))
    weight = comfy.utils.get_attr(sdxl.model.model, key).double()
    expected = least_squares(weight, red, torch.cat([blue, blue]), red[:0])
    np.testing.assert_allclose(change, expected, rtol=0, atol=2e-3 * abs(expected).max())


def test_steps_go_on_from_the_closed_form(sdxl):
    solved = sdxl.train("iLECO", steps=0, start="closed form")[1]
    trained = sdxl.train("iLECO", steps=1, start="closed form", learning_rate=1e-6)[1]
    fresh = sdxl.train("iLECO", steps=1, learning_rate=1e-6)[1]
    assert trained.keys() == solved.keys() == fresh.keys()
    for key, tensor in trained.items():
        assert torch.allclose(tensor, solved[key], atol=1e-5)
    assert any((trained[key] - fresh[key]).abs().max() > 1e-3 for key in trained)


def test_the_rest_of_the_rank_can_still_learn(sdxl):
    """Two prompts of one token differ in one direction: the others of the rank are as in a new LoRA."""
    one = {side: make_prompt("SDXL", text, 1) for side, text in (("original", "red"), ("target", "blue"))}
    solved, fresh = (sdxl.train("iLECO", steps=n, start=s, **one)[1] for n, s in ((0, "closed form"), (1, "nothing")))
    key = next(key for key in solved if "attn2_to_k" in key and key.endswith("lora_up.weight"))
    assert (solved[key].abs().amax(0) > 0).tolist() == [True, False, False, False]
    down = key.replace("lora_up", "lora_down")
    assert torch.allclose(solved[down][1:], fresh[down][1:], atol=0.05) and solved[down][1:].any()


@pytest.mark.parametrize("inputs", [{}, {"start": "nothing"}], ids=["without the input", "nothing"])
def test_graphs_from_before_the_input_give_the_same_lora(sdxl, inputs, monkeypatch):
    monkeypatch.setattr(closed_form.ClosedForm, "begin", lambda *_: pytest.fail("not asked for"))
    lora = sdxl.train("iLECO", **inputs)[1]
    assert lora.keys() and all(torch.isfinite(tensor).all() for tensor in lora.values())


def test_a_finished_lora_without_steps_is_loaded_from_disk(sdxl, caplog):
    first = sdxl.train("iLECO", steps=0, start="closed form")[1]
    with caplog.at_level("INFO"):
        again = sdxl.train("iLECO", steps=0, start="closed form")[1]
    assert "This training is finished" in caplog.text
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "inputs, reason",
    [
        ({"network": NetworkConfig("lokr", 2, 2)}, "no lierla or c3lier on attn2"),
        ({"network": NetworkConfig(rank=2, alpha=2, element="SelfAttention")}, "no lierla or c3lier on attn2"),
        ({"target": make_prompt("SDXL", "red")}, "the prompts that differ have the same tokens"),
    ],
)
def test_without_a_closed_form_the_log_or_an_error_says_why(sdxl, caplog, steps, inputs, reason):
    caplog.set_level("INFO")
    if steps and "target" not in inputs:
        sdxl.train("iLECO", steps=steps, start="closed form", **inputs)
        assert f"There is no closed form, because {'the LoRA has ' * ('lierla' in reason)}{reason}" in caplog.text
    else:
        with pytest.raises(ValueError, match=reason if not steps else "loss is exactly 0"):
            sdxl.train("iLECO", steps=steps, start="closed form", **inputs)


def test_other_models_start_from_nothing(tmp_path, caplog):
    sd3 = TinyHost(tmp_path, "SD3")
    caplog.set_level("INFO")
    asked, plain = (sd3.train("iLECO", steps=2, start=start)[1] for start in ("closed form", "nothing"))
    assert "There is no closed form, because the LoRA has no lierla or c3lier on attn2" in caplog.text
    assert all(torch.equal(asked[key], plain[key]) for key in plain)


def test_a_connected_lora_is_the_start(sdxl, caplog):
    caplog.set_level("INFO")
    first = sdxl.train("iLECO", steps=1)[1]
    sdxl.train("iLECO", steps=2, start="closed form", lora=first)
    assert "start has no effect: training continues the connected LoRA" in caplog.text


@pytest.mark.parametrize("method", ["iLECO", "slider"])
@pytest.mark.parametrize("inputs", [{}, {"start": "nothing"}, {"start": "closed form", "lora": {"a": torch.ones(1)}}])
def test_no_steps_and_no_start_are_refused(sdxl, method, inputs):
    with pytest.raises(ValueError, match="^steps is 0 and the LoRA does not start from the closed form"):
        sdxl.train(method, steps=0, **inputs)


def test_only_a_method_with_a_closed_form_takes_no_steps(sdxl):
    with pytest.raises(ValueError, match="steps is 0. Set it to a value from 1"):
        sdxl.train("copy machine", steps=0)
