"""What is chosen by name and set by `key=value` text: found, imported, checked and made."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Callable, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where a class or function comes from; imported when chosen, for some packages take seconds."""

    module: str
    attribute: str

    def load(self) -> Callable:
        """Import it. Raises ValueError where its package cannot be imported."""
        try:
            return getattr(import_module(self.module), self.attribute)
        except (ImportError, AttributeError) as error:
            package = self.module.partition(".")[0].replace("_", "-")
            raise ValueError(
                f"{self.attribute} is in the package {package}, which cannot be used ({error}): run "
                f"`python -m pip install --upgrade {package}`, or choose another."
            ) from error


@dataclass(frozen=True)
class Choice:
    """What the user has chosen.

    input: name of the input that it was chosen in; the text of its settings is in `<input>_settings`
    name: the chosen one
    text: `key=value` pairs
    """

    input: str
    name: str
    text: str

    def of(self, known: dict[str, T]) -> T:
        """Return what has the chosen name. Raises ValueError if nothing has."""
        if self.name not in known:
            raise ValueError(f"There is no {self.input} {self.name!r}: choose one of {', '.join(known)}.")
        return known[self.name]

    def make(self, kind: Callable[..., T], first: Any, defaults: dict[str, Any], reserved: tuple[str, ...]) -> T:
        """Call the kind with its first argument, the defaults, and the user's settings over them.

        Raises ValueError for a setting that is reserved, that the kind does not name, or that it refuses.
        """
        settings = read_settings(f"{self.input}_settings", self.text)
        self._check_known(settings, kind, reserved)
        with self.refusals():
            return kind(first, **{**defaults, **settings})

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Say whose settings were wrong, for constructors say it in many ways."""
        try:
            yield
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
            reason = str(error)[:200].rstrip(".")
            raise ValueError(f"{self.input}_settings {self.text!r:.200} do not suit {self.name}: {reason}.") from error

    def _check_known(self, settings: dict[str, Any], kind: Callable, reserved: tuple[str, ...]) -> None:
        # A key that only **kwargs takes would vanish.
        parameters = inspect.signature(kind).parameters.values()
        known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in reserved]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ValueError(
                f"{self.input}_settings has {', '.join(unknown):.200}, which {self.name} does not take: it takes "
                f"{', '.join(known) or 'none'}."
            )


def read_settings(name: str, text: str) -> dict[str, Any]:
    """Read `key=value` pairs, separated by commas outside brackets or by new lines; values are Python literals or words."""
    settings: dict[str, Any] = {}
    for pair in _split_pairs(text):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"{name} has {pair!r:.200}: write key=value pairs, as in betas=(0.9, 0.99), weight_decay=0.01."
            )
        if key in settings:
            raise ValueError(f"{name} has {key:.200} twice: keep one.")
        settings[key] = _read_value(value)
    return settings


def _read_value(text: str) -> Any:
    if text in ("true", "false", "none"):  # as words, "false" would count as true
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: brackets without end
        return text


def _split_pairs(text: str) -> list[str]:
    pairs, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "\n" or (character == "," and depth == 0):
            pairs.append("")
        else:
            pairs[-1] += character
    return [pair.strip() for pair in pairs if pair.strip()]
