"""The name in Save LoRA, which the training before it uses: for its milestones, and to refuse it in time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pack.nodes.run_store import RunStore
from pack.nodes.train_lora import TrainLoRA


@pytest.fixture
def store(monkeypatch):
    """Return a function that prepares a training whose LoRA goes into a Save LoRA with a name."""

    def make(name: str) -> RunStore:
        saving = {"class_type": "TrainTrain_SaveLoRA", "inputs": {"lora": ["2", 2], "name": name}}
        prompt = {"2": {"class_type": "TrainTrain_TrainLoRA", "inputs": {"steps": 6}}, "3": saving}
        monkeypatch.setattr(TrainLoRA, "hidden", SimpleNamespace(unique_id="2", prompt=prompt), raising=False)
        return RunStore(TrainLoRA, {"steps": 6})

    return make


@pytest.mark.parametrize("name", ["", " ", "style/", "con", "mine.", ".safetensors", "a:b"])
def test_a_name_that_save_lora_will_refuse_is_refused_before_training(store, name):
    with pytest.raises(ValueError, match="is not a valid file name"):
        store(name)


@pytest.mark.parametrize("name", ["style/mine", " style/mine.safetensors "])
def test_milestones_are_named_after_the_file_of_save_lora(store, name):
    assert store(name).name == "style/mine"
    assert store(name)._milestone(4) == "style/mine_4steps"
