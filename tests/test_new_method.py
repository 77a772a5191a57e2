"""A new method: its file, a node file and a row in the node list, in a copy of the pack."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMFYUI, HOST, ROOT
from pack.tools.base_folder import make_folders, share_model
from pack.tools.runner import run_workflow
from pack.tools.server import Server
from pack.trainer.lora_file import load_lora

pytestmark = pytest.mark.one_canvas("nodes 2.0")
NODE = "TrainTrain_TrainToy"
METHOD_FILE = """
import torch

from ..noise import draw_noise, draw_sigma
from . import StepOutput


class Toy:
    \"\"\"Learns to predict a share of the noise for any latents of noise.\"\"\"

    def __init__(self, prompt, shape, share, config):
        self.prompt, self.shape, self.share, self.config = prompt, shape, share, config

    def strength(self, step):
        return 1.0

    def run_step(self, model, network, step, rng):
        noise = draw_noise((self.config.batch_size, *self.shape), model.device, rng)
        sigma = draw_sigma(model, len(noise), self.config, rng)
        x_t = model.parameterization.scale_noise(noise, sigma)
        return StepOutput(model.predict(x_t, sigma, [self.prompt] * len(noise)), self.share * noise, sigma)

    def skip(self, batches):
        pass
"""
NODE_FILE = """
from comfy_api.latest import io

from ..trainer.config import NetworkConfig, TrainingConfig
from ..trainer.methods.toy import Toy
from . import host
from .resume import resume_inputs
from .training_node import HIDDEN, Preset, TrainingNode, lora_outputs, merge_configs, model_input, model_output, training_inputs


class TrainToy(TrainingNode, io.ComfyNode):
    preset = Preset(NetworkConfig(rank=4), TrainingConfig(steps=5, learning_rate=1e-3))

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TrainTrain_TrainToy",
            display_name="Train Toy",
            category="TrainTrain",
            description="A toy.",
            inputs=[
                model_input("teach"),
                io.Conditioning.Input("conditioning", tooltip="Any prompt."),
                *training_inputs(cls.preset, "A few.", "1e-3."),
                io.Float.Input("share", default=0.5, min=0, max=1, tooltip="Of the noise."),
                *resume_inputs(),
            ],
            outputs=[model_output(), *lora_outputs()],
            hidden=HIDDEN,
        )

    @classmethod
    def prepare(cls, model, conditioning, share, network=None, settings=None, lora=None, **training):
        network, config = merge_configs(cls.preset, network, settings, lora, training)
        prompt = host.read_conditioning(conditioning)[0]
        method = Toy(prompt, host.latent_shape(model, 64, 64), share, config)
        return host.Job(model, network, config, method, {"traintrain_method": "toy"}, lora=lora)
"""
ROW = "\nfrom .train_toy import TrainToy\n\nNODES.append(TrainToy)\n"
ADD = "(kind) => { app.rootGraph.add(LiteGraph.createNode(kind)); }"
WIDGETS = "(name) => findNodes(name)[0].node.widgets.map((widget) => widget.name)"


def add_method(pack: Path) -> None:
    """Copy the pack and add the toy method to the copy."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "findings")
    shutil.copytree(ROOT, pack, ignore=lambda folder, names: left_out(folder, names) if folder == str(ROOT) else ())
    (pack / "trainer" / "methods" / "toy.py").write_text(METHOD_FILE, encoding="utf-8")
    (pack / "nodes" / "train_toy.py").write_text(NODE_FILE, encoding="utf-8")
    with open(pack / "nodes" / "__init__.py", "a", encoding="utf-8") as node_list:
        node_list.write(ROW)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running ComfyUI with the copy of the pack that has the toy method."""
    base = tmp_path_factory.mktemp("base")
    make_folders(base)
    share_model(HOST / "base", base)
    pack = base / "custom_nodes" / "traintrain"
    pack.unlink()  # the link to the pack itself
    add_method(pack)
    with Server(COMFYUI, base) as running:
        yield running


# What the fuzz of the copy makes of the new node: a workflow that it then spoils, and the inputs that it gives bad values.
FUZZ = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tools.load_pack import load_pack
load_pack(Path(sys.argv[2]))
from pack.tools.fuzzing.wiring import Wired, by_name, plain_inputs
node = by_name("TrainToy")
print(json.dumps([Wired(node).graph, [field.id for field in plain_inputs(node)]]))
"""


def test_the_fuzz_tries_it_and_it_trains(server):
    pack, base = server.base / "custom_nodes" / "traintrain", server.base
    said = subprocess.check_output([sys.executable, "-c", FUZZ, pack, COMFYUI], text=True, cwd=base)
    graph, tried = json.loads(said.splitlines()[-1])
    assert tried == ["steps", "batch_size", "learning_rate", "seed", "share", "resume", "resume_stopped"]
    graph[NODE]["inputs"]["steps"] = 3
    run_workflow(server, graph)
    (file,) = (base / "output" / "traintrain").glob("Toy_*.safetensors")
    lora = load_lora(file)
    assert lora.metadata["traintrain_method"] == "toy" and lora.metadata["traintrain_step"] == "3"
    assert all(tensor.any() for key, tensor in lora.items() if key.endswith("lora_up.weight"))


def test_its_node_has_the_panel_and_the_stop_button(page):
    page.evaluate(ADD, NODE)
    own = ["steps", "batch_size", "learning_rate", "seed", "share", "resume", "resume_stopped"]
    assert page.evaluate(WIDGETS, NODE) == [*own, "stop_and_keep", "training"]
    page.page.get_by_text("The loss chart appears here during training.").wait_for()


def test_a_node_of_the_pack_that_does_not_train_has_no_panel(page):
    page.evaluate(ADD, "TrainTrain_PlotLoss")
    assert not {"stop_and_keep", "training"} & set(page.evaluate(WIDGETS, "TrainTrain_PlotLoss"))


def test_its_texts_are_english_until_they_are_translated(page):
    page.server.post("/settings", {"Comfy.Locale": "ja"})
    page.open()
    page.evaluate(ADD, NODE)
    assert page.find(NODE).evaluate("(node) => node.title") == "Train Toy"
    page.server.post("/settings", {"Comfy.Locale": "en"})
    page.open()
