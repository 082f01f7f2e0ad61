"""A FilterConfig as contents of the kernel's maps."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tocsin.api.event.v1 import event_pb2 as pb
from tocsin.config import FilterConfig
from tocsin.errors import ConfigError
from tocsin.kernel import acts, filters

NOTHING = FilterConfig(watch_paths=(), watch_names=(), watch_sockets=())
SETTINGS = struct.Struct("<QQII64I64I")


def test_every_type_that_the_kernel_tells_stands_in_one_class() -> None:
    in_user_space = {pb.EVENT_TYPE_UNSPECIFIED, pb.EVENT_TYPE_LOSS, pb.EVENT_TYPE_THROTTLED}
    assert set(pb.EventType.values()) - in_user_space == filters.TOLD
    assert sum(len(types) for types in filters.CLASSES.values()) == len(filters.TOLD)


def test_names_add_and_take_away_in_order() -> None:
    assert filters.wanted(()) == frozenset()
    assert filters.wanted(("all",)) == filters.TOLD
    assert filters.wanted(("all", "-file")) == filters.TOLD - filters.CLASSES["file"]
    assert filters.wanted(("-file", "EXEC", "FILE_WRITE")) == {pb.EVENT_TYPE_EXEC, pb.EVENT_TYPE_FILE_WRITE}


@pytest.mark.parametrize("name", ["exec", "FILES", "", "LOSS", "-all-"])
def test_a_name_that_is_none_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"known: process, .*EXEC"):
        filters.wanted((name,))


def test_settings_hold_types_limits_and_who_is_held_back_first() -> None:
    config = replace(NOTHING, limits=("FILE_WRITE=7", "dns=9"), exclude_uids=(1,), ignore_paths=("/x",))
    types = {pb.EVENT_TYPE_EXEC, pb.EVENT_TYPE_FILE_WRITE}
    wanted, quiet, own_pid, used, *limits = SETTINGS.unpack(
        filters.settings(config, types, 4711, 1 << 20)[: SETTINGS.size]
    )
    rates, rings = limits[:64], limits[64:]
    assert wanted == 1 << pb.EVENT_TYPE_EXEC | 1 << pb.EVENT_TYPE_FILE_WRITE
    assert quiet >> pb.EVENT_TYPE_FILE_WRITE & 1
    assert not quiet >> pb.EVENT_TYPE_EXEC & 1
    assert (own_pid, used) == (4711, filters.FILTER_UIDS | filters.FILTER_PATHS)
    assert (rates[pb.EVENT_TYPE_FILE_WRITE], rates[pb.EVENT_TYPE_DNS_QUERY], rates[pb.EVENT_TYPE_EXEC]) == (7, 9, 0)
    assert rings[pb.EVENT_TYPE_FILE_WRITE] < rings[pb.EVENT_TYPE_FORK] < 1 << 20
    assert rings[pb.EVENT_TYPE_EXEC] == rings[pb.EVENT_TYPE_CREDENTIALS] == 0


def test_own_events_are_told_when_they_are_asked_for() -> None:
    raw = filters.settings(replace(NOTHING, own_events=True), filters.TOLD, 1, 1 << 20)
    assert SETTINGS.unpack(raw[: SETTINGS.size])[1] == 0


@pytest.mark.parametrize("limit", ["FILE_WRITE", "FILE_WRITE=", "FILE_WRITE=-1", "=3", "NOBODY=3"])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(ConfigError):
        filters.settings(replace(NOTHING, limits=(limit,)), (), 0, 1 << 20)


def test_excluded_are_told_apart_by_kind(tmp_path: Path) -> None:
    config = replace(NOTHING, exclude_uids=(1000,), exclude_comms=("cron",), exclude_cgroups=(str(tmp_path),))
    uid, comm, cgroup = filters.excluded(config)
    assert uid == struct.pack("<II12x", 1, 1000)
    assert comm == struct.pack("<I16s", 2, b"cron")
    assert cgroup == struct.pack("<IQ8x", 4, tmp_path.stat().st_ino)


@pytest.mark.parametrize(
    "config",
    [
        replace(NOTHING, exclude_uids=(-1,)),
        replace(NOTHING, exclude_uids=(1 << 32,)),
        replace(NOTHING, exclude_comms=("x" * 16,)),
        replace(NOTHING, exclude_comms=("",)),
        replace(NOTHING, exclude_cgroups=("/nowhere/at/all",)),
    ],
)
def test_who_cannot_be_excluded_is_refused(config: FilterConfig) -> None:
    with pytest.raises(ConfigError, match=r"sensor\.filters\.exclude_"):
        list(filters.excluded(config))


def test_paths_are_beginnings_and_may_have_two_verdicts() -> None:
    verdicts = filters.path_verdicts(replace(NOTHING, ignore_paths=("/etc",), watch_paths=("/etc", "/etc/shadow")))
    assert verdicts[struct.pack("<I128s", 32, b"/etc")] == filters.IGNORE | filters.WATCH
    assert verdicts[struct.pack("<I128s", 88, b"/etc/shadow")] == filters.WATCH


@pytest.mark.parametrize("path", ["etc", "", "/" + "x" * 127, "/a\0b"])
def test_a_path_that_is_no_beginning_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"sensor\.filters\.watch_paths"):
        filters.path_verdicts(replace(NOTHING, watch_paths=(path,)))


def test_the_last_part_of_a_watched_path_is_looked_for() -> None:
    verdicts = filters.name_verdicts(replace(NOTHING, watch_paths=("/etc/shadow", "/etc/ssh/"), watch_names=("ssh",)))
    assert verdicts == {
        b"shadow".ljust(32, b"\0"): filters.ASK_PATH,
        b"ssh".ljust(32, b"\0"): filters.WATCH | filters.ASK_PATH,
    }


def test_what_nobody_wants_needs_no_program() -> None:
    for types in (set(), {pb.EVENT_TYPE_EXEC}):
        assert not acts.wanted_tellers(types)
        assert not acts.wanted_hooks(types)


def test_system_calls_have_the_numbers_of_both_tables() -> None:
    table = acts.numbers(acts.TELLERS, "x86_64")
    assert table[257][0] is acts.Act.OPENAT
    assert table[295][1] is acts.Act.OPENAT
    assert table[5] == (acts.Act.NONE, acts.Act.OPEN)
    assert table[87][0] is acts.Act.UNLINK
    assert acts.numbers(acts.TELLERS, "aarch64")[56][0] is acts.Act.OPENAT


def test_a_machine_that_is_not_known_is_named() -> None:
    with pytest.raises(Exception, match="riscv64"):
        acts.numbers(acts.TELLERS, "riscv64")


def test_types_without_their_tracepoint_are_named() -> None:
    wanted = filters.TOLD
    assert acts.untold(wanted, {hook.tracepoint for hook in acts.HOOKS}) == frozenset()
