"""Matches regular expressions in time that grows with the square of the text: those in a stranger's file may be hostile.

Python's `re` tries the ways through a pattern one after the other, and some patterns have exponentially many. Here each part
of a pattern maps a position in the text to the set of positions where it can end, and each of these sets is computed once.
"""

from __future__ import annotations

import re
from functools import reduce
from typing import Callable, Iterable

Ends = Callable[["Search", int], frozenset[int]]  # where a part that starts at a position can end

_LONGEST = 1000  # characters of a pattern or a text
_DEEPEST = 30  # groups in groups
_MOST_WORK = 3_000_000  # sets of positions, over all texts: seconds
_SETS = {"d": str.isdecimal, "w": lambda char: char.isalnum() or char == "_", "s": str.isspace}
_COUNTS = {"*": (0, None), "+": (1, None), "?": (0, 1)}


class Pattern:
    """A regular expression without backreferences and lookbehinds.

    Raises ValueError if the text is none of these.
    """

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0
        if len(text) > _LONGEST:
            raise self._error("is too long")
        self._ends = self._choice()
        if self._at < len(text):
            raise self._error("has a ) too many")

    def matches(self, text: str, starts: Iterable[int], work: Work) -> bool:
        """Return whether the pattern matches a text from one of some positions to its end.

        Raises ValueError if `work` is used up.
        """
        if len(text) > _LONGEST:
            return False
        search = Search(text, work)
        return any(len(text) in search.ends(self._ends, start) for start in starts)

    def _choice(self) -> Ends:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return lambda search, at: frozenset().union(*(search.ends(option, at) for option in options))

    def _sequence(self) -> Ends:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return lambda search, at: reduce(search.follow, parts, frozenset({at}))

    def _repeated(self, part: Ends) -> Ends:
        if (counts := self._counts()) is None:
            return part
        self._take("?")  # a lazy one matches the same texts
        if self._counts() is not None:
            raise self._error("repeats a repetition")
        least, most = counts
        if isinstance(part, _One):
            return lambda search, at: part.run(search.text, at, least, most)

        def ends(search: Search, at: int) -> frozenset[int]:
            reached = frozenset({at})
            for _ in range(least):
                before, reached = reached, search.follow(reached, part)
                if reached == before:
                    break
            found, number = reached, least
            while reached and (most is None or number < most):
                reached, number = search.follow(reached, part) - found, number + 1
                found |= reached
            return found

        return ends

    def _counts(self) -> tuple[int, int | None] | None:
        if self._at < len(self._text) and self._text[self._at] in _COUNTS:
            self._at += 1
            return _COUNTS[self._text[self._at - 1]]
        if found := re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}").match(self._text, self._at):
            least, comma, most = found.groups()
            if least or most:
                self._at = found.end()
                return int(least or 0), (int(most) if most else None) if comma else int(least)
        return None

    def _atom(self) -> Ends:
        char = self._next()
        if char == "(":
            return self._group()
        if char == "^":
            return lambda search, at: frozenset({at} if at == 0 else ())
        if char == "$":
            return lambda search, at: frozenset({at} if at == len(search.text) else ())
        if char in "*+?":
            raise self._error("repeats nothing")
        if char == ".":
            return _One(lambda char: char != "\n")
        if char == "[":
            return _One(self._set())
        return _One(self._escaped() if char == "\\" else char.__eq__)

    def _group(self) -> Ends:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error("has too many groups in groups")
        ahead = self._take("?") and self._next()
        if ahead and ahead not in ":=!":
            raise self._error("has a group of an unknown kind")
        inner = self._choice()
        if not self._take(")"):
            raise self._error("has a ( too many")
        self._depth -= 1
        if ahead in ("=", "!"):
            wanted = ahead == "="
            return lambda search, at: frozenset({at} if bool(search.ends(inner, at)) == wanted else ())
        return inner

    def _set(self) -> Callable[[str], bool]:
        is_negated, tests = self._take("^"), []
        while not tests or not self._take("]"):
            first = self._next()
            test = self._escaped() if first == "\\" else first.__eq__
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                test = _between(first, self._next())
            tests.append(test)
        return lambda char: any(test(char) is True for test in tests) != is_negated

    def _escaped(self) -> Callable[[str], bool]:
        char = self._next()
        if char.lower() in _SETS:
            has = _SETS[char.lower()]
            return lambda other: has(other) == char.islower()
        if char.isalnum():
            raise self._error(f"has an unknown \\{char}")
        return char.__eq__

    def _take(self, char: str) -> bool:
        found = self._text.startswith(char, self._at)
        self._at += found
        return found

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._error("is incomplete")
        self._at += 1
        return self._text[self._at - 1]

    def _error(self, what: str) -> ValueError:
        return ValueError(f"the pattern {self._text[:100]} {what}")


class Work:
    """Counts the work of matching, over all texts of a file."""

    def __init__(self, left: int = _MOST_WORK) -> None:
        self.left = left

    def add(self, sets: int) -> None:
        """Raise ValueError if the patterns of a file are too much work."""
        self.left -= sets
        if self.left < 0:
            raise ValueError("its patterns take too long to match")


class Search:
    """One text that a pattern is matched with."""

    def __init__(self, text: str, work: Work) -> None:
        self.text, self._work = text, work
        self._known: dict[tuple[Ends, int], frozenset[int]] = {}

    def ends(self, part: Ends, at: int) -> frozenset[int]:
        """Return where a part that starts at a position can end."""
        if (part, at) not in self._known:
            found = part(self, at)
            self._work.add(1 + len(found) // 16)
            self._known[part, at] = found
        return self._known[part, at]

    def follow(self, starts: frozenset[int], part: Ends) -> frozenset[int]:
        """Return where a part that starts at any of these positions can end."""
        self._work.add(1)
        return frozenset().union(*(self.ends(part, at) for at in starts))


class _One:
    """Matches one character that passes a test."""

    def __init__(self, test: Callable[[str], bool]) -> None:
        self._test = test

    def __call__(self, search: Search, at: int) -> frozenset[int]:
        return self.run(search.text, at, 1, 1)

    def run(self, text: str, at: int, least: int, most: int | None) -> frozenset[int]:
        """Return where from `least` to `most` such characters can end."""
        last = len(text) if most is None else min(len(text), at + most)
        end = next((place for place in range(at, last) if self._test(text[place]) is not True), last)
        return frozenset(range(at + least, end + 1))


def _between(first: str, last: str) -> Callable[[str], bool]:
    return lambda char: first <= char <= last
