"""Train the demonstration model from nothing: about two hours on two CPU cores, minutes on a GPU.

    python -m tools.shapes.train_shapes --comfyui .host/ComfyUI --out tools/shapes/weights

First the autoencoder, on shapes of every colour; then the U-Net, on the latents of the scenes of `scenes.py`.
An interrupted training resumes from the last thousand steps that it finished (`--state`).
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from ..load_pack import load_pack
from . import scenes

SEED = 20
POOL = 16_000  # scenes whose latents the U-Net learns from


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """Stack RGB images to (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).float() / 255


def any_image(rng: random.Random) -> Image.Image:
    """Draw an image of polygons and lines of any colour, or a scene of the demonstration model."""
    if rng.random() < 0.4:
        return scenes.random_scene(rng).draw()
    size = scenes.SIZE * 2
    image = Image.new("RGB", (size, size), _any_colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 4)):
        x, y, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(6, size / 2.5)
        if rng.random() < 0.25:
            draw.line([(x, y), (rng.uniform(0, size), rng.uniform(0, size))], _any_colour(rng), rng.randint(2, 12))
        else:
            draw.polygon(_turned_outline(rng, x, y, radius), fill=_any_colour(rng))
    return image.resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BOX)


def likely_image(rng: random.Random) -> Image.Image:
    """Draw one shape of any colour on a plain background, sometimes with a smaller one on it."""
    if rng.random() < 0.15:
        return any_image(rng)
    size = scenes.SIZE * 2
    image = Image.new(
        "RGB", (size, size), rng.choice(list(scenes.BACKGROUNDS.values())) if rng.random() < 0.8 else _any_colour(rng)
    )
    draw, at = ImageDraw.Draw(image), scenes.place(rng)
    x, y, radius = 2 * at["x"], 2 * at["y"], 2 * at["radius"]
    draw.polygon(_turned_outline(rng, x, y, radius), fill=_any_colour(rng))
    if rng.random() < 0.2:
        draw.polygon(_turned_outline(rng, x, y, radius * rng.uniform(0.25, 0.5)), fill=_any_colour(rng))
    return image.resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BOX)


def near_image(rng: random.Random) -> Image.Image:
    """Draw a scene of the known words and the new ones, or a likely image."""
    if rng.random() < 0.5:
        return likely_image(rng)
    colour, shape = (
        rng.choice([*scenes.COLOURS, *scenes.NEW_COLOURS]),
        rng.choice(scenes.SHAPES + scenes.NEW_SHAPES * 2),
    )
    return scenes.Scene(colour, shape, rng.choice(list(scenes.BACKGROUNDS)), **scenes.place(rng)).draw()


def _turned_outline(rng: random.Random, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    turn = rng.choice([0.0, 0.0, rng.uniform(-0.3, 0.3)])
    return [
        (x + radius * (u * math.cos(turn) - v * math.sin(turn)), y + radius * (u * math.sin(turn) + v * math.cos(turn)))
        for u, v in scenes.outline(rng.choice(scenes.SHAPES + scenes.NEW_SHAPES * 2))
    ]


def _any_colour(rng: random.Random) -> tuple[int, int, int]:
    known = list((scenes.COLOURS | scenes.NEW_COLOURS | scenes.BACKGROUNDS).values())
    return rng.choice(known) if rng.random() < 0.6 else tuple(rng.randrange(256) for _ in range(3))


def train_autoencoder(batch: int, device: torch.device, state: Path) -> torch.nn.Module:
    """Train the autoencoder to give latents of mean 0 and deviation 1 that decode well with a little noise on them.

    In phases: images of all kinds first, then images more and more like the scenes. `state` holds the last phase
    that is finished.
    """
    from .build_models import LATENT_SCALE, build_autoencoder

    torch.manual_seed(SEED)
    model = build_autoencoder().to(device, memory_format=torch.channels_last)
    _initialise_convolutions(model)
    phases = [(any_image, 2000, 7e-4), (likely_image, 3000, 6e-4), (near_image, 1200, 5e-4)]
    finished = 0
    if state.is_file():
        finished, values = torch.load(state, weights_only=True)
        model.load_state_dict(values)
    for number, (draw, steps, rate) in enumerate(phases[finished:], finished + 1):
        _train_autoencoder_on(draw, model, steps, rate, batch, device)
        torch.save((number, model.state_dict()), state)
    with torch.no_grad():
        rng = random.Random(SEED)
        z = encode(model, [scenes.random_scene(rng).draw() for _ in range(256)], device)
        model.vae_scale.fill_(LATENT_SCALE * z.std().item())
        model.vae_shift.fill_(-z.mean().item() / model.vae_scale.item())
    return model


def _train_autoencoder_on(
    draw: Callable[[random.Random], Image.Image],
    model: torch.nn.Module,
    steps: int,
    rate: float,
    batch: int,
    device: torch.device,
) -> None:
    rng = random.Random(SEED)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.ndim], lr=rate)
    schedule = _warm_cosine(optimizer, steps, warmup=50)
    for step in range(steps):
        x = pixels([draw(rng) for _ in range(batch)]).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            z = model.taesd_encoder(x)
            y = model.taesd_decoder(z + 0.05 * torch.randn_like(z))
        z, y = z.float(), y.float()
        # Without this the latents drift to any scale, and the U-Net must see unit variance.
        drift = z.mean((0, 2, 3)).square().mean() + (z.std((0, 2, 3)) - 1).square().mean()
        loss = F.l1_loss(y, x) + 2 * F.mse_loss(y, x)
        _step(loss + 0.05 * drift, model, optimizer, schedule)
        _report(f"autoencoder, {draw.__name__}", step, steps, loss, every=100)


