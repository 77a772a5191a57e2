"""A training that resumes with other settings of its optimizer."""

from __future__ import annotations

import pytest
import torch
from pack.trainer.state import load_state, save_state
from test_resume import finish, make_run, stop


@pytest.mark.parametrize(
    "optimizer, settings, changed",
    [
        ("AdamW", "weight_decay=0.01", "weight_decay=0.5, betas=(0.5, 0.9)"),
        ("Prodigy", "weight_decay=0.0", "weight_decay=0.5, d_coef=2.0"),
        ("AdamWScheduleFree", "r=0.0", "r=1.0"),
    ],
)
def test_changed_settings_of_the_optimizer_count_from_where_it_resumes(optimizer, settings, changed, tmp_path):
    own = {"optimizer": optimizer, "learning_rate": 0.1, "lr_scheduler": "constant"}
    stopped = make_run(**own, optimizer_settings=settings)
    stop(stopped, 20)
    save_state(tmp_path / "a.state", stopped.state(), {})
    same, other = (make_run(**own, optimizer_settings=text) for text in (settings, changed))
    for run in (same, other):
        run.load_state(load_state(tmp_path / "a.state"))
    found = {"step", "d", "k", "d_max", "weight_sum", "lr_max"} & same._optimizer.param_groups[0].keys()
    assert all(same._optimizer.param_groups[0][key] == other._optimizer.param_groups[0][key] for key in found)
    finish(same)
    finish(other)
    assert any(not torch.equal(same.weights()[key], tensor) for key, tensor in other.weights().items())
