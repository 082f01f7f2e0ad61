"""The programs as BCC compiled them; for those who load and attach they look like a libbpf.BpfObject.

BCC's own loader knows no programs whose arguments have types (tp_btf), so
libbpf loads what BCC compiled. Maps come from the object of the source `core`,
whose programs stay out: both have the same.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError
from tocsin.kernel import libbpf
from tocsin.kernel.bcc.linker import Linked, described, function_info, with_maps
from tocsin.kernel.bcc.text import Function
from tocsin.kernel.btf import FUNC, TYPEDEF, Btf

LICENSE: Final = "Dual BSD/GPL"
_TRACING, _CGROUP_SKB = 26, 8
_RAW_TRACEPOINT, _ITERATOR = 23, 28
_SLEEPABLE: Final = 1 << 4
_CGROUP_PLACES: Final = {"ingress": 0, "egress": 1}


class ProgramsRefusedError(KernelError):
    """The kernel does not verify some of the programs."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        """`reasons`: by the program's name."""
        super().__init__("; ".join(reasons.values()))
        self.names = frozenset(reasons)


class BccObject:
    """Compiled programs and, once loaded, their maps and descriptors."""

    def __init__(  # noqa: PLR0917 - what compile_programs found out
        self,
        maps: libbpf.BpfObject,
        programs: Mapping[str, Linked],
        unusable: Mapping[str, str],
        functions: Sequence[Function],
        map_names: Collection[str],
        btf: Btf,
    ) -> None:
        """`maps`: the object of the source `core`, opened. `unusable`: what must not be loaded, and why.

        `map_names`: by the numbers that stand for them.
        """
        self._maps = maps
        self._programs = programs
        self._unusable = unusable
        self._functions = functions
        self._map_names = map_names
        self._btf = btf
        self._kept: frozenset[str] = frozenset()
        self._fds: dict[str, int] = {}
        self._links: list[int] = []

    def resize(self, map_name: str, max_entries: int) -> None:
        """Sets the size of a map, before load."""
        self._maps.resize(map_name, max_entries)

    def keep_only(self, names: Collection[str]) -> None:
        """Leaves every other program out, before load. Those of other kernels are not there."""
        self._kept = frozenset(names) & self._programs.keys()

    def load(self) -> None:
        """Makes the maps and loads the programs. Raises ProgramsRefusedError for all that the kernel refuses."""
        self._maps.keep_only(())
        self._maps.load()
        map_fds = [self.map_fd(name) for name in self._map_names]
        functions, ids = described(self._functions)
        btf_fd = libbpf.load_btf(functions)
        refused = {name: why for name, why in self._unusable.items() if name in self._kept}
        for name in sorted(self._kept - refused.keys()):
            linked = self._programs[name]
            bytecode, info = with_maps(linked.bytecode, map_fds), function_info(linked, ids)
            program = libbpf.Program(name, LICENSE, bytecode, btf_fd, info, **self._kind(linked.section))
            try:
                self._fds[name] = libbpf.load_program(program)
            except KernelError as error:
                refused[name] = str(error)
        os.close(btf_fd)
        if refused:
            raise ProgramsRefusedError(refused)

    def _kind(self, section: str) -> dict[str, int]:
        """What the section says of the program: type, place, flags, type of what it is attached to."""
        kind, _, place = section.partition("/")
        if kind == "cgroup_skb":
            return {"kind": _CGROUP_SKB, "place": _CGROUP_PLACES[place]}
        if kind == "tp_btf":
            return {
                "kind": _TRACING,
                "place": _RAW_TRACEPOINT,
                "attach_type": self._type(TYPEDEF, f"btf_trace_{place}"),
            }
        return {
            "kind": _TRACING,
            "place": _ITERATOR,
            "attach_type": self._type(FUNC, f"bpf_iter_{place}"),
            "flags": _SLEEPABLE if kind.endswith(".s") else 0,
        }

    def _type(self, kind: int, name: str) -> int:
        found = self._btf.id_of(kind, name)
        if not found:
            raise KernelError(f"this kernel ({os.uname().release}) has no {name}: it is too old")
        return found

    def program_fds(self) -> dict[str, int]:
        """Descriptors of the programs by name, after load."""
        return dict(self._fds)

    def map_fd(self, name: str) -> int:
        """Descriptor of a map, after load."""
        return self._maps.map_fd(name)

    def attach(self, names: Collection[str], cgroup: Path | None = None) -> dict[str, int]:
        """Attaches programs, those for cgroups to `cgroup`; link descriptors by name. Iterators do not run yet."""
        found: dict[str, int] = {}
        for name in sorted(self._kept.intersection(names)):
            kind, _, place = self._programs[name].section.partition("/")
            if kind == "cgroup_skb":
                found[name] = libbpf.link_cgroup(self._fds[name], _CGROUP_PLACES[place], cgroup or Path())
            elif kind == "tp_btf":
                found[name] = libbpf.link_tracepoint(self._fds[name])
            else:
                found[name] = libbpf.link_iterator(self._fds[name])
            self._links.append(found[name])
        return found

    def close(self) -> None:
        """Closes links, programs and maps. Descriptors that were duplicated stay."""
        for fd in (*self._links, *self._fds.values()):
            os.close(fd)
        self._links.clear()
        self._fds.clear()
        self._maps.close()
