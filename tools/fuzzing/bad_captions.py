"""Captions that no one would write, and bytes that are no caption."""

from __future__ import annotations

from hypothesis import strategies as st
from PIL import Image

from .case import Case
from .sandbox import Sandbox
from .wiring import Loaded, by_name

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f431"
WEIGHTS = "nan", "inf", "-1e38", "1e400", "", ":", "1:2"
EMBEDDINGS = "nothing", "../../secret/secret", "/etc/passwd", "", ".."
TEXTS = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=200),
    st.text("aé\u732b\u202e\u0301\x00\x07 \t\n,()[]{}:;\\\"'|<>%$", max_size=200),
    st.builds(
        str.__mul__, st.sampled_from(("x", "cat red hat ", "a cat ", FAMILY)), st.sampled_from((1, 50, 2000, 20_000))
    ),
    st.builds(str.__mul__, st.sampled_from("([{"), st.sampled_from((10, 900, 5000))),
    st.sampled_from((20, 900, 3000)).map(lambda depth: "(" * depth + "cat" + ")" * depth),
    st.sampled_from(WEIGHTS).map("(cat:{})".format),
    st.sampled_from(EMBEDDINGS).map("embedding:{}".format),
    st.sampled_from(("", " ", "\n\n")),
)
CONTENTS = st.one_of(
    st.binary(max_size=2000),
    st.builds(str.encode, TEXTS),
    st.builds(str.encode, TEXTS, st.sampled_from(("utf-16", "utf-32", "utf-8-sig"))),
    st.just(b"a cat " * (10_000_000 // 6)),
)


def cases(sandbox: Sandbox) -> st.SearchStrategy[Case]:
    """Return inputs: a folder with an image and its bad caption, loaded and encoded as in a graph."""
    loaded = Loaded(sandbox)

    def make(content: bytes) -> Case:
        name = f"{len(content)} bytes, {content[:40]!r}"
        return Case("captions", name, ("caption.txt", "caption"), lambda: _encode(loaded, content))

    return CONTENTS.map(make)


def _encode(loaded: Loaded, content: bytes) -> None:
    folder = loaded.sandbox.new_folder()
    Image.new("RGB", (8, 8)).save(folder / "caption.png")
    (folder / "caption.txt").write_bytes(content)
    load, bucket, train = map(by_name, ("LoadImageFolder", "BucketImages", "TrainLoRA"))
    images, _, captions, *_ = loaded.run(load, loaded.inputs(load) | {"folder": folder.name})
    bucketed = loaded.run(bucket, loaded.inputs(bucket) | {"images": images, "captions": captions})[0]
    with loaded.sandbox.until_first_step():
        loaded.run(train, loaded.inputs(train) | {"training_images": bucketed})
