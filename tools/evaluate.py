"""Trains each method on the demonstration model and measures what it draws then; runs in the host's Python.

    tools.evaluate --comfyui COMFYUI --base FOLDER [--quick] [--only NAME] [--set NODE.INPUT=VALUE]

The trainings are the graphs of `example_workflows/` in a running ComfyUI. The figures are shares of samples, judged by a
classifier that looks at pixels (`tools/shapes/classify.py`), for seeds and prompts that no training has.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import ToolError
from .experiment import Experiment, Figure
from .experiments import list_experiments
from .host_paths import ROOT
from .load_pack import load_pack
from .run_command import read_values
from .runner import keep_outputs, load_workflow, run_workflow, set_values, to_api
from .server import Server
from .terminal import StatusLine, duration

SAMPLES, QUICK_SAMPLES = 48, 12
SEED = 2000  # no value in the examples or in experiments.py was chosen by samples of this seed
COLUMNS = "{:<14} {:<34} {:<24} {:>9} {:>8} {:>6} {:>8}"


class Trainer:
    """Runs the graph of an experiment and says where its LoRAs are and how long each training took."""

    def __init__(self, server: Server, status: StatusLine) -> None:
        self.server, self.status = server, status
        self.object_info = server.get("/object_info")
        self.loras: dict[str, Path] = {}
        self.steps: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._running, self._since = "", 0.0

    def train(self, experiment: Experiment) -> None:
        """Run an experiment; `loras` are by the titles of their Save LoRA nodes, `steps` and `seconds` by training node."""
        prompt = to_api(load_workflow(ROOT / "example_workflows" / f"{experiment.workflow}.json"), self.object_info)
        prompt = set_values(prompt | experiment.nodes, experiment.values, self.object_info)
        prompt = keep_outputs(prompt, self.object_info, ["TrainTrain_SaveLoRA"])
        self.seconds.clear()
        outputs = run_workflow(self.server, prompt, self._follow)
        self.loras = {output.title: Path(output.texts[0]) for output in outputs if output.texts}  # of Save LoRA alone

    def _follow(self, event: str, title: str, data: dict) -> None:
        now = time.monotonic()
        if event == "executing":
            self.seconds[self._running] = now - self._since
            self._running, self._since = title, now
        elif event == "traintrain.end":
            self.steps[title] = data["steps"]
        elif event == "traintrain.step":
            self.status.show(f"{title}: step {data['step']}/{data['steps']}")


class Studio:
    """Draws with the demonstration model in this process, with and without a LoRA.

    steps: of the sampler
    """

    def __init__(self, checkpoint: Path, steps: int = 20) -> None:
        import comfy.sd
        import torch

        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        self._steps = steps
        self._bare: dict[tuple[str, ...], list] = {}

    def draw(self, prompts: list[str], lora: Path | None = None, strength: float = 0.0) -> list:
        """Draw an image for each prompt; the bare model's are drawn once."""
        if lora is None:
            key = tuple(prompts)
            if key not in self._bare:
                self._bare[key] = self._draw(self.model, prompts)
            return self._bare[key]
        import comfy.sd
        import torch
        from safetensors.torch import load_file

        with torch.inference_mode():
            patched, _ = comfy.sd.load_lora_for_models(self.model, None, load_file(lora), strength, 0.0)
        return self._draw(patched, prompts)

    def render(self, image: Image.Image) -> Image.Image:
        """Return an image as the autoencoder gives it back."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]
        with torch.inference_mode():
            back = self.vae.decode(self.vae.encode(pixels))[0]
        return Image.fromarray((back.clamp(0, 1) * 255).round().byte().numpy())

    def _draw(self, model, prompts: list[str]) -> list:
        from .shapes.draw_samples import draw

        return draw(model, self.clip, self.vae, prompts, SEED, self._steps)


def measure(studio: Studio, trainer: Trainer, figure: Figure, samples: int) -> tuple[str, str, list]:
    """Return success and damage of a figure in words, and its images."""
    prompts = [figure.prompts[i % len(figure.prompts)] for i in range(samples)]
    texts, scenes = [text for text, _ in prompts], [scene for _, scene in prompts]
    images = studio.draw(texts, trainer.loras[figure.lora], figure.strength)
    if figure.reference:
        against = [studio.render(figure.reference)] * samples
    else:
        against = studio.draw(texts) if figure.compared else images
    return *figure.judge(scenes, images, against), images


def chosen_experiments(quick: bool, only: str, values: dict[str, Any]) -> list[Experiment]:
    """List the trainings with `only` in their name, with these values besides their own."""
    chosen = [each for each in list_experiments(quick) if only in each.name]
    return [replace(each, values=each.values | values) for each in chosen]


def evaluate(
    server: Server, studio: Studio, experiments: list[Experiment], samples: int, folder: Path, status: StatusLine
) -> None:
    """Print the table row by row, and write the images."""
    from .shapes.evaluation_sheet import draw_sheet

    trainer = Trainer(server, status)
    rows = []
    status.keep(COLUMNS.format("method", "training", "samples of", "success", "damage", "steps", "seconds"))
    for experiment in experiments:
        trainer.train(experiment)
        for figure in experiment.figures:
            status.show(f"{figure.method}, {experiment.name}: {figure.name} ...")
            success, damage, images = measure(studio, trainer, figure, samples)
            steps = sum(trainer.steps[node] for node in figure.trained_by)
            seconds = sum(trainer.seconds[node] for node in figure.trained_by)
            status.keep(
                COLUMNS.format(figure.method, experiment.name, figure.name, success, damage, steps, f"{seconds:.0f}")
            )
            rows.append((f"{figure.method}: {experiment.name}, {figure.name}", images))
    status.keep(f"Images: {draw_sheet(rows, folder / 'evaluation.png')}")


def main() -> int:
    """Evaluate; give the exit status."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a rough table of fewer trainings and samples")
    parser.add_argument("--only", default="", metavar="NAME", help="only the trainings with this in their name")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="another value for all")
    arguments = parser.parse_args()
    load_pack(arguments.comfyui)
    from comfy.cli_args import args

    args.cpu = True  # the same samples on every machine
    status, started = StatusLine(), time.monotonic()
    try:
        experiments = chosen_experiments(arguments.quick, arguments.only, read_values(arguments.set))
        status.show("ComfyUI starts ...")
        with Server(arguments.comfyui, arguments.base) as server:
            studio = Studio(arguments.base / "models" / "checkpoints" / "shapes.safetensors")
            samples = QUICK_SAMPLES if arguments.quick else SAMPLES
            evaluate(server, studio, experiments, samples, arguments.base / "output", status)
    except ToolError as error:
        status.clear()
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        status.clear()
        return 130
    status.keep(f"It took {duration(time.monotonic() - started)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
