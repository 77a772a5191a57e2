"""Trains each method on the demonstration model and measures what it draws then; runs in the host's Python.

    tools.evaluate --comfyui COMFYUI --base FOLDER [--quick]

The trainings are the graphs of `example_workflows/` in a running ComfyUI. The figures are shares of samples, told by a
classifier that looks at pixels (`tools/shapes/classify.py`), for seeds and prompts that no training has.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from PIL import Image

from .errors import ToolError
from .experiments import Experiment, Figure, list_experiments
from .host import ROOT
from .launch import prepare_torchvision
from .runner import keep_outputs, load_workflow, run_workflow, set_values, to_api
from .server import Server
from .terminal import StatusLine, duration

SAMPLES, QUICK_SAMPLES = 48, 12
SEED = 2000  # no value in the examples or in experiments.py was chosen by samples of this seed
COLUMNS = "{:<14} {:<18} {:<28} {:>9} {:>8} {:>6} {:>8}"


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
        prompt = keep_outputs(set_values(prompt, experiment.values), self.object_info, ["TrainTrain_SaveLoRA"])
        self.seconds.clear()
        outputs = run_workflow(self.server, prompt, self._follow)
        self.loras = {output.title: Path(output.texts[0]) for output in outputs}

    def _follow(self, event: str, title: str, data: dict) -> None:
        now = time.monotonic()
        if event == "executing":
            self.seconds[self._running] = now - self._since
            self._running, self._since = title, now
        elif event == "traintrain.step":
            self.steps[title] = data["steps"]
            self.status.show(f"{title}: step {data['step']}/{data['steps']}")


class Studio:
    """Draws with the demonstration model in this process, with and without a LoRA."""

    def __init__(self, checkpoint: Path) -> None:
        import comfy.sd
        import torch

        with torch.inference_mode():
            self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        self._bare: dict[tuple[str, ...], list] = {}

    def draw(self, prompts: list[str], lora: Path | None = None, strength: float = 0.0) -> list:
        """Draw a picture for each prompt; the bare model's are drawn once."""
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

    def render(self, picture: Image.Image) -> Image.Image:
        """Return a picture as the autoencoder gives it back."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
        with torch.inference_mode():
            back = self.vae.decode(self.vae.encode(pixels))[0]
        return Image.fromarray((back.clamp(0, 1) * 255).round().byte().numpy())

    def _draw(self, model, prompts: list[str]) -> list:
        from .shapes.sampling import draw

        return draw(model, self.clip, self.vae, prompts, SEED)


def measure(studio: Studio, trainer: Trainer, figure: Figure, samples: int) -> tuple[str, str, list]:
    """Return success and damage of a figure in words, and its pictures."""
    prompts = [figure.prompts[i % len(figure.prompts)] for i in range(samples)]
    texts, scenes = [text for text, _ in prompts], [scene for _, scene in prompts]
    pictures = studio.draw(texts, trainer.loras[figure.lora], figure.strength)
    if figure.reference:
        against = [studio.render(figure.reference)] * samples
    else:
        against = studio.draw(texts) if figure.compared else pictures
    return *figure.judge(scenes, pictures, against), pictures


def evaluate(server: Server, studio: Studio, quick: bool, only: str, folder: Path, status: StatusLine) -> None:
    """Print the table row by row, and write the pictures."""
    from .shapes.sheet import draw_sheet

    trainer = Trainer(server, status)
    rows = []
    status.keep(COLUMNS.format("method", "training", "samples of", "success", "damage", "steps", "seconds"))
    for experiment in (each for each in list_experiments(quick) if only in each.name):
        trainer.train(experiment)
        for figure in experiment.figures:
            status.show(f"{figure.method}, {experiment.name}: {figure.name} ...")
            success, damage, pictures = measure(studio, trainer, figure, QUICK_SAMPLES if quick else SAMPLES)
            steps = sum(trainer.steps[node] for node in figure.trained_by)
            seconds = sum(trainer.seconds[node] for node in figure.trained_by)
            status.keep(
                COLUMNS.format(figure.method, experiment.name, figure.name, success, damage, steps, f"{seconds:.0f}")
            )
            rows.append((f"{figure.method}: {experiment.name}, {figure.name}", pictures))
    status.keep(f"Pictures: {draw_sheet(rows, folder / 'evaluation.png')}")


def main() -> int:
    """Evaluate; give the exit status."""
    parser = argparse.ArgumentParser(prog="evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a rough table of fewer trainings and samples")
    parser.add_argument("--only", default="", metavar="NAME", help="only the trainings with this in their name")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.comfyui))
    prepare_torchvision()
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    status, started = StatusLine(), time.monotonic()
    try:
        status.show("ComfyUI starts ...")
        with Server(arguments.comfyui, arguments.base) as server:
            studio = Studio(arguments.base / "models" / "checkpoints" / "shapes.safetensors")
            evaluate(server, studio, arguments.quick, arguments.only, arguments.base / "output", status)
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
