"""Patterns of layer names in files: they match what Python's `re` matches, without its exponential time."""

from __future__ import annotations

import random
import re
import time

import pytest
from pack.trainer.layer_pattern import Pattern, Work

LAYERS = ["down_blocks.0.attentions.1.to_q", "mid_block.conv1", "a", "ab", "aab", "b.a-b", "to_q", "", "0.a"]
PATTERNS = [r"to_[qk]", r".*\.to_q", r"^mid.*", r"(down|mid)_blocks?\.\d+.*", r"a{2}b", r"a{0,2}b", r"(a|b)+", r"a*?b$"]
PATTERNS += [r"[^.]+", r"\w+\.\w-\w", r"(?:a|ab)(?:b|)", r"(?!.*conv).*", r"(?=d).*q", r"[a\]]", r"[]a]", r"\d\.[a-c]"]
PATTERNS += [r"\D\W?", r"a{,2}b", r"x{", r"a{1,}", r"(a?){3}b", r"(a*)*b", r"()", r"|a", r"^^a", r"a$|b", r"[a-]*"]


def matches(pattern: str, text: str) -> bool:
    return Pattern(pattern).matches(text, [0], Work())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_pythons_own_matches(pattern):
    expected = [bool(re.fullmatch(pattern, layer)) for layer in LAYERS]
    assert [matches(pattern, layer) for layer in LAYERS] == expected


def test_random_patterns_match_what_pythons_own_match():
    rng, checked = random.Random(0), 0
    for _ in range(3000):
        pattern = "".join(
            rng.choices(["a", "b", ".", "|", "(", ")", "*", "+", "?", "[ab]", r"\w", "^", "$"], k=rng.randint(1, 8))
        )
        try:
            expected, ours = re.compile(pattern), Pattern(pattern)
        except (re.error, ValueError):
            continue
        checked += 1
        for text in ("", "a", "b", "ab", "ba", "aabb", "c"):
            assert ours.matches(text, [0], Work()) == bool(expected.fullmatch(text)), (pattern, text)
    assert checked > 500


@pytest.mark.parametrize(
    "pattern",
    ["(a|a)*b", "(a+)+b", "((a*)*)*b", "(.*.*.*.*)*b", "(((a{1,1000}){1,1000}){1,1000}){1,1000}b", "(a?){1000}b"],
)
def test_hostile_patterns_take_no_time(pattern):
    started = time.monotonic()
    try:
        assert not matches(pattern, "a" * 200)
    except ValueError as error:
        assert "take too long" in str(error)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "pattern, reason",
    [
        (r"(a)\1", r"unknown \\1"),
        ("(?<=a)b", "unknown kind"),
        ("(a", "too many"),
        ("a)", "too many"),
        ("[a", "incomplete"),
    ]
    + [("*a", "repeats nothing"), ("a**", "repeats a repetition"), ("(" * 100 + ")" * 100, "groups in groups")]
    + [("a" * 2000, "too long"), ("a\\", "incomplete")],
)
def test_a_pattern_that_is_not_known_is_refused(pattern, reason):
    with pytest.raises(ValueError, match=rf"the pattern .*{reason}"):
        Pattern(pattern)
