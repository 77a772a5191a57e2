"""The contenders: one step of training each, on the same model, latents and prompts, with the same rank and optimizer.

Each takes a Subject and a Setting and has `run(steps) -> seconds per step`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import comfy.utils
import comfy_extras.nodes_train
import torch
from comfy.ldm.modules.attention import attention_pytorch
from diffusers import UNet2DConditionModel
from pack.nodes import host
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.methods.denoise import Denoise
from pack.trainer.training_example import TrainingExample
from peft import LoraConfig

from .subjects import EXAMPLES, Subject
from .timing import step_clock, synchronize

LEARNING_RATE = 1e-4
# What diffusers calls the layers of lierla.
PEFT_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]


@dataclass(frozen=True)
class Setting:
    """The setting of all contenders."""

    batch_size: int
    rank: int = 16
    checkpointing: bool = False


def train(job: host.Job) -> None:
    """Train a job to its end, without a page and without files."""
    with host.open_session(job, lambda session: None) as session:
        for _ in session.steps():
            pass


class Ours:
    """The pack's own training, from loading the MODEL to the finished LoRA."""

    def __init__(self, subject: Subject, setting: Setting, examples: int = EXAMPLES) -> None:
        self.subject, self.setting = subject, setting
        latents = host.scale_latents(subject.model, list(subject.latents))
        prompts = [host.read_conditioning(prompt)[0] for prompt in subject.prompts]
        self.examples = [TrainingExample(latents[i % EXAMPLES].clone(), prompts[i % EXAMPLES]) for i in range(examples)]

    def run(self, steps: int) -> float:
        with step_clock() as clock:
            train(self.job(steps))
            return clock.seconds_per_step(steps)

    def job(self, steps: int) -> host.Job:
        network = NetworkConfig("lierla", self.setting.rank, float(self.setting.rank))
        config = TrainingConfig(
            steps=steps,
            batch_size=self.setting.batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler="constant",
            gradient_checkpointing=self.setting.checkpointing,
        )
        shapes = [example.latent.shape for example in self.examples]
        batches = draw_batches(shapes, config.batch_size, torch.Generator().manual_seed(0))
        return host.Job(self.subject.model, network, config, Denoise(self.examples, batches, config), {})


class HostTrainer:
    """ComfyUI's own Train LoRA node. It adapts every layer and every bias, which cannot be set otherwise.

    fastest: with attention by PyTorch, in bypass mode, checkpointing as in the setting; else its defaults
    """

    def __init__(self, subject: Subject, setting: Setting, fastest: bool = False, **options: Any) -> None:
        self.subject, self.setting = subject, setting
        self.model = subject.model.clone()
        if fastest:
            override = lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)  # noqa: E731
            self.model.model_options["transformer_options"] = {"optimized_attention_override": override}
            options = {"gradient_checkpointing": setting.checkpointing, "bypass_mode": True, **options}
        self.options = options

    def run(self, steps: int) -> float:
        with step_clock() as clock, torch.inference_mode():  # as the executor runs it
            comfy_extras.nodes_train.TrainLoraNode.execute(**self._inputs(steps))
            seconds = clock.seconds_per_step(steps)
        gc.collect()  # its copy of the model
        return seconds

    def _inputs(self, steps: int) -> dict[str, list]:
        schema = comfy_extras.nodes_train.TrainLoraNode.define_schema()
        defaults = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
        dtype = {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(self.subject.model.model.get_dtype_inference())
        ours = {
            "batch_size": self.setting.batch_size,
            "steps": steps,
            "learning_rate": LEARNING_RATE,
            "rank": self.setting.rank,
            "training_dtype": dtype or "none",
            "lora_dtype": "fp32",
            **self.options,
        }
        plain = {name: [value] for name, value in (defaults | ours).items()}
        latents = [{"samples": self.subject.latents}]
        return {**plain, "model": [self.model], "latents": latents, "positive": self.subject.prompts}


class Diffusers:
    """A plain loop of diffusers, PEFT and torch's AdamW on the very weights of the MODEL, in their own precision."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.subject, self.setting = subject, setting
        self.device, model = subject.model.load_device, subject.model.model
        self.dtype = model.get_dtype_inference()
        with torch.device("meta"):
            self.unet = UNet2DConditionModel(**subject.diffusers)
        names = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
        with host.open_model(subject.model) as (_, layers):  # which makes them such that autograd takes them
            weights = layers.state_dict()
        renamed = {
            name: weights[names[name.replace("add_embedding", "label_emb.0")]].to(self.device, self.dtype)
            for name in self.unet.state_dict()
        }
        with torch.inference_mode(False):
            self.unet.load_state_dict(renamed, assign=True)
            self.latents = subject.latents.clone().to(self.device)
            self.prompts = [prompt[0][0].clone().to(self.device, self.dtype) for prompt in subject.prompts]

    def run(self, steps: int) -> float:
        unet = self.unet.requires_grad_(False).train()
        rank = self.setting.rank
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=PEFT_LAYERS))
        if self.setting.checkpointing:
            unet.enable_gradient_checkpointing()
        try:
            parameters = [p for p in unet.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
            with step_clock() as clock:
                for batch in self._batches(steps):
                    self._step(batch).backward()
                    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                return clock.seconds_per_step(steps)
        finally:
            unet.delete_adapters("default")

    def _batches(self, steps: int) -> Sequence[torch.Tensor]:
        return [torch.randperm(len(self.latents))[: self.setting.batch_size] for _ in range(steps)]

    def _step(self, batch: torch.Tensor) -> torch.Tensor:
        x0, noise = self.latents[batch], torch.randn_like(self.latents[batch])
        t = torch.randint(0, 1000, (len(batch),), device=self.device)
        kept = torch.linspace(0.99, 0.1, 1000, device=self.device)[t].view(-1, 1, 1, 1)
        x_t = (kept.sqrt() * x0 + (1 - kept).sqrt() * noise).to(self.dtype)
        prompts = torch.cat([self.prompts[i] for i in batch])
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype) if mixed else nullcontext():
            prediction = self.unet(x_t, t, prompts).sample
        return torch.nn.functional.mse_loss(prediction.float(), noise)


class Limit:
    """What no training can go below: the frozen model forward, and backward to its inputs."""

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.ours = Ours(subject, setting)

    def run(self, steps: int) -> float:
        setting, examples = self.ours.setting, self.ours.examples
        with host.open_model(self.ours.subject.model, TrainingConfig(gradient_checkpointing=setting.checkpointing)) as (
            model,
            _,
        ):
            shape = (setting.batch_size, *examples[0].latent.shape)
            x_t = torch.randn(shape, device=model.device).requires_grad_()
            sigma = torch.ones(setting.batch_size, device=model.device)
            conditioning = [example.conditioning for example in examples[: setting.batch_size]]
            return seconds_each(lambda: model.predict(x_t, sigma, conditioning).square().mean().backward(), steps)


def seconds_each(run: Callable[[], object], times: int) -> float:
    """Return the mean seconds of a call, after one for warming up."""
    run()
    synchronize()
    started = time.perf_counter()
    for _ in range(times - 1):
        run()
    synchronize()
    return (time.perf_counter() - started) / (times - 1)
