"""Settings of Pillow that hold for the whole process: ours while we decode, in any thread; then again those of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pack.trainer.dataset.image_decoding import refuse_truncated
from PIL import Image, ImageFile


@pytest.fixture(autouse=True)
def others(monkeypatch):
    """Set what another pack may have set."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


def settings() -> tuple[bool, int | None]:
    return ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS


def test_threads_that_overlap_give_back_what_was_there_before_the_first():
    """The first one in leaves first: if each restored what it found, the second would bring back what the first had set."""
    both_in, first_in, first_out = threading.Barrier(2), threading.Event(), threading.Event()

    def decode(leaves_first: bool) -> tuple[bool, int | None]:
        if not leaves_first:
            first_in.wait(10)
        with refuse_truncated():
            first_in.set()
            both_in.wait(10)
            if not leaves_first:
                first_out.wait(10)
            seen = settings()
        if leaves_first:
            first_out.set()
        return seen

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(decode, [True, False])) == [(False, 89_478_485)] * 2
    assert settings() == (True, None)


def test_what_another_pack_sets_in_the_meantime_stays():
    with refuse_truncated():
        Image.MAX_IMAGE_PIXELS = 5000
    assert settings() == (True, 5000)


def test_an_error_gives_the_settings_back():
    with pytest.raises(KeyError), refuse_truncated():
        raise KeyError
    assert settings() == (True, None)
