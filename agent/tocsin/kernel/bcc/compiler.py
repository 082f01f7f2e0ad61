"""Compiles one C text with BCC's own compiler; the bytecode goes to stdout.

    python compiler.py FOLDER < TEXT > BYTECODE

A program of its own that imports nothing of Tocsin: a hundred megabytes of
compiler leave with it, and what it cannot compile may abort it. FOLDER stands
in for the kernel's headers. The text has one function, `programs`, in whose
section all of them stand. Of BCC's headers only the last is kept, which
declares a licence: none knows this kernel.
"""

import ctypes
import os
import struct
import sys
from ctypes import c_bool, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Final

LIBRARY: Final = "libbcc.so.0"
FUNCTION: Final = b"programs"
END_INSTRUCTIONS: Final = 2
"""Of the function that does nothing but return: it is the last."""
EXIT_NO_LIBRARY: Final = 3
_OPTIONS: Final = (b"-D__BPF_HELPERS_H", b"-D_UAPI__LINUX_BPF_H__", b"-Wno-everything")
_CALL: Final = struct.Struct("<BBhi")
_CALL_FUNCTION: Final = (0x85, 0x10)
"""Operation and registers of a call of a function in the same section."""


def compiled(text: bytes) -> bytes:
    """The bytecode of the function's section; empty: the compiler has said why on stderr. Raises OSError."""
    bcc = ctypes.CDLL(LIBRARY)
    create, start, size = bcc.bpf_module_create_c_from_string, bcc.bpf_function_start, bcc.bpf_function_size
    create.restype, create.argtypes = c_void_p, [c_char_p, c_uint, ctypes.POINTER(c_char_p), c_int, c_bool, c_char_p]
    start.restype, start.argtypes = c_void_p, [c_void_p, c_char_p]
    size.restype, size.argtypes = c_size_t, [c_void_p, c_char_p]
    module = create(text, 0, (c_char_p * len(_OPTIONS))(*_OPTIONS), len(_OPTIONS), True, None)
    if not module:
        return b""
    entry = ctypes.string_at(start(module, FUNCTION), size(module, FUNCTION))
    return ctypes.string_at(start(module, FUNCTION), (called(entry)[-1] + END_INSTRUCTIONS) * _CALL.size)


def called(entry: bytes) -> list[int]:
    """Where the functions that the entry calls begin, in instructions, in the order of the calls."""
    calls = enumerate(_CALL.iter_unpack(entry))
    return [at + 1 + offset for at, (*operation, _, offset) in calls if tuple(operation) == _CALL_FUNCTION]


def main(folder: str) -> int:
    """0: done; 1: the text does not compile; EXIT_NO_LIBRARY."""
    os.environ["BCC_KERNEL_SOURCE"] = folder
    try:
        bytecode = compiled(sys.stdin.buffer.read())
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_NO_LIBRARY
    sys.stdout.buffer.write(bytecode)
    return 0 if bytecode else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
