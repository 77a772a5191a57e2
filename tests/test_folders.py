"""The routes of the folder chooser: what they list, what they show, and what they refuse."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import folder_paths
import numpy as np
import pytest
from pack.nodes import folders
from pack.nodes.input_path import find_folder
from PIL import Image
from skimage import data

CAT = Image.fromarray(data.chelsea())  # 451 x 300
LIST, SHOW = "/traintrain/folders", "/traintrain/thumbnails"


def ask(server, route: str, body: bytes, kind: str = "application/json") -> tuple[int, dict]:
    """Post raw bytes; return status and answer."""
    status, answer = server.request("POST", route, body, kind)
    return status, json.loads(answer or b"null")


def show(server, name: object) -> tuple[int, dict]:
    return ask(server, SHOW, json.dumps({"folder": name}).encode())


def read(uri: str) -> Image.Image:
    head, body = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


@pytest.fixture(scope="module")
def filled(server):
    """The server's folders with images, and one outside of them that links lead to."""
    base = server.base
    for place, count in {"input/cats": 2, "input/cats/deep/deeper": 1, "output/made": 1, "outside": 1}.items():
        (base / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            CAT.save(base / place / f"{number}.png")
    for place in ("input/empty", "input/.hidden", "output/cats"):
        (base / place).mkdir(parents=True)
        CAT.save(base / place / ("a.jpg" if place != "input/empty" else ".hidden.jpg"))
    (base / "input" / "cats" / "notes.txt").write_text("not an image")
    (base / "input" / "link").symlink_to(base / "outside")
    return base


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """Give the host empty folders in the test's own process."""
    for name in ("input", "output", "listed"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    extra = folder_paths.folder_names_and_paths | {"training_images": ([str(tmp_path / "listed")], set())}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", extra)
    return tmp_path


def put(folder: Path, name: str = "a.png", image: Image.Image = CAT, **options: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)
    return folder


def names() -> list[str]:
    return [folder.name for folder in folders.list_folders()[0]]


def test_folders_with_images_are_listed_with_counts_of_images_in_and_below_them(server, filled):
    status, answer = ask(server, LIST, b"")
    found = {folder["name"]: (folder["count"], folder["below"]) for folder in answer["folders"]}
    assert status == 200 and answer["complete"] is True
    assert (found["cats"], found["cats/deep"], found["cats/deep/deeper"]) == ((2, 1), (0, 1), (1, 0))
    assert found["made"] == found[str(filled / "output" / "cats")] == (1, 0)  # input has a folder of that name
    assert not [name for name in found if "hidden" in name or "link" in name or "empty" in name or "outside" in name]


def test_the_body_of_a_list_request_is_ignored(server, filled):
    expected = ask(server, LIST, b"")
    for body in (b'{"folder": "/etc"}', b"[", b"\xff\x00", b'"' + b"x" * 100_000):
        assert ask(server, LIST, body) == expected


def test_thumbnails_are_the_images_of_the_folder_at_small_size(server, filled):
    status, answer = show(server, "cats")
    assert (status, answer["count"], answer["below"]) == (200, 2, 1)
    small = [read(uri) for uri in answer["thumbnails"]]
    assert [image.size for image in small] == [(144, 96)] * 2
    expected = np.asarray(CAT.resize((144, 96))).astype(float)
    assert np.abs(np.asarray(small[0]) - expected).mean() < 6


REFUSED = ["..", "../outside", "cats/..", "cats/", "./cats", "/", "/etc", "link", "", "~", "cats\0", "\0", ".hidden"]
REFUSED += ["empty", "nothing", "CATS", "cats/deep/../../cats", "C:\\", "\ud800", "x" * 100_000]
REFUSED += [["cats"], {"name": "cats"}, 1, 1.5, True, None]


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: repr(name)[:20])
def test_an_unlisted_name_is_refused(server, filled, name):
    assert show(server, name) == (404, {"error": "No listed folder has this name."})


def test_a_full_path_is_refused_unless_it_is_the_listed_name(server, filled):
    assert show(server, str(filled / "output" / "cats"))[0] == 200
    listed = {folder["name"] for folder in ask(server, LIST, b"")[1]["folders"]}  # output, too, once it has images
    for path in (filled / "input" / "cats", filled / "outside", filled / "output", filled):
        assert show(server, str(path))[0] == (200 if str(path) in listed else 404)
    assert not {str(filled / "input" / "cats"), str(filled / "outside"), str(filled)} & listed


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"1", b"null", b'"folder"', b"\xff\xfe", b"[" * 100_000, b"{'folder': 'cats'}"]
)
def test_an_invalid_body_is_answered_with_what_to_send(server, filled, body):
    assert ask(server, SHOW, body) == (400, {"error": 'Send {"folder": "<name of a listed folder>"}.'})


def test_a_body_in_an_unknown_encoding_is_invalid(server, filled):
    assert ask(server, SHOW, b'{"folder": "cats"}', "application/json; charset=none")[0] == 400


@pytest.mark.parametrize("route", [LIST, SHOW])
def test_the_routes_accept_only_post(server, route):
    assert server.request("GET", f"{route}?folder=cats")[0] in (404, 405)


