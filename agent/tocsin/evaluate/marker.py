"""The marks that stand around each value in the scan buffer.

A value of the release's field i stands as START(i) value END(i): NUL and two
bytes each. With them a literal can say "at the beginning", "at the end" or
"the whole" of a field, and no literal can run from one value into the next
without a NUL. The bytes of a mark are above 0x7F: case folding leaves them.
Field 0 stands for every field that the release does not name.
"""

from typing import Final

LIMIT: Final = 64 << 7
"""Fields that can be told apart. START has 0x80-0xBF in front, END 0xC0-0xFF; shared with project.c."""


def start(number: int) -> bytes:
    """In front of a value of field `number`."""
    return bytes((0, 0x80 | number >> 7, 0x80 | number & 0x7F))


def end(number: int) -> bytes:
    """Behind a value of field `number`."""
    return bytes((0, 0xC0 | number >> 7, 0x80 | number & 0x7F))
