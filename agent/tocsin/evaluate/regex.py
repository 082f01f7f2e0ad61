"""Which texts must stand in whatever an RE2 expression matches.

Reads only what it understands: plain characters outside of classes, and groups
of plain alternatives. Anything else ends a run of text; what could change the
meaning of a run from afar (a top-level |, flags in the middle, \\Q) gives
nothing at all. Recursion is bounded: groups are walked, not entered.
"""

import re
from collections.abc import Iterator
from itertools import product
from typing import Final

MAX_ALTERNATIVES: Final = 16
"""Texts of one run."""
_SPECIAL: Final = frozenset("\\.+*?()|[]{}^$")
_CLASSES: Final = tuple("dDwWsSbBAznrtfva")
"""Escapes that stand for one character, or none, that is not known here."""
_FLAGS: Final = re.compile(r"\(\?([imsU]+)\)")
_QUANTIFIER: Final = re.compile(r"[*+?]|\{[0-9,]+\}")
_CLASS: Final = re.compile(r"\[\^?\]?(?:\[:\^?[a-z]+:\]|\\[^pPxQE0-7]|[^\]\\])*\]")
_OPENING: Final = re.compile(r"\((?:(?!\?)|\?(?::|P?<\w+>))", re.ASCII)
_PLAIN_GROUP: Final = re.compile(r"\((?:\?:|\?P?<\w+>)?([A-Za-z0-9_/ -]+(?:\|[A-Za-z0-9_/ -]+)*)\)", re.ASCII)
_FOLDED_BY_UNICODE: Final = re.compile("[kKsS]")
"""(?i) folds by Unicode: k also stands for the Kelvin sign, s for the long s."""

Run = frozenset[str]
"""One of these texts stands in every match."""


def necessary_texts(pattern: bytes) -> Iterator[tuple[list[bytes], bool]]:
    """Sets of ASCII texts, one of each of which is in every match, and whether their case counts."""
    text = pattern.decode("utf-8", "replace")
    flags = _FLAGS.match(text)
    insensitive = flags is not None and "i" in flags[1]
    for run in _runs(text[flags.end() :] if flags else text):
        for one in _foldable(run) if insensitive else (run,):
            yield sorted(part.encode() for part in one), not insensitive


def _foldable(run: Run) -> Iterator[Run]:
    parts = [[part for part in _FOLDED_BY_UNICODE.split(text) if part] for text in run]
    if len(parts) == 1:
        yield from (frozenset((part,)) for part in parts[0])
    elif all(parts):
        yield frozenset(max(several, key=len) for several in parts)


def _runs(text: str) -> list[Run]:
    """The runs of an expression; none where a part of it is not understood."""
    empty: Run = frozenset(("",))
    runs, run, position = [], empty, 0
    while position < len(text):
        token, alternatives = _token(text, position)
        if token in ("", "|"):
            return []
        position += len(token)
        quantifier = _QUANTIFIER.match(text, position)
        if quantifier:
            position, alternatives = quantifier.end(), ()
        if not alternatives or len(run) * len(alternatives) > MAX_ALTERNATIVES:
            runs.append(run)
            run = empty
        if alternatives:
            run = frozenset(before + after for before, after in product(run, alternatives))
    return [one for one in (*runs, run) if "" not in one]


def _token(text: str, position: int) -> tuple[str, tuple[str, ...]]:
    """The token at a position ("": not understood) and the texts that it stands for (none: not known)."""
    character = text[position]
    if character == "\\":
        escape = text[position : position + 2]
        if len(escape) == 2 and escape[1].isascii() and not escape[1].isalnum():
            return escape, (escape[1],)
        return (escape, ()) if escape[1:] in _CLASSES else ("", ())
    if character == "[":
        found = _CLASS.match(text, position)
        return (found[0], ()) if found else ("", ())
    if character == "(":
        plain = _PLAIN_GROUP.match(text, position)
        return (plain[0], _alternatives(plain[1])) if plain else (_group(text, position), ())
    return character, ((character,) if character.isascii() and character not in _SPECIAL else ())


def _alternatives(text: str) -> tuple[str, ...]:
    several = tuple(text.split("|"))
    return several if len(several) <= MAX_ALTERNATIVES else ()


def _group(text: str, position: int) -> str:
    """A whole group with all groups inside, "" where one sets flags or does not end."""
    at, depth = position, 0
    while at < len(text):
        if text[at] == "(":
            opening = _OPENING.match(text, at)
            if not opening:
                return ""
            at, depth = opening.end(), depth + 1
        elif text[at] == ")":
            at, depth = at + 1, depth - 1
            if not depth:
                return text[position:at]
        else:
            token, _ = _token(text, at)
            if not token:
                return ""
            at += len(token)
    return ""
