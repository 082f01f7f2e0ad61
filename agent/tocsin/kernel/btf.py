"""Reads BTF, the kernel's own description of its types: where members stand, values of enums, ids.

https://docs.kernel.org/bpf/btf.html. Little-endian only. The bytes come from
the running kernel; what makes no sense is a KernelError.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from tocsin.errors import KernelError

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
MAGIC: Final = 0xEB9F
INT, POINTER, ARRAY, STRUCT, UNION, ENUM, FORWARD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
DECL_TAG, TYPE_TAG, ENUM64 = 17, 18, 19
_TAIL_BYTES: Final = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
_TAIL_BYTES_EACH: Final = {STRUCT: 12, UNION: 12, ENUM: 8, FUNC_PROTO: 8, DATASEC: 12, ENUM64: 12}
_ALIASES: Final = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
_SCALARS: Final = (INT, POINTER, ENUM, ENUM64)
_HEAD: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")


@dataclass(frozen=True, slots=True)
class Member:
    """A member, where it stands in the outermost struct."""

    bit_offset: int
    bits: int
    """Width of a bit-field; 0: it is none."""
    scalar_bytes: int
    """Size of a number or pointer; 0: it is something else."""


class _Type(NamedTuple):
    name: int
    kind: int
    bit_fields: bool
    parts: int
    size: int
    """Or the type that this one refers to."""
    tail: int


class Btf:
    """The types of one BTF blob. Raises KernelError for what is none."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        try:
            magic, version, _, head, types_at, types_bytes, strings_at, _ = _HEAD.unpack_from(raw)
            if (magic, version) != (MAGIC, 1):
                raise KernelError(f"BTF has magic {magic:#x} and version {version}, expected {MAGIC:#x} and 1")
            self._strings = head + strings_at
            self._types = self._read(head + types_at, head + types_at + types_bytes)
        except struct.error as error:
            raise KernelError(f"BTF is cut: {error}") from error

    def _read(self, at: int, end: int) -> list[_Type]:
        found = [_Type(0, 0, False, 0, 0, 0)]
        while at < end:
            name, info, size = _TYPE.unpack_from(self._raw, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            found.append(_Type(name, kind, bool(info >> 31), count, size, at + _TYPE.size))
            at += _TYPE.size + _TAIL_BYTES.get(kind, 0) + count * _TAIL_BYTES_EACH.get(kind, 0)
        return found

    def _text(self, offset: int) -> str:
        begin = self._strings + offset
        return self._raw[begin : self._raw.index(b"\0", begin)].decode()

    @cached_property
    def _ids(self) -> dict[tuple[int, str], int]:
        """The first type of each kind and name."""
        found: dict[tuple[int, str], int] = {}
        for number, each in enumerate(self._types):
            if each.name and each.kind in (STRUCT, UNION, TYPEDEF, FUNC):
                found.setdefault((each.kind, self._text(each.name)), number)
        return found

    @cached_property
    def enumerators(self) -> dict[str, int]:
        """Value of each enumerator, by its name alone."""
        found: dict[str, int] = {}
        for each in self._types:
            if each.kind in (ENUM, ENUM64):
                for n in range(each.parts):
                    name, value = struct.unpack_from("<II", self._raw, each.tail + n * _TAIL_BYTES_EACH[each.kind])
                    found.setdefault(self._text(name), value)
        return found

    def id_of(self, kind: int, name: str) -> int:
        """Number of a named type; 0: there is none."""
        return self._ids.get((kind, name), 0)

    def structure(self, name: str) -> int:
        """Number of a struct, or of the one that a typedef names; 0: there is none."""
        if found := self.id_of(STRUCT, name):
            return found
        alias = self.id_of(TYPEDEF, name)
        found = self._bare(alias) if alias else 0
        return found if self._types[found].kind == STRUCT else 0

    def size_bytes(self, number: int) -> int:
        """Size of a struct or union."""
        return self._types[number].size

    def members(self, number: int, bit_offset: int = 0) -> dict[str, Member]:
        """Members of a struct by name, with those of its unnamed parts."""
        this = self._types[number]
        found: dict[str, Member] = {}
        for n in range(this.parts):
            name, of, where = _TYPE.unpack_from(self._raw, this.tail + n * _TYPE.size)
            at = bit_offset + (where & 0xFFFFFF if this.bit_fields else where)
            if name:
                bits = where >> 24 if this.bit_fields else 0
                found[self._text(name)] = Member(at, bits, self._scalar_bytes(of))
            elif self._types[bare := self._bare(of)].kind in (STRUCT, UNION):
                found |= self.members(bare, at)
        return found

    def _bare(self, number: int) -> int:
        while self._types[number].kind in _ALIASES:
            number = self._types[number].size
        return number

    def _scalar_bytes(self, number: int) -> int:
        this = self._types[self._bare(number)]
        if this.kind not in _SCALARS:
            return 0
        return 8 if this.kind == POINTER else this.size


def running_kernel() -> Btf:
    """The types of the running kernel. Raises KernelError when it does not tell them."""
    try:
        return Btf(VMLINUX.read_bytes())
    except OSError as error:
        raise KernelError(f"{VMLINUX}: {error.strerror}: this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)") from error
