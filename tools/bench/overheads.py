"""What a training costs beside the model: iLECO's second pass, telemetry, the way to the first step."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from pack.nodes import host
from pack.nodes.page_events import SECONDS_BETWEEN_EVENTS
from pack.nodes.progress import STEP, TrainingProgress
from pack.trainer.config import NetworkConfig, TrainingConfig
from pack.trainer.history import History
from pack.trainer.methods.ileco import ILECO
from pack.trainer.run import Step

from ..base_folder import STAR, forget_trainings, make_folders, share_model
from ..host_paths import ROOT
from ..runner import keep_outputs, load_workflow, run_workflow, set_values, to_api
from ..server import Server
from .subjects import Subject
from .timing import Timed, step_clock, take_turns
from .trainers import LEARNING_RATE, Setting, seconds_each, train


def measure_ileco(subject: Subject, setting: Setting, steps: int, repeats: int) -> dict[str, Timed]:
    """Time a step of iLECO, and its two forward passes and one backward pass on the bare model."""
    original, target = (host.read_conditioning(prompt)[0] for prompt in subject.prompts[:2])
    shape = tuple(subject.latents.shape[1:])

    def ileco() -> float:
        config = TrainingConfig(
            steps=steps,
            batch_size=setting.batch_size,
            learning_rate=LEARNING_RATE,
            lr_scheduler="constant",
            snr_gamma=0,
        )
        method = ILECO([(original, target)], [], shape, 0, 0.0, config)
        network = NetworkConfig("lierla", setting.rank, float(setting.rank))
        with step_clock() as clock:
            train(host.Job(subject.model, network, config, method, {}))
            return clock.seconds_per_step(steps)

    def passes() -> float:
        with host.open_model(subject.model, TrainingConfig(gradient_checkpointing=setting.checkpointing)) as (model, _):
            x_t = torch.randn(setting.batch_size, *shape, device=model.device).requires_grad_()
            sigma = torch.ones(setting.batch_size, device=model.device)

            def run() -> None:
                with torch.no_grad():
                    model.predict(x_t, sigma, [target] * setting.batch_size)
                model.predict(x_t, sigma, [original] * setting.batch_size).square().mean().backward()

            return seconds_each(run, steps)

    return take_turns({"iLECO": ileco, "two forward, one backward": passes}, repeats)


def measure_telemetry(seconds_per_step: float) -> tuple[float, float, float]:
    """Return the seconds of a step that is reported, those of a message, and the share of the training that both take."""
    hidden = SimpleNamespace(unique_id="1", prompt={}, extra_pnginfo=None)
    results = SimpleNamespace(fingerprint="0" * 16, name="bench", samples=list)
    progress = TrainingProgress(SimpleNamespace(hidden=hidden), 1_000_000, results)
    progress.begin(SimpleNamespace(size=(192, 3_188_736), blocks=[], history=History()))
    progress._last_event = float("inf")  # no messages yet
    step = seconds_each(lambda: progress.report(Step(2, 0.1, LEARNING_RATE, False, False)), 20_000)
    message = seconds_each(lambda: progress._send(STEP), 500)
    return step, message, step / seconds_per_step + message / SECONDS_BETWEEN_EVENTS


def measure_first_step(comfyui: Path, source: Path, folder: Path, repeats: int) -> tuple[Timed, float]:
    """Return the seconds from the queue to the end of the first step, all else cached, and those of a step."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folders(folder)
    share_model(source, folder)
    shutil.copytree(source / STAR, folder / STAR, dirs_exist_ok=True)
    seconds, steps = [], []
    with Server(comfyui, folder) as server:
        object_info = server.get("/object_info")
        workflow = to_api(load_workflow(ROOT / "example_workflows" / "1_Train_a_LoRA.json"), object_info)
        workflow = keep_outputs(workflow, object_info, ["TrainTrain_SaveLoRA"])
        for repeat in range(repeats + 1):
            forget_trainings(folder)
            times = []
            values = {"TrainTrain_TrainLoRA.steps": 12, "TrainTrain_TrainLoRA.seed": repeat}
            started = time.perf_counter()

            def note(event: str, _: str, data: dict) -> None:
                if event == "traintrain.step":
                    times.append((data["step"], data["seconds"], time.perf_counter() - started))

            run_workflow(server, set_values(workflow, values, object_info), note)
            first, last = times[0], times[-1]
            steps.append((last[1] - first[1]) / (last[0] - first[0]))
            seconds.append(first[2])
    return Timed(seconds[1:]), Timed(steps[1:]).median  # the first loads the model
