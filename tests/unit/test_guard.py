"""The marker that keeps eBPF away from a kernel that does not survive it."""

import json
from pathlib import Path

import pytest

from tocsin.errors import KernelError
from tocsin.kernel.guard import MARKER, AttachGuard


class Host:
    """A state directory over several boots."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self._boot = folder / "boot_id"
        self.reboot("first")

    def reboot(self, name: str) -> None:
        self._boot.write_text(f"{name}\n")

    def guard(self) -> AttachGuard:
        return AttachGuard(self.state, self._boot)

    @property
    def marked(self) -> bool:
        return (self.state / MARKER).exists()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def crash(host: Host, boot: str) -> None:
    """The host goes down while the programs are attached, and comes up again."""
    host.guard().arm()
    host.reboot(boot)


def test_the_marker_stands_while_programs_are_attached(host: Host) -> None:
    armed = host.guard()
    armed.arm()
    assert json.loads((host.state / MARKER).read_text())["boot_id"] == "first"
    armed.disarm()
    assert not host.marked


def test_an_agent_that_was_killed_is_no_unclean_boot(host: Host) -> None:
    for _ in range(3):
        host.guard().arm()
    assert host.guard().unclean_boots() == 0


def test_one_unclean_boot_is_forgiven(host: Host) -> None:
    crash(host, "second")
    host.guard().arm()
    assert host.marked


def test_after_two_unclean_boots_nothing_is_attached_and_the_marker_stays(host: Host) -> None:
    crash(host, "second")
    crash(host, "third")
    refusing = host.guard()
    with pytest.raises(KernelError, match="2 boots in a row"):
        refusing.arm()
    refusing.disarm()
    assert host.marked
    host.reboot("fourth")
    with pytest.raises(KernelError, match="2 boots in a row"):
        host.guard().arm()


def test_removing_the_marker_allows_ebpf(host: Host) -> None:
    crash(host, "second")
    crash(host, "third")
    (host.state / MARKER).unlink()
    host.guard().arm()
    assert host.guard().unclean_boots() == 0


def test_a_boot_that_ends_in_order_starts_the_count_anew(host: Host) -> None:
    crash(host, "second")
    second = host.guard()
    second.arm()
    second.disarm()
    host.reboot("third")
    crash(host, "fourth")
    host.guard().arm()


def test_a_boot_that_held_out_does_not_count(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(host, "second")
    lasting = host.guard()
    lasting.arm()
    lasting.look()
    assert host.guard().unclean_boots() == 1
    monkeypatch.setattr("tocsin.kernel.guard.time.monotonic", lambda: 1e12)
    lasting.look()
    host.reboot("third")
    assert host.guard().unclean_boots() == 1, "only the boot that has just ended"


def test_a_sensor_that_resumes_takes_the_marker_away_in_the_end(host: Host) -> None:
    host.guard().arm()
    successor = host.guard()
    successor.resume()
    successor.disarm()
    assert not host.marked


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot_id": "x", "unclean_boots": "many"}', "\0"])
def test_a_marker_that_is_none_is_refused_by_name(host: Host, text: str) -> None:
    (host.state / MARKER).write_text(text)
    with pytest.raises(KernelError, match=MARKER):
        host.guard().arm()


def test_without_a_marker_nothing_is_attached(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("first")
    with pytest.raises(KernelError, match="not attached without its marker"):
        AttachGuard(tmp_path / "absent", tmp_path / "boot_id").arm()
