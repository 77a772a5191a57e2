"""Makes a loaded MODEL a Denoiser of the trainer."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import comfy.ldm.modules.attention
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch

from ...trainer import denoiser
from ...trainer.in_place import InPlaceGuard
from ...trainer.noise import to_device
from .untrainable import check_family

Patcher = Any  # comfy.model_patcher.ModelPatcher, the MODEL of a graph


class HostDenoiser:
    """Makes a loaded MODEL a Denoiser of the trainer, for one training.

    guard: the one that its forward passes run under
    """

    def __init__(self, patcher: Patcher, guard: InPlaceGuard) -> None:
        check_family(patcher.model)
        self.device, self.dtype = patcher.load_device, patcher.model.get_dtype_inference()
        self.parameterization = _parameterization(
            patcher.model.model_sampling, type(patcher.model.model_config).__name__
        )
        self.patcher, self._model = patcher, patcher.model
        self.pixels_per_latent = patcher.model.latent_format.spacial_downscale_ratio
        self._sigmas = _sigma_table(patcher.model.model_sampling)
        self._options, self._guard = _transformer_options(patcher), guard
        self._model_conds: dict[tuple, tuple[denoiser.Conditioning, dict]] = {}
        self.latest_size: tuple[int, ...] = ()  # height and width of the latest latents; empty before

    def sigma_at(self, t: torch.Tensor) -> torch.Tensor:
        """Return the noise levels (B,), on the model's device, of timesteps (B,) on the CPU."""
        low = t.floor().long().clamp(max=len(self._sigmas) - 2)
        return to_device(torch.lerp(self._sigmas[low], self._sigmas[low + 1], t - low), self.device)

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return the noisy latents x_t (B, C, H, W) of x0 and noise at sigma (B,)."""
        # The host adds in place to the noise.
        return self._model.model_sampling.noise_scaling(sigma, noise.clone(), x0, False)

    def predict(
        self, x_t: torch.Tensor, sigma: torch.Tensor, conditioning: Sequence[denoiser.Conditioning]
    ) -> torch.Tensor:
        """Return the prediction, float32 and shaped like x_t (B, C, H, W); prompts that cannot share a batch run apart."""
        self.latest_size = tuple(x_t.shape[-2:])
        conds = [self._encode(cond, x_t) for cond in conditioning]
        groups = _group_alike(conds)
        if len(groups) == 1:
            return self._predict_group(x_t, sigma, conds)
        rows: dict[int, torch.Tensor] = {}
        for group in groups:  # by rows: an index tensor has to be copied, and the copy waits for the device
            own = (torch.stack([each[i] for i in group]) for each in (x_t, sigma))
            rows.update(zip(group, self._predict_group(*own, [conds[i] for i in group])))
        return torch.stack([rows[i] for i in range(len(x_t))])

    def _predict_group(self, x_t: torch.Tensor, sigma: torch.Tensor, conds: list[dict]) -> torch.Tensor:
        inputs = _on_device(comfy.samplers.cond_cat(conds), self.device)
        kind = x_t.shape, tuple((name, getattr(value, "shape", None)) for name, value in inputs.items())
        with self._guard.forward(kind) as current:
            x0 = current(self._model.apply_model(x_t, sigma, transformer_options=self._options, **inputs))
        return self.parameterization.target(x_t, x0, sigma)

    def _encode(self, conditioning: denoiser.Conditioning, x_t: torch.Tensor) -> dict:
        """Return the network's inputs for a prompt at this size of latents, made once per training."""
        if conditioning[0].requires_grad:  # from a text encoder in training: different in every step
            return self._model_cond(conditioning, x_t)
        key = (id(conditioning), x_t.shape[1:])
        if key not in self._model_conds:
            # With the prompt itself: the id of one that is gone is soon that of another.
            self._model_conds[key] = conditioning, self._model_cond(conditioning, x_t)
        return self._model_conds[key][1]

    def _model_cond(self, conditioning: denoiser.Conditioning, x_t: torch.Tensor) -> dict:
        x = x_t[:1].detach()
        entry = comfy.samplers.encode_model_conds(
            self._model.extra_conds,
            comfy.sampler_helpers.convert_cond([conditioning]),
            x,
            self.device,
            "positive",
            # For inpainting models: everything is repainted.
            latent_image=torch.zeros_like(x) if self._model.concat_keys else None,
            denoise_mask=None,
            seed=0,
            latent_shapes=[x.shape],
        )
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in entry[0]["model_conds"].items()}


