"""The pack and its help in Japanese and Chinese: nothing is missing or left in English, and ComfyUI's page shows it."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from pack.tools.locales import LOCALES, NODE_DEFS, node_defs, to_text

TRANSLATIONS = ["ja", "zh"]
DOCS = ROOT / "web" / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("TrainTrain_*.md"))
THEIR_SCRIPT = re.compile("[\u3041-\u30ff\u4e00-\u9fff]")
ENGLISH_SENTENCE = re.compile(r"(?:\b[a-z']{2,} ){3,}[a-z']{2,}")
PROMPT = re.compile(r"\*[^*]+\*|`[^`]+`")  # what is typed stays English
# Markdown does not end bold type between a bracket and a letter, as kana and han are.
STUCK = re.compile(r"\*\*[^*]+[^\w*]\*\*(?=\w)")
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
# What English writes as words stands in digits elsewhere; counters make "a picture" one picture.
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
WORDS = {word: {str(number)} for number, word in enumerate(NUMBER_WORDS)}
WORDS |= {"third": {"3"}, "quarter": {"4"}, "eighth": {"8"}, "tenth": {"10"}, "half": {"2"}}
WORDS |= {"fifteen": {"15"}, "twenty": {"20"}, "thirty": {"30"}, "forty": {"40"}}
COUNTERS = {"1", "2"}
SPECIAL_TO_THE_PAGE = set("{}@|")  # its translator would take them for its own


def read(locale: str) -> dict[str, dict]:
    return json.loads((LOCALES / locale / NODE_DEFS).read_text(encoding="utf-8"))


def texts(definitions: dict, path: str = "") -> dict[str, str]:
    """Return all texts by their place: "TrainTrain_TrainLoRA/inputs/steps/tooltip"."""
    flat = {}
    for key, value in definitions.items():
        flat |= texts(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return flat


def wrong_numbers(english: str, translated: str) -> set[str]:
    """Return the numbers that are lost, and those that nothing in English stands for."""
    asked, given = set(NUMBER.findall(english)), set(NUMBER.findall(translated))
    in_words = set().union(*(digits for word, digits in WORDS.items() if word in english.lower()))
    return (asked - given) | (given - asked - in_words - COUNTERS)


def shape(page: str) -> list[str]:
    """Say what each line of a help page is."""
    kinds, code = [], False
    for line in page.splitlines():
        fence = line.startswith("```")
        code ^= fence
        if fence or code:
            kinds.append("code")
        elif line.startswith("|"):
            kinds.append(f"row of {line.count('|') - 1}")
        else:
            mark = re.match(r"#+ |- |!\[", line)
            kinds.append(mark[0] if mark else "text" if line else "")
    return kinds


def bold(line: str) -> list[str]:
    """Return the bold parts of a line, each with the character behind it."""
    return [match[0] for match in re.finditer(r"\*\*.+?\*\*.?", line)]


@pytest.fixture
def speak(page):
    """Open the page in another language; in English again afterwards."""

    def switch(locale: str) -> None:
        page.server.post("/settings", {"Comfy.Locale": locale})
        page.open()

    yield switch
    switch("en")


def test_the_english_file_is_what_the_nodes_say(server):
    written = (LOCALES / "en" / NODE_DEFS).read_text(encoding="utf-8")
    assert written == to_text(node_defs(server.get("/object_info"))), "run python -m tools.locales"


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_a_translation_has_every_text(locale):
    translated = texts(read(locale))
    assert list(translated) == list(texts(read("en")))
    assert [place for place, text in translated.items() if not text.strip()] == []


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_nothing_is_left_in_english(locale):
    sentences = {place: text for place, text in texts(read(locale)).items() if not place.endswith("/name")}
    assert [place for place, text in sentences.items() if not THEIR_SCRIPT.search(text)] == []
    assert [place for place, text in sentences.items() if ENGLISH_SENTENCE.search(text)] == []


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_no_number_is_lost_in_translation(locale):
    english, translated = texts(read("en")), texts(read(locale))
    wrong = {place: wrong_numbers(text, translated[place]) for place, text in english.items()}
    assert {place: numbers for place, numbers in wrong.items() if numbers} == {}


@pytest.mark.parametrize("locale", ["en", *TRANSLATIONS])
def test_no_text_has_what_the_page_would_not_show(locale):
    assert [place for place, text in texts(read(locale)).items() if SPECIAL_TO_THE_PAGE & set(text)] == []


@pytest.mark.parametrize("locale", TRANSLATIONS)
def test_the_page_speaks_the_users_language(page, speak, canvas, locale):
    said = read(locale)["TrainTrain_TrainLoRA"]
    speak(locale)
    page.load_template("train_lora")
    node = page.find("TrainTrain_TrainLoRA")
    assert node.evaluate("(node) => node.title") == said["display_name"]
    slot = node.evaluate("(node) => node.inputs.find((input) => input.name === 'training_images').localized_name")
    assert slot == said["inputs"]["training_images"]["name"]
    label = node.evaluate("(node) => node.widgets.find((widget) => widget.name === 'learning_rate').label")
    assert label == said["inputs"]["learning_rate"]["name"]
    if canvas != "classic":
        node.evaluate("(node) => app.canvas.centerOnNode(node)")
        page.page.get_by_text(said["display_name"], exact=True).first.wait_for(timeout=10000)
        page.page.get_by_text(label, exact=True).first.wait_for(timeout=10000)


@pytest.mark.parametrize("locale", TRANSLATIONS)
@pytest.mark.parametrize("name", PAGES)
def test_a_help_page_says_line_by_line_what_the_english_one_says(name, locale):
    english = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    translated = (DOCS / name / f"{locale}.md").read_text(encoding="utf-8")
    assert shape(translated) == shape(english)
    assert translated.startswith(f"# {read(locale)[name]['display_name']}\n")
    lines = list(zip(english.splitlines(), translated.splitlines()))
    assert [theirs for ours, theirs in lines if wrong_numbers(ours, theirs)] == []
    assert [theirs for _, theirs in lines if ENGLISH_SENTENCE.search(PROMPT.sub("", theirs))] == []
    assert [theirs for _, theirs in lines if any(STUCK.match(span) for span in bold(theirs))] == []
    assert re.findall(r"\]\((.*?)\)", translated) == re.findall(r"\]\((.*?)\)", english)


def test_the_page_shows_the_help_of_the_users_language(page, speak):
    speak("zh")
    page.load_template("train_lora")
    page.find("TrainTrain_BucketImages").evaluate("(node) => app.canvas.selectNode(node)")
    page.page.get_by_test_id("info-button").click()
    title = read("zh")["TrainTrain_BucketImages"]["display_name"]
    page.page.get_by_role("heading", name=title, level=1).wait_for(timeout=10000)
