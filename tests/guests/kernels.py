"""The kernels that the programs are tried on: Debian's cloud kernels, fetched and verified by apt.

apt works in folders of its own, with the machine's mirror and settings; the machine's lists and packages stay as they
are.
"""

import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tocsin" / "kernels"
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE: Final = "DEBIAN_MIRROR"
PACKAGE: Final = "linux-image-cloud-amd64"
TIMEOUT_S: Final = 180


class UnavailableError(Exception):
    """What the guests need cannot be had on this machine; the text says what and how to get it."""


@dataclass(frozen=True, slots=True)
class Series:
    """A kernel by the Debian suite whose newest cloud kernel it is."""

    name: str
    suite: str


SERIES: Final = {
    series.name: series
    for series in (
        Series("5.10", "bullseye-security"),
        Series("6.1", "bookworm-security"),
        Series("6.12", "bookworm-backports"),
        Series("newest", "trixie-backports"),
    )
}


def fetch(series: Series, *, refresh: bool = False) -> Path:
    """The kernel image of a series: from the cache, or, when it is not there or `refresh` asks for it, from the mirror.

    Raises UnavailableError.
    """
    folder = CACHE / series.name
    image = folder / "vmlinuz"
    if refresh or not image.exists():
        _prepare(series, folder)
        _apt(folder, "apt-get", "update")
        package = _package_with_image(folder)
        _apt(folder, "apt-get", "download", package)
        archive = next(folder.glob(f"{package}_*.deb"))
        _unpack_image(archive, image)
        archive.unlink()
    return image


def _prepare(series: Series, folder: Path) -> None:
    if not KEYRING.exists():
        raise UnavailableError(f"{KEYRING} is missing: install debian-archive-keyring")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    mirror = _mirror() + ("-security" if series.suite.endswith("-security") else "")
    source = f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {series.suite} main\n"
    (folder / "sources.list").write_text(source)


def _mirror() -> str:
    """Address of a mirror of Debian, without a slash at its end."""
    named = os.environ.get(MIRROR_VARIABLE)
    if named:
        return named.rstrip("/")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    try:
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnavailableError(f"apt-get cannot be asked for this machine's mirror: {error}") from error
    for address in known:
        if address.endswith("/debian/"):
            return address.rstrip("/")
    raise UnavailableError(f"no mirror of Debian among apt's sources: name one, {MIRROR_VARIABLE}=http://…/debian")


def _apt(folder: Path, *command: str) -> str:
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": folder / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "1",
        "APT::Update::Error-Mode": "any",
        # Its own user may not enter a home folder; signatures are checked all the same.
        "APT::Sandbox::User": "root",
    }
    options = [text for name, value in settings.items() for text in ("-o", f"{name}={value}")]
    try:
        done = subprocess.run(
            [*command, *options], cwd=folder, capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{' '.join(command)}: {error}") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"{' '.join(command)}: {error.stderr.strip()[-400:]}") from error
    return done.stdout


def _package_with_image(folder: Path) -> str:
    """Its name holds the version. The newest kernels split the image from the package of that name."""
    image = _dependency(folder, PACKAGE, "linux-image-") or PACKAGE
    return _dependency(folder, image, "linux-binary-") or image


def _dependency(folder: Path, package: str, prefix: str) -> str | None:
    found = re.search(rf"Depends: ({prefix}\S+)", _apt(folder, "apt-cache", "depends", package))
    return found.group(1) if found else None


def _unpack_image(archive: Path, image: Path) -> None:
    """Takes the one file `vmlinuz` out of a package."""
    fresh = image.with_suffix(".new")
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if Path(member.name).name.startswith("vmlinuz") and (content := tar.extractfile(member)):
                fresh.write_bytes(content.read())
                unpacking.kill()
                break
    if not fresh.exists():
        raise UnavailableError(f"{archive.name} holds no vmlinuz")
    fresh.replace(image)
