"""The folder chooser on the page: the strip follows the text, and a click on a folder writes the text."""

from __future__ import annotations

import pytest
from PIL import Image
from skimage import data

NODES = ["TrainTrain_LoadImageFolder", "TrainTrain_LoadImagePairs"]
WORDS = "document.querySelector('.traintrain-folder .traintrain-words')?.textContent"


@pytest.fixture(scope="module", autouse=True)
def folders(server):
    """Folders with pictures among the server's inputs."""
    for name, count in {"kittens": 3, "set/one": 1}.items():
        (server.base / "input" / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(data.chelsea()).save(server.base / "input" / name / f"{number}.jpg")
    (server.base / "input" / "outside").mkdir(exist_ok=True)
    for number in range(12):
        (server.base / "input" / "many" / str(number)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(server.base / "input" / "many" / str(number) / "a.png")


def show_loader(page, kind: str):
    page.evaluate(
        """(type) => { const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = [0, 0];
            Object.assign(app.canvas.ds, { scale: 1, offset: [300, 200] }); app.canvas.setDirty(true, true); }""",
        kind,
    )
    return page.find(kind)


def wait_for_words(page, text: str) -> None:
    page.wait_for(f"(text) => {WORDS} === text", text, timeout=10)


@pytest.mark.parametrize("kind", NODES)
def test_the_strip_shows_what_the_text_names_as_it_is_typed(page, kind):
    node = show_loader(page, kind)
    wait_for_words(page, "No image folder has this name.")
    node.set(folder=" kittens ")
    wait_for_words(page, "3 images")
    assert page.page.locator(".traintrain-folder img").count() == 3
    height = node.evaluate("(node) => node.size[1]")
    node.set(folder="set")
    wait_for_words(page, "1 in subfolders")
    node.set(folder="../outside")
    wait_for_words(page, "No image folder has this name.")
    assert page.page.locator(".traintrain-folder img").count() == 0
    assert node.evaluate("(node) => node.size[1]") < height - 40  # the thumbnails' room is given back


@pytest.mark.parametrize("kind", NODES)
def test_a_click_on_a_folder_of_the_list_writes_its_name(page, kind):
    node = show_loader(page, kind)
    node.evaluate("(node) => node.widgets.find((w) => w.name === 'choose_folder').callback()")
    row = page.page.locator(".traintrain-row", has_text="kittens")
    row.locator("img").nth(2).wait_for()
    assert "3 images" in row.inner_text()
    row.click()
    assert node.values()["folder"] == "kittens" and page.page.locator("dialog.traintrain-dialog").count() == 0
    wait_for_words(page, "3 images")


def test_escape_closes_the_list_and_leaves_the_text(page):
    node = show_loader(page, NODES[0])
    page.page.locator(".traintrain-folder").click()
    page.page.locator(".traintrain-row").first.wait_for()
    page.page.keyboard.press("Delete")  # no shortcut of the canvas meanwhile
    page.page.keyboard.press("Escape")
    page.page.locator("dialog.traintrain-dialog").wait_for(state="detached")
    assert node.values()["folder"] == "training_images" and page.find(NODES[0])


def test_the_wheel_and_the_mouse_are_for_the_list_and_not_for_the_canvas(page):
    show_loader(page, NODES[0])
    view = "[app.canvas.ds.scale, ...app.canvas.ds.offset]"
    page.page.locator(".traintrain-shown").click()
    page.page.locator(".traintrain-row img").first.wait_for()
    before = page.evaluate(view)
    page.page.mouse.move(800, 500)
    page.page.mouse.wheel(0, 200)
    page.wait_for("() => document.querySelector('.traintrain-list').scrollTop > 100")
    page.page.locator(".traintrain-dialog p").click()  # a click on no button
    page.page.mouse.wheel(0, -50)
    page.page.mouse.down()
    page.page.mouse.move(700, 400)
    page.page.mouse.up()
    page.page.wait_for_timeout(300)
    assert page.evaluate(view) == before
    page.page.mouse.click(20, 400)  # beside it
    page.page.locator("dialog.traintrain-dialog").wait_for(state="detached")


def test_a_loaded_workflow_shows_its_folder_and_saves_no_more_than_it_had(page):
    show_loader(page, NODES[0]).set(folder="kittens")
    wait_for_words(page, "3 images")
    saved = page.serialize()
    assert saved["nodes"][0]["widgets_values"] == ["kittens", True, "caption file", "", False, False]
    page.load(saved)
    wait_for_words(page, "3 images")
    assert page.find(NODES[0]).evaluate("(node) => node.size[1]") == saved["nodes"][0]["size"][1]


@pytest.mark.one_canvas("nodes 2.0")
def test_a_folder_that_comes_by_wire_is_not_chosen_here(page):
    node = show_loader(page, NODES[0])
    node.evaluate(
        """(node) => { const text = LiteGraph.createNode("PrimitiveString"); app.graph.add(text); text.pos = [-400, 0];
            text.connect(0, node, node.inputs.findIndex((input) => input.name === "folder")); }"""
    )
    wait_for_words(page, "The connected node sets the folder.")
    node.evaluate("(node) => node.widgets.find((w) => w.name === 'choose_folder').callback()")
    assert page.page.locator("dialog.traintrain-dialog").count() == 0
