"""What the kernel says when it sees an executable or a control group for the first time.

A record of the ring buffer `sightings`, in the host's byte order (both that are supported are little-endian):

    u8  tag           9: records that begin otherwise are left out by the ring's drain
    u8  padding
    u16 path_length
    u32 pid           of the process, in the initial pid namespace
    u64 cgroup_id     in the unified hierarchy
    u64 inode         of the executable; 0 when only the control group is new
    u64 size          of the executable, in bytes
    s64 mtime_ns      of the executable, since 1970
    u32 dev           of its superblock: major << 20 | minor
    u32 padding
    u8  path[path_length]
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tocsin.enrich.hashes import FileKey, Request
from tocsin.errors import WireError
from tocsin.records.framing import read_varint

RECORD: Final = struct.Struct("<BxHIQQQqI4x")
TAG: Final = 9
FRAME_TAG: Final = 0x0A


@dataclass(frozen=True, slots=True)
class Sighting:
    """Of a control group, and of an executable when it is new too."""

    pid: int
    cgroup_id: int
    executable: Request | None


def read_sighting(record: bytes) -> Sighting:
    """Decodes one record. Raises WireError when it is not of this layout."""
    if len(record) < RECORD.size:
        raise WireError(f"got a sighting of {len(record)} bytes, expected {RECORD.size} at least")
    tag, path_length, pid, cgroup_id, inode, size_bytes, mtime_ns, dev = RECORD.unpack_from(record)
    path = record[RECORD.size : RECORD.size + path_length]
    if tag != TAG or len(path) != path_length:
        raise WireError(f"got a sighting with tag {tag} and {len(path)} of {path_length} bytes of path")
    key = FileKey(dev, inode, size_bytes, mtime_ns)
    return Sighting(pid, cgroup_id, Request(key, pid, path) if inode else None)


def records(body: bytes) -> Iterator[bytes]:
    """The records of what `Ring.drain` gives, which puts a tag and a length before each. Raises WireError."""
    at = 0
    while at < len(body):
        if body[at] != FRAME_TAG:
            raise WireError(f"got no record at byte {at} of {len(body)}")
        length, at = read_varint(body, at + 1)
        if at + length > len(body):
            raise WireError(f"got {len(body) - at} bytes of a record of {length}")
        yield body[at : at + length]
        at += length
