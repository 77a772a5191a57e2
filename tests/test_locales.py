"""The translations of the nodes and of their help: complete, up to date with the schemas, and shown by ComfyUI's page."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from pack.nodes import NODES
from pack.tools.locales import (
    DOCS,
    LANGUAGES,
    LOCALES,
    NODE_DEFS,
    Translations,
    filled_pages,
    flatten,
    node_defs,
    page_path,
    read_definitions,
    read_source,
    to_text,
)

pytestmark = pytest.mark.one_canvas("nodes 2.0")
TEMPLATES = [json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "example_workflows").glob("*.json"))]
NOTE = "MarkdownNote"
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
WORDS |= {"hundred": {"100"}, "fifteen": {"15"}, "twenty": {"20"}, "thirty": {"30"}, "forty": {"40"}}
COUNTERS = {"1", "2"}
SPECIAL_TO_THE_PAGE = set("{}@|")  # its translator would take them for its own


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


@pytest.fixture(scope="module")
def english() -> dict[str, dict]:
    """What the schemas say."""
    return node_defs({info["name"]: info for info in (node.GET_NODE_INFO_V1() for node in NODES)})


@pytest.mark.parametrize("locale", LANGUAGES)
def test_the_translations_are_complete_and_up_to_date_with_the_schemas(english, locale):
    source = read_source(locale)
    translations = Translations(source)
    definitions = translations.definitions(english)
    hint = "run python -m tools.locales and translate what it prints"
    assert [place for place, text in flatten(definitions).items() if not text.strip()] == [], hint
    assert translations.used() == source, hint
    assert (LOCALES / locale / NODE_DEFS).read_text(encoding="utf-8") == to_text(definitions), hint


@pytest.mark.parametrize("locale", ["en", *LANGUAGES])
def test_the_help_pages_list_the_inputs_of_the_schemas(english, locale):
    filled = list(filled_pages(english, english if locale == "en" else read_definitions(locale), locale))
    assert len(filled) == len(PAGES)
    assert [str(path) for path, text in filled if path.read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("locale", LANGUAGES)
def test_a_new_method_needs_only_its_own_name_and_description(english, locale):
    """Its common inputs name other numbers than those of any method: the preset's."""
    nodes = [english["TrainTrain_TrainILECO"], english["TrainTrain_TrainCopyMachine"]]
    inputs = {name: slot for name, slot in nodes[0]["inputs"].items() if name in nodes[1]["inputs"]}
    other = {n: {**slot, "tooltip": re.sub(r"\d+", "77", slot["tooltip"])} for n, slot in inputs.items()}
    toy = {"display_name": "Train Toy", "description": "A toy.", "inputs": other, "outputs": nodes[0]["outputs"]}
    translated = Translations(read_source(locale)).definitions({"TrainTrain_TrainToy": toy})["TrainTrain_TrainToy"]
    missing = [place for place, text in flatten(translated).items() if not text]
    assert missing == ["display_name", "description"], "write {part} for what differs between the methods"
    assert {"network", "settings", "steps", "learning_rate"} <= set(inputs)


def test_a_part_of_a_text_is_translated_itself_or_is_one_word():
    texts = {
        "{rate} is usual.": "{rate} va bene.",
        "Size. {advice} Lower if burnt.": "Misura. {advice} Meno se brucia.",
    }
    translations = Translations({"names": {"steps": "passi", "Preview.steps": "passi del campione"}, "texts": texts})
    assert translations.text("Size. 1e-4 is usual. Lower if burnt.") == "Misura. 1e-4 va bene. Meno se brucia."
    assert translations.text("Size. Half of it. Lower if burnt.") == ""
    names = [translations.name(f"TrainTrain_{node}", "steps") for node in ("Train", "Preview")]
    assert names == ["passi", "passi del campione"]


@pytest.mark.parametrize("locale", LANGUAGES)
def test_nothing_is_left_in_english(locale):
    sentences = {p: text for p, text in flatten(read_definitions(locale)).items() if not p.endswith("/name")}
    assert [place for place, text in sentences.items() if not THEIR_SCRIPT.search(text)] == []
    assert [place for place, text in sentences.items() if ENGLISH_SENTENCE.search(text)] == []


@pytest.mark.parametrize("locale", LANGUAGES)
def test_no_number_is_lost_in_translation(english, locale):
    translated = flatten(read_definitions(locale))
    wrong = {place: wrong_numbers(text, translated[place]) for place, text in flatten(english).items()}
    assert {place: numbers for place, numbers in wrong.items() if numbers} == {}


