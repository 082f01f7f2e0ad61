"""Files that others write, read without being stopped, misled or flooded by them.

Nothing but a regular file is opened: a pipe could hold the reader for ever, a device could do worse. Checked on
a descriptor that opens nothing (O_PATH), so that the file cannot be another one by the time it is read.
"""

import os
import stat
from pathlib import Path


class NotRegularError(OSError):
    """The path names a directory, link, pipe, socket or device."""


class TooBigError(OSError):
    """The file holds more than the caller takes."""


def locate(path: str | bytes | Path, *, follow: bool = False) -> int:
    """A descriptor (O_PATH) of a regular file, which the caller closes. Raises OSError.

    `follow`: the last part may be a link, as /proc/<pid>/exe is.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotRegularError("not a regular file")
    return fd


def open_located(fd: int) -> int:
    """A readable descriptor of what `locate` found, which the caller closes. Raises OSError.

    Leaves the time of access as it is where this user may ask for that. Does not
    wait for whoever holds a lease on the file.
    """
    path = f"/proc/self/fd/{fd}"
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def read_whole(path: Path, max_bytes: int) -> bytes:
    """What the file holds. Raises TooBigError above `max_bytes`, OSError when it is not a readable regular file."""
    located = locate(path)
    try:
        fd = open_located(located)
    finally:
        os.close(located)
    with open(fd, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        content = file.read(max_bytes + 1) or b""
        while 0 < len(content) <= max_bytes and (more := file.read(max_bytes + 1 - len(content))):
            content += more
    if len(content) > max_bytes:
        raise TooBigError(f"{path}: more than {max_bytes} bytes")
    return content
