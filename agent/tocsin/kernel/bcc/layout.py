"""Lays the kernel types that the programs name out as the running kernel has them.

The compiler is given no kernel header. Of each member only the name and the C
type are taken from the sources; where it stands comes from BTF: each struct
becomes a union of its members, each behind its own padding. So what a compiler
thinks of alignment cannot move a member, and that is asserted all the same. A
number that the kernel has smaller is refused, of a larger one the lower part is
read (little-endian), as with CO-RE; one that the kernel has not stands where no
struct reaches, and no program may be left that uses it.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

from tocsin.errors import KernelError
from tocsin.kernel.btf import Btf, Member

ABSENT_MEMBER: Final = 0x2B5C0000
"""As in bpf/base/bcc.h: the first absent member stands here, each further one ABSENT_STEP behind."""
ABSENT_STEP: Final = 0x1000
_TYPES: Final = re.compile(
    r"#pragma clang attribute push\(__attribute__\(\(preserve_access_index\)\).*?\n(.*?)#pragma clang attribute pop\n",
    re.DOTALL,
)
_NAME: Final = re.compile(r"(\w+)\s*(?:\[\w*\])?\s*(:\s*\d+)?\s*$")
_FROM_BTF: Final = re.compile(r"\bTOCSIN_(ENUM_EXISTS|ENUM_VALUE|SHIFT|MASK)_(\w+)")
_TYPE_EXISTS: Final = re.compile(r"\bTOCSIN_TYPE_EXISTS\(struct (\w+)\)")
_INSTRUCTION: Final = struct.Struct("<4xi")


class Layout:
    """Puts what the kernel's BTF says into the text of the programs."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._absent: list[str] = []
        self._bit_fields: dict[str, tuple[int, int]] = {}

    def apply(self, source: str) -> str:
        """The sources, ready to be compiled for this kernel. Raises KernelError for what does not fit."""
        text, replaced = _TYPES.subn(lambda found: "\n".join(map(self._declared, statements(found[1]))), source)
        if not replaced:
            raise KernelError("the programs' sources name no kernel types: reinstall the package, or run `make build`")
        text = _TYPE_EXISTS.sub(lambda found: str(int(self._structure(found[1]) != 0)), text)
        return _FROM_BTF.sub(self._from_btf, text)

    def absent_in(self, bytecode: bytes) -> str:
        """The first member that this kernel has not and that the bytecode uses all the same; empty: there is none."""
        for (number,) in _INSTRUCTION.iter_unpack(bytecode):
            at = (int(number) - ABSENT_MEMBER) // ABSENT_STEP
            if 0 <= at < len(self._absent):
                return self._absent[at]
        return ""

    def _structure(self, name: str) -> int:
        """Number of a type; what follows ___ tells apart what kernels make of one."""
        return self._btf.structure(name.partition("___")[0])

    def _from_btf(self, found: re.Match[str]) -> str:
        return str(self._value(found[1], found[2]))

    def _value(self, what: str, name: str) -> int:
        if what == "ENUM_EXISTS":
            return int(name in self._btf.enumerators)
        if what == "ENUM_VALUE":
            return self._btf.enumerators.get(name, 0)
        shift, bits = self._bit_fields.get(name, (0, 8))
        return shift if what == "SHIFT" else (1 << bits) - 1

    def _declared(self, statement: str) -> str:
        """One declaration. Enums vanish: their values are put in where they are used."""
        if statement.startswith("enum"):
            return ""
        head, brace, rest = statement.partition("{")
        if not brace:
            return f"{statement};"
        body, _, alias = rest.rpartition("}")
        name = alias.strip() or head.split()[-1]
        number = self._structure(name)
        members = self._btf.members(number) if number else {}
        parts = [f"u8 tocsin_size[{self._btf.size_bytes(number)}];"] if number else []
        checks = []
        for declaration in flat(body):
            part, check = self._placed(name if alias.strip() else f"struct {name}", declaration, members)
            parts.append(part)
            checks.append(check)
        return "\n".join([f"{head}{{ union {{", *parts, f"}}; }} {alias};", *checks])

    def _placed(self, struct_name: str, declaration: str, members: dict[str, Member]) -> tuple[str, str]:
        """A member behind its padding, and the check that it is where and what the kernel says."""
        found = _NAME.search(declaration)
        if found is None:
            raise KernelError(f"{struct_name}: {declaration!r} is no member: run `make build`")
        name, member = found[1], members.get(found[1])
        if member is None or not alike(declaration, member):
            self._absent.append(f"{struct_name}.{name}")
            at = ABSENT_MEMBER + (len(self._absent) - 1) * ABSENT_STEP
            return f"struct {{ u8 tocsin_before_{name}[{at}]; {declaration}; }};", ""
        at = member.bit_offset // 8
        if member.bits or found[2]:
            self._note_bits(name, member)
            return f"struct {{ u8 tocsin_before_{name}[{at}]; u8 {name}; }};", ""
        holds = f"__builtin_offsetof({struct_name}, {name}) == {at}"
        if member.scalar_bytes:
            holds += f" && sizeof((({struct_name} *)0)->{name}) <= {member.scalar_bytes}"
        check = f'_Static_assert({holds}, "{struct_name}.{name}: the kernel has it otherwise");'
        return f"struct {{ u8 tocsin_before_{name}[{at}]; {declaration}; }};", check

    def _note_bits(self, name: str, member: Member) -> None:
        place = member.bit_offset % 8, member.bits or 8
        if sum(place) > 8 or self._bit_fields.setdefault(name, place) != place:
            raise KernelError(f"bit-field {name}: {place[1]} bits from bit {place[0]} on, expected some of one byte")


def alike(declaration: str, member: Member) -> bool:
    """Whether both are a struct, or both a number or pointer: a kernel that has another kind has not this member."""
    by_value = declaration.startswith(("struct ", "union ")) and "*" not in declaration
    return not (by_value and member.scalar_bytes)


def statements(text: str) -> Iterator[str]:
    """The declarations of a text, without their semicolons; those within braces stay together."""
    begin = depth = 0
    for at, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == ";" and depth == 0:
            if statement := text[begin:at].strip():
                yield statement
            begin = at + 1


def flat(body: str) -> Iterator[str]:
    """Members of a struct's body; unnamed structs and unions are taken apart."""
    for member in statements(body):
        inner, brace, name = member.rpartition("}")
        if brace and not name.strip():
            yield from flat(inner.partition("{")[2])
        else:
            yield member
