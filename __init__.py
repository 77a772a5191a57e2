"""TrainTrain: train LoRAs inside a ComfyUI graph."""

from comfy_api.latest import ComfyExtension
from server import PromptServer

from .nodes import NODES, stopping

WEB_DIRECTORY = "./web"


class TrainTrain(ComfyExtension):
    async def on_load(self) -> None:
        PromptServer.instance.routes.post(stopping.ROUTE)(stopping.answer)

    async def get_node_list(self) -> list:
        return NODES


async def comfy_entrypoint() -> TrainTrain:
    return TrainTrain()
