"""A root file system: files of this machine at their own paths, written as an archive that Linux unpacks at boot."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to be."""

    mode: int
    source: Path | None = None
    """Where its bytes are; None: in `text`."""
    text: bytes = b""
    """Of a link: its target."""
    changed_s: int = 0


class Tree:
    """Entries by their absolute path in the guest; parents and the targets of links come with them."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def directory(self, path: Path) -> None:
        """An empty directory, where there is nothing yet."""
        self._entries.setdefault(str(path), Entry(stat.S_IFDIR | 0o755))

    def copy(self, source: Path, target: Path) -> None:
        """A program of this machine at another path."""
        self.directory(target.parent)
        self._entries[str(target)] = Entry(stat.S_IFREG | 0o755, source)

    def add(self, path: Path) -> None:
        """A file, link or directory of this machine at its own path. Of a directory, what is in it is not added."""
        if str(path) in self._entries or path == path.parent:
            return
        parent = path.parent.resolve()
        self.add(path.parent)
        if parent != path.parent:
            self.add(parent / path.name)
            return
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            self._entries[str(path)] = Entry(status.st_mode, text=bytes(path.readlink()))
            self.add(parent / path.readlink())
        elif stat.S_ISDIR(status.st_mode):
            self.directory(path)
        else:
            # Python takes a compiled module only with its source's time of change.
            self._entries[str(path)] = Entry(status.st_mode, path, changed_s=int(status.st_mtime))

    def add_all(self, folder: Path, without: re.Pattern[str] | None = None) -> None:
        """A folder with all files in it, but those in whose path (from the folder's name on) `without` is found."""
        for path in folder.rglob("*"):
            if path.is_file() and not (without and without.search(str(path.relative_to(folder.parent)))):
                self.add(path)

    def linked_files(self) -> list[Path]:
        """Programs and shared libraries: what the dynamic linker has to do with."""
        names = [(name, entry.source) for name, entry in self._entries.items()]
        return [source for name, source in names if source and (".so" in name or "bin/" in name)]

    def write(self, file: BinaryIO) -> None:
        """Writes the archive. https://docs.kernel.org/driver-api/early-userspace/buffer-format.html"""
        for number, (name, entry) in enumerate(sorted(self._entries.items()), 1):
            file.writelines(_parts(name.lstrip("/"), number, entry))
        file.writelines(_parts("TRAILER!!!", 0, Entry(0)))


def _parts(name: str, number: int, entry: Entry) -> list[bytes]:
    """Head and content, each filled up to a multiple of four bytes."""
    raw_name = name.encode() + b"\0"
    content = entry.source.read_bytes() if entry.source else entry.text
    fields = (number, entry.mode, 0, 0, 1, entry.changed_s, len(content), 0, 0, 0, 0, len(raw_name), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw_name
    return [part + b"\0" * (-len(part) % 4) for part in (head, content)]
