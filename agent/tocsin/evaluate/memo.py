"""Outcomes of events, remembered by what was looked at: memo.c called.

Every field that a rule of the release may look at stands in an event's piece of
the scan buffer, as the exact check sees it: two events of one type with the
same piece have the same outcome. Hosts repeat themselves, so most events are
decided without being scanned or decoded. Bounded; one that is full is replaced
by an empty one. An empty piece is not remembered: it costs nothing to scan.
"""

import ctypes
from array import array
from typing import Final

from tocsin import native

UNKNOWN: Final = 0xFFFFFFFF
"""Outcome of an event that has to be looked at. Shared with memo.h."""
Rules = tuple[int, ...]
"""Numbers of the rules that an event satisfies."""


class Memo:
    """Outcomes by number; 0 is the empty one. Belongs to one matcher with one set of rules."""

    def __init__(self) -> None:
        library = native.library()
        library.tocsin_memo_size.restype = ctypes.c_size_t
        self.table = ctypes.create_string_buffer(library.tocsin_memo_size())
        """struct memo, for project.c."""
        self.full = False
        """Whether something could not be kept: time for a new one."""
        self._remember = library.tocsin_memo_remember
        self._outcomes: list[Rules] = [()]
        self._numbers: dict[Rules, int] = {(): 0}

    def __getitem__(self, number: int) -> Rules:
        return self._outcomes[number]

    def number(self, rules: Rules) -> int:
        """The number of an outcome."""
        number = self._numbers.setdefault(rules, len(self._outcomes))
        if number == len(self._outcomes):
            self._outcomes.append(rules)
        return number

    def remember(self, types: bytearray, text: bytes, ends: "array[int]", outcomes: "array[int]") -> None:
        """Keeps the outcomes of the events that stand in `text`, of each of `types`; UNKNOWN becomes 0."""
        self.full = bool(
            self._remember(
                self.table,
                (ctypes.c_char * len(types)).from_buffer(types),
                ctypes.c_size_t(len(types)),
                text,
                ctypes.c_void_p(ends.buffer_info()[0]),
                ctypes.c_void_p(outcomes.buffer_info()[0]),
            )
        )
