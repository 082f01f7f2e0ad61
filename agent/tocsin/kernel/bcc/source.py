"""The source `bcc`: the programs of the source `core`, compiled on the host by BCC for the kernel that runs.

Where core's object is moved to this kernel by libbpf (CO-RE), here the text is:
the types are laid out as the kernel's BTF has them, and BCC compiles it. What
comes out is used only after it has proved itself: known acts are done, and every
field of what the programs say of them is compared. From there on it is core.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tocsin.api.event.v1.batch_pb2 import SOURCE_BCC
from tocsin.api.event.v1.event_pb2 import EventType
from tocsin.config import FilterConfig, SensorConfig
from tocsin.errors import KernelError, TocsinError
from tocsin.kernel import filters, libbpf
from tocsin.kernel.acts import Hook, Teller, wanted_hooks, wanted_tellers
from tocsin.kernel.bcc import compiler
from tocsin.kernel.bcc.layout import Layout
from tocsin.kernel.bcc.linker import Linked, link
from tocsin.kernel.bcc.loader import BccObject, ProgramsRefusedError
from tocsin.kernel.bcc.proof import PROVED, prove_fields
from tocsin.kernel.bcc.text import Text, make_text
from tocsin.kernel.btf import Btf, running_kernel
from tocsin.kernel.core import OBJECT, CoreSource, check_requirements, object_name, start
from tocsin.kernel.objects import read_object
from tocsin.kernel.proof import prove

SOURCE: Final = "sensor.bpf.i"
TIMEOUT_S: Final = 45.0
"""The monitor waits 60 s for a sensor."""
ERROR_LINES: Final = 8
PROOF_RING_BYTES: Final = 1 << 22
log = logging.getLogger("sensor")


@dataclass(frozen=True, slots=True)
class Compiled:
    """The programs for this kernel."""

    text: Text
    programs: dict[str, Linked]
    unusable: dict[str, str]
    """Why programs must not be loaded, by name."""
    btf: Btf

    def open(self, ring_bytes: int) -> BccObject:
        """A set of programs with maps of its own, not loaded yet."""
        maps = libbpf.BpfObject(read_object(OBJECT), OBJECT)
        maps.resize("events", ring_bytes)
        return BccObject(maps, self.programs, self.unusable, self.text.functions, self.text.maps, self.btf)


def open_bcc(config: SensorConfig, own_pid: int = 0) -> tuple[CoreSource, str]:
    """Compiles, proves, loads and attaches the programs; the source, and what it cannot see.

    Raises KernelError that says what is missing, or which field of which event is
    wrong; ConfigError for filters that make no sense.
    """
    types = filters.wanted(config.filters.events)
    check_requirements()
    if object_name() != OBJECT:
        raise KernelError(
            f"the source bcc needs Linux 5.12 or newer, this is {os.uname().release}: use core or netlink"
        )
    compiled = compile_programs(running_kernel())
    prove_apart(compiled)
    source, left_out = _started(compiled, config, types, own_pid)
    try:
        prove(source, types)
    except KernelError:
        source.close()
        raise
    return source, shortfall(types, left_out)


def resume_bcc(kept_fds: list[int]) -> CoreSource:
    """Goes on from the descriptors of an earlier handover."""
    return CoreSource(kept_fds, None, SOURCE_BCC)


def shortfall(types: frozenset[int], left_out: Collection[str]) -> str:
    """What is missing when these programs are left out, for status and doctor."""
    tellers: list[Teller | Hook] = [*wanted_tellers(types), *wanted_hooks(types)]
    told = {kind for teller in tellers if teller.program not in left_out for kind in teller.types}
    lost = {kind for teller in tellers if teller.program in left_out for kind in teller.types & types} - told
    names = sorted(EventType.Name(EventType.ValueType(kind)).removeprefix("EVENT_TYPE_") for kind in lost)
    of = f": nothing of {', '.join(names)}" if names else ""
    missing = f", without {', '.join(sorted(left_out))}{of}" if left_out else ""
    return f"the programs were compiled on this host by BCC{missing}"


def _started(
    compiled: Compiled, config: SensorConfig, types: frozenset[int], own_pid: int
) -> tuple[CoreSource, frozenset[str]]:
    """The source, and the programs that the kernel refuses. Raises KernelError when it refuses what all need."""
    left_out: frozenset[str] = frozenset()
    while True:
        loaded = compiled.open(config.ring_bytes)
        try:
            return CoreSource(start(loaded, config, types, own_pid, left_out), loaded, SOURCE_BCC), left_out
        except ProgramsRefusedError as refused:
            loaded.close()
            if left_out:
                raise
            log.warning("what BCC made of some programs is left out: %s", refused)
            left_out = refused.names
        except TocsinError:
            loaded.close()
            raise


def prove_apart(compiled: Compiled) -> None:
    """With a ring and filters of its own: what is done for the proof is told to nobody, nor kept from anybody."""
    config = SensorConfig(ring_bytes=PROOF_RING_BYTES, filters=FilterConfig(own_events=True))
    source, _ = _started(compiled, config, PROVED, 0)
    try:
        prove_fields(source)
    finally:
        source.close()


def compile_programs(btf: Btf) -> Compiled:
    """The programs of the package for the kernel with these types. Raises KernelError."""
    layout = Layout(btf)
    text = make_text(layout.apply(read_object(SOURCE).decode()))
    programs = link(text, compile_text(text))
    absent = {name: layout.absent_in(program.bytecode) for name, program in programs.items()}
    unusable = {
        name: f"{name} reads {member}, which this kernel has not: it is not loaded"
        for name, member in absent.items()
        if member
    }
    return Compiled(text, programs, unusable, btf)


def compile_text(text: Text) -> bytes:
    """The bytecode of a text. Raises KernelError with what BCC said."""
    with tempfile.TemporaryDirectory(prefix="tocsin-bcc-") as folder:
        kconfig, body = Path(folder, "include/linux/kconfig.h"), Path(folder, "programs.h")
        kconfig.parent.mkdir(parents=True)
        kconfig.touch()
        body.write_text(text.body)
        command = [sys.executable, "-I", compiler.__file__, folder]
        entry = text.entry(body).encode()
        try:
            done = subprocess.run(command, input=entry, capture_output=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise KernelError(f"BCC did not compile the programs within {TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    words = " | ".join(done.stderr.decode(errors="replace").strip().splitlines()[:ERROR_LINES])
    if done.returncode == compiler.EXIT_NO_LIBRARY:
        raise KernelError(f"{words}: install libbpfcc (Debian, Ubuntu) or bcc (Fedora)")
    raise KernelError(f"BCC does not compile the programs (exit {done.returncode}): {words}")
