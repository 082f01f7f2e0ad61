"""What the source bcc does to text and bytecode, without a kernel and without BCC."""

import struct

import pytest

from tocsin.errors import KernelError
from tocsin.kernel.bcc.layout import ABSENT_MEMBER, Layout
from tocsin.kernel.bcc.linker import described, link, with_maps
from tocsin.kernel.bcc.text import Function, make_text
from tocsin.kernel.btf import ENUM, FUNC, INT, MAGIC, STRUCT, Btf

SOURCE = """
struct { int (*type)[27]; } events TOCSIN_SECTION(".maps");
struct { int (*type)[2]; } settings TOCSIN_SECTION(".maps");
TOCSIN_GLOBAL u64 put(u32 slot, u64 at)
{ struct settings *settings = bpf_map_lookup_elem(&settings, &slot); return at; }
TOCSIN_SECTION("tp_btf/sys_exit")
int on_exit(unsigned long long *ctx) { bpf_tail_call(ctx, &events, 1); return put(0, 0); }
"""
TYPES = """
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct task {
 int pid;
 unsigned int secure : 1;
 union { u32 low; u64 whole; };
 int missing;
};
enum kinds { third };
#pragma clang attribute pop
int x = TOCSIN_ENUM_EXISTS_third + TOCSIN_ENUM_VALUE_third + TOCSIN_ENUM_EXISTS_fourth;
int y = value >> TOCSIN_SHIFT_secure & TOCSIN_MASK_secure;
"""


def instruction(operation: int, registers: int = 0, number: int = 0) -> bytes:
    return struct.pack("<BBhi", operation, registers, 0, number)


CALL, EXIT, LOAD = 0x85, 0x95, 0x18


def kernel_types() -> Btf:
    """struct task of 16 bytes: pid at 0, a bit-field of one bit at bit 35, low and whole at 8; an enum: third = 2."""
    strings = b"\0task\0pid\0secure\0low\0whole\0int\0long\0third\0"

    def name(text: bytes) -> int:
        return strings.index(b"\0" + text + b"\0") + 1

    types = struct.pack("<IIII", name(b"int"), INT << 24, 4, 32) + struct.pack("<IIII", name(b"long"), INT << 24, 8, 64)
    types += struct.pack("<III", name(b"task"), 1 << 31 | STRUCT << 24 | 4, 16)
    types += struct.pack("<III", name(b"pid"), 1, 0) + struct.pack("<III", name(b"secure"), 1, 1 << 24 | 35)
    types += struct.pack("<III", name(b"low"), 1, 64) + struct.pack("<III", name(b"whole"), 2, 64)
    types += struct.pack("<III", 0, ENUM << 24 | 1, 4) + struct.pack("<II", name(b"third"), 2)
    return Btf(struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings)


def test_each_member_stands_where_the_kernel_has_it() -> None:
    text = Layout(kernel_types()).apply(TYPES)
    assert "struct { u8 tocsin_before_pid[0]; int pid; };" in text
    assert "struct { u8 tocsin_before_secure[4]; u8 secure; };" in text
    assert "struct { u8 tocsin_before_whole[8]; u64 whole; };" in text
    assert "u8 tocsin_size[16];" in text
    assert "sizeof(((struct task *)0)->low) <= 4" in text


def test_values_of_the_kernel_stand_in_the_text() -> None:
    text = Layout(kernel_types()).apply(TYPES)
    assert "int x = 1 + 2 + 0;" in text
    assert "int y = value >> 3 & 1;" in text


def test_bytecode_that_reads_a_missing_member_is_found() -> None:
    layout = Layout(kernel_types())
    layout.apply(TYPES)
    assert layout.absent_in(instruction(0x07, 1, 8)) == ""
    assert layout.absent_in(instruction(0x07, 1, ABSENT_MEMBER + 4)) == "struct task.missing"


def test_a_text_without_kernel_types_is_refused() -> None:
    with pytest.raises(KernelError, match="name no kernel types"):
        Layout(kernel_types()).apply("int x;")


def test_btf_of_another_kind_is_refused() -> None:
    with pytest.raises(KernelError, match="expected 0xeb9f"):
        Btf(bytes(64))
    with pytest.raises(KernelError, match="BTF is cut"):
        Btf(b"\x9f\xeb")


def test_maps_are_numbers_in_the_text_and_descriptors_in_the_bytecode() -> None:
    text = make_text(SOURCE)
    assert text.maps == ("events", "settings")
    assert "bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, 1), &slot)" in text.body
    assert "bpf_tail_call(ctx, (void *)bpf_pseudo_fd(1, 0), 1)" in text.body
    bytecode = instruction(LOAD, 0x11, 1) + instruction(0) + instruction(LOAD, 0x01, 1) + instruction(0)
    expected = instruction(LOAD, 0x11, 9) + instruction(0) + instruction(LOAD, 0x01, 1) + instruction(0)
    assert with_maps(bytecode, [8, 9]) == expected


def section(*, put: bytes = instruction(EXIT)) -> bytes:
    """An entry that calls put, on_exit and the end; on_exit calls put."""
    entry = instruction(CALL, 0x10, 3) + instruction(CALL, 0x10, 3) + instruction(CALL, 0x10, 4) + instruction(EXIT)
    return entry + put + instruction(CALL, 0x10, -2) + instruction(EXIT) + instruction(0xB7) + instruction(EXIT)


def test_a_program_is_put_together_with_what_it_calls() -> None:
    programs = link(make_text(SOURCE), section())
    assert set(programs) == {"on_exit"}
    assert programs["on_exit"].bytecode == instruction(CALL, 0x10, 1) + instruction(EXIT) + instruction(EXIT)
    assert programs["on_exit"].functions == ((0, "on_exit"), (2, "put"))
    assert programs["on_exit"].section == "tp_btf/sys_exit"


def test_a_call_into_nowhere_is_refused() -> None:
    with pytest.raises(KernelError, match="calls a function that is none of its own"):
        link(make_text(SOURCE), section(put=instruction(CALL, 0x10, 40)))


def test_a_section_with_other_functions_is_refused() -> None:
    text = make_text(SOURCE + 'TOCSIN_SECTION("tp_btf/sys_exit")\nint more(unsigned long long *ctx) { return 0; }')
    with pytest.raises(KernelError, match="BCC made 2 functions in another order, expected 3"):
        link(text, section())


def test_functions_are_described_as_btf_has_it() -> None:
    functions = [
        Function("put", "", "u64", (("u32", "slot"), ("u64", "at"))),
        Function("on_exit", "tp_btf/sys_exit", "int", (("unsigned long long", "ctx"),)),
    ]
    raw, ids = described(functions)
    assert {name: Btf(raw).id_of(FUNC, name) for name in ids} == ids