@torch.no_grad()
def encode(model: torch.nn.Module, images: list[Image.Image], device: torch.device) -> torch.Tensor:
    """Encode images to the autoencoder's raw latents (B, 4, H / 8, W / 8)."""
    batches = [
        pixels(images[i : i + 64]).to(device, memory_format=torch.channels_last) for i in range(0, len(images), 64)
    ]
    with torch.autocast(device.type, torch.bfloat16):
        return torch.cat([model.taesd_encoder(x) for x in batches]).float()


def train_unet(
    autoencoder: torch.nn.Module, steps: int, batch: int, device: torch.device, state: Path
) -> torch.nn.Module:
    """Train the U-Net to predict the noise, SD1's way, and return the average of its late weights."""
    from .build_models import LATENT_SCALE, build_unet

    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    pool = [scenes.random_scene(rng) for _ in range(POOL)]
    latents = torch.cat(
        [encode(autoencoder, [scene.draw() for scene in pool[i : i + 64]], device) for i in range(0, POOL, 64)]
    )
    latents = ((latents / autoencoder.vae_scale + autoencoder.vae_shift) * LATENT_SCALE).detach()
    contexts = _encode_captions(pool)
    alphas = (
        torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        .float()
        .to(device)
    )

    model = build_unet().to(device)
    _initialise(model)
    torch.nn.init.zeros_(model.out[2].weight)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    schedule = _warm_cosine(optimizer, steps, warmup=200)
    first = _restore(state, model, average, optimizer, schedule)
    for step in range(first, steps):
        rng.seed(f"{SEED} {step}")  # a resumed training draws what an unbroken one would
        torch.manual_seed(SEED + step)
        chosen = [rng.randrange(POOL) for _ in range(batch)]
        context = torch.stack([contexts[scenes.random_caption(pool[i], rng)] for i in chosen]).to(device)
        x, t = latents[chosen], torch.randint(0, 1000, (batch,), device=device)
        a, noise = alphas[t][:, None, None, None], torch.randn_like(x)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = model(
                a.sqrt() * x + (1 - a).sqrt() * noise,
                t,
                context,
                transformer_options={"optimized_attention_override": _attention},
            )
        snr = alphas[t] / (1 - alphas[t])
        loss = ((prediction.float() - noise).square().mean((1, 2, 3)) * (snr.clamp(max=5) / snr)).mean()
        _step(loss, model, optimizer, schedule)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(average.parameters()), list(model.parameters()), 1 - min(0.999, (step + 1) / (step + 10))
            )
        _report("u-net", step, steps, loss, every=100)
        if (step + 1) % 1000 == 0:
            torch.save([m.state_dict() for m in (model, average, optimizer, schedule)], state)
    return average


def _attention(_, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args, **options) -> torch.Tensor:
    """Attend in plain matrix products: on the CPU their backward is several times faster than torch's fused one."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


def _encode_captions(pool: list[scenes.Scene]) -> dict[str, torch.Tensor]:
    from comfy.sd1_clip import SD1Tokenizer

    from .build_models import build_text_encoder

    encoder, tokenizer = build_text_encoder(), SD1Tokenizer()
    texts = {text for scene in set(pool) for text, _ in scenes.captions(scene)}
    with torch.no_grad():
        return {
            text: encoder.encode_token_weights(tokenizer.tokenize_with_weights(text))[0][0] for text in sorted(texts)
        }


def _initialise(model: torch.nn.Module) -> None:
    """Give every layer torch's usual start: the host's layers come with uninitialised memory."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            torch.nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
            torch.nn.init.ones_(module.weight)
            torch.nn.init.zeros_(module.bias)


def _initialise_convolutions(model: torch.nn.Module) -> None:
    """Start the autoencoder so that each block changes its input a little: torch's usual start does not learn here."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if name.endswith("conv.4"):
                module.weight.data.mul_(0.1)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)


def _warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise over the first steps, then fall along a half cosine to a hundredth."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, s / steps)))),
    )


def _step(loss: torch.Tensor, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _restore(state: Path, *parts) -> int:
    if not state.is_file():
        return 0
    for part, values in zip(parts, torch.load(state, weights_only=True)):
        part.load_state_dict(values)
    return parts[-1].last_epoch


_started = time.monotonic()


def _report(what: str, step: int, steps: int, loss: torch.Tensor, every: int) -> None:
    if (step + 1) % every == 0:
        print(f"{what} {step + 1}/{steps}  loss {loss.item():.4f}  {time.monotonic() - _started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument(
        "--state", type=Path, default=Path("shapes-training.pt"), help="where to keep what a resumed training needs"
    )
    parser.add_argument("--unet-steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    load_pack(options.comfyui.resolve())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    from .build_models import build_autoencoder
    from .checkpoint import load_weights, save_weights

    if (options.out / "autoencoder.safetensors").is_file():
        autoencoder = build_autoencoder()
        autoencoder.load_state_dict(load_weights(options.out / "autoencoder.safetensors"))
        autoencoder.to(device)
    else:
        autoencoder = train_autoencoder(options.batch // 2, device, options.state.with_suffix(".autoencoder.pt"))
        save_weights(autoencoder.state_dict(), options.out / "autoencoder.safetensors")
    unet = train_unet(autoencoder, options.unet_steps, options.batch, device, options.state)
    save_weights(unet.state_dict(), options.out / "unet.safetensors")


if __name__ == "__main__":
    main()
