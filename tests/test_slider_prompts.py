"""Train Slider: which prompts belong together, and which are refused before training."""

from __future__ import annotations

import pytest
import torch
from pack.nodes import host
from pack.nodes.poles import match_poles
from tiny_host import TinyHost
from tiny_models import make_prompt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory) -> TinyHost:
    return TinyHost(tmp_path_factory.mktemp("model"), "SDXL")


def prompt(value: float, tokens: int = 3, **extra) -> list:
    return [torch.full((1, tokens, 2), value), {"pooled_output": torch.tensor([[value]]), **extra}]


def values(poles) -> list[tuple]:
    """Return the tokens of (positive, negative, acts_on) by their values."""
    sides = [(each.positive, each.negative, each.acts_on) for each in poles]
    return [tuple(side[0][0, :, 0].tolist() for side in each) for each in sides]


def wire(*texts: str) -> list:
    return [entry for text in texts for entry in make_prompt("SDXL", text)]


@pytest.mark.parametrize("family", ["Lumina2", "Anima"])
def test_preserved_prompts_train_where_prompts_have_a_mask_or_a_second_tokenizer(family, tmp_path):
    tiny = TinyHost(tmp_path, family)
    keep = make_prompt(family, "male", 4) + make_prompt(family, "female", 6)
    *_, loss = tiny.train("slider", target=make_prompt(family, "circle", 7), preserve=keep)
    assert len(loss["loss"]) == 4 and all(loss["loss"])


OLD, YOUNG, PERSON, MALE, FEMALE = (prompt(value, 1) for value in (1.0, 2.0, 3.0, 4.0, 5.0))
MAN, WOMAN = prompt(6.0, 1), prompt(7.0, 1)


def test_one_prompt_is_for_all_others():
    assert values(match_poles([OLD], [YOUNG], [PERSON, MAN, WOMAN])) == [([1], [2], [n]) for n in (3, 6, 7)]
    assert values(match_poles([OLD, MAN], [YOUNG, WOMAN], [PERSON])) == [([1], [2], [3]), ([6], [7], [3])]


def test_without_a_target_a_prompt_that_says_nothing_is_acted_on():
    mask = torch.tensor([[1, 1, 0]])
    (poles,) = match_poles([prompt(1.0, attention_mask=mask, guidance=3.5)], [prompt(2.0)])
    tokens, extra = poles.acts_on
    assert tokens.shape == (1, 3, 2) and not tokens.any() and not extra["pooled_output"].any()
    assert torch.equal(extra["attention_mask"], mask) and extra["guidance"] == 3.5


def test_preserved_prompts_are_added_to_both_poles_and_to_the_target():
    poles = match_poles([OLD], [YOUNG], [PERSON], [MALE, FEMALE])
    assert values(poles) == [([1, n], [2, n], [3, n]) for n in (4, 5)]
    assert [each.positive[1]["pooled_output"].item() for each in poles] == [1.0, 1.0]


def test_without_a_target_the_preserved_prompts_are_acted_on():
    assert values(match_poles([OLD], [YOUNG], [], [MALE])) == [([1, 4], [2, 4], [4])]


def test_padding_is_left_out_between_joined_prompts():
    first, second = (prompt(value, 3, attention_mask=torch.tensor([[1, 1, 0]])) for value in (1.0, 2.0))
    tokens, extra = host.join_prompts(first, second)
    assert tokens[0, :, 0].tolist() == [1, 1, 2, 2] and extra["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_what_a_prompt_has_for_each_token_is_joined_too():
    first, second = (
        prompt(value, t5xxl_ids=torch.tensor([9, 8]) + value, conditioning_llama3=torch.full((1, 5, 3, 2), value))
        for value in (1.0, 2.0)
    )
    extra = host.join_prompts(first, second)[1]
    assert extra["t5xxl_ids"].tolist() == [10, 9, 11, 10] and extra["conditioning_llama3"].shape == (1, 5, 6, 2)


@pytest.mark.parametrize(
    "wired, message",
    [
        ({"positive": wire("red"), "negative": wire("red")}, "^positive and negative are the same prompt.*: write two"),
        ({"positive": wire("a", "b"), "negative": wire("c", "b")}, "^positive and negative are the same prompt"),
        (
            {"target": wire("red")},
            "^target and negative are the same prompt: name in target what both ends have in common",
        ),
        ({"target": wire("circle", "blue")}, "^target and positive are the same prompt"),
        ({"preserve": wire("circle", "red")}, "^preserve and negative are the same prompt.*or disconnect preserve"),
        ({"positive": []}, "^positive has no prompt: connect a CLIP Text Encode"),
        ({"negative": []}, "^negative has no prompt"),
        ({"target": []}, "^target has no prompt"),
        ({"preserve": []}, "^preserve has no prompt"),
        (
            {"positive": wire("a", "b", "c"), "negative": wire("d", "e")},
            r"\(positive 3, negative 2\): connect one prompt for all",
        ),
        ({"positive": wire("a", "b"), "target": wire("c", "d", "e")}, r"\(positive 2, negative 1, target 3\)"),
        ({"preserve": make_prompt("SD1", "circle")}, "cannot be joined.*encode both with the same CLIP"),
        ({"guidance": float("nan")}, "^guidance is nan. Set it to a value from 0.1 to 20"),
        ({"guidance": 0.0}, "^guidance is 0.0. Set it to a value from"),
        ({"width": 60}, "multiples of 8"),
        ({"positive": [[torch.full((1, 5, 64), torch.nan), {}]]}, "^positive has NaN or Inf in prompt 1 of 1"),
    ],
)
def test_prompts_that_give_no_slider_are_refused(sdxl, wired, message, monkeypatch):
    monkeypatch.setattr(host, "open_session", lambda *_: pytest.fail("training started"))
    with pytest.raises(ValueError, match=message):
        sdxl.train("slider", **wired)
