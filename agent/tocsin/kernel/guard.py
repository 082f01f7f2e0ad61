"""Keeps eBPF away from a kernel that does not survive it.

While programs are attached a marker stands on disk. Who finds one of an earlier
boot knows that this boot ended with the programs attached: a crash of the
kernel, or of the power. After two in a row nothing is loaded any more until an
operator says so. A boot that held out for PROVED_S does not count.
"""

import json
import os
import time
from pathlib import Path
from typing import Final

from tocsin.errors import KernelError
from tocsin.files import replace

MARKER: Final = "ebpf-attached.json"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MAX_UNCLEAN_BOOTS: Final = 2
PROVED_S: Final = 3600.0
"""With the programs attached; then what ends the boot is not theirs."""


class AttachGuard:
    """The marker of one agent. Not for two processes at once."""

    def __init__(self, state_dir: Path, boot_id: Path = BOOT_ID) -> None:
        self._path = state_dir / MARKER
        self._boot_id = boot_id.read_text().strip()
        self._proved_at_s = 0.0
        self._unclean = 0
        self._armed = False

    def arm(self) -> None:
        """Sets the marker; it is on disk when this returns. Raises KernelError when two boots ended with it set."""
        self._unclean = self.unclean_boots()
        if self._unclean >= MAX_UNCLEAN_BOOTS:
            raise KernelError(
                f"{self._unclean} boots in a row ended while eBPF was attached: it is not attached again. "
                f"Look into the kernel's log of those boots; remove {self._path} to allow it"
            )
        self._write()
        self._armed = True
        self._proved_at_s = time.monotonic() + PROVED_S

    def look(self) -> None:
        """Takes the boot for a good one once it has lasted; called now and then."""
        if self._armed and self._unclean and time.monotonic() >= self._proved_at_s:
            self._unclean = 0
            self._write()

    def disarm(self) -> None:
        """The programs are detached in order. A marker that kept them from being attached stays."""
        if self._armed:
            self._path.unlink(missing_ok=True)
            self._armed = False

    def resume(self) -> None:
        """The programs of a former process are still attached, and so is its marker."""
        self._unclean = self.unclean_boots()
        self._armed = True
        self._proved_at_s = time.monotonic() + PROVED_S

    def unclean_boots(self) -> int:
        """Earlier boots in a row that ended with the marker set. Raises KernelError when it is unreadable."""
        try:
            marker = json.loads(self._path.read_text())
            boot_id, unclean = str(marker["boot_id"]), int(marker["unclean_boots"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KernelError(f"{self._path}: not a marker ({error}): remove it to allow eBPF") from error
        return unclean + (boot_id != self._boot_id)

    def _write(self) -> None:
        marker = {"boot_id": self._boot_id, "unclean_boots": self._unclean, "pid": os.getpid()}
        try:
            replace(self._path, json.dumps(marker).encode())
        except OSError as error:
            raise KernelError(f"{self._path}: {error.strerror}: eBPF is not attached without its marker") from error
