"""Writes what follows from the nodes' English texts: the translations that ComfyUI's page reads, and the lists of inputs
on the help pages.

    python -m tools.locales --comfyui .host/ComfyUI --base .host/base

English is in the nodes' schemas only. `locales/<language>.json` translates each text once, however many nodes share it.
A {part} of an English text stands for what differs between nodes: a number, an identifier, or a text that is translated
itself. From these files the command writes `locales/<language>/nodeDefs.json`, and on each help page the list
below `<!-- inputs -->`. If an English text has changed, its translation is kept and printed, to be checked; a new text is
added with an empty translation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .host_paths import ROOT
from .server import server_of_arguments

LOCALES = ROOT / "locales"
DOCS = ROOT / "web" / "docs"
LANGUAGES = ("ja", "zh")
NODE_DEFS = "nodeDefs.json"
OURS = "TrainTrain_"  # the ids of the pack's nodes begin with it
IN_BRACKETS = {"en": " (`{}`)", "ja": "（`{}`）", "zh": "（`{}`）"}
COLON = {"en": ": ", "ja": ": ", "zh": "："}
INPUTS = re.compile(r"(?<=<!-- inputs -->\n)(- .*\n)*")  # a list, because the help panel is too narrow for a table


class Translations:
    """The translations into one language, and which of them are in use."""

    def __init__(self, source: dict[str, dict[str, str]]) -> None:
        """Take the names of inputs and outputs, and all other texts, each by its English."""
        self.names, self.texts = source["names"], source["texts"]
        self.used_names: dict[str, str] = {}
        self.used_texts: dict[str, str] = {}

    def name(self, node: str, name: str) -> str:
        """Return the name of an input or output, empty if there is none; "TrainLoRA.steps" goes before "steps"."""
        key = f"{node.removeprefix(OURS)}.{name}"
        key = key if key in self.names else name
        self.used_names[key] = self.names.get(key, "")
        return self.used_names[key]

    def text(self, english: str) -> str:
        """Return the translation of a text, empty if there is none."""
        if translated := self.texts.get(english):
            self.used_texts[english] = translated
            return translated
        for pattern, translated in self.texts.items():
            parts = _match(pattern, english) if translated else {}
            parts = {name: self.text(part) or ("" if " " in part else part) for name, part in parts.items()}
            if parts and all(parts.values()):
                self.used_texts[pattern] = translated
                return translated.format(**parts)
        return ""

    def definitions(self, english: dict[str, dict]) -> dict[str, dict]:
        """Return the translated definitions of all nodes."""
        return {node: self._definition(node, definition) for node, definition in english.items()}

    def used(self) -> dict[str, dict[str, str]]:
        """Return the translations that were asked for, in this order."""
        return {"names": self.used_names, "texts": self.used_texts}

    def _definition(self, node: str, english: dict) -> dict:
        def slots(kind: str) -> dict[str, dict[str, str]]:
            return {
                key: {"name": self.name(node, slot["name"]), "tooltip": self.text(slot["tooltip"])}
                for key, slot in english[kind].items()
            }

        texts = {key: self.text(english[key]) for key in ("display_name", "description")}
        return {**texts, "inputs": slots("inputs"), "outputs": slots("outputs")}


def node_defs(object_info: dict[str, dict]) -> dict[str, dict]:
    """Return the English texts of the pack's nodes, by node id."""
    return {name: _node_def(info) for name, info in sorted(object_info.items()) if name.startswith(OURS)}


def read_source(language: str) -> dict[str, dict[str, str]]:
    """Return the translations into a language, by their English."""
    return json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def read_definitions(language: str) -> dict[str, dict]:
    """Return the definitions that ComfyUI's page reads."""
    return json.loads((LOCALES / language / NODE_DEFS).read_text(encoding="utf-8"))


