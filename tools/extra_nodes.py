"""Nodes in API format that experiments add to a workflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODEL, PRESERVED = (
    "1",
    "9",
)  # ids in 4_Erase_a_concept_iLECO: Load Checkpoint, and what joins the two prompts to preserve


def preserve_more(prompts: Sequence[str]) -> dict[str, Any]:
    """Return nodes that join prompts to those that the workflow of erasing preserves; the last one is `both_N`."""
    nodes, before = {}, PRESERVED
    for number, text in enumerate(prompts, 1):
        nodes[f"kept_{number}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [MODEL, 1], "text": text}}
        both = {"conditioning_1": [before, 0], "conditioning_2": [f"kept_{number}", 0]}
        before = f"both_{number}"
        nodes[before] = {"class_type": "ConditioningCombine", "inputs": both}
    return nodes


def load_pairs(folder: str) -> dict[str, Any]:
    """Return a node that loads a folder of image pairs with their captions."""
    return {
        "class_type": "TrainTrain_LoadImagePairs",
        "inputs": {
            **{"folder": folder, "include_subfolders": False, "captions": "caption file"},
            **{"trigger_word": "", "suffix": "_target", "width": 64, "height": 64},
            **{"buckets_step": 8, "min_length": 64, "max_ratio": 2.0},
        },
    }