@pytest.mark.parametrize("locale", LANGUAGES)
def test_no_text_has_what_the_page_would_not_show(locale):
    assert [p for p, text in flatten(read_definitions(locale)).items() if SPECIAL_TO_THE_PAGE & set(text)] == []


@pytest.mark.parametrize("locale", LANGUAGES)
def test_the_page_speaks_the_users_language(page, speak, canvas, locale):
    said = read_definitions(locale)["TrainTrain_TrainLoRA"]
    speak(locale)
    page.load_template("1_Train_a_LoRA")
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


@pytest.mark.parametrize("locale", LANGUAGES)
@pytest.mark.parametrize("name", PAGES)
def test_a_help_page_says_line_by_line_what_the_english_one_says(name, locale):
    english, translated = (page_path(name, language).read_text(encoding="utf-8") for language in ("en", locale))
    assert shape(translated) == shape(english)
    assert translated.startswith(f"# {read_definitions(locale)[name]['display_name']}\n")
    lines = list(zip(english.splitlines(), translated.splitlines()))
    assert [theirs for ours, theirs in lines if wrong_numbers(ours, theirs)] == []
    assert [theirs for _, theirs in lines if ENGLISH_SENTENCE.search(PROMPT.sub("", theirs))] == []
    assert [theirs for _, theirs in lines if any(STUCK.match(span) for span in bold(theirs))] == []
    assert re.findall(r"\]\((.*?)\)", translated) == re.findall(r"\]\((.*?)\)", english)


def test_the_page_shows_the_help_of_the_users_language(page, speak):
    speak("zh")
    page.load_template("1_Train_a_LoRA")
    page.find("TrainTrain_BucketImages").evaluate("(node) => app.canvas.selectNode(node)")
    page.page.get_by_test_id("info-button").click()
    title = read_definitions("zh")["TrainTrain_BucketImages"]["display_name"]
    page.page.get_by_role("heading", name=title, level=1).wait_for(timeout=10000)


def read_template_texts(locale: str) -> dict[str, dict[str, str]]:
    script = (ROOT / "web" / f"template_texts_{locale}.js").read_text(encoding="utf-8")
    return json.loads(script.partition(" = ")[2].rstrip(";\n"))


@pytest.mark.parametrize("locale", LANGUAGES)
def test_notes_and_titles_of_templates_are_translated(locale):
    texts = read_template_texts(locale)
    nodes = [node for template in TEMPLATES for node in template["nodes"]]
    notes = {node["widgets_values"][0] for node in nodes if node["type"] == NOTE}
    titles = {each["title"] for template in TEMPLATES for each in template["groups"]}
    assert set(texts["notes"]) == notes
    assert set(texts["titles"]) == titles | {node["title"] for node in nodes if node.get("title")}
    for english, translated in texts["notes"].items():
        assert shape(translated) == shape(english)
        for ours, theirs in zip(english.splitlines(), translated.splitlines()):
            assert not wrong_numbers(ours, theirs), theirs
        assert not any(STUCK.match(span) for span in bold(translated))
    names = set(read_source(locale)["names"].values())
    for row in re.findall(r"^\| ([^|]+?) \|", "\n".join(texts["notes"].values()), re.MULTILINE):
        called = re.split(r"[:：]", row)[-1].strip().removeprefix("その").removeprefix("其")
        assert set(re.split("、", called)) <= names | {""}, row


@pytest.mark.parametrize("locale", LANGUAGES)
def test_a_template_is_in_the_users_language_until_its_note_is_changed(page, speak, locale):
    texts = read_template_texts(locale)
    speak(locale)
    template = page.load_template("1_Train_a_LoRA")
    (english,) = (node["widgets_values"][0] for node in template["nodes"] if node["type"] == NOTE)
    assert page.find(NOTE).evaluate("(note) => note.widgets[0].value") == texts["notes"][english]
    page.find(texts["titles"]["Negative prompt"])
    assert page.evaluate("() => app.graph.groups[1].title") == texts["titles"]["2. Train"]
    next(node for node in template["nodes"] if node["type"] == NOTE)["widgets_values"] = ["my own note"]
    page.load(template)
    assert page.find(NOTE).evaluate("(note) => note.widgets[0].value") == "my own note"
    page.find("Negative prompt")
