"""Classes that the user selects by name and configures with `key=value` text, such as optimizers and schedules."""

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
class LazyImport:
    """Imports a class or function only when it is used, because some packages take seconds to import."""

    module: str
    attribute: str

    def load(self) -> Callable:
        """Import and return it. Raises ValueError if its package cannot be imported."""
        try:
            return getattr(import_module(self.module), self.attribute)
        except (ImportError, AttributeError) as error:
            package = self.module.partition(".")[0].replace("_", "-")
            raise ValueError(
                f"{self.attribute} needs the package {package}, which cannot be imported ({error}): run "
                f"`python -m pip install --upgrade {package}`, or choose another."
            ) from error


@dataclass(frozen=True)
class UserChoice:
    """Holds what the user selected in a node's input, and its settings.

    input: name of the input; the input `<input>_settings` has the settings
    name: the selected name
    text: the settings as `key=value` pairs
    """

    input: str
    name: str
    text: str

    def look_up(self, known: dict[str, T]) -> T:
        """Return the entry with the selected name. Raises ValueError if there is none."""
        if self.name not in known:
            raise ValueError(f"There is no {self.input} {self.name!r}: choose one of {', '.join(known)}.")
        return known[self.name]

    def build(self, factory: Callable[..., T], first: Any, defaults: dict[str, Any], reserved: tuple[str, ...]) -> T:
        """Call a factory with its first argument, and the defaults overridden by the user's settings.

        Raises ValueError for a setting that is reserved, that the factory does not name, or whose value it rejects.
        """
        settings = read_settings(f"{self.input}_settings", self.text)
        self._check_known(settings, factory, reserved)
        with self.explain_errors():
            return factory(first, **{**defaults, **settings})

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turn any error of a constructor into a ValueError that names the settings."""
        try:
            yield
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
            reason = str(error)[:200].rstrip(".")
            raise ValueError(
                f"{self.input}_settings {self.text!r:.200} are not valid for {self.name}: {reason}."
            ) from error

    def _check_known(self, settings: dict[str, Any], factory: Callable, reserved: tuple[str, ...]) -> None:
        # A key that only **kwargs accepts would be ignored.
        parameters = inspect.signature(factory).parameters.values()
        named = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        known = [name for name in named if name not in reserved]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ValueError(
                f"{self.input}_settings has {', '.join(unknown):.200}, which {self.name} does not accept: it accepts "
                f"{', '.join(known) or 'none'}."
            )


def read_settings(name: str, text: str) -> dict[str, Any]:
    """Parse `key=value` pairs, separated by commas outside brackets or by newlines; values are Python literals or words."""
    settings: dict[str, Any] = {}
    for pair in _split_pairs(text):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"{name} has {pair!r:.200}: write key=value pairs, such as betas=(0.9, 0.99), weight_decay=0.01."
            )
        if key in settings:
            raise ValueError(f"{name} has {key:.200} twice: remove one.")
        settings[key] = _read_value(value)
    return settings


def _read_value(text: str) -> Any:
    if text in ("true", "false", "none"):  # as a word, "false" would be truthy
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: very deep brackets
        return text


def _split_pairs(text: str) -> list[str]:
    # Not with `ast`, which cannot parse bare words such as a/b or 1.2.3, newlines as commas, or `lambda=1`.
    pairs, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "\n" or (character == "," and depth == 0):
            pairs.append("")
        else:
            pairs[-1] += character
    return [pair.strip() for pair in pairs if pair.strip()]
