"""The author's side of content, imported only by the verbs that need it.

It brings pySigma and YAML along, which a host does not install.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tocsin.errors import ConfigError

MISSING: Final = "compiling Sigma needs the author's extra: pip install 'tocsin[author]'"
AUTHOR_PACKAGES: Final = ("sigma", "yaml", "pyparsing", "jinja2")


def author_side() -> Any:
    """The module tocsin.content.check. Raises ConfigError when the author's extra is missing."""
    try:
        return importlib.import_module("tocsin.content.check")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in AUTHOR_PACKAGES:
            raise ConfigError(MISSING) from error
        raise


def release_of(paths: Sequence[Path], name: str = "") -> bytes:
    """The compiled release in a file, or the one that directories of rules compile to.

    Raises ConfigError, ContentError.
    """
    if len(paths) > 1 or paths[0].is_dir() or paths[0].suffix in {".yml", ".yaml"}:
        return bytes(author_side().build(paths, name or name_of(paths)))
    try:
        return paths[0].read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{paths[0]}: no such file or directory") from error


def name_of(paths: Sequence[Path]) -> str:
    """The name of a release that its author gave none."""
    return "+".join(path.resolve().name for path in paths)
