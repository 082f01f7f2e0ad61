"""The eBPF objects of the package: only bytes whose SHA-256 stands in the manifest are ever loaded.

The bytes that were hashed are the bytes that are loaded: the file is read once.
"""

import hashlib
import json
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError

DIRECTORY: Final = Path(__file__).parent / "objects"
MANIFEST: Final = "manifest.json"


def read_object(name: str, directory: Path = DIRECTORY) -> bytes:
    """The verified bytes of an object. Raises KernelError naming the file and both digests."""
    expected = _manifest(directory).get(name)
    path = directory / name
    if expected is None:
        raise KernelError(f"{directory / MANIFEST} does not list {name}: reinstall the package, or run `make build`")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}: reinstall the package, or run `make build`") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != expected:
        raise KernelError(
            f"{path}: SHA-256 is {digest}, the manifest says {expected}: it was changed and is not loaded; "
            "reinstall the package, or run `make build`"
        )
    return raw


def _manifest(directory: Path) -> dict[str, str]:
    path = directory / MANIFEST
    try:
        objects = json.loads(path.read_text())["objects"]
        return {str(name): str(digest) for name, digest in objects.items()}
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}: reinstall the package, or run `make build`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"{path}: not a manifest ({error}): reinstall the package, or run `make build`") from error
