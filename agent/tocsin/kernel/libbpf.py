"""libbpf, as far as the sensor needs it: open, load, attach, iterate, read maps.

Thin: each function is one of libbpf's, with its error turned into a KernelError.
"""

import ctypes
import os
import struct
from collections.abc import Collection, Iterator
from ctypes import CFUNCTYPE, POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError

SONAME: Final = "libbpf.so.1"
LOG_LINES: Final = 12
PROGRAM_NAME_BYTES: Final = 15
_PROGRAM_INFO: Final = struct.Struct("=64x16s128xQI4x")
"""struct bpf_prog_info: name, recursion_misses, verified_insns."""
BTF_POINTER, BTF_TYPEDEF, BTF_CONST, BTF_FUNC = 2, 8, 10, 12
LOG_BYTES: Final = 1 << 18
BPF_TRACE_ITER: Final = 28
_PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_FUNCTIONS: Final = (
    ("libbpf_set_print", c_void_p, (c_void_p,)),
    ("bpf_object__open_mem", c_void_p, (c_char_p, c_size_t, c_void_p)),
    ("bpf_object__load", c_int, (c_void_p,)),
    ("bpf_object__close", None, (c_void_p,)),
    ("bpf_object__next_program", c_void_p, (c_void_p, c_void_p)),
    ("bpf_object__find_map_by_name", c_void_p, (c_void_p, c_char_p)),
    ("bpf_program__name", c_char_p, (c_void_p,)),
    ("bpf_program__section_name", c_char_p, (c_void_p,)),
    ("bpf_program__set_autoload", c_int, (c_void_p, c_bool)),
    ("bpf_program__fd", c_int, (c_void_p,)),
    ("bpf_program__attach", c_void_p, (c_void_p,)),
    ("bpf_program__attach_cgroup", c_void_p, (c_void_p, c_int)),
    ("bpf_program__attach_iter", c_void_p, (c_void_p, c_void_p)),
    ("bpf_link__fd", c_int, (c_void_p,)),
    ("bpf_link__destroy", c_int, (c_void_p,)),
    ("bpf_map__fd", c_int, (c_void_p,)),
    ("bpf_map__set_max_entries", c_int, (c_void_p, c_uint32)),
    ("bpf_iter_create", c_int, (c_int,)),
    ("bpf_map_lookup_elem", c_int, (c_int, c_void_p, c_void_p)),
    ("bpf_map_update_elem", c_int, (c_int, c_void_p, c_void_p, c_uint64)),
    ("bpf_obj_get_info_by_fd", c_int, (c_int, c_void_p, POINTER(c_uint32))),
    ("bpf_prog_load", c_int, (c_int, c_char_p, c_char_p, c_char_p, c_size_t, c_void_p)),
    ("bpf_btf_load", c_int, (c_char_p, c_size_t, c_void_p)),
    ("bpf_raw_tracepoint_open", c_int, (c_char_p, c_int)),
    ("bpf_link_create", c_int, (c_int, c_int, c_int, c_void_p)),
    ("libbpf_num_possible_cpus", c_int, ()),
    ("btf__load_vmlinux_btf", c_void_p, ()),
    ("btf__find_by_name_kind", c_int, (c_void_p, c_char_p, c_uint32)),
    ("btf__type_by_id", POINTER(c_uint32), (c_void_p, c_uint32)),
    ("btf__name_by_offset", c_char_p, (c_void_p, c_uint32)),
)


@cache
def bpf() -> ctypes.CDLL:
    """The library. Raises KernelError where it is missing."""
    try:
        found = ctypes.CDLL(SONAME, use_errno=True)
    except OSError as error:
        raise KernelError(
            f"{SONAME} is missing ({error}): install libbpf1 (Debian, Ubuntu) or libbpf (Fedora)"
        ) from error
    for name, result, arguments in _FUNCTIONS:
        function = getattr(found, name)
        function.restype, function.argtypes = result, list(arguments)
    return found


