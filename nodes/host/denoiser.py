"""A loaded MODEL as the trainer sees it."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import comfy.ldm.modules.attention
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch

from ...trainer import denoiser
from ...trainer.checkpointing import inputs_kept

Patcher = Any  # comfy.model_patcher.ModelPatcher, the MODEL of a graph


class HostDenoiser:
    """A loaded MODEL as the trainer's Denoiser. Lives as long as one training."""

    def __init__(self, patcher: Patcher) -> None:
        self.device, self.dtype = patcher.load_device, patcher.model.get_dtype_inference()
        self.parameterization = _parameterization(patcher.model.model_sampling)
        self.patcher, self._model = patcher, patcher.model
        self._sigmas = _sigma_table(patcher.model.model_sampling).to(self.device)
        self._options = _transformer_options(patcher)
        self._model_conds: dict[tuple, dict] = {}
        self.latest_size: tuple[int, ...] = ()  # height and width of the latents in hand, once there were any

    def sigma_at(self, t: torch.Tensor) -> torch.Tensor:
        low = t.floor().long().clamp(max=len(self._sigmas) - 2)
        return torch.lerp(self._sigmas[low], self._sigmas[low + 1], t - low)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self._model.model_sampling.noise_scaling(
            sigma, noise.clone(), x0, False
        )  # adds into the noise it is given

    def predict(
        self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[denoiser.Conditioning]
    ) -> torch.Tensor:
        self.latest_size = tuple(x_t.shape[-2:])
        conds = [self._encode(cond, x_t) for cond in conditioning]
        groups = _group_alike(conds)
        if len(groups) == 1:
            return self._predict_group(x_t, sigma, conds)
        parts = [self._predict_group(x_t[group], sigma[group], [conds[i] for i in group]) for group in groups]
        order = torch.tensor([i for group in groups for i in group], device=x_t.device)
        return torch.cat(parts)[order.argsort()]

    def _predict_group(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: list[dict]) -> torch.Tensor:
        inputs = comfy.samplers.cond_cat(conds)
        with inputs_kept(self._model.diffusion_model):
            x0 = self._model.apply_model(x_t, sigma, transformer_options=self._options, **inputs)
        return self.parameterization.target(x_t, x0, sigma)

    def _encode(self, conditioning: denoiser.Conditioning, x_t: torch.Tensor) -> dict:
        """Return what the network takes for a prompt at this size of latents, encoded once a run."""
        if conditioning[0].requires_grad:  # of a text encoder in training: another in every step
            return self._model_cond(conditioning, x_t)
        key = (id(conditioning), x_t.shape[1:])
        if key not in self._model_conds:
            self._model_conds[key] = self._model_cond(conditioning, x_t)
        return self._model_conds[key]

    def _model_cond(self, conditioning: denoiser.Conditioning, x_t: torch.Tensor) -> dict:
        x = x_t[:1].detach()
        entry = comfy.samplers.encode_model_conds(
            self._model.extra_conds,
            comfy.sampler_helpers.convert_cond([conditioning]),
            x,
            self.device,
            "positive",
            latent_image=None,
            denoise_mask=None,
            seed=0,
            latent_shapes=[x.shape],
        )
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in entry[0]["model_conds"].items()}


def _parameterization(sampling: Any) -> denoiser.Parameterization:
    kinds = {
        comfy.model_sampling.CONST: denoiser.FlowPrediction,
        comfy.model_sampling.V_PREDICTION: denoiser.VPrediction,
        comfy.model_sampling.EPS: denoiser.NoisePrediction,
    }
    odd = (comfy.model_sampling.EDM, comfy.model_sampling.X0, comfy.model_sampling.IMG_TO_IMG_FLOW)
    for kind, ours in kinds.items():
        if isinstance(sampling, kind) and not isinstance(sampling, odd):
            return ours()
    raise ValueError(
        f"This model's prediction ({type(sampling).__mro__[1].__name__} and {type(sampling).__mro__[2].__name__}) is "
        "none that can be trained: take a model that predicts noise, v, or a flow's velocity."
    )


def _sigma_table(sampling: Any) -> torch.Tensor:
    """Return the noise levels of the timesteps 0 to 1000."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return torch.tensor(
            [sampling.percent_to_sigma(1 - t / denoiser.TIMESTEPS) for t in range(denoiser.TIMESTEPS + 1)]
        )
    t = torch.arange(denoiser.TIMESTEPS + 1, dtype=torch.float32)
    return sampling.sigma(t.clamp(max=denoiser.TIMESTEPS - 1)).float().cpu().clone()


def _transformer_options(patcher: Patcher) -> dict:
    """Copy the options that other nodes left on the MODEL, and take PyTorch's attention, whose backward pass keeps no
    scores: the host's default on the CPU, and plain products, take several times as long."""
    options = patcher.model_options.get("transformer_options", {}).copy()
    options["optimized_attention_override"] = _attention
    return options


def _attention(
    _: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **options: Any
) -> torch.Tensor:
    return comfy.ldm.modules.attention.attention_pytorch(q, k, v, *args, **options)


def _group_alike(conds: Sequence[dict]) -> list[list[int]]:
    """Sort examples into groups whose conditions the host can concatenate."""
    groups: list[list[int]] = []
    for i, cond in enumerate(conds):
        for group in groups:
            if comfy.samplers.cond_equal_size(conds[group[0]], cond):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups
