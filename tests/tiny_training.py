"""The smallest training: a model of one layer, four examples, no host."""

from __future__ import annotations

import torch
from pack.trainer.blocks import choose_layers
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.dataset.batches import draw_batches
from pack.trainer.denoiser import NoisePrediction
from pack.trainer.methods import StepOutput
from pack.trainer.methods.denoise import Denoise
from pack.trainer.network import LoRANetwork
from pack.trainer.run import TrainingRun
from pack.trainer.training_example import TrainingExample
from torch import nn


class TinyModel(nn.Module):
    """A Denoiser with one adaptable layer: prediction = layer(x_t) + conditioning."""

    device, dtype = torch.device("cpu"), torch.float32
    pixels_per_latent = 8

    def __init__(self, parameterization=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"layer": nn.Linear(4, 4)})]).requires_grad_(False)
        self.parameterization = parameterization or NoisePrediction()

    def sigma_at(self, t):
        return 0.03 + t / 100

    def add_noise(self, x0, noise, sigma):
        return x0 + sigma.view(-1, 1, 1, 1) * noise

    def predict(self, x_t, sigma, conditioning):
        scaled = x_t / (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
        return self.blocks[0]["layer"](scaled) + torch.tensor(conditioning).view(-1, 1, 1, 1)


EXAMPLES = [TrainingExample(torch.full((2, 4, 4), float(i)), 0.1 * i) for i in range(4)]


def make_training(steps=6, examples=EXAMPLES, **settings):
    config = TrainingConfig(**{"steps": steps, "batch_size": 2, "learning_rate": 1e-2, "seed": 7, **settings})
    model = TinyModel()
    network = make_network(model)
    batches = draw_batches(
        [e.latent.shape for e in examples], config.batch_size, torch.Generator().manual_seed(config.seed)
    )
    return model, network, Denoise(examples, batches, config), config


def make_network(model):
    config = NetworkConfig(rank=2, alpha=2)
    return LoRANetwork.create(choose_layers(model, config), config, key_of=str, seed=3)


def train(model, network, method, config, on_step=lambda step: None) -> list[float]:
    run = TrainingRun(model, network, method, config)
    for step in run.steps():
        on_step(step)
    return run.history.losses


def weights(network) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


class Fixed:
    """Hands out the batches it is given, with the same noise for each example whatever its batch."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def strength(self, step):
        return 1.0

    def run_step(self, model, network, step, rng):
        chosen = next(self.batches)
        x_t = torch.stack([torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in chosen])
        sigma = torch.ones(len(chosen))
        return StepOutput(model.predict(x_t, sigma, [0.0] * len(chosen)), torch.zeros_like(x_t), sigma)
