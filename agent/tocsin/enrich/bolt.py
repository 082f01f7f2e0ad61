"""A bbolt database, read while its owner writes it: buckets within buckets, down to keys and values.

The file is a B+ tree of pages that are never overwritten while the newest tree has them; a transaction ends when it
writes one of two meta pages. So what was read is whole if no transaction ended meanwhile, and is read again if one
did. No lock is taken: bbolt's owner holds it for as long as it runs.

Page: id (8 bytes), flags (2), number of elements (2), pages that follow without a header (4), elements, keys, values.
https://pkg.go.dev/go.etcd.io/bbolt describes the use; the layout is the one of version 2, for little-endian hosts.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tocsin.enrich.reading import locate, open_located

MAGIC: Final = 0xED0CDAED
VERSION: Final = 2
MAX_NODE_BYTES: Final = 4 << 20
MAX_NODES: Final = 4096
"""That one look-up reads."""
MAX_DEPTH: Final = 32
TRIES: Final = 5

_PAGE: Final = struct.Struct("<QHHI")
_META: Final = struct.Struct("<IIIIQQQQQQ")
_BRANCH: Final = struct.Struct("<IIQ")
_LEAF: Final = struct.Struct("<IIII")
_BUCKET: Final = struct.Struct("<QQ")
_BRANCH_FLAG, _LEAF_FLAG, _BUCKET_FLAG = 1, 2, 1
_SIZES: Final = (4096, 8192, 16384, 65536, 1024, 2048, 32768)
"""Of pages: that of the host which made the file. Only the first meta page can be found without knowing it."""


class BoltError(ValueError):
    """The file is no bbolt database, is damaged, or was written all the time."""


Read = Callable[[int, int, int], bytes]
"""As os.pread: a descriptor, how many bytes, from where."""


def read_bucket(path: Path, names: Sequence[bytes], read: Read = os.pread) -> dict[bytes, bytes] | None:
    """Keys and values of the bucket that the names lead to, without the buckets in it; None when there is none.

    Raises BoltError, OSError.
    """
    located = locate(path)
    try:
        fd = open_located(located)
    finally:
        os.close(located)
    try:
        for _ in range(TRIES):
            tree = _Tree(fd, read)
            try:
                found = tree.bucket(names)
            except BoltError:
                if _Tree(fd, read).transaction == tree.transaction:
                    raise
                continue
            if _Tree(fd, read).transaction == tree.transaction:
                return found
    finally:
        os.close(fd)
    raise BoltError(f"{path}: written during each of {TRIES} attempts to read it")


class _Tree:
    """The newest tree of an open file."""

    def __init__(self, fd: int, read: Read) -> None:
        self._fd = fd
        self._read = read
        self._nodes = 0
        metas = [meta for size in _SIZES for at in (0, size) if (meta := self._meta(at)) is not None]
        if not metas:
            raise BoltError("got no valid meta page")
        self.transaction, self._page_bytes, self._root = max(metas)

    def bucket(self, names: Sequence[bytes]) -> dict[bytes, bytes] | None:
        """See read_bucket."""
        node = self._node(self._root)
        for name in names:
            value = next((value for flags, key, value in self._leaves(node, name) if flags & _BUCKET_FLAG), None)
            if value is None:
                return None
            if len(value) < _BUCKET.size:
                raise BoltError(f"got a bucket of {len(value)} bytes")
            root, _ = _BUCKET.unpack_from(value)
            node = self._node(root) if root else value[_BUCKET.size :]  # a small bucket has its page in its value
        return {key: value for flags, key, value in self._leaves(node, None) if not flags & _BUCKET_FLAG}

    def _meta(self, at: int) -> tuple[int, int, int] | None:
        """Transaction, size of pages and root's page; None when there is no valid meta page."""
        raw = self._read(self._fd, _META.size, at + _PAGE.size)
        if len(raw) < _META.size:
            return None
        magic, version, page_bytes, _, root, _, _, _, transaction, checksum = _META.unpack(raw)
        if (magic, version) != (MAGIC, VERSION) or page_bytes not in _SIZES or checksum != _fnv64a(raw[:-8]):
            return None
        return transaction, page_bytes, root

    def _node(self, page: int) -> bytes:
        """A page with those that follow it."""
        self._nodes += 1
        if self._nodes > MAX_NODES or page >= 1 << 40:
            raise BoltError(f"got page {page} as node {self._nodes}, expected fewer than {MAX_NODES}")
        first = self._read(self._fd, self._page_bytes, page * self._page_bytes)
        if len(first) < self._page_bytes:
            raise BoltError(f"got page {page}, which is behind the end")
        number, _, _, more = _PAGE.unpack_from(first)
        if number != page or more * self._page_bytes > MAX_NODE_BYTES:
            raise BoltError(f"got page {number} with {more} more, expected page {page}")
        rest = self._read(self._fd, more * self._page_bytes, (page + 1) * self._page_bytes) if more else b""
        return first + rest

    def _leaves(self, node: bytes, wanted: bytes | None, depth: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """Flags, key and value of each element below the node, or of the one with this key."""
        if len(node) < _PAGE.size or depth > MAX_DEPTH:
            raise BoltError(f"got a node of {len(node)} bytes at depth {depth}")
        _, flags, count, _ = _PAGE.unpack_from(node)
        if flags == _LEAF_FLAG:
            for flag, key, value in _elements(node, count):
                if wanted is None or key == wanted:
                    yield flag, key, value
        elif flags == _BRANCH_FLAG:
            for page in _children(node, count, wanted):
                yield from self._leaves(self._node(page), wanted, depth + 1)
        else:
            raise BoltError(f"got a page with flags {flags}, expected a branch or a leaf")


def _elements(node: bytes, count: int) -> Iterator[tuple[int, bytes, bytes]]:
    for at in _places(node, count):
        flags, offset, key_bytes, value_bytes = _LEAF.unpack_from(node, at)
        start, middle = at + offset, at + offset + key_bytes
        yield flags, _part(node, start, middle), _part(node, middle, middle + value_bytes)


def _children(node: bytes, count: int, wanted: bytes | None) -> list[int]:
    """Pages below a branch; with a key the one that may hold it, which begins with the last key not above it."""
    pages: list[int] = []
    for at in _places(node, count):
        offset, key_bytes, page = _BRANCH.unpack_from(node, at)
        key = _part(node, at + offset, at + offset + key_bytes)
        if wanted is not None and key > wanted:
            break
        pages.append(page)
    return pages if wanted is None else pages[-1:]


def _places(node: bytes, count: int) -> range:
    """Where elements begin: 16 bytes each, of a leaf and of a branch alike."""
    if _PAGE.size + count * _LEAF.size > len(node):
        raise BoltError(f"got {count} elements in {len(node)} bytes")
    return range(_PAGE.size, _PAGE.size + count * _LEAF.size, _LEAF.size)


def _part(node: bytes, start: int, end: int) -> bytes:
    if end > len(node):
        raise BoltError(f"got a key or value up to byte {end} of {len(node)}")
    return node[start:end]


def _fnv64a(raw: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in raw:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFF_FFFF_FFFF_FFFF
    return value
