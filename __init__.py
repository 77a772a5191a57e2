"""TrainTrain: train LoRAs inside a ComfyUI graph."""

from comfy_api.latest import ComfyExtension

from .nodes import NODES

WEB_DIRECTORY = "./web"


class TrainTrain(ComfyExtension):
    async def get_node_list(self) -> list:
        return NODES


async def comfy_entrypoint() -> TrainTrain:
    return TrainTrain()
