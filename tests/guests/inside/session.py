"""What is done in a guest: load the programs as the agent does, ask for the verifier's work, then run tests/kernel.

session.py RESULTS [OPTION...]: writes one JSON object a line to the file RESULTS; the options are pytest's.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tocsin.config import SensorConfig
from tocsin.errors import KernelError
from tocsin.kernel import filters, libbpf
from tocsin.kernel.core import choose, object_name, open_core
from tocsin.kernel.objects import read_object

ROOT: Final = Path(__file__).parents[3]
TEXT_CHARACTERS: Final = 2000
EXIT_REFUSED: Final = 20
BPF_LOG_STATS: Final = 4
LOG_BYTES: Final = 4096
PYTEST: Final = ("--quiet", "--tb=short", "--color=no", "-p", "no:cacheprovider", "tests/kernel")
# No kernel makes a difference to the first two; the third needs modules, and the guests have none.
WITHOUT_FAMILIES: Final = tuple(
    f"--ignore=tests/kernel/test_{family}.py" for family in ("objects", "wire_layout", "netlink")
)
# Of 2,000 processes: minutes under emulation.
WITHOUT_STORM: Final = (
    "--deselect=tests/kernel/test_loss.py::test_the_shipped_ring_loses_nothing_of_2000_processes_and_counts_exactly"
)


class Results:
    """Lines for the host."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_NOCTTY)

    def tell(self, **line: object) -> None:
        """One line."""
        raw = json.dumps(line).encode() + b"\n"
        while raw:
            raw = raw[os.write(self._file, raw) :]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """pytest calls it after each phase of each test."""
        if report.when == "call" or not report.passed:
            self._tell_report(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be read is a failure too."""
        if report.failed:
            self._tell_report(report)

    def _tell_report(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        self.tell(test=report.nodeid, outcome=report.outcome, text=report.longreprtext[-TEXT_CHARACTERS:])


def measure(results: Results) -> bool:
    """Loads as the agent does and tells the cost, or else what the kernel says to each program; True: it loaded."""
    before = time.monotonic()
    try:
        source = open_core(SensorConfig(), [])
    except KernelError as error:
        results.tell(refusal=str(error))
        load_each(results)
        return False
    results.tell(load_seconds=round(time.monotonic() - before, 3))
    counts = dict(verified_instructions())
    source.close()
    if any(counts.values()):
        results.tell(instructions=counts)
    else:
        load_each(results)
    return True


def verified_instructions() -> Iterator[tuple[str, int]]:
    """Name of each loaded program and how many instructions the verifier went through; 0 where it does not say."""
    number = ctypes.c_uint32(0)
    while libbpf.bpf().bpf_prog_get_next_id(number, ctypes.byref(number)) == 0:
        fd = libbpf.bpf().bpf_prog_get_fd_by_id(number)
        found = libbpf.program_info(fd)
        os.close(fd)
        yield found.name, found.verified


def load_each(results: Results) -> None:
    """Loads each program that the agent would load, without the others; tells what the verifier says."""
    opened = libbpf.BpfObject(read_object(object_name()), object_name())
    chosen = choose(filters.wanted(SensorConfig().filters.events)).programs
    names = [name for name, _, _ in opened.programs() if name in chosen]
    opened.close()
    for name in names:
        load_alone(results, name)


def load_alone(results: Results, wanted: str) -> None:
    """Tells the verifier's last words to one program, and the refusal, empty when it loads."""
    opened = libbpf.BpfObject(read_object(object_name()), object_name())
    log, refusal = ctypes.create_string_buffer(LOG_BYTES), ""
    for name, _, number in opened.programs():
        program = ctypes.c_void_p(number)
        if name == wanted:
            libbpf.bpf().bpf_program__set_log_level(program, BPF_LOG_STATS)
            libbpf.bpf().bpf_program__set_log_buf(program, log, ctypes.c_size_t(LOG_BYTES))
        else:
            libbpf.bpf().bpf_program__set_autoload(program, ctypes.c_bool(False))
    try:
        opened.load()
    except KernelError as error:
        refusal = str(error)
    results.tell(program=wanted, log=log.value.decode(errors="replace"), refusal=refusal)
    opened.close()


def main() -> int:
    """pytest's exit code, or EXIT_REFUSED."""
    results = Results(sys.argv[1])
    results.tell(release=os.uname().release)
    if not measure(results):
        return EXIT_REFUSED
    os.chdir(ROOT)
    return int(pytest.main([*PYTEST, *WITHOUT_FAMILIES, WITHOUT_STORM, *sys.argv[2:]], plugins=[results]))


sys.exit(main())
