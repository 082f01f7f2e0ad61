"""The text that is compiled, from the programs' sources: what it has, and the entry by which it is found again.

All programs, and the functions that the verifier checks once for all of them,
stand in one section behind an entry function that calls each in turn: so the
bytecode itself tells where each begins. Maps are numbers, until they are made.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError

_MAP: Final = re.compile(r'struct \{[^{}]*\} (\w+) TOCSIN_SECTION\("\.maps"\);')
_PROGRAM: Final = re.compile(r'TOCSIN_SECTION\("([\w./]+)"\)\s+int (\w+)\(([\w ]+?) ?\*\w+')
_GLOBAL: Final = re.compile(r"TOCSIN_GLOBAL (\w+) (\w+)\(([^)]*)\)")
_MAP_USE: Final = r"(\bbpf_\w+\((?:\w+, )?)&({names})\b(?=\s*[,)])"
_END: Final = "tocsin_end"
_HEAD: Final = """
#define BCC_SEC(name) __attribute__((section(name), used))
#define TOCSIN_FUNCTION static __attribute__((noinline, used, section(".bpf.fn.programs")))
#define TOCSIN_GLOBAL
#define TOCSIN_SECTION(name)
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
u64 bpf_pseudo_fd(u64, u64) asm("llvm.bpf.pseudo");
"""


@dataclass(frozen=True, slots=True)
class Function:
    """A function of its own in the bytecode."""

    name: str
    section: str
    """tp_btf/NAME and the like; empty: a function that programs call."""
    result: str
    arguments: tuple[tuple[str, str], ...]
    """Type and name of each; a program has one, a pointer to its context of this type."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is to be compiled."""

    body: str
    """The programs. BCC rewrites what stands in its main text, so this is a file that the entry includes."""
    functions: tuple[Function, ...]
    """In the order of their definition."""
    maps: tuple[str, ...]
    """Their places here are the numbers that stand for them."""

    def entry(self, body_path: Path) -> str:
        """The main text: a function `programs` that calls all others, the last one an empty one behind them."""
        declared = (f"TOCSIN_FUNCTION {each.result} {each.name}({_parameters(each)});" for each in self.functions)
        structs = {kind for each in self.functions for kind, _ in each.arguments if kind.startswith("struct ")}
        calls = (f"\tresult = {each.name}({', '.join('0' for _ in each.arguments)});" for each in self.functions)
        end = f"TOCSIN_FUNCTION int {_END}(void)"
        lines = [_HEAD, *(f"{kind};" for kind in sorted(structs)), *declared, f"{end};"]
        lines += ["int programs(void *ctx)", "{", "\tvolatile u64 result;", *calls, f"\tresult = {_END}();"]
        lines += ["\treturn 0;", "}", f'#include "{body_path}"']
        lines += [f'{end} {{ asm volatile("" ::: "memory"); return 0; }}', ""]
        return "\n".join(lines)


def make_text(source: str) -> Text:
    """`source`: as it is laid out for the running kernel. Raises KernelError."""
    maps, functions = tuple(_MAP.findall(source)), tuple(functions_of(source))
    if not maps or not functions:
        raise KernelError("the programs' sources have no maps or no programs: run `make build`")
    uses = re.compile(_MAP_USE.format(names="|".join(maps)))
    body = uses.sub(lambda found: f"{found[1]}(void *)bpf_pseudo_fd(1, {maps.index(found[2])})", _MAP.sub("", source))
    return Text(body, functions, maps)


def _parameters(function: Function) -> str:
    pointer = "*" if function.section else ""
    return ", ".join(f"{kind} {pointer}{name}" for kind, name in function.arguments)


def functions_of(source: str) -> list[Function]:
    """Programs and global functions in the order of their definition."""
    found: list[tuple[int, Function]] = []
    for match in _PROGRAM.finditer(source):
        section, name, context = match.groups()
        found.append((match.start(), Function(name, section, "int", ((context, "ctx"),))))
    for match in _GLOBAL.finditer(source):
        result, name, arguments = match.groups()
        pairs = (argument.strip().rsplit(maxsplit=1) for argument in arguments.split(","))
        found.append((match.start(), Function(name, "", result, tuple((kind, text) for kind, text in pairs))))
    return [function for _, function in sorted(found, key=lambda each: each[0])]
