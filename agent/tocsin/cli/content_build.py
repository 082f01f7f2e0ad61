"""`tocsin content build`: a release in a file."""

import argparse
import hashlib
import os
import sys
from pathlib import Path

from tocsin.cli import arguments as shared
from tocsin.cli.authoring import author_side


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("path", type=Path, metavar="DIR", help="directory with Sigma rules and their samples")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where the release goes")
    parser.add_argument("--name", default="", help="name and version of the release; default: the directory's name")


def run(arguments: argparse.Namespace) -> int:
    """Writes the release; a former file is replaced in one step."""
    path: Path = shared.existing(arguments.path, "file or directory")
    release = bytes(author_side().build(path, arguments.name or path.resolve().name))
    replace(arguments.output, release)
    print(f"{arguments.output}: {len(release)} bytes, sha256 {hashlib.sha256(release).hexdigest()}", file=sys.stderr)
    return 0


def replace(path: Path, data: bytes) -> None:
    """A reader finds the old file or the new one, also after a crash."""
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
