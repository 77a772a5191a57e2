"""TrainTrain: train LoRAs inside a ComfyUI graph."""

from comfy_api.latest import ComfyExtension
from server import PromptServer

from .nodes import NODES, folders, model_blocks, progress, stopping, waiting

WEB_DIRECTORY = "./web"


class TrainTrain(ComfyExtension):
    async def on_load(self) -> None:
        routes = (
            (stopping.ROUTE, stopping.stop_training),
            (progress.ROUTE, progress.send_trainings),
            (waiting.ROUTE, waiting.send_waiting),
            (model_blocks.ROUTE, model_blocks.send_blocks),
            *folders.ROUTES,
        )
        for route, answer in routes:
            PromptServer.instance.routes.post(route)(answer)

    async def get_node_list(self) -> list:
        return NODES


async def comfy_entrypoint() -> TrainTrain:
    return TrainTrain()
