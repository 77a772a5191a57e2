"""The training nodes on a tiny model of a family of the host, run as the executor runs them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import comfy.sample
import torch
from pack.nodes import host
from pack.nodes.train_addift import TrainADDifT
from pack.nodes.train_copy_machine import TrainCopyMachine
from pack.nodes.train_difference import TrainDifference
from pack.nodes.train_ileco import TrainILECO
from pack.nodes.train_lora import TrainLoRA
from pack.nodes.train_slider import TrainSlider
from pack.trainer.config import NetworkConfig
from pack.trainer.dataset.training_image import TrainingImage
from tiny_models import HEIGHT, WIDTH, Loaded, TinyCLIP, load_family, make_prompt

TRAINING = {"steps": 4, "batch_size": 1, "learning_rate": 1e-2, "seed": 3}


class TinyHost:
    """A loaded family, and what its trainings and samples take. Each training writes into the host's output folder."""

    def __init__(self, folder: Path, family: str = "SD3", **storage: Any) -> None:
        self.family: Loaded = load_family(family, folder, **storage)
        self.model, self.vae, self.clip = self.family.model, self.family.vae, TinyCLIP(family)
        self.prompt, self.blue = make_prompt(family, "red"), make_prompt(family, "blue")
        self.picture, self.other = self.family.picture, 1 - self.family.picture
        self.network = NetworkConfig(rank=4, alpha=4)
        self.copy: dict[str, torch.Tensor] = {}  # a copy machine, once there was a training of one

    def train(self, method: str, **inputs: Any) -> tuple:
        """Run a method's node; return its outputs. prompt: the graph that it is in"""
        graph = inputs.pop("prompt", {})
        node, values = self._node(method, inputs)
        node.hidden = SimpleNamespace(unique_id="2", prompt=graph, extra_pnginfo=None)
        with torch.inference_mode():
            return node.execute(**values).args

    def job(self, method: str, **inputs: Any) -> host.Job:
        """Return what a method's node makes of its inputs, before it trains."""
        node, values = self._node(method, inputs)
        with torch.inference_mode():
            return node.prepare(**values)

    def _node(self, method: str, inputs: dict[str, Any]) -> tuple[type, dict[str, Any]]:
        """Return a method's node and what is wired into it."""
        node, own = self._methods()[method]
        values = {"model": self.model, "network": self.network, **own(), **TRAINING, **inputs}
        if node is TrainADDifT:  # takes lists
            values = {name: [value] for name, value in values.items()}
        return node, values

    def preview(self, **settings: Any) -> host.Preview:
        """Return samples of one step each."""
        sampling = {"steps": 1, "cfg": 1.0, "sampler_name": "euler_ancestral", "scheduler": "simple", "seed": 1}
        size = {"width": WIDTH, "height": HEIGHT}
        return host.Preview(
            positive=self.prompt, negative=self.blue, vae=self.vae, **{"every": 1, **size, **sampling, **settings}
        )

    def sample(self) -> torch.Tensor:
        """Return a sample of the MODEL as the host makes it."""
        noise, zero = self.family.draw_latents(1), torch.zeros_like(self.family.draw_latents(1))
        with torch.inference_mode():
            return comfy.sample.sample(
                self.model, noise, 2, 2.0, "euler", "simple", self.prompt, self.blue, zero, disable_pbar=True, seed=3
            ).clone()

    def _methods(self) -> dict[str, tuple[type, Callable[[], dict[str, Any]]]]:
        size = {"width": WIDTH, "height": HEIGHT, "denoise_steps": 1, "guidance": 1.0}
        ways = {"swap": False, "difference_mask": False, "alternation_ratio": 1.0, "bands": 10}
        sides = {"original_conditioning": self.prompt, "target_conditioning": self.blue}
        image = TrainingImage(self.picture[0], "red", None, "a", (WIDTH, HEIGHT))
        picture = {"vae": self.vae, "conditioning": self.prompt}
        return {
            "LoRA": (TrainLoRA, lambda: {"clip": self.clip, "vae": self.vae, "training_images": [image]}),
            "iLECO": (TrainILECO, lambda: {"original": self.prompt, "target": self.blue, **size}),
            "slider": (TrainSlider, lambda: {"positive": self.blue, "negative": self.prompt, **size}),
            "copy machine": (TrainCopyMachine, lambda: {**picture, "image": self.picture}),
            "difference": (TrainDifference, lambda: {**picture, "image": self.other, "copy_machine": self.copied()}),
            "ADDifT": (
                TrainADDifT,
                lambda: {"vae": self.vae, "original": self.picture, "target": self.other, **sides, **ways},
            ),
        }

    def copied(self) -> dict[str, torch.Tensor]:
        """Return a copy machine of the picture."""
        if not self.copy:
            self.copy = self.train("copy machine", seed=99)[1]
        return self.copy
