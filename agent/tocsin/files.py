"""Files that are replaced in one step."""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Writes a file. A reader finds the old one or the new one, never a mix, also after a crash. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
