"""`tocsin content build`: a release in a file."""

import argparse
import hashlib
import sys
from pathlib import Path

from tocsin.cli import arguments as shared
from tocsin.cli.authoring import author_side, name_of
from tocsin.files import replace


def configure(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    shared.add_sources(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where the release goes")
    parser.add_argument("--name", default="", help="name and version of the release; default: that of DIR")


def run(arguments: argparse.Namespace) -> int:
    """Writes the release; a former file is replaced in one step."""
    paths = shared.sources(arguments)
    release = bytes(author_side().build(paths, arguments.name or name_of(paths)))
    replace(arguments.output, release)
    print(f"{arguments.output}: {len(release)} bytes, sha256 {hashlib.sha256(release).hexdigest()}", file=sys.stderr)
    return 0
