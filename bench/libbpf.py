"""The few calls of libbpf that measuring needs, by ctypes; errors are OSError.

Apart from the agent's own loader on purpose: what is measured must not share
the instrument's faults.
"""

import ctypes
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

STATS_RUN_TIME: Final = 0


TABLES: Final = {1, 9, 11}
"""BPF_MAP_TYPE_HASH, LRU_HASH and LPM_TRIE: entries come and go, and can be listed."""


class MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
    )


class TestRun(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


def library() -> ctypes.CDLL:
    """libbpf, with the types that are not int."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer = ctypes.c_void_p
    for name in ("bpf_object__open_file", "bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
        getattr(lib, name).restype = pointer
    lib.bpf_object__open_file.argtypes = [ctypes.c_char_p, pointer]
    for name in ("bpf_object__find_map_by_name", "bpf_object__find_program_by_name"):
        getattr(lib, name).argtypes = [pointer, ctypes.c_char_p]
    lib.bpf_map__reuse_fd.argtypes = [pointer, ctypes.c_int]
    for name in ("bpf_object__load", "bpf_object__close", "bpf_map__fd", "bpf_program__fd"):
        getattr(lib, name).argtypes = [pointer]
    lib.bpf_map_update_elem.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_uint64]
    lib.bpf_prog_test_run_opts.argtypes = [ctypes.c_int, pointer]
    lib.bpf_map_get_next_key.argtypes = [ctypes.c_int, pointer, pointer]
    lib.bpf_obj_get_info_by_fd.argtypes = [ctypes.c_int, pointer, pointer]
    lib.bpf_map_get_fd_by_id.argtypes = [ctypes.c_uint32]
    return lib


def checked(result: int | None, what: str) -> int:
    """The result. Raises OSError when it is an error of libbpf."""
    if result is None or result < 0:
        code = ctypes.get_errno() or (-result if result else 0)
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


class Object:
    """A loaded eBPF object whose map `events` is another one's. A context."""

    def __init__(self, path: Path, ring_fd: int) -> None:
        self._lib = library()
        opened = self._lib.bpf_object__open_file(bytes(path), None)
        self._object = ctypes.c_void_p(checked(opened, str(path)))
        ring = self._lib.bpf_object__find_map_by_name(self._object, b"events")
        checked(self._lib.bpf_map__reuse_fd(ring, ring_fd), "taking the agent's ring buffer")
        checked(self._lib.bpf_object__load(self._object), f"loading {path.name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._lib.bpf_object__close(self._object)

    def program_fd(self, name: bytes) -> int:
        """The descriptor of a program."""
        found = self._lib.bpf_object__find_program_by_name(self._object, name)
        return checked(self._lib.bpf_program__fd(found), name.decode())

    def update(self, name: bytes, key: int, value: bytes) -> None:
        """Sets one element of an array map."""
        found = self._lib.bpf_object__find_map_by_name(self._object, name)
        fd = checked(self._lib.bpf_map__fd(found), name.decode())
        number = ctypes.c_uint32(key)
        checked(self._lib.bpf_map_update_elem(fd, ctypes.byref(number), value, 0), f"{name.decode()}[{key}]")

    def run(self, program_fd: int, context: ctypes.Structure) -> None:
        """Runs a `syscall` program once; it reads and writes the context."""
        options = TestRun(sz=ctypes.sizeof(TestRun), ctx_size_in=ctypes.sizeof(context))
        options.ctx_in = ctypes.addressof(context)
        checked(self._lib.bpf_prog_test_run_opts(program_fd, ctypes.byref(options)), "running the producer")


def map_fd(map_id: int) -> int:
    """A descriptor of a map of the kernel; the caller closes it."""
    return checked(library().bpf_map_get_fd_by_id(map_id), f"map {map_id}")


def entries(map_id: int) -> int | None:
    """Entries of a hash table or trie; None for other maps, whose entries are not made and removed."""
    lib = library()
    fd = map_fd(map_id)
    try:
        info = MapInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        checked(lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), f"map {map_id}")
        if info.type not in TABLES:
            return None
        key = ctypes.create_string_buffer(info.key_size)
        count = 0
        before = None
        while count < info.max_entries and lib.bpf_map_get_next_key(fd, before, key) == 0:
            before = key
            count += 1
        return count
    finally:
        os.close(fd)


def enable_run_time_statistics() -> int:
    """The kernel measures every program until the descriptor is closed."""
    return checked(library().bpf_enable_stats(STATS_RUN_TIME), "measuring eBPF programs")


def held(pid: int) -> tuple[set[int], set[int]]:
    """What a process holds: ids of maps, and ids of programs (directly or by a link)."""
    maps: set[int] = set()
    programs: set[int] = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue  # closed in between
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        if "map_id" in values:
            maps.add(int(values["map_id"]))
        if "prog_id" in values:
            programs.add(int(values["prog_id"]))
    return maps, programs
