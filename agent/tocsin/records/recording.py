"""A file of recorded batches: a magic line, then for each batch its size (4 bytes, little-endian) and its bytes.

What is written is the sensor's own serialised Batch; nothing is encoded again.
A file cut short (a full disk, a killed writer) gives every whole batch and then
an error that tells where it ends. Sizes are bounded before memory is taken.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final

from tocsin.errors import SpoolError

MAGIC: Final = b"TOCSINREC1\n"
MAX_BATCH_BYTES: Final = 16 << 20
_SIZE: Final = struct.Struct("<I")


def begin(file: BinaryIO) -> None:
    """Writes what a recording begins with."""
    file.write(MAGIC)


def append(file: BinaryIO, batch: bytes) -> None:
    """Writes one serialised Batch."""
    file.write(_SIZE.pack(len(batch)))
    file.write(batch)


def is_recording(head: bytes) -> bool:
    """Whether a file that begins so is a recording."""
    return head.startswith(MAGIC)


def batches(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The serialised batches of a recording. Raises SpoolError naming `name` and the place in bytes."""
    head = file.read(len(MAGIC))
    if head != MAGIC:
        raise SpoolError(f"{name}: no recording: begins with {head!r}, expected {MAGIC!r} (see `tocsin record`)")
    at = len(MAGIC)
    while size_bytes := file.read(_SIZE.size):
        if len(size_bytes) < _SIZE.size:
            raise SpoolError(f"{name}: cut short at byte {at}: the rest of a size is missing")
        (size,) = _SIZE.unpack(size_bytes)
        if size > MAX_BATCH_BYTES:
            raise SpoolError(
                f"{name}: damaged at byte {at}: a batch of {size} bytes, expected at most {MAX_BATCH_BYTES}"
            )
        batch = file.read(size)
        if len(batch) < size:
            raise SpoolError(f"{name}: cut short at byte {at}: a batch of {size} bytes has {len(batch)}")
        yield batch
        at += _SIZE.size + size
