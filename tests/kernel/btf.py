"""Reads the BTF of a compiled object: structs with the offset and size of each member. https://docs.kernel.org/bpf/btf.html"""

import struct
from pathlib import Path
from typing import Final

INT, POINTER, ARRAY, STRUCT, UNION, ENUM, TYPEDEF = 1, 2, 3, 4, 5, 6, 8
VOLATILE, CONST, RESTRICT, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 9, 10, 11, 13, 14, 15, 17, 19
_TAIL_BYTES: Final = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_TAIL_BYTES_EACH: Final = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}

Members = dict[str, tuple[int, int]]
"""Offset and size in bytes, by name."""


def section(path: Path, name: bytes) -> bytes:
    """The bytes of a section of a 64-bit little-endian ELF file."""
    raw = path.read_bytes()
    (table,) = struct.unpack_from("<Q", raw, 40)
    size, count, strings = struct.unpack_from("<HHH", raw, 58)
    heads = [struct.unpack_from("<IIQQQQ", raw, table + size * number) for number in range(count)]
    names = heads[strings][4]
    for head in heads:
        begin = names + head[0]
        if raw[begin : raw.index(b"\0", begin)] == name:
            return raw[head[4] : head[4] + head[5]]
    raise AssertionError(f"{path} has no section {name!r}")


class Btf:
    """The types of an object: name, kind, count, size or type, and where their tail begins."""

    def __init__(self, path: Path) -> None:
        self.raw = section(path, b".BTF")
        head_bytes, types_at, types_bytes, strings_at = struct.unpack_from("<IIII", self.raw, 4)
        at, end = head_bytes + types_at, head_bytes + types_at + types_bytes
        self._strings = head_bytes + strings_at
        self.types: list[tuple[str, int, int, int, int]] = [("void", 0, 0, 0, 0)]
        while at < end:
            name, info, size = struct.unpack_from("<III", self.raw, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            self.types.append((self.text(name), kind, count, size, at + 12))
            at += 12 + _TAIL_BYTES.get(kind, 0) + count * _TAIL_BYTES_EACH.get(kind, 0)

    def text(self, offset: int) -> str:
        """A string of the string section."""
        begin = self._strings + offset
        return self.raw[begin : self.raw.index(b"\0", begin)].decode()


def enums(path: Path) -> dict[str, dict[str, int]]:
    """Values by name of each enum of the object that has a name."""
    btf = Btf(path)
    return {
        name: {
            btf.text(text): value
            for text, value in (struct.unpack_from("<II", btf.raw, tail + 8 * number) for number in range(count))
        }
        for name, kind, count, _, tail in btf.types
        if kind == ENUM and name
    }


def structs(path: Path) -> dict[str, tuple[int, Members]]:
    """Size and members of each struct of the object."""
    btf = Btf(path)
    raw, types, text = btf.raw, btf.types, btf.text

    def size_of(number: int) -> int:
        _, kind, _, size, tail = types[number]
        if kind in (TYPEDEF, VOLATILE, CONST, RESTRICT):
            return size_of(size)
        if kind == ARRAY:
            element, _, length = struct.unpack_from("<III", raw, tail)
            return size_of(int(element)) * int(length)
        return 8 if kind == POINTER else size

    found: dict[str, tuple[int, Members]] = {}
    for name, kind, count, size, tail in types:
        if kind == STRUCT and name:
            members = [struct.unpack_from("<III", raw, tail + 12 * number) for number in range(count)]
            found[name] = size, {text(n): ((bits & 0xFFFFFF) // 8, size_of(of)) for n, of, bits in members if n}
    return found
