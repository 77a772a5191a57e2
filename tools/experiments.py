"""What `evaluate` trains, and what it asks of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .experiment import Experiment, Figure
from .extra_nodes import load_pairs, preserve_more
from .judges import Judge, all_of, keeps, median_psnr, negate, not_towards, shares, shows, unharmed, unmoved
from .shapes import shape_pairs
from .shapes.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene
from .shapes.shape_pairs import PAIRS, Pair

# What pairs want that the workflow's values, which suit the background, do not give.
DIFFERENCE_VALUES = {"colour": {"LoRA Network.rank": 16, "LoRA Network.alpha": 16.0}}
# Neighbours of a red circle besides the two that the workflow preserves; with all of them kept, the change may be stronger.
MORE_KEPT = ("a red triangle", "a green circle", "a yellow circle")
ALL_KEPT_VALUES = {
    "Train iLECO.preserve": [f"both_{len(MORE_KEPT)}", 0],
    "Train iLECO.steps": 240,
    "Train iLECO.guidance": 3.0,
    "LoRA Network.rank": 16,
    "LoRA Network.alpha": 16.0,
}
ADDIFT_VALUES = {name: {"Train ADDifT.learning_rate": 9e-4} for name in ("colour", "part")}


def list_experiments(quick: bool) -> list[Experiment]:
    """List the trainings in the order of the table."""
    prompts = [*_replacements(), *_erasures()]
    every = [*prompts, *_closed_forms(prompts), *_sliders(), *_differences(), *_concepts()]
    return [experiment for experiment in every if experiment.quick or not quick]


def _replacements() -> Iterator[Experiment]:
    red = [
        _ileco(
            "red prompts",
            _sentences(["red"]),
            shares(all_of(shows(colour="blue"), keeps("shape")), keeps("background")),
        ),
        _ileco("green and yellow prompts", _sentences(["green", "yellow"]), unharmed("colour")),
    ]
    yield Experiment("red to blue", "3_Replace_a_concept_iLECO", red, quick=True)
    circle = [
        _ileco(
            "circle prompts",
            _sentences(shapes=["circle"]),
            shares(shows(shape="square"), keeps("colour", "background")),
        ),
        _ileco("triangle prompts", _sentences(shapes=["triangle"]), unharmed("shape")),
    ]
    words = {"1": "{}", "2": "a {}", "3": "a red {}"}
    values = {f"Original {number}.text": text.format("circle") for number, text in words.items()}
    values |= {f"Target {number}.text": text.format("square") for number, text in words.items()}
    yield Experiment("circle to square", "3_Replace_a_concept_iLECO", circle, values)


def _erasures() -> Iterator[Experiment]:
    triangle = [
        _ileco(
            "triangle prompts",
            _sentences(shapes=["triangle"]),
            shares(negate(shows(shape="triangle")), keeps("colour", "background")),
        ),
        _ileco(
            "circle, square prompts",
            _sentences(shapes=["circle", "square"]),
            unharmed("colour", "shape", "background"),
        ),
    ]
    yield Experiment("erase triangle", "4_Erase_a_concept_iLECO", triangle)
    red_circle = _sentences(["red"], ["circle"])
    neighbours = [*_sentences(["red"], ["square", "triangle"]), *_sentences(["green", "blue", "yellow"], ["circle"])]
    figures = [
        _ileco(
            "red circle prompts", red_circle, shares(negate(shows(colour="red", shape="circle")), keeps("background"))
        ),
        _ileco("red and circle prompts", neighbours, unharmed("colour", "shape")),
    ]
    words = {"Original 1.text": "red circle", "Original 2.text": "a red circle", "Train iLECO.guidance": 2.0}
    kept = {"Preserve 1.text": "a red square", "Preserve 2.text": "a blue circle"}
    yield Experiment("erase red circle", "4_Erase_a_concept_iLECO", figures, words | {"Train iLECO.preserve": None})
    yield Experiment("... with preserve", "4_Erase_a_concept_iLECO", figures, words | kept)
    yield Experiment(
        "... with all preserved",
        "4_Erase_a_concept_iLECO",
        figures,
        words | kept | ALL_KEPT_VALUES,
        nodes=preserve_more(MORE_KEPT),
    )


def _closed_forms(experiments: list[Experiment]) -> Iterator[Experiment]:
    """Yield the same trainings from iLECO's closed form, without a step and without guidance, which only harms there.

    Not the one with all neighbours preserved: that takes steps, as the closed form cannot tell a phrase from its words.
    """
    for each in experiments:
        if each.nodes:
            continue
        start = {"Train iLECO.start": "closed form", "Train iLECO.steps": 0, "Train iLECO.guidance": 0.0}
        values = each.values | start
        yield replace(each, name=f"{each.name}, closed form", values=values)


def _sliders() -> Iterator[Experiment]:
    """Yield a slider of colours, which acts on circles, and one of shapes; each with the template's steps and without."""
    circles = [(f"a circle on a {b} background", Scene("red", "circle", b)) for b in BACKGROUNDS]
    others = [(f"a {s} on a {b} background", Scene("red", s, b)) for b in BACKGROUNDS for s in ("square", "triangle")]
    shapes = [(f"a {c} shape on a {b} background", Scene(c, "circle", b)) for b in BACKGROUNDS for c in COLOURS]
    red_and_blue = [
        *_along("colour", ("red", "blue"), circles, "shape", "background"),
        *(_slid("squares, triangles", end, others, unmoved("colour"), compared=True) for end in (1.0, -1.0)),
    ]
    circle_and_square = [
        *_along("shape", ("circle", "square"), shapes, "colour", "background"),
        *(
            _slid("triangle prompts", e, _sentences(shapes=["triangle"]), unharmed("shape", "colour"))
            for e in (1.0, -1.0)
        ),
    ]
    words = {"Positive: strength 1.text": "circle", "Negative: strength -1.text": "square"}
    words["Target: what it acts on.text"] = "shape"
    for name, figures, values in (
        ("slider red, blue", red_and_blue, {}),
        ("slider circle, square", circle_and_square, words),
    ):
        yield Experiment(name, "5_Slider_from_two_prompts", figures, values)
        yield Experiment(f"{name}, 0 steps", "5_Slider_from_two_prompts", figures, values | {"Train Slider.steps": 0})