class _Log:
    """What libbpf said last: the reason of a refusal."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._format = ctypes.CDLL(None).vsnprintf
        self._format.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
        self._callback = _PRINT(self._take)
        bpf().libbpf_set_print(ctypes.cast(self._callback, c_void_p))

    def _take(self, level: int, form: bytes, arguments: int) -> int:
        if level < 2:  # warnings; the rest is chatter
            text = ctypes.create_string_buffer(65536)
            self._format(text, len(text), form, arguments)
            self.lines += [line for line in text.value.decode(errors="replace").splitlines() if line.strip()]
            del self.lines[: -LOG_LINES * 4]
        return 0

    def tail(self) -> str:
        """The last lines, in one."""
        lines, self.lines = self.lines[-LOG_LINES:], []
        return " | ".join(lines)


@cache
def _log() -> _Log:
    return _Log()


class BpfObject:
    """An eBPF object in memory."""

    def __init__(self, raw: bytes, name: str) -> None:
        """Opens the object; nothing reaches the kernel yet."""
        _log()
        self.name = name
        self._raw = raw  # libbpf reads from it until load
        self._object = bpf().bpf_object__open_mem(raw, len(raw), None)
        if not self._object:
            raise KernelError(f"{name}: not an eBPF object: {os.strerror(ctypes.get_errno())}; {_log().tail()}")
        self._links: list[int] = []
        self._kept: set[str] = set()

    def resize(self, map_name: str, max_entries: int) -> None:
        """Sets the size of a map, before load."""
        bpf().bpf_map__set_max_entries(self._map(map_name), max_entries)

    def load(self) -> None:
        """Verifies and loads all programs and maps."""
        code = bpf().bpf_object__load(self._object)
        if code:
            kernel = os.uname().release
            why = os.strerror(-code)
            raise KernelError(f"{self.name}: kernel {kernel} refuses the eBPF programs: {why}; {_log().tail()}")

    def keep_only(self, names: Collection[str]) -> None:
        """Leaves every other program out, before load."""
        for name, _, pointer in self.programs():
            bpf().bpf_program__set_autoload(pointer, name in names)
            if name in names:
                self._kept.add(name)

    def programs(self) -> Iterator[tuple[str, str, int]]:
        """(name, section, pointer) of each program."""
        pointer = None
        while pointer := bpf().bpf_object__next_program(self._object, pointer):
            yield (
                bpf().bpf_program__name(pointer).decode(),
                bpf().bpf_program__section_name(pointer).decode(),
                pointer,
            )

    def attach(self, names: Collection[str], cgroup: Path | None = None) -> dict[str, int]:
        """Attaches programs, those for cgroups to `cgroup`; link descriptors by name. Iterators do not run yet."""
        out: dict[str, int] = {}
        for name, section, pointer in self.programs():
            if name not in names:
                continue
            link = _attach(pointer, section, cgroup)
            if not link:
                why = os.strerror(ctypes.get_errno())
                raise KernelError(f"{self.name}: cannot attach {name} ({section}): {why}; {_log().tail()}")
            self._links.append(link)
            out[name] = bpf().bpf_link__fd(link)
        return out

    def program_fds(self) -> dict[str, int]:
        """Descriptors of the programs by name, after load."""
        return {name: bpf().bpf_program__fd(pointer) for name, _, pointer in self.programs() if name in self._kept}

    def map_fd(self, name: str) -> int:
        """Descriptor of a map, after load."""
        return int(bpf().bpf_map__fd(self._map(name)))

    def close(self) -> None:
        """Destroys links and object. Descriptors that were duplicated stay."""
        for link in self._links:
            bpf().bpf_link__destroy(link)
        self._links.clear()
        bpf().bpf_object__close(self._object)

    def _map(self, name: str) -> int:
        found = bpf().bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise KernelError(f"{self.name}: has no map {name}: it does not belong to this version")
        return int(found)


def _attach(program: int, section: str, cgroup: Path | None) -> int | None:
    if section.startswith("iter"):
        link = bpf().bpf_program__attach_iter(program, None)
    elif section.startswith(("cgroup", "sockops")):
        fd = os.open(cgroup or "", os.O_RDONLY | os.O_DIRECTORY)
        try:
            link = bpf().bpf_program__attach_cgroup(program, fd)
        finally:
            os.close(fd)
    else:
        link = bpf().bpf_program__attach(program)
    return int(link) if link else None


@dataclass(frozen=True, slots=True)
class Program:
    """A program that stands in no object."""

    name: str
    license: str
    bytecode: bytes
    btf_fd: int
    """What describes its functions."""
    function_info: bytes
    """struct bpf_func_info of each function."""
    kind: int
    """enum bpf_prog_type."""
    place: int
    """enum bpf_attach_type."""
    attach_type: int = 0
    """Type in the kernel's BTF of what it is attached to."""
    flags: int = 0


