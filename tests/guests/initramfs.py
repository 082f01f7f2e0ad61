"""The guests' root file system: this machine's Python, what pytest and the kernel tests need, and the tests themselves.

Every file stands where it stands here, so the tests run in the guest unchanged. Nothing is downloaded.
"""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from guests.archive import Tree  # type: ignore[import-not-found]
from guests.kernels import UnavailableError  # type: ignore[import-not-found]
from kernel.acting import ACTS, Acts  # type: ignore[import-not-found]

ROOT: Final = Path(__file__).parents[2]
REPOSITORY: Final = ("agent/tocsin", "tests/kernel", "tests/guests/inside", "pyproject.toml")
DISTRIBUTIONS: Final = ("pytest", "pytest-timeout", "protobuf", "psutil", "pyroute2", "pyseccomp", "hypothesis")
# What the agent opens by name.
LIBRARIES: Final = ("libbpf.so.1", "libseccomp.so.2")
# ldconfig finds libraries for ctypes.
PROGRAMS: Final = tuple(
    f"/usr/{name}"
    for name in (
        "bin/sh",
        "bin/cp",
        "bin/true",
        "bin/echo",
        "bin/cat",
        "bin/wc",
        "bin/unshare",
        "bin/ip",
        "sbin/ldconfig",
    )
)
# Names of old, which link to those under /usr.
LINKS: Final = ("/bin", "/sbin", "/lib", "/lib64")
# Large, and no test imports them.
STDLIB_WITHOUT: Final = re.compile(
    r"/(site-packages|dist-packages|test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip|pydoc_data|distutils"
    r"|config-[^/]*)(/|$)|/_tkinter|\.opt-\d\.pyc$"
)
MOUNT_POINTS: Final = ("/proc", "/sys", "/dev", "/tmp", "/run", "/root")
ACTS_IN_GUEST: Final = Path("/acts")


def build(target: Path, scratch: Path) -> None:
    """Writes the archive. `scratch` is an empty folder, for compiled acts. Raises UnavailableError."""
    tree = Tree()
    for mount_point in MOUNT_POINTS:
        tree.directory(Path(mount_point))
    _add_python(tree)
    _add_repository(tree)
    _add_acts(tree, scratch)
    for program in (*PROGRAMS, *LINKS):
        tree.add(Path(program))
    for library in LIBRARIES:
        tree.add(_path_of_library(library))
    for path in _linked(tree.linked_files()):
        tree.add(path)
    tree.add(Path("/etc/ld.so.cache"))
    with target.open("wb") as file:
        tree.write(file)


def _add_python(tree: Tree) -> None:
    tree.add(Path(sys.executable))
    tree.add(Path(sys.prefix) / "pyvenv.cfg")
    for name in ("stdlib", "platstdlib"):
        folder = Path(sysconfig.get_path(name, vars={"installed_base": sys.base_prefix}))
        tree.add_all(folder, STDLIB_WITHOUT)
    for name in sorted(_required(set(DISTRIBUTIONS))):
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            if path.is_file() and "/bin/" not in str(file):
                tree.add(path)


def _required(names: set[str]) -> set[str]:
    """The distributions and all that they require."""
    found = set(names)
    for name in names:
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                found.add(requirement.name)
    return found if found == names else _required(found)


def _add_repository(tree: Tree) -> None:
    for name in REPOSITORY:
        path = ROOT / name
        if path.is_dir():
            tree.add_all(path)
        else:
            tree.add(path)


def _add_acts(tree: Tree, scratch: Path) -> None:
    """The programs of tests/kernel/acts, compiled as the tests do it, and what hands them out in the guest."""
    acts = Acts(scratch)
    for source in sorted(ACTS.glob("*.c")):
        tree.copy(acts.path(source.stem), ACTS_IN_GUEST / source.stem)
    tree.copy(Path(__file__).parent / "inside" / "cc", Path("/usr/bin/cc"))


def _path_of_library(soname: str) -> Path:
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"{re.escape(soname)} \(.*x86-64.*\) => (\S+)", known)
    if found is None:
        raise UnavailableError(f"{soname} is missing: install libbpf1")
    return Path(found.group(1))


def _linked(paths: list[Path]) -> list[Path]:
    """All shared libraries that these files are linked with."""
    said = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False).stdout
    return [Path(found) for found in sorted(set(re.findall(r"(/\S+) \(0x", said)))]