def test_the_loader_finds_every_listed_folder_by_its_name(base):
    for place in ("input", "input/cats", "output", "output/cats", "output/made", "listed", "listed/own/deep"):
        put(base / place)
    found, complete = folders.list_folders()
    assert complete and [find_folder(folder.name) for folder in found] == [folder.path for folder in found]
    assert [folder.name for folder in found] == [
        *(".", "cats"),
        *(str(base / "output"), str(base / "output" / "cats"), "made"),
        *(str(base / "listed"), "own", "own/deep"),
    ]


def test_what_the_pack_itself_has_drawn_is_not_offered_but_can_be_named(base):
    for name in ("traintrain", "loss", "compare/styles", "loras/trained", "loras/previews", "traintrain_2"):
        put(base / "output" / name)
    put(base / "input" / "traintrain")
    assert sorted(names()) == ["loras", "loras/previews", "traintrain", "traintrain_2"]
    counts = {folder.name: (folder.count, folder.below) for folder in folders.list_folders()[0]}
    assert counts["loras"] == (0, 1) and find_folder("loss") == base / "output" / "loss"


def test_links_to_folders_are_not_followed_even_in_circles(base):
    put(base / "outside")
    put(base / "input" / "cats")
    (base / "input" / "cats" / "round").symlink_to(base / "input")
    (base / "input" / "away").symlink_to(base / "outside")
    ((cats,), complete) = folders.list_folders()
    assert (cats.name, cats.count, cats.below, complete) == ("cats", 1, 0, True)


def test_a_link_that_replaces_a_listed_folder_is_refused(base):
    cats = put(base / "input" / "cats")
    put(base / "outside")
    assert names() == ["cats"] and folders._show("cats")["count"] == 1
    cats.rename(base / "input" / "moved")
    cats.symlink_to(base / "outside")
    assert folders._show("cats") is None


def test_an_image_that_links_out_of_the_folders_is_not_shown(base):
    cats = put(base / "input" / "cats")
    (cats / "inside.png").symlink_to(cats / "a.png")
    (cats / "outside.png").symlink_to(put(base / "outside") / "a.png")
    names()
    assert len(folders._show("cats")["thumbnails"]) == 2


def test_the_list_stops_at_its_limits_and_says_that_it_is_incomplete(base, monkeypatch):
    for number in range(6):
        for depth in range(8):
            put(base / "input" / "/".join([str(number), *"abcdefgh"[:depth]]))
    assert max(name.count("/") for name in names()) == folders.MAX_DEPTH - 1 and len(names()) == 30
    put(base / "input")
    monkeypatch.setattr(folders, "MAX_LISTED", 1)
    assert names() == ["."] and folders.list_folders()[1] is False
    monkeypatch.setattr(folders, "MAX_LISTED", 100)
    monkeypatch.setattr(folders, "MAX_VISITED", 2)
    assert names() == [".", "0"] and folders.list_folders()[1] is False


def test_unreadable_images_are_skipped_and_the_others_shown(base):
    cats = put(base / "input" / "cats", "z.png")
    (cats / "empty.png").touch()
    (cats / "text.jpg").write_text("not an image")
    (cats / "cut.jpg").write_bytes((put(cats, "whole.jpg") / "whole.jpg").read_bytes()[:300])
    CAT.save(cats / "other_decoder.png", "PPM")
    names()
    shown = folders._show("cats")
    assert shown["count"] == 6 and len(shown["thumbnails"]) == 2


def test_an_image_of_too_many_pixels_is_skipped_whatever_other_packs_allow(base, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    put(base / "input" / "cats", "huge.png", Image.new("1", (20_000, 9_000)))
    names()
    assert folders._show("cats") == {"count": 1, "below": 0, "thumbnails": []}


def test_an_image_that_the_loader_takes_is_shown_however_large(base):
    put(base / "input" / "cats", "large.png", Image.new("1", (10_000, 9_000)))
    names()
    assert [read(uri).size for uri in folders._show("cats")["thumbnails"]] == [(107, 96)]


def test_at_most_eight_thumbnails_are_shown_small_upright_and_at_the_right_brightness(base):
    cats = base / "input" / "cats"
    gray = np.linspace(0, 65535, 300 * 451).reshape(300, 451)
    turned = Image.Exif()
    turned[0x0112] = 6
    put(cats, "0.jpg", CAT, exif=turned)
    put(cats, "1.png", Image.fromarray(gray.astype(np.uint16)))
    put(cats, "2.tif", Image.fromarray((gray / 65535).astype(np.float32)))
    for number in range(3, 12):
        put(cats, f"{number}.webp", CAT.resize((4000, 40)))
    names()
    small = [read(uri) for uri in folders._show("cats")["thumbnails"]]
    assert len(small) == 8 and all(image.height <= 96 and image.width <= 288 for image in small)
    upright, deep, floating = (np.asarray(small[place]) for place in (0, 1, 4))
    assert upright.shape == (96, 64, 3)
    assert abs(deep.mean() - 127) < 3 and abs(floating.mean() - 127) < 3