class _LoadOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0, up to the log's buffer."""

    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_char_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


def load_program(program: Program) -> int:
    """Verifies and loads one program; its descriptor. Raises KernelError with the verifier's last words."""
    text = ctypes.create_string_buffer(LOG_BYTES)
    options = _LoadOptions(
        sz=ctypes.sizeof(_LoadOptions),
        expected_attach_type=program.place,
        prog_btf_fd=program.btf_fd,
        prog_flags=program.flags,
        attach_btf_id=program.attach_type,
        func_info=program.function_info,
        func_info_cnt=len(program.function_info) // 8,
        func_info_rec_size=8,
        log_size=LOG_BYTES,
        log_buf=ctypes.addressof(text),
    )
    count = len(program.bytecode) // 8
    names = program.name[:15].encode(), program.license.encode()
    fd = int(bpf().bpf_prog_load(program.kind, *names, program.bytecode, count, byref(options)))
    if fd < 0:
        lines = " | ".join(text.value.decode(errors="replace").splitlines()[-LOG_LINES:])
        raise KernelError(f"kernel {os.uname().release} refuses {program.name}: {os.strerror(-fd)}; {lines}")
    return fd


def load_btf(raw: bytes) -> int:
    """Gives the kernel a description of functions; its descriptor."""
    return _made(bpf().bpf_btf_load(raw, len(raw), None), "describe functions to the kernel")


def link_tracepoint(program_fd: int) -> int:
    """Attaches a tp_btf program; the link's descriptor."""
    return _made(bpf().bpf_raw_tracepoint_open(None, program_fd), "attach to a tracepoint")


def link_iterator(program_fd: int) -> int:
    """Makes an iterator of a program; the link's descriptor."""
    return _made(bpf().bpf_link_create(program_fd, 0, BPF_TRACE_ITER, None), "make an iterator")


def link_cgroup(program_fd: int, place: int, cgroup: Path) -> int:
    """Attaches a program to a control group, at an enum bpf_attach_type; the link's descriptor."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return _made(bpf().bpf_link_create(program_fd, directory, place, None), f"attach to {cgroup}")
    finally:
        os.close(directory)


def _made(fd: int, what: str) -> int:
    if fd < 0:
        raise KernelError(f"cannot {what}: {os.strerror(-fd)}")
    return fd


def has_tracepoints(texts: Collection[str]) -> set[str]:
    """Those of the tracepoints that the running kernel's BTF has.

    A text is a name, or name and arguments as far as they matter: `sched_process_exit(task_struct *, bool)`; of an
    argument `_` any type will do.
    """
    return {text for text in texts if _has_tracepoint(_vmlinux(), text)}


def has_function(name: str) -> bool:
    """Whether the running kernel's BTF has a function; a helper is one."""
    found: int = bpf().btf__find_by_name_kind(_vmlinux(), name.encode(), BTF_FUNC)
    return found > 0


@cache
def _vmlinux() -> int:
    btf = bpf().btf__load_vmlinux_btf()
    if not btf:
        raise KernelError(f"cannot read the kernel's BTF: {os.strerror(ctypes.get_errno())}")
    return int(btf)


