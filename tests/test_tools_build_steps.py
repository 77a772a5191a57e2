"""Set-up steps: what is complete is reused, anything else is done again. No network, no host."""

import json

import pytest
from pack.tools.build_steps import BuildStep, complete, is_complete, replace_folder
from pack.tools.errors import ToolError
from pack.tools.terminal import StatusLine, duration


class Kitchen:
    """A step that writes one file, and counts how often."""

    def __init__(self, folder, name="bread", inputs=()):
        self.product = folder / name
        self.built = 0
        self.step = BuildStep(name, name.title(), "", folder, inputs, self.build, lambda: folder.glob(name))

    def build(self):
        self.built += 1
        self.product.write_text("a whole loaf")


@pytest.fixture
def kitchen(tmp_path):
    return Kitchen(tmp_path)


def run(*kitchens):
    complete([kitchen.step for kitchen in kitchens], StatusLine())


def test_a_complete_stage_is_not_done_again(kitchen):
    run(kitchen)
    run(kitchen)
    assert kitchen.built == 1


def test_a_stage_killed_half_way_is_done_again(kitchen, monkeypatch):
    def killed():
        kitchen.product.write_text("a whole loaf")  # even if its product looks right
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete([BuildStep(**{**vars(kitchen.step), "build": killed})], StatusLine())
    assert not is_complete(kitchen.step)
    run(kitchen)
    assert kitchen.built == 1


def test_a_stage_that_is_done_again_and_killed_has_no_stamp_of_the_first_time(kitchen):
    run(kitchen)
    kitchen.product.write_text("")

    def killed():
        kitchen.product.write_text("a whole loaf")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete([BuildStep(**{**vars(kitchen.step), "build": killed})], StatusLine())
    assert not is_complete(kitchen.step)


@pytest.mark.parametrize(
    "damage",
    [
        lambda kitchen: kitchen.product.unlink(),
        lambda kitchen: kitchen.product.write_text("a whole lo"),
        lambda kitchen: kitchen.step.stamp.unlink(),
        lambda kitchen: kitchen.step.stamp.write_text(kitchen.step.stamp.read_text()[:20]),
        lambda kitchen: kitchen.step.stamp.write_text("[]"),
        lambda kitchen: kitchen.step.stamp.write_text(json.dumps({"inputs": "", "products": {}})),
    ],
    ids=["product gone", "product truncated", "stamp gone", "half a stamp", "foreign stamp", "empty stamp"],
)
def test_damage_is_mended(kitchen, damage):
    run(kitchen)
    damage(kitchen)
    run(kitchen)
    assert kitchen.built == 2
    assert kitchen.product.read_text() == "a whole loaf"


def test_a_changed_input_file_asks_for_the_stage_again(tmp_path):
    recipe = tmp_path / "recipe.txt"
    recipe.write_text("flour")
    kitchen = Kitchen(tmp_path, inputs=[recipe])
    run(kitchen)
    recipe.write_text("rye!!")
    run(kitchen)
    assert kitchen.built == 2


def test_a_stage_that_takes_anothers_products_away_has_the_other_done_again(tmp_path):
    oven, bread = Kitchen(tmp_path, "oven"), Kitchen(tmp_path, "bread")
    run(oven, bread)
    oven.product.unlink()
    first = BuildStep(**{**vars(oven.step), "build": lambda: (bread.product.unlink(), oven.build())[1]})
    complete([first, bread.step], StatusLine())
    assert bread.built == 2


def test_a_stage_that_makes_nothing_is_an_error(tmp_path):
    step = BuildStep("air", "Air", "", tmp_path, [], lambda: None, lambda: [])
    with pytest.raises(ToolError, match="Air: nothing was made"):
        complete([step], StatusLine())


def test_too_little_disk_space_is_said_before_anything_is_done(kitchen):
    step = BuildStep(**{**vars(kitchen.step), "disk_mb": 10**9})
    with pytest.raises(ToolError, match="needs 1000000000 MB: make room") as error:
        complete([step], StatusLine())
    assert "TRAINTRAIN_HOST" in str(error.value)
    assert kitchen.built == 0


def test_a_complete_stage_asks_for_no_disk_space(kitchen):
    run(kitchen)
    complete([BuildStep(**{**vars(kitchen.step), "disk_mb": 10**9})], StatusLine())


def test_a_folder_takes_the_place_of_a_half_made_one(tmp_path):
    old, new = tmp_path / "tree", tmp_path / "tree.part"
    old.mkdir()
    (old / "half").write_text("")
    new.mkdir()
    (new / "whole").write_text("")
    replace_folder(new, old)
    assert [path.name for path in old.iterdir()] == ["whole"]
    assert not new.exists()


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (65, "1:05"), (7200, "2:00:00")]
)
def test_durations_read_as_a_person_writes_them(seconds, text):
    assert duration(seconds) == text
