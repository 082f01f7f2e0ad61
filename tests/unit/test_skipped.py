"""Which events are missing when the kernel skipped a program."""

from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.kernel.libbpf import ProgramInfo
from tocsin.kernel.skipped import by_type


def skipped(name: str, count: int) -> ProgramInfo:
    return ProgramInfo(name, count, verified=1000)


def test_skips_of_a_program_count_for_the_type_that_it_tells() -> None:
    assert by_type([skipped("on_exec", 3), skipped("on_fork", 0), skipped("on_module_unloa", 2)]) == {
        pb.EVENT_TYPE_EXEC: 3,
        pb.EVENT_TYPE_MODULE_UNLOAD: 2,
    }


def test_skips_of_programs_that_tell_several_types_are_summed_without_one() -> None:
    assert by_type([skipped("on_syscall", 4), skipped("on_tcp_state", 5)]) == {pb.EVENT_TYPE_UNSPECIFIED: 9}


def test_a_program_that_tells_nothing_loses_nothing() -> None:
    assert by_type([skipped("on_free", 7)]) == {}