def _along(attribute: str, ends: tuple[str, str], prompts: list[tuple[str, Scene]], *kept: str) -> Iterator[Figure]:
    """Yield a figure for each strength, with the share of samples at the end that its sign leads to."""
    for strength in (1.0, 0.5, -0.5, -1.0):
        wanted = {attribute: ends[strength < 0]}
        yield _slid("neutral prompts", strength, prompts, shares(shows(**wanted), keeps(*kept)))


def _slid(name: str, strength: float, prompts: list[tuple[str, Scene]], judge: Judge, compared: bool = False) -> Figure:
    return Figure(f"{name}, {strength:g}", prompts, judge, "slider", ("Train Slider",), strength, compared)


def _differences() -> Iterator[Experiment]:
    for name, pair in PAIRS.items():
        values = {"Original.image": f"pair_{name}.png", "Target.image": f"pair_{name}_target.png"}
        values["What both show.text"] = pair.caption
        copy = Figure(
            "any prompts",
            [prompt for prompt in _sentences() if prompt[0] != pair.caption],
            median_psnr,
            "copy machine",
            ("Train Copy Machine",),
            lora="Save copy machine",
            reference=pair.original,
        )
        both, quick = ("Train Copy Machine", "Train Difference"), name == "background"
        figures = [copy, *_both_ways(pair, "difference", both)]
        yield Experiment(
            name, "7_Copy_machine_and_difference", figures, values | DIFFERENCE_VALUES.get(name, {}), quick
        )
        figures = _both_ways(pair, "ADDifT", ("Train ADDifT",))
        yield Experiment(name, "6_Slider_from_two_images_ADDifT", figures, values | ADDIFT_VALUES.get(name, {}), quick)
        if pair.more:
            yield _from_many_pairs(name, figures)


def _from_many_pairs(name: str, figures: list[Figure]) -> Experiment:
    """Return the training of a slider from a folder of pairs, which is learned from the images themselves."""
    training = {
        "steps": 400,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "bands": 1,
        "full_at": 1.0,
        "learn_from": "images",
    }
    values = {f"Train ADDifT.{key}": value for key, value in training.items()}
    values |= {"Train ADDifT.original": ["pairs", 0], "Train ADDifT.target": ["pairs", 1]}
    values |= {"What both show.text": ["pairs", 2], "Training Settings.min_timestep": 0}
    values |= {"LoRA Network.rank": 16, "LoRA Network.alpha": 16.0}
    title = f"{name}, {shape_pairs.COUNT} pairs"
    return Experiment(
        title, "6_Slider_from_two_images_ADDifT", figures, values, nodes={"pairs": load_pairs(f"pairs_{name}")}
    )


def _concepts() -> Iterator[Experiment]:
    """Yield the training of what the model has no idea of; the star's backgrounds are those of its images."""
    stars = [Scene("purple", "star", background) for background in ("white", "black")]
    questions = {
        "purple star prompts": (
            [(star.caption(), star) for star in stars],
            shares(keeps("colour", "shape"), keeps("background")),
        ),
        "known prompts": (_sentences(), unharmed("colour", "shape")),
    }
    figures = [Figure(name, *asked, "LoRA", ("Train LoRA",)) for name, asked in questions.items()]
    yield Experiment("purple star", "1_Train_a_LoRA", figures)
    alone = {"Load Image Folder.folder": "stars_alone", "Train LoRA.steps": 300}
    kept = "; ".join(f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES)
    yield Experiment("stars alone", "1_Train_a_LoRA", figures, alone)
    yield Experiment("stars alone, preserve", "1_Train_a_LoRA", figures, alone | {"Train LoRA.preserve": kept})


def _both_ways(pair: Pair, method: str, trained_by: tuple[str, ...]) -> list[Figure]:
    kept = lambda scene, image: keeps(*pair.kept)(scene, pair.cleaned(image))  # noqa: E731
    return [
        Figure("strength 1", pair.prompts, shares(lambda _, image: pair.has(image), kept), method, trained_by),
        Figure("strength -1", pair.prompts, not_towards(pair, kept), method, trained_by, strength=-1.0, compared=True),
    ]


def _ileco(name: str, prompts: list[tuple[str, Scene]], judge: Judge) -> Figure:
    return Figure(name, prompts, judge, "iLECO", ("Train iLECO",))


def _sentences(
    colours: Sequence[str] = tuple(COLOURS),
    shapes: Sequence[str] = SHAPES,
    backgrounds: Sequence[str] = tuple(BACKGROUNDS),
) -> list[tuple[str, Scene]]:
    """List whole-sentence prompts of all scenes with these words."""
    scenes = [Scene(c, s, b) for b in backgrounds for s in shapes for c in colours]
    return [(scene.caption(), scene) for scene in scenes]
