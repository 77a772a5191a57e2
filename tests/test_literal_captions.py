"""Captions are text: what weights words in a prompt means itself, for each tokenizer of the host."""

from __future__ import annotations

from typing import Any

import pytest
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from comfy.sdxl_clip import SDXLTokenizer
from comfy.text_encoders.flux import FluxTokenizer, KleinTokenizer
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy.text_encoders.z_image import ZImageTokenizer
from pack.nodes.host.encoding import tokenize
from transformers import CLIPTokenizer

TOKENIZERS = [
    SD1Tokenizer, SDXLTokenizer, SD3Tokenizer, FluxTokenizer, KleinTokenizer, QwenImageTokenizer, ZImageTokenizer,
]  # fmt: skip


class Clip:
    """What tokenizes in the host's CLIP."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> dict:
        return self.tokenizer.tokenize_with_weights(text)


@pytest.fixture(scope="module", params=TOKENIZERS, ids=lambda kind: kind.__name__)
def clip(request, tmp_path_factory):
    return Clip(request.param(embedding_directory=str(tmp_path_factory.mktemp("embeddings"))))


def ids_and_weights(clip, caption: str) -> tuple[list, set]:
    batches = [batch for encoder in tokenize(clip, caption).values() for batch in encoder]
    return [[token for token, _ in batch] for batch in batches], {weight for batch in batches for _, weight in batch}


@pytest.mark.parametrize(
    "caption, escaped, bare",
    [
        ("lucy (cyberpunk)", r"lucy \(cyberpunk\)", "lucy cyberpunk"),
        ("a clock (12:30)", r"a clock \(12:30\)", "a clock 12:30"),
        ("(night:2.0)", r"\(night:2.0\)", "night"),
        ("a:) smile", r"a:\) smile", "a: smile"),
        ("((blue eyes)), hat", r"\(\(blue eyes\)\), hat", "blue eyes, hat"),
    ],
)
def test_brackets_mean_themselves_escaped_or_not(clip, caption, escaped, bare):
    ids, weights = ids_and_weights(clip, caption)
    assert weights == {1.0}
    assert ids == ids_and_weights(clip, escaped)[0] != ids_and_weights(clip, bare)[0]


def test_the_tokens_are_those_of_the_tokenizer_itself():
    tokenizer = SD1Tokenizer()
    clip = Clip(tokenizer)
    plain = CLIPTokenizer.from_pretrained(tokenizer.clip_l.tokenizer.name_or_path)
    for caption in ("lucy (cyberpunk)", "a clock (12:30)", "a cat, embedding:easynegative"):
        ids = plain(caption)["input_ids"]
        assert ids_and_weights(clip, caption)[0][0][: len(ids)] == ids


def test_an_embedding_in_a_caption_is_text(clip, caplog):
    ids, _ = ids_and_weights(clip, "a cat, embedding:style, hat")
    assert all(isinstance(token, int) for batch in ids for token in batch)
    assert ids != ids_and_weights(clip, "a cat, , hat")[0] and "does not exist" not in caplog.text


def test_nesting_of_any_depth_is_read(clip):
    assert ids_and_weights(clip, "(" * 3000 + "hat" + ")" * 3000)[1] == {1.0}


def test_prompts_of_the_same_clip_are_read_as_before(clip):
    inner = [each for each in vars(clip.tokenizer).values() if isinstance(each, SDTokenizer)]
    before = clip.tokenize("a (red:1.5) cat"), [vars(each).copy() for each in inner]
    tokenize(clip, "a (red:1.5) cat")
    assert before[0] == clip.tokenize("a (red:1.5) cat")
    assert before[1] == [vars(each) for each in inner]
