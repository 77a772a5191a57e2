"""The block picker of LoRA Network: its map has the models' blocks, and its text is what the trainer reads."""

from __future__ import annotations

import random

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from pack.trainer.blocks import adaptable_blocks, choose_blocks
from pack.trainer.config import NETWORK_TYPES, NetworkConfig
from tiny_families import FAMILIES

# The real sizes of the U-Nets, as the host knows them.
DEPTHS = {
    "SD1": {"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2}
    | {"transformer_depth_output": [1] * 9 + [0] * 3},
    "SDXL": {"model_channels": 320, "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10}
    | {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10]},
}
UNETS = {"SD 1.5, SD 2": "SD1", "SDXL": "SDXL"}
LISTS = {
    "SD 3, SD 3.5 Medium": ["SD3"],
    "SD 3.5 Large": ["SD3"],
    "Flux, Chroma": ["Flux", "Chroma"],
    "Flux 2": ["Flux2"],
    "Flux 2 Klein 9B": ["Flux2"],
    "Flux 2 Klein 4B": ["Flux2"],
    "Lumina 2": ["Lumina2"],
    "Z-Image": ["Z-Image"],
    "Qwen-Image": ["Qwen-Image"],
    "Anima, Krea 2": ["Anima", "Krea 2"],
    "Wan 1.3B, 5B": ["Wan"],
    "Wan 14B": ["Wan"],
}
TEXT, LAYOUTS = (f"/extensions/traintrain/block_{name}.js" for name in ("text", "layouts"))
NODE = "TrainTrain_LoRANetwork"


def trainable_on_the_map(page, layout: str, network_type: str) -> list[str]:
    script = (
        "async ([file, name, type]) => { const m = await import(file); return m.trainable(m.LAYOUTS[name], type); }"
    )
    return page.evaluate(script, [LAYOUTS, layout, network_type])


def read(page, text: str, known: list[str]) -> tuple[set[str], list[str]]:
    script = """async ([file, text, known]) => { const { readBlocks } = await import(file);
        const { chosen, unknown } = readBlocks(text, known); return [[...chosen], unknown]; }"""
    chosen, unknown = page.evaluate(script, [TEXT, text, known])
    return set(chosen), unknown


def write(page, chosen: set[str], known: list[str], unknown: list[str]) -> str:
    script = """async ([file, chosen, ...rest]) => (await import(file)).writeBlocks(new Set(chosen), ...rest)"""
    return page.evaluate(script, [TEXT, sorted(chosen), known, unknown])


def build(family: str, **sizes: object) -> torch.nn.Module:
    kind = FAMILIES[family]
    with torch.device("meta"):
        return kind.network(**{**kind.sizes, **sizes}, dtype=torch.float32, operations=comfy.ops.disable_weight_init)


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize("network_type", NETWORK_TYPES)
@pytest.mark.parametrize("layout", UNETS)
def test_the_map_of_a_unet_offers_what_the_trainer_adapts(page, layout, network_type):
    family = UNETS[layout]
    sizes = {**FAMILIES[family].sizes, **DEPTHS[family]}
    network = UNetModel(**sizes, device="meta", operations=comfy.ops.disable_weight_init)
    expected = adaptable_blocks(network, NetworkConfig(network_type=network_type))
    assert trainable_on_the_map(page, layout, network_type) == expected


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize("layout", LISTS)
def test_the_map_of_another_model_has_its_lists_of_blocks_in_order(page, layout):
    shown = trainable_on_the_map(page, layout, "lierla")
    assert shown == sorted(shown)
    for family in LISTS[layout]:
        blocks = adaptable_blocks(build(family), NetworkConfig())
        assert {block.split(".")[0] for block in shown} == {block.split(".")[0] for block in blocks}


@pytest.mark.one_canvas("classic")
def test_there_is_no_map_that_is_not_tested(page):
    script = "async (file) => Object.keys((await import(file)).LAYOUTS)"
    assert page.evaluate(script, LAYOUTS) == [*UNETS, *LISTS]


SDXL = [*"IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05".split()]
TEXTS = ["", " , ", "all", "ALL, BASE", "-M00", "all,-m00", "IN04-IN08, M00", "in05 - out01", "OUT05-IN04", "-all"]
TEXTS += ["base", "BASE, -BASE", "-BASE", "- IN04-IN07, IN05", "all, -all, OUT03", "M00-M00", "IN04,,IN05"]


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize("text", TEXTS)
def test_the_page_reads_a_text_as_the_trainer_does(page, text):
    assert read(page, text, SDXL) == (choose_blocks(text, SDXL), [])


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize("text", ["IN00", "IN04-IN09", "IN04-IN05-IN07", "-", "IN04 IN05", "x", "-vace.03", "IN04-"])
def test_a_part_that_the_trainer_refuses_is_not_about_the_map(page, text):
    with pytest.raises(ValueError, match="There is no block"):
        choose_blocks(text, SDXL)
    assert read(page, text, SDXL)[1] == [text]
    chosen, unknown = read(page, f"M00, {text}", SDXL)
    assert (chosen, unknown) == ({"M00"}, [text])
    assert write(page, {"M00", "IN04"}, SDXL, unknown) == f"IN04, M00, {text}"


@pytest.mark.one_canvas("classic")
@pytest.mark.parametrize(
    "chosen, text",
    [
        (set(SDXL), "all"),
        (set(SDXL) - {"M00"}, "all, -M00"),
        (set(SDXL) | {"BASE"}, "all, BASE"),
        ({"IN04", "IN05", "IN07", "IN08", "M00"}, "IN04-IN08, M00"),
        ({"IN04", "IN05"}, "IN04, IN05"),
        ({"BASE"}, "BASE"),
        (set(), "-all"),
    ],
)
def test_the_text_of_a_choice_is_the_shortest(page, chosen, text):
    assert write(page, chosen, SDXL, []) == text


@pytest.mark.one_canvas("classic")
def test_any_choice_comes_back_from_its_text_by_the_trainers_own_rules(page):
    draw = random.Random(0)
    for known in (SDXL, [f"{name}.{i:02d}" for name in ("double_blocks", "single_blocks") for i in range(19)]):
        for _ in range(60):
            chosen = set(draw.sample([*known, "BASE"], draw.randint(0, len(known) + 1)))
            assert choose_blocks(write(page, chosen, known, []), known) == chosen


def show_network(page):
    """Put a LoRA Network in the middle of the page."""
    page.evaluate(
        """(type) => { const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = [0, 0];
            Object.assign(app.canvas.ds, { scale: 1, offset: [300, 200] }); app.canvas.setDirty(true, true); }""",
        NODE,
    )
    page.page.locator(".traintrain-blocks [data-id=M00]").wait_for()
    return page.find(NODE)


def cell(page, block: str):
    return page.page.locator(f'.traintrain-blocks [data-id="{block}"]')


def pressed(page) -> set[str]:
    script = "() => [...document.querySelectorAll('.traintrain-blocks [aria-pressed=true]')].map((c) => c.dataset.id)"
    return set(page.evaluate(script))


def test_a_click_writes_the_text_and_the_text_marks_the_map(page):
    node = show_network(page)
    cell(page, "M00").click()
    assert node.values()["blocks"] == "all, -M00" and "M00" not in pressed(page)
    node.set(blocks="in04-IN08, Base, vace.01")
    assert pressed(page) == {"IN04", "IN05", "IN07", "IN08", "BASE"}
    assert "vace.01" in page.page.locator(".traintrain-blocks .traintrain-words").inner_text()
    cell(page, "OUT05").click()
    assert node.values()["blocks"] == "IN04-IN08, OUT05, BASE, vace.01"


def test_moving_on_with_the_button_down_chooses_what_it_comes_over(page):
    node = show_network(page)
    node.set(blocks="-all")
    for number, block in enumerate(("OUT03", "OUT04", "OUT05")):
        cell(page, block).hover()
        if number == 0:
            page.page.mouse.down()
    page.page.mouse.up()
    cell(page, "OUT08").hover()
    assert node.values()["blocks"] == "OUT03-OUT05"


def test_what_the_network_type_does_not_train_cannot_be_chosen(page):
    node = show_network(page)
    assert cell(page, "IN03").is_disabled() and cell(page, "IN00").is_disabled()
    node.set(network_type="c3lier")
    assert cell(page, "IN03").is_enabled() and cell(page, "IN00").is_disabled()


def test_the_layout_is_kept_with_the_workflow_and_nothing_else_is(page):
    node = show_network(page)
    page.page.locator(".traintrain-layout").select_option("Qwen-Image")
    cell(page, "transformer_blocks.59").click()
    saved = page.serialize()
    assert saved["nodes"][0]["widgets_values"][6:] == ["all, -transformer_blocks.59", False, False]
    page.load(saved)
    node = page.find(NODE)
    page.page.locator('.traintrain-blocks [data-id="transformer_blocks.58"]').wait_for()
    assert len(pressed(page)) == 59
    heights = node.evaluate("(node) => [node.size[1], node.computeSize()[1]]")
    assert heights[0] <= heights[1] + 1


def test_after_a_training_the_map_shows_the_blocks_that_the_model_has(page):
    node = show_network(page)
    workflow = page.evaluate("() => app.rootGraph.id")
    blocks = ["OUT00", "IN01", "M00"]
    event = {"node": node.path, "workflow": workflow, "blocks": blocks, "layers": 58, "parameters": 1357824}
    page.evaluate("(detail) => app.api.dispatchEvent(new CustomEvent('traintrain.network', { detail }))", event)
    cells = page.page.locator(".traintrain-map [data-id]")
    assert set(cells.all_inner_texts()) == {"IN01", "M00", "OUT00"}
    assert page.page.locator(".traintrain-blocks .traintrain-words").inner_text() == "58 layers, 1,357,824 parameters"
    saved = page.serialize()
    page.load(saved)
    cell(page, "OUT00").wait_for()
    assert page.find(NODE).evaluate("(node) => node.size[1]") == saved["nodes"][0]["size"][1]
    assert page.page.locator(".traintrain-layout").input_value() == "trained"
    cell(page, "M00").click()
    assert page.find(NODE).values()["blocks"] == "all, -M00"
