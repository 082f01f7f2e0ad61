"""The background hasher: real files and processes; files that are gone, changed, replaced, too big or no files."""

import hashlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tocsin.enrich.hashes import (
    BLOCK_BYTES,
    Digests,
    Executable,
    Failure,
    FileKey,
    Hasher,
    Pace,
    Request,
    look_at,
)
from tocsin.enrich.mounts import Mount, find_mount, mount_of

CONTENT = b"\x7fELF" + bytes(range(256)) * 3000
NOBODY = 4194304  # above every pid that the kernel gives
WAIT_S = 10.0


def key_of(path: Path) -> FileKey:
    """As the kernel would tell it."""
    state = path.stat()
    dev = os.major(state.st_dev) << 20 | os.minor(state.st_dev)
    return FileKey(dev, state.st_ino, state.st_size, state.st_mtime_ns)


def request_of(path: Path, pid: int = NOBODY) -> Request:
    return Request(key_of(path), pid, bytes(path))


def digests_of(content: bytes) -> Digests:
    return Digests(*(hashlib.new(name, content).digest() for name in ("sha256", "sha1", "md5")))


def look(request: Request, max_file_bytes: int = 1 << 30) -> Executable:
    return look_at(request, max_file_bytes, Pace(1 << 40), lambda: False)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program"
    path.write_bytes(CONTENT)
    return path


@contextmanager
def running(hasher: Hasher) -> Iterator[Hasher]:
    hasher.start()
    try:
        yield hasher
    finally:
        hasher.stop()


def take(hasher: Hasher, count: int) -> list[Executable]:
    """That many answers, as they come."""
    answers: list[Executable] = []
    end_s = time.monotonic() + WAIT_S
    while len(answers) < count:
        assert select.select([hasher], [], [], end_s - time.monotonic())[0], f"got {len(answers)} of {count}"
        answers += hasher.take()
    return answers


def test_the_three_digests_of_a_file(program: Path) -> None:
    assert look(request_of(program)) == Executable(key_of(program), bytes(program), digests_of(CONTENT), of_host=True)


def test_a_file_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert look(request_of(tmp_path / "empty")).digests == digests_of(b"")


def test_a_file_whose_name_is_another_ones_now_is_read_through_its_process(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as process:
        try:
            request = request_of(program, process.pid)
            program.unlink()
            program.write_bytes(b"another program")
            answer = look(request)
            assert answer.digests == digests_of(Path("/bin/sleep").read_bytes())
            assert not answer.of_host
        finally:
            process.kill()


IN_A_CONTAINER = """
mount -t tmpfs none "$1" && cd "$1" && mkdir upper work root &&
mount -t overlay -o lowerdir="$2",upperdir=upper,workdir=work none root &&
grep " $1/root " /proc/self/mountinfo && exec root/program 60
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_program_in_a_container_is_known_by_its_overlays_device(tmp_path: Path) -> None:
    lower, top = tmp_path / "lower", tmp_path / "top"
    lower.mkdir()
    top.mkdir()
    program = lower / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    command = ["unshare", "--mount", "sh", "-c", IN_A_CONTAINER, "sh", str(top), str(lower)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                pytest.skip("this kernel or container does not let overlays be mounted")
            mount = find_mount([line], line.split()[0])
            assert mount is not None
            key = replace(key_of(program), dev=mount.dev)
            end_s = time.monotonic() + WAIT_S
            while not Path(f"/proc/{process.pid}/comm").read_text().startswith("program"):
                assert time.monotonic() < end_s
            seen = Path(f"/proc/{process.pid}/root{top}/root/program").stat()
            assert os.major(seen.st_dev) << 20 | os.minor(seen.st_dev) != mount.dev
            answer = look(Request(key, process.pid, bytes(top / "root/program")))
            assert answer.digests
            assert not answer.of_host
        finally:
            process.kill()


def test_a_file_that_is_gone(program: Path) -> None:
    request = request_of(program)
    program.unlink()
    assert look(request) == Executable(request.key, bytes(program), None, Failure.GONE)


def test_another_file_at_the_same_path_is_not_taken_for_it(program: Path, tmp_path: Path) -> None:
    request = request_of(program)
    other = tmp_path / "other"
    other.write_bytes(CONTENT[::-1])
    os.utime(other, ns=(1, request.key.mtime_ns))
    other.rename(program)
    assert look(request).failure is Failure.CHANGED


@pytest.mark.parametrize("change", [{"size_bytes": 1}, {"mtime_ns": 1}, {"inode": 1}, {"dev": 1}])
def test_each_part_of_the_key_counts(program: Path, change: dict[str, int]) -> None:
    request = request_of(program)
    assert look(replace(request, key=replace(request.key, **change))).failure is Failure.CHANGED


def while_reading(program: Path, act: Callable[[], object]) -> Executable:
    """Looks at the file, and does something to it after its first block."""
    acts = [act]

    def sleep(_seconds: float) -> None:
        if acts:
            acts.pop()()

    return look_at(request_of(program), 1 << 30, Pace(1, sleep), lambda: False)


def test_a_file_that_is_written_while_it_is_read(program: Path) -> None:
    assert len(CONTENT) > BLOCK_BYTES
    assert while_reading(program, lambda: program.write_bytes(CONTENT[::-1])).failure is Failure.CHANGED


def test_a_file_that_is_written_while_it_is_read_and_given_its_former_time(program: Path) -> None:
    mtime_ns = program.stat().st_mtime_ns

    def write() -> None:
        program.write_bytes(CONTENT[::-1])
        os.utime(program, ns=(mtime_ns, mtime_ns))

    assert while_reading(program, write).failure is Failure.CHANGED


def test_a_file_that_grows_while_it_is_read(program: Path) -> None:
    assert while_reading(program, lambda: program.write_bytes(CONTENT * 2)).failure is Failure.CHANGED


def test_a_file_that_shrinks_while_it_is_read(program: Path) -> None:
    assert while_reading(program, lambda: os.truncate(program, 10)).failure is Failure.CHANGED


def test_a_file_of_which_a_part_was_read_has_no_digest(program: Path) -> None:
    assert look_at(request_of(program), 1 << 30, Pace(1 << 40), lambda: True).digests is None


def test_a_file_above_the_limit_is_not_opened(program: Path) -> None:
    request = request_of(program)
    program.unlink()
    assert look(request, len(CONTENT) - 1).failure is Failure.TOO_BIG
    assert look(request, len(CONTENT)).failure is Failure.GONE


def test_a_pipe_in_place_of_the_file_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert look(request_of(tmp_path / "pipe")).failure is Failure.NOT_REGULAR


def test_a_path_that_is_none_is_not_opened() -> None:
    request = Request(FileKey(1, 2, 3, 4), NOBODY, b"memfd:x (deleted)")
    assert look(request).failure is Failure.GONE


def test_the_time_of_access_stays_as_it_was(program: Path) -> None:
    os.utime(program, ns=(1, program.stat().st_mtime_ns))
    assert look(request_of(program)).digests
    assert program.stat().st_atime_ns == 1


def test_a_mount_is_known_by_the_superblocks_device(program: Path) -> None:
    with program.open("rb") as file:
        mount = mount_of(file.fileno(), os.getpid())
    assert mount is not None
    assert mount.dev == key_of(program).dev
    assert not mount.may_hang


MOUNTINFO = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
210 21 0:45 / /mnt/data rw,relatime shared:9 master:2 - fuse.sshfs host:/ rw,user_id=0
22 21 0:46 /sub /srv rw - nfs4 host:/srv rw,vers=4.2
"""


@pytest.mark.parametrize(
    ("mount_id", "expected", "may_hang"),
    [("21", Mount(254 << 20, "ext4"), False), ("210", Mount(45, "fuse.sshfs"), True), ("22", Mount(46, "nfs4"), True)],
)
def test_mounts_that_may_hang_are_known_by_their_kind(mount_id: str, expected: Mount, may_hang: bool) -> None:
    found = find_mount(MOUNTINFO.splitlines(), mount_id)
    assert found == expected
    assert found.may_hang is may_hang


def test_a_mount_that_is_gone_is_not_known() -> None:
    assert find_mount(MOUNTINFO.splitlines(), "2") is None
    assert find_mount(MOUNTINFO.splitlines(), "") is None


def test_an_answer_comes_later_and_then_from_the_cache(program: Path) -> None:
    with running(Hasher()) as hasher:
        assert hasher.ask(request_of(program)) is None
        [answer] = take(hasher, 1)
        assert answer.digests == digests_of(CONTENT)
        assert hasher.ask(request_of(program)) is answer
        counters = hasher.counters()
    assert (counters.cache.hits, counters.hashed_files, counters.hashed_bytes) == (1, 1, len(CONTENT))
    assert (counters.waiting, counters.failures) == (0, {})


def test_a_file_that_is_asked_for_twice_is_read_once(program: Path) -> None:
    hasher = Hasher(queue_requests=1)
    hasher.ask(request_of(program))
    hasher.ask(request_of(program))
    assert (hasher.counters().waiting, hasher.counters().failures) == (1, {})
    with running(hasher):
        assert len(take(hasher, 1)) == 1


def test_who_asks_is_turned_away_when_too_many_files_wait(tmp_path: Path) -> None:
    hasher = Hasher(queue_requests=2)
    for number in range(5):
        assert hasher.ask(Request(FileKey(1, number, 3, 4), NOBODY, b"/none")) is None
    assert hasher.counters().failures == {Failure.QUEUE_FULL: 3}
    assert hasher.counters().waiting == 2
    with running(hasher):
        assert [answer.key.inode for answer in take(hasher, 2)] == [0, 1]


def test_a_thread_that_nobody_takes_answers_from_waits_and_ends_when_told() -> None:
    hasher = Hasher(queue_requests=1)
    with running(hasher):
        end_s = time.monotonic() + WAIT_S
        number = 0
        while Failure.QUEUE_FULL not in hasher.counters().failures:
            number += 1
            hasher.ask(Request(FileKey(1, number, 3, 4), NOBODY, b"/none"))
            assert time.monotonic() < end_s


def test_a_passing_failure_is_looked_at_again_and_a_lasting_one_is_not(program: Path) -> None:
    gone = Request(replace(key_of(program), inode=1), NOBODY, b"/none")
    with running(Hasher(max_file_bytes=len(CONTENT) - 1)) as hasher:
        hasher.ask(request_of(program))
        hasher.ask(replace(gone, key=replace(gone.key, size_bytes=1)))
        too_big, _ = take(hasher, 2)
        assert hasher.ask(request_of(program)) is too_big
        assert hasher.ask(replace(gone, key=replace(gone.key, size_bytes=1))) is None
        take(hasher, 1)
        assert hasher.counters().failures == {Failure.TOO_BIG: 1, Failure.GONE: 2}


def test_the_thread_ends_in_the_middle_of_a_slow_file(program: Path) -> None:
    with running(Hasher(bytes_per_s=1000)) as hasher:
        hasher.ask(request_of(program))
        time.sleep(0.2)
        start_s = time.monotonic()
    assert time.monotonic() - start_s < 0.5


def test_the_thread_has_the_lowest_priority_and_the_caller_keeps_its_own(program: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with running(Hasher()) as hasher:
        hasher.ask(request_of(program))
        take(hasher, 1)
        thread_id = hasher._thread.native_id
        assert thread_id
        assert os.getpriority(os.PRIO_PROCESS, thread_id) == 19
        told = subprocess.run(["ionice", "-p", str(thread_id)], capture_output=True, text=True, check=True)
        assert told.stdout == "idle\n"
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_the_pace_is_held_with_a_short_burst() -> None:
    now_s = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        now_s[0] += seconds

    pace = Pace(1000, sleep, lambda: now_s[0])
    pace.spend(500)
    pace.spend(500)
    now_s[0] += 60
    pace.spend(100)
    pace.spend(50)
    assert slept == [0.5, 0.5, 0.05]
