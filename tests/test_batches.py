"""Batches: each holds one bucket, an epoch holds every image `repeats` times, and the seed decides the order."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice

import pytest
import torch
from pack.trainer.dataset.batches import draw_batches

BUCKETS = ["square"] * 5 + ["wide"] * 8 + ["tall"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_epoch(buckets: list[str], batch_size: int, seed: int = 0, repeats: list[int] | None = None) -> list[list[int]]:
    batches, drawn = draw_batches(buckets, batch_size, seeded(seed), repeats), []
    total = sum(repeats or [1] * len(buckets))
    while sum(map(len, drawn)) < total:
        drawn.append(next(batches))
    return drawn


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_batch_holds_one_bucket_and_no_more_than_its_size(batch_size):
    for batch in islice(draw_batches(BUCKETS, batch_size, seeded()), 100):
        assert 1 <= len(batch) <= batch_size
        assert len({BUCKETS[index] for index in batch}) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("repeats", [None, [3] * 14, list(range(1, 15))])
def test_an_epoch_holds_every_image_exactly_as_often_as_it_repeats(batch_size, repeats):
    drawn = Counter(index for batch in draw_epoch(BUCKETS, batch_size, 1, repeats) for index in batch)
    assert drawn == Counter(dict(enumerate(repeats or [1] * 14)))


def test_the_second_epoch_is_complete_and_in_another_order():
    batches = draw_batches(BUCKETS, 1, seeded())
    first, second = ([next(batches)[0] for _ in BUCKETS] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(14)) and first != second


def test_only_the_last_batch_of_a_bucket_is_smaller():
    sizes: dict[str, list[int]] = {}
    for batch in draw_epoch(BUCKETS, 3):
        sizes.setdefault(BUCKETS[batch[0]], []).append(len(batch))
    assert sizes == {"square": [3, 2], "wide": [3, 3, 2], "tall": [1]}


def test_a_bucket_is_drawn_in_proportion_to_what_is_left_of_it():
    first = Counter(BUCKETS[next(draw_batches(BUCKETS, 2, seeded(seed)))[0]] for seed in range(1500))
    for bucket, count in Counter(BUCKETS).items():
        assert first[bucket] / 1500 == pytest.approx(count / 14, abs=0.04)
    # After two of five squares are gone, three of twelve are left.
    firsts = (islice(draw_batches(BUCKETS, 2, seeded(seed)), 2) for seed in range(3000))
    after = Counter(BUCKETS[second[0]] for start, second in firsts if BUCKETS[start[0]] == "square")
    assert after["square"] / after.total() == pytest.approx(3 / 12, abs=0.05)


def test_every_image_of_a_bucket_is_as_likely_to_come_first():
    first = Counter(next(draw_batches(["one"] * 4, 1, seeded(seed)))[0] for seed in range(2000))
    assert all(count / 2000 == pytest.approx(1 / 4, abs=0.04) for count in first.values())


def test_the_same_seed_draws_the_same_batches_and_another_seed_others():
    runs = [list(islice(draw_batches(BUCKETS, 2, seeded(seed)), 50)) for seed in (7, 7, 8)]
    assert runs[0] == runs[1] != runs[2]


def test_drawing_a_batch_takes_no_longer_for_a_large_dataset():
    batches = draw_batches([index % 20 for index in range(200_000)], 4, seeded())
    next(batches)
    started = time.perf_counter()
    for _ in range(1000):
        next(batches)
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize(
    "buckets, batch_size, repeats, sentence",
    [([], 1, None, "no images"), (["a"], 0, None, "batch size is 0"), (["a", "b"], 1, [1, 0], "repeats must be 1")],
)
def test_invalid_arguments_are_refused_before_the_first_batch(buckets, batch_size, repeats, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw_batches(buckets, batch_size, seeded(), repeats)