def _on_device(value: Any, device: torch.device) -> Any:
    """Move all tensors in a network's inputs; the host keeps prompts in main memory, and its own copy of them waits."""
    if isinstance(value, torch.Tensor):
        return to_device(value, device)
    if isinstance(value, dict):
        return {name: _on_device(item, device) for name, item in value.items()}
    return [_on_device(item, device) for item in value] if type(value) is list else value


# The methods that a model must share with a class of the host, so that we know what it predicts.
_PREDICTION = ("calculate_input", "calculate_denoised", "noise_scaling")
_PREDICTIONS = {
    comfy.model_sampling.CONST: denoiser.FlowPrediction,
    comfy.model_sampling.V_PREDICTION: denoiser.VPrediction,
    comfy.model_sampling.EPS: denoiser.NoisePrediction,
}
_FLOW_SCHEDULES = (comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.ModelSamplingFlux)


def _parameterization(sampling: Any, family: str) -> denoiser.Parameterization:
    """Return what a model predicts. Raises ValueError if it does not use one of the host's known classes for that."""
    for kind, ours in _PREDICTIONS.items():
        schedules = (
            _FLOW_SCHEDULES if kind is comfy.model_sampling.CONST else (comfy.model_sampling.ModelSamplingDiscrete,)
        )
        if _has_methods_of(sampling, kind, _PREDICTION) and any(
            _has_methods_of(sampling, schedule, ("sigma",)) for schedule in schedules
        ):
            return ours()
    names = " and ".join(base.__name__ for base in type(sampling).__bases__)
    raise ValueError(
        f"This model ({family}) cannot be trained, because its prediction type ({names}) is unknown: use a model that "
        "predicts noise (epsilon), v, or the velocity of a rectified flow."
    )


def _has_methods_of(sampling: Any, kind: type, names: Sequence[str]) -> bool:
    return all(getattr(type(sampling), name, None) is getattr(kind, name) for name in names)


def _sigma_table(sampling: Any) -> torch.Tensor:
    """Return the noise levels of the timesteps 0 to 1000, float32 on the CPU."""
    if isinstance(sampling, comfy.model_sampling.CONST):
        return torch.tensor(
            [sampling.percent_to_sigma(1 - t / denoiser.TIMESTEPS) for t in range(denoiser.TIMESTEPS + 1)]
        )
    t = torch.arange(denoiser.TIMESTEPS + 1, dtype=torch.float32)
    return sampling.sigma(t.clamp(max=denoiser.TIMESTEPS - 1)).float().cpu().clone()


def _transformer_options(patcher: Patcher) -> dict:
    """Return the MODEL's options with PyTorch's attention, whose backward pass stores no attention scores.

    The host's default on the CPU, and attention by plain matrix products, take several times as long.
    """
    options = patcher.model_options.get("transformer_options", {}).copy()
    options["optimized_attention_override"] = _attention
    return options


def _attention(
    _: Callable, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **options: Any
) -> torch.Tensor:
    return comfy.ldm.modules.attention.attention_pytorch(q, k, v, *args, **options)


def _group_alike(conds: Sequence[dict]) -> list[list[int]]:
    """Return groups of indices whose conditions the host can concatenate."""
    groups: list[list[int]] = []
    for index, cond in enumerate(conds):
        for group in groups:
            if comfy.samplers.cond_equal_size(conds[group[0]], cond):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups
