"""Digests of executables, computed in the background, slowly, and only of the very file that was executed.

Who asks is never held up: the answer comes at once from the cache, or later by way of `take`. One thread of the lowest
priority opens, checks and reads, for a read cannot be told not to wait; what it is asked and what it answers goes
through bounded queues.

A file is found through its process, else by its path, and counts only if device, inode, size and time of change are
those that were asked for, before and after it was read. So a path that was replaced meanwhile gives an error, not a
wrong digest.
"""

import hashlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tocsin.enrich.cache import BoundedCache, CacheCounters
from tocsin.enrich.mounts import mount_of
from tocsin.enrich.priority import stand_back
from tocsin.enrich.reading import NotRegularError, locate, open_located

RATE_BYTES_PER_S: Final = 50_000_000
MAX_FILE_BYTES: Final = 256 << 20
QUEUE_REQUESTS: Final = 1024
CACHE_ENTRIES: Final = 16_384
CACHE_BYTES: Final = 8 << 20
ENTRY_BYTES: Final = 400
"""What a cached answer weighs beside its path."""
BLOCK_BYTES: Final = 256 << 10
BURST_S: Final = 0.1
STOP_TIMEOUT_S: Final = 1.0


class Failure(StrEnum):
    """Why a file has no digest."""

    QUEUE_FULL = "too many files wait"
    GONE = "gone before it was read"
    CHANGED = "changed since it was executed"
    TOO_BIG = "larger than the limit"
    NOT_REGULAR = "not a regular file"
    MAY_HANG = "on a file system that may hang"
    UNREADABLE = "cannot be read"


PASSING: Final = frozenset({Failure.QUEUE_FULL, Failure.GONE, Failure.CHANGED})
"""A later look at the same file may end otherwise: these are not remembered."""


@dataclass(frozen=True, slots=True)
class FileKey:
    """A file with a certain content."""

    dev: int
    """The superblock's: major << 20 | minor."""
    inode: int
    size_bytes: int
    mtime_ns: int
    """Since 1970."""


@dataclass(frozen=True, slots=True)
class Request:
    """A file to be hashed."""

    key: FileKey
    pid: int
    """A process that runs it, or ran it."""
    path: bytes
    """As that process saw it."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Of a file's content."""

    sha256: bytes
    sha1: bytes
    md5: bytes


@dataclass(frozen=True, slots=True)
class Executable:
    """The answer: digests, or why there are none."""

    key: FileKey
    path: bytes
    digests: Digests | None
    failure: Failure | None = None
    of_host: bool = False
    """The host has it at this path, so the host's package database speaks of it; a container's file is not."""


class HashError(Exception):
    """A file has no digest."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


class Pace:
    """Holds a rate: sleeps after what was done, so that a short act costs no waiting. For one thread."""

    def __init__(
        self,
        bytes_per_s: int,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._sleep = sleep
        self._clock = clock
        self._due_s = clock()

    def spend(self, size_bytes: int) -> None:
        """Returns when so many bytes more are within the rate, or within BURST_S of it."""
        now_s = self._clock()
        self._due_s = max(self._due_s, now_s - BURST_S) + size_bytes / self._bytes_per_s
        if self._due_s > now_s:
            self._sleep(self._due_s - now_s)


@dataclass(frozen=True, slots=True)
class HasherCounters:
    """Since the hasher was made."""

    cache: CacheCounters
    waiting: int
    """Files that are being looked at or wait for it."""
    hashed_files: int
    hashed_bytes: int
    failures: dict[Failure, int]


class Hasher:
    """Hashes files in a thread of its own. Everything here is called by one other thread."""

    def __init__(
        self,
        *,
        bytes_per_s: int = RATE_BYTES_PER_S,
        max_file_bytes: int = MAX_FILE_BYTES,
        queue_requests: int = QUEUE_REQUESTS,
    ) -> None:
        self._known: BoundedCache[FileKey, Executable] = BoundedCache(CACHE_ENTRIES, CACHE_BYTES)
        self._waiting: set[FileKey] = set()
        self._hashed_files = self._hashed_bytes = 0
        self._failures: Counter[Failure] = Counter()
        self._max_file_bytes = max_file_bytes
        self._requests: queue.Queue[Request | None] = queue.Queue(queue_requests)
        self._answers: queue.Queue[Executable] = queue.Queue(queue_requests)
        self._stopping = threading.Event()
        self._pace = Pace(bytes_per_s, self._stopping.wait)
        self._answered_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="hasher", daemon=True)

    def start(self) -> None:
        """Starts the thread; from now on the process is no longer single-threaded."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the block that it reads; one that hangs in a read is left to the process's end."""
        self._stopping.set()
        with suppress(queue.Full):  # then it takes a request, sees that it is to stop, and does
            self._requests.put_nowait(None)
        self._thread.join(STOP_TIMEOUT_S)
        if not self._thread.is_alive():
            os.close(self._answered_fd)

    def fileno(self) -> int:
        """Readable when there are answers to take."""
        return self._answered_fd

    def ask(self, request: Request) -> Executable | None:
        """The answer if it is known; else None, and `take` gives it later, unless too many files wait."""
        known = self._known.get(request.key)
        if known is not None or request.key in self._waiting:
            return known
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            self._failures[Failure.QUEUE_FULL] += 1
            return None
        self._waiting.add(request.key)
        return None

    def take(self) -> Iterator[Executable]:
        """The answers that have come since the last call, in the order of the questions."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._answered_fd)
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return
            self._note(answer)
            yield answer

    def counters(self) -> HasherCounters:
        """What was done, and what was not and why."""
        return HasherCounters(
            self._known.counters(), len(self._waiting), self._hashed_files, self._hashed_bytes, dict(self._failures)
        )

    def _note(self, answer: Executable) -> None:
        self._waiting.discard(answer.key)
        if answer.failure is None:
            self._hashed_files += 1
            self._hashed_bytes += answer.key.size_bytes
        else:
            self._failures[answer.failure] += 1
        if answer.failure not in PASSING:
            self._known.put(answer.key, answer, ENTRY_BYTES + len(answer.path))

    def _run(self) -> None:
        """The thread's life. When nobody takes answers it waits, requests pile up, and the next are turned away."""
        with suppress(OSError):  # a sandbox may forbid it: the pace still holds
            stand_back()
        while (request := self._requests.get()) is not None and not self._stopping.is_set():
            answer = look_at(request, self._max_file_bytes, self._pace, self._stopping.is_set)
            while not self._stopping.is_set():
                try:
                    self._answers.put(answer, timeout=STOP_TIMEOUT_S)
                except queue.Full:
                    continue
                os.eventfd_write(self._answered_fd, 1)
                break


def look_at(request: Request, max_file_bytes: int, pace: Pace, stopping: Callable[[], bool]) -> Executable:
    """Finds, checks and reads the file that was asked for. Takes as long as the pace says."""
    try:
        digests = _digests_of(request, max_file_bytes, pace, stopping)
    except HashError as error:
        return Executable(request.key, request.path, None, error.failure)
    return Executable(request.key, request.path, digests, of_host=_host_has(request))


def _digests_of(request: Request, max_file_bytes: int, pace: Pace, stopping: Callable[[], bool]) -> Digests:
    if request.key.size_bytes > max_file_bytes:
        raise HashError(Failure.TOO_BIG)
    try:
        fd = _open(request)
        try:
            changed_ns = os.fstat(fd).st_ctime_ns
            digests = _read(fd, request.key.size_bytes, pace, stopping)
            is_changed = os.fstat(fd).st_ctime_ns != changed_ns  # nobody can set this time
        finally:
            os.close(fd)
    except OSError as error:
        raise HashError(Failure.UNREADABLE) from error
    if is_changed:
        raise HashError(Failure.CHANGED)
    return digests


def _open(request: Request) -> int:
    """A readable descriptor of the very file. Raises HashError, OSError."""
    failure = Failure.GONE
    for path in _places(request):
        try:
            located = locate(path, follow=True)
        except NotRegularError:
            failure = Failure.NOT_REGULAR
            continue
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            continue
        try:
            if _is_asked(located, request):
                return open_located(located)
        finally:
            os.close(located)
        failure = Failure.CHANGED
    raise HashError(failure)


def _places(request: Request) -> Iterator[str | bytes]:
    """Where the file may be found; paths of the kernel begin with `/`, but for a memfd's or an unreachable file's."""
    yield f"/proc/{request.pid}/exe"
    if request.path.startswith(b"/"):
        yield b"/proc/%d/root%b" % (request.pid, request.path)
        yield request.path


def _is_asked(located: int, request: Request) -> bool:
    """Whether it is the very file. Raises HashError when it is, and must not be read."""
    state = os.fstat(located)
    if not _is_version(state, request.key):
        return False
    mount = mount_of(located, request.pid)
    if os.major(state.st_dev) << 20 | os.minor(state.st_dev) != request.key.dev and (
        mount is None or mount.dev != request.key.dev
    ):
        return False
    if mount is not None and mount.may_hang:
        raise HashError(Failure.MAY_HANG)
    return True


def _host_has(request: Request) -> bool:
    """Whether the path leads to the file from here too, and not only from the process."""
    if not request.path.startswith(b"/"):
        return False
    try:
        located = locate(request.path)
    except OSError:
        return False
    try:
        return _is_asked(located, request)
    except HashError:
        return False
    finally:
        os.close(located)


def _is_version(state: os.stat_result, key: FileKey) -> bool:
    return (state.st_ino, state.st_size, state.st_mtime_ns) == (key.inode, key.size_bytes, key.mtime_ns)


def _read(fd: int, size_bytes: int, pace: Pace, stopping: Callable[[], bool]) -> Digests:
    """Reads to the end. Raises HashError when there are more or fewer bytes than there should be."""
    sums = [hashlib.new(name, usedforsecurity=False) for name in ("sha256", "sha1", "md5")]
    block = memoryview(bytearray(BLOCK_BYTES))
    total_bytes = 0
    while count := os.readv(fd, [block]):
        total_bytes += count
        if total_bytes > size_bytes or stopping():
            break
        for each in sums:
            each.update(block[:count])
        pace.spend(count)
    if total_bytes != size_bytes:
        raise HashError(Failure.CHANGED)
    return Digests(*(each.digest() for each in sums))