def _has_tracepoint(btf: int, text: str) -> bool:
    name, _, arguments = text.rstrip(")").partition("(")
    number = bpf().btf__find_by_name_kind(btf, f"btf_trace_{name}".encode(), BTF_TYPEDEF)
    if number <= 0 or not arguments:
        return bool(number > 0)
    expected = arguments.split(", ")
    got = _argument_types(btf, number)
    return len(got) >= len(expected) and all(e in ("_", g) for e, g in zip(expected, got, strict=False))


def _argument_types(btf: int, number: int) -> list[str]:
    """Of a tracepoint: its type is a pointer to a function, whose first argument is not the tracepoint's."""
    pointer = bpf().btf__type_by_id(btf, number)[2]
    function = bpf().btf__type_by_id(btf, bpf().btf__type_by_id(btf, pointer)[2])
    return [_type_name(btf, function[3 + 2 * i + 1]) for i in range(1, function[1] & 0xFFFF)]


def _type_name(btf: int, number: int) -> str:
    """As C has it, without struct and const. struct btf_type: name, info, type or size."""
    if number == 0:
        return "void"
    name, info, kind_or_size = bpf().btf__type_by_id(btf, number)[:3]
    kind = info >> 24 & 0x1F
    if kind == BTF_POINTER:
        return f"{_type_name(btf, kind_or_size)} *"
    if kind == BTF_CONST:
        return _type_name(btf, kind_or_size)
    found: bytes = bpf().btf__name_by_offset(btf, name)
    return found.decode()


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a loaded program."""

    name: str
    """Cut at PROGRAM_NAME_BYTES."""
    skipped: int
    """How often it was not run, as it was running on that CPU already; since Linux 5.12, else 0."""
    verified: int
    """Instructions that the verifier went through; since Linux 5.16, else 0."""


def program_info(fd: int) -> ProgramInfo:
    """Asks about a program. Raises KernelError."""
    raw = ctypes.create_string_buffer(_PROGRAM_INFO.size)
    size = c_uint32(_PROGRAM_INFO.size)
    if bpf().bpf_obj_get_info_by_fd(fd, raw, byref(size)):
        raise KernelError(f"cannot ask about program descriptor {fd}: {os.strerror(ctypes.get_errno())}")
    name, skipped, verified = _PROGRAM_INFO.unpack(raw.raw)
    return ProgramInfo(name.rstrip(b"\0").decode(), skipped, verified)


def max_entries(map_fd: int) -> int:
    """Size of a map. struct bpf_map_info: type, id, key_size, value_size, max_entries."""
    info = (c_uint32 * 64)()
    size = c_uint32(ctypes.sizeof(info))
    if bpf().bpf_obj_get_info_by_fd(map_fd, info, byref(size)):
        raise KernelError(f"cannot ask about map descriptor {map_fd}: {os.strerror(ctypes.get_errno())}")
    return int(info[4])


def lookup(map_fd: int, value_bytes: int, *, per_cpu: bool = False) -> list[bytes]:
    """Value of key 0: one, or one for each possible CPU."""
    copies = int(bpf().libbpf_num_possible_cpus()) if per_cpu else 1
    value = ctypes.create_string_buffer(value_bytes * copies)
    if bpf().bpf_map_lookup_elem(map_fd, byref(c_uint32(0)), value):
        raise KernelError(f"cannot read map descriptor {map_fd}: {os.strerror(ctypes.get_errno())}")
    return [value.raw[i * value_bytes : (i + 1) * value_bytes] for i in range(copies)]


def update(map_fd: int, value: bytes, key: bytes = bytes(4)) -> None:
    """Sets the value of a key. A map of programs takes their descriptors."""
    if bpf().bpf_map_update_elem(map_fd, key, value, 0):
        raise KernelError(f"cannot write map descriptor {map_fd}: {os.strerror(ctypes.get_errno())}")


def run_iterator(link_fd: int) -> bytes:
    """Runs an iterator to its end; what it wrote."""
    fd = bpf().bpf_iter_create(link_fd)
    if fd < 0:
        raise KernelError(f"cannot run an iterator: {os.strerror(ctypes.get_errno())}")
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.read()
