"""Takes the compiled section apart and puts each program together with the functions that it calls.

Each program gets a description of its functions (BTF): the kernel verifies a
global function once, for any arguments, and not anew at each call.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tocsin.errors import KernelError
from tocsin.kernel.bcc.compiler import called
from tocsin.kernel.bcc.text import Function, Text
from tocsin.kernel.btf import FUNC, FUNC_PROTO, INT, MAGIC, POINTER

_INSTRUCTION: Final = struct.Struct("<BBhi")
INSTRUCTION_BYTES: Final = _INSTRUCTION.size
_CALL, _LOAD_WIDE = 0x85, 0x18
_OF_FUNCTION, _OF_MAP = 1, 1
"""Marks in the upper half of an instruction's registers."""
_GLOBAL_LINKAGE: Final = 1
_SIZES: Final = {"_Bool": 1, "u8": 1, "u16": 2, "u32": 4, "u64": 8, "int": 4}
_POINTER_ID: Final = 1
"""Of the only pointer type: a program's context."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A program that can be loaded, but for the descriptors of its maps."""

    name: str
    section: str
    bytecode: bytes
    functions: tuple[tuple[int, str], ...]
    """First instruction and name of each function in it."""


def link(text: Text, bytecode: bytes) -> dict[str, Linked]:
    """Every program by name. Raises KernelError when the bytecode is not what the text has to become."""
    starts = called(bytecode[: called(bytecode)[0] * INSTRUCTION_BYTES])
    if len(starts) != len(text.functions) + 1 or any(first >= then for first, then in pairwise(starts)):
        raise KernelError(f"BCC made {len(starts) - 1} functions in another order, expected {len(text.functions)}")
    parts = {
        begin: _Part(function, bytecode[begin * INSTRUCTION_BYTES : end * INSTRUCTION_BYTES])
        for function, (begin, end) in zip(text.functions, pairwise(starts), strict=True)
    }
    return {part.function.name: _linked(begin, parts) for begin, part in parts.items() if part.function.section}


@dataclass(frozen=True, slots=True)
class _Part:
    function: Function
    bytecode: bytes


def _linked(program: int, parts: Mapping[int, _Part]) -> Linked:
    """`program` and the keys of `parts`: where a function begins in the section."""
    order = [program]
    for begin in order:
        order += {to: None for _, to in _calls(begin, parts) if to not in order}
    places: dict[int, int] = {}
    end = 0
    for begin in order:
        places[begin] = end
        end += len(parts[begin].bytecode) // INSTRUCTION_BYTES
    whole = bytearray(b"".join(parts[begin].bytecode for begin in order))
    for begin in order:
        for at, to in _calls(begin, parts):
            site = places[begin] + at
            struct.pack_into("<i", whole, site * INSTRUCTION_BYTES + 4, places[to] - site - 1)
    function = parts[program].function
    named = tuple((places[begin], parts[begin].function.name) for begin in order)
    return Linked(function.name, function.section, bytes(whole), named)


def _calls(begin: int, parts: Mapping[int, _Part]) -> list[tuple[int, int]]:
    """Instruction in the function, and what it calls. Raises KernelError for a call into nowhere."""
    found = []
    for at, (operation, registers, _, offset) in enumerate(_INSTRUCTION.iter_unpack(parts[begin].bytecode)):
        if operation == _CALL and registers >> 4 == _OF_FUNCTION:
            to = begin + at + 1 + offset
            if to not in parts:
                raise KernelError(f"BCC: {parts[begin].function.name} calls a function that is none of its own")
            found.append((at, to))
    return found


def with_maps(bytecode: bytes, fds: Sequence[int]) -> bytes:
    """The bytecode with descriptors in place of the numbers of maps."""
    whole = bytearray(bytecode)
    for at, (operation, registers, _, number) in enumerate(_INSTRUCTION.iter_unpack(bytecode)):
        if operation == _LOAD_WIDE and registers >> 4 == _OF_MAP:
            struct.pack_into("<i", whole, at * INSTRUCTION_BYTES + 4, fds[number])
    return bytes(whole)


def described(functions: Sequence[Function]) -> tuple[bytes, dict[str, int]]:
    """BTF of the functions, and the type of each by name."""
    strings, types = bytearray(b"\0"), bytearray()
    ids: dict[str, int] = {}
    count = 0

    def name(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text) - 1

    def add(raw: bytes) -> int:
        nonlocal count
        types.extend(raw)
        count += 1
        return count

    add(struct.pack("<III", 0, POINTER << 24, 0))
    numbers = {kind: add(struct.pack("<IIII", name(kind), INT << 24, size, 8 * size)) for kind, size in _SIZES.items()}
    for each in functions:
        arguments = [
            struct.pack("<II", name(text), _POINTER_ID if each.section else numbers[kind])
            for kind, text in each.arguments
        ]
        head = struct.pack("<III", 0, FUNC_PROTO << 24 | len(arguments), numbers[each.result])
        prototype = add(head + b"".join(arguments))
        ids[each.name] = add(struct.pack("<III", name(each.name), FUNC << 24 | _GLOBAL_LINKAGE, prototype))
    head = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings))
    return head + bytes(types) + bytes(strings), ids


def function_info(program: Linked, ids: Mapping[str, int]) -> bytes:
    """struct bpf_func_info of each function of a program."""
    return b"".join(struct.pack("<II", at, ids[name]) for at, name in program.functions)
