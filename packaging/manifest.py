"""Writes the manifest of the compiled eBPF objects: the loader refuses an object that is not in it.

    python packaging/manifest.py MANIFEST OBJECT...

The manifest is JSON: the version of the package, and the SHA-256 of each object
by file name. An object that is not there is left out and named on stderr.
"""

import hashlib
import json
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def manifest(objects: list[Path]) -> str:
    """The manifest's text, the same for the same objects and version."""
    version = tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in objects}
    return json.dumps({"version": version, "objects": digests}, indent=2, sort_keys=True) + "\n"


def main(target: Path, *objects: Path) -> int:
    """Replaces `target` in one step."""
    present = [path for path in objects if path.exists()]
    for path in sorted({*objects} - {*present}):
        print(f"{path.name}: not built, so not in {target.name}", file=sys.stderr)
    fresh = target.with_suffix(".new")
    fresh.write_text(manifest(present))
    fresh.replace(target)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*map(Path, sys.argv[1:])))