def to_text(definitions: dict[str, dict]) -> str:
    """Return definitions as the file for ComfyUI's page has them: one node a line."""
    lines = (f"{json.dumps(node)}: {json.dumps(texts, ensure_ascii=False)}" for node, texts in definitions.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def flatten(definitions: dict, path: str = "") -> dict[str, str]:
    """Return all texts by their place: "TrainTrain_TrainLoRA/inputs/steps/tooltip"."""
    flat = {}
    for key, value in definitions.items():
        flat |= flatten(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return flat


def page_path(node: str, language: str = "en") -> Path:
    """Return the path of a node's help page."""
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def fill_inputs(page: str, english: dict, translated: dict, language: str = "en") -> str:
    """Return a help page that lists the inputs of a node; a page without `<!-- inputs -->` stays as it is."""
    lines, brackets, colon = "", IN_BRACKETS[language], COLON[language]
    for key, slot in english["inputs"].items():
        shown = translated["inputs"][key]
        name = f"**{shown['name']}**" + (brackets.format(slot["name"]) if shown["name"] != slot["name"] else "")
        lines += f"- {name}{colon}{shown['tooltip']}\n"
    return INPUTS.sub(lambda _: lines, page)


def filled_pages(english: dict[str, dict], translated: dict[str, dict], language: str) -> Iterator[tuple[Path, str]]:
    """Yield the path of each help page in a language, and its text with the list of inputs."""
    for node, definition in english.items():
        path = page_path(node, language)
        if path.is_file():
            yield path, fill_inputs(path.read_text(encoding="utf-8"), definition, translated[node], language)


def _node_def(info: dict[str, Any]) -> dict[str, Any]:
    inputs = {name: spec[1] for kind in ("required", "optional") for name, spec in info["input"].get(kind, {}).items()}
    outputs = zip(info["output_name"], info["output_tooltips"])
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {name.replace(".", "_"): {"name": name, "tooltip": _tooltip(spec)} for name, spec in inputs.items()},
        "outputs": {str(place): {"name": name, "tooltip": text} for place, (name, text) in enumerate(outputs)},
    }


def _tooltip(options: dict[str, Any]) -> str:
    """Return an input's tooltip; an input that grows with its connections has it in its template."""
    if "template" not in options:
        return options["tooltip"]
    ((_, template),) = options["template"]["input"]["required"].values()
    return template["tooltip"]


def _match(pattern: str, text: str) -> dict[str, str]:
    """Return what the {parts} of a pattern stand for in a text, empty if it does not match."""
    if "{" not in pattern:
        return {}
    expression = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(pattern))
    found = re.fullmatch(expression, text)
    return found.groupdict() if found else {}


def _update(language: str, english: dict[str, dict]) -> Iterator[str]:
    """Write the files of a language; yield what is to be translated or checked."""
    source = read_source(language)
    previous = flatten(read_definitions(language))
    translated = flatten(Translations(source).definitions(english))
    for place, text in flatten(english).items():
        kind = "names" if place.endswith("/name") else "texts"
        if not translated[place] and not source[kind].get(text):
            source[kind][text] = previous.get(place, "")
            kept = source[kind][text]
            yield f"{language}: {'check' if kept else 'translate'} {place}\n    {text}\n    {kept}"
    translations = Translations(source)
    definitions = translations.definitions(english)
    used = json.dumps(translations.used(), indent=2, ensure_ascii=False)
    (LOCALES / f"{language}.json").write_text(f"{used}\n", encoding="utf-8")
    (LOCALES / language / NODE_DEFS).write_text(to_text(definitions), encoding="utf-8")
    for path, text in filled_pages(english, definitions, language):
        path.write_text(text, encoding="utf-8")


def main() -> None:
    with server_of_arguments(__doc__) as server:
        english = node_defs(server.get("/object_info"))
    for path, text in filled_pages(english, english, "en"):
        path.write_text(text, encoding="utf-8")
    for language in LANGUAGES:
        for line in _update(language, english):
            print(line)


if __name__ == "__main__":
    main()
