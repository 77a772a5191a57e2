"""Takes the images of the help pages and of the README from ComfyUI's page, with the demonstration model.

    python -m tools.screenshots --comfyui .host/ComfyUI --base .host/base

Asks for playwright and a Chromium, as the tests do. Trains 450 steps.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from .base_folder import forget_trainings
from .browser import find_browser
from .host_paths import ROOT
from .page import BLANK, OPTIONS, ComfyPage, Node
from .server import server_of_arguments
from .shapes import shape_pairs, star_images

HELP = ROOT / "web" / "docs" / "images"
README = ROOT / "docs"
COLOURS = 128  # of a PNG: a page has few, and the files stay small
# Where each node is to be seen with something in it; the others stand alone.
IN_TEMPLATES = {
    "5_Slider_from_two_prompts": ["TrainSlider"],
    "7_Copy_machine_and_difference": ["TrainCopyMachine", "TrainDifference"],
    "6_Slider_from_two_images_ADDifT": ["TrainADDifT"],
    "4_Erase_a_concept_iLECO": ["TrainILECO"],
}
IN_TRAINING = [
    "LoadImageFolder",
    "BucketImages",
    "TrainingSettings",
    "SaveLoRA",
    "PlotLoss",
]
ALONE = {"LoadImagePairs": {"folder": "."}, "EncodedTrainingImages": {}, "LoadLoRA": {}, "LoRANetwork": {}}
LATE = (
    "() => recorded.some(({ name, detail }) => name === 'traintrain.step' && detail.steps === 300 && detail.step > 210)"
)
ADD_PREVIEW = """() => {
    const [training] = findNodes("TrainTrain_TrainLoRA").map(({ node }) => node);
    const [loader] = findNodes("CheckpointLoaderSimple").map(({ node }) => node);
    const add = (kind, x, y) => {
        const node = LiteGraph.createNode(kind);
        app.rootGraph.add(node);
        node.pos = [training.pos[0] + x, training.pos[1] + y];
        return node;
    };
    const preview = add("TrainTrain_PreviewSettings", -360, 1230);
    ["a purple star on a white background", ""].forEach((text, slot) => {
        const prompt = add("CLIPTextEncode", -820, 1230 + 240 * slot);
        prompt.widgets[0].value = text;
        loader.connect(1, prompt, 0);
        prompt.connect(0, preview, slot);
    });
    loader.connect(1, preview, "clip");
    loader.connect(2, preview, "vae");
    preview.connect(0, training, "preview");
}"""


def main() -> None:
    from playwright.sync_api import sync_playwright

    program = find_browser(Path(sys.executable))
    with server_of_arguments(__doc__) as server, sync_playwright() as playwright:
        star_images.write(server.base / "input" / "purple_star")
        shape_pairs.write(server.base / "input")
        with playwright.chromium.launch(executable_path=program, args=OPTIONS) as browser:
            window = browser.new_context(viewport={"width": 1800, "height": 1400}, device_scale_factor=1.5)
            page = ComfyPage(window.new_page(), server, "nodes 2.0")
            take_training(page)
            take_templates(page)
            take_comparison(page)
            take_alone(page)


def take_training(page: ComfyPage) -> None:
    """Train the first template with samples on the way, and take its nodes as they are then."""
    forget_trainings(page.server.base)
    page.load_template("1_Train_a_LoRA")
    page.evaluate(ADD_PREVIEW)
    preview = page.find("TrainTrain_PreviewSettings").set(every=100, width=64, height=64, cfg=4.0, seed=3)
    preview.set(more_prompts="a purple star on a gray background\na red circle on a white background")
    training = page.find("TrainTrain_TrainLoRA").set(learning_rate=1e-3, steps=150)
    page.run(timeout=400)  # an earlier run, for the chart
    training.set(learning_rate=2e-3, steps=300)
    prompt = page.queue()
    page.wait_for(LATE, timeout=400)
    take_node(page, training, HELP / "TrainLoRA.png")
    page.wait_until_done(prompt, timeout=400)
    take_page(page, README / "page.jpg")
    for name in (*IN_TRAINING, "PreviewSettings"):
        take_node(page, page.find(f"TrainTrain_{name}"), HELP / f"{name}.png")


def take_page(page: ComfyPage, path: Path) -> None:
    """Take an image of the page, from the images that go in to the samples that come out, at 60 %."""
    page.evaluate(
        """() => {
            const [bucket] = findNodes("TrainTrain_BucketImages").map(({ node }) => node);
            const { ds } = app.canvas;
            ds.scale = 0.6;
            ds.offset = [130 - bucket.pos[0], 190 - bucket.pos[1]];
            app.canvas.setDirty(true, true);
        }"""
    )
    page.page.wait_for_timeout(5000)  # the message that the run has ended goes away
    page.page.screenshot(
        path=path, type="jpeg", quality=85, scale="css", clip={"x": 0, "y": 0, "width": 1800, "height": 1000}
    )


def take_templates(page: ComfyPage) -> None:
    for template, names in IN_TEMPLATES.items():
        page.load_template(template)
        for name in names:
            take_node(page, page.find_all(f"TrainTrain_{name}")[0], HELP / f"{name}.png")


def take_comparison(page: ComfyPage) -> None:
    """Run the template that compares, and take its node and its chart."""
    page.load_template("8_Compare_LoRAs")
    node = page.find("TrainTrain_CompareLoRAs")
    grid, curve = page.run(timeout=400)[node.path]["images"]
    node.evaluate("(node) => node.setSize([440, 1100])")
    take_node(page, node, HELP / "CompareLoRAs.png")
    folder = page.server.base / "output" / "compare"
    chart = Image.open(folder / curve["filename"])
    chart.convert("RGB").quantize(COLOURS).save(HELP / "CompareLoRAs_curve.png", optimize=True)
    Image.open(folder / grid["filename"]).convert("RGB").save(README / "methods" / "compare_sliders.jpg", quality=90)


def take_alone(page: ComfyPage) -> None:
    for name, values in ALONE.items():
        page.load(BLANK)
        page.evaluate("(kind) => void app.rootGraph.add(LiteGraph.createNode(kind))", f"TrainTrain_{name}")
        take_node(page, page.find(f"TrainTrain_{name}").set(**values), HELP / f"{name}.png")


def take_node(page: ComfyPage, node: Node, path: Path) -> None:
    """Take an image of one node at 100 %."""
    node.evaluate(
        """(node) => {
            const { ds } = app.canvas;
            ds.scale = 1;
            ds.offset = [400 - node.pos[0], 200 - node.pos[1]];
            app.canvas.deselectAll?.();
            app.canvas.setDirty(true, true);
        }"""
    )
    page.page.wait_for_timeout(1000)
    shot = page.page.locator(f'[data-node-id="{node.path}"]').screenshot()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(path.relative_to(ROOT), path.stat().st_size // 1024, "kB", flush=True)


if __name__ == "__main__":
    main()
