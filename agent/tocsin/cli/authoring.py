"""The author's side of content, imported only by the verbs that need it.

It brings pySigma and YAML along, which a host does not install.
"""

import importlib
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


def release_of(path: Path, name: str = "") -> bytes:
    """The compiled release in a file, or the one that a directory of rules compiles to.

    Raises ConfigError, ContentError.
    """
    if path.is_dir() or path.suffix in {".yml", ".yaml"}:
        return bytes(author_side().build(path, name or path.resolve().name))
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file or directory") from error
