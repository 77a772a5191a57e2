"""Draw with the demonstration model inside this process, without a server.

Needs ComfyUI on `sys.path`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from .scenes import SIZE

BATCH = 25


@torch.inference_mode()
def draw(
    model: Any, clip: Any, vae: Any, prompts: Sequence[str], seed: int, steps: int = 20, cfg: float = 4.0
) -> list[Image.Image]:
    """Sample one image for each prompt with Euler, as the host's KSampler does. The seed is of the whole list."""
    import comfy.sample

    # Twice as fast where the processor has it, and the images are the same to the eye and to the classifier.
    fast = torch.autocast("cpu", torch.bfloat16, enabled=bool(torch.cpu.get_capabilities().get("avx512_bf16")))
    rng = torch.Generator().manual_seed(seed)
    images = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        noise = torch.randn((len(part), 4, SIZE // 8, SIZE // 8), generator=rng)
        conditions = [[_encode(clip, part), {}], [_encode(clip, [""] * len(part)), {}]]
        with fast:
            samples = comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                "euler",
                "normal",
                [conditions[0]],
                [conditions[1]],
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=seed,
            )
        pixels = (vae.decode(samples).clamp(0, 1) * 255).round().byte().cpu().numpy()
        images += [Image.fromarray(image) for image in pixels]
    return images


def _encode(clip: Any, prompts: Sequence[str]) -> torch.Tensor:
    encoded = {prompt: clip.encode_from_tokens(clip.tokenize(prompt)) for prompt in dict.fromkeys(prompts)}
    return torch.cat([encoded[prompt] for prompt in prompts])
