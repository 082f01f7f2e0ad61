"""What the monitor is made of, without processes: restarts, held releases, the store."""

import os
from pathlib import Path

import pytest

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.errors import ContentError
from tocsin.files import replace
from tocsin.processes.channel import Kind, Message
from tocsin.processes.child import FREE_DEATHS, Child, Slot
from tocsin.processes.release_store import MAX_RELEASE_BYTES, ReleaseStore, hold, hold_path


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """An empty store."""
    made = ReleaseStore(tmp_path)
    made.prepare()
    return made


def release_file(directory: Path, data: bytes) -> Path:
    """A file with these bytes."""
    path = directory / "some.release"
    path.write_bytes(data)
    return path


def test_a_first_and_second_death_are_followed_by_a_restart_at_once_and_a_third_is_not() -> None:
    slot = Slot(control.ROLE_EVALUATOR)
    for _ in range(FREE_DEATHS):
        slot.died()
        assert slot.start_at_s == slot.deaths[-1]
    slot.died()
    third = slot.start_at_s - slot.deaths[-1]
    slot.died()
    assert 0 < third < slot.start_at_s - slot.deaths[-1]
    assert slot.restarts == 4


class Busy(Child):
    """A child that has used as much CPU time as a test says."""

    used_s = 0.0

    def cpu_s(self) -> float:
        return self.used_s


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Busy:
    """An evaluator that was heard at 1000 s, when the clock stands at 1006 s."""
    child = Busy(control.ROLE_EVALUATOR, None, None, -1, 990.0, ready=True)  # type: ignore[arg-type]
    now = [1000.0]
    monkeypatch.setattr("tocsin.processes.child.time.monotonic", lambda: now[0])
    child.hears(Message(Kind.HEARTBEAT, b=1))
    now[0] = 1006.0
    return child


def test_an_evaluator_that_works_and_says_nothing_counts_as_hung(silent: Busy) -> None:
    silent.used_s = 3.0
    assert "said nothing for 6 s" in silent.hung(5.0, in_flight=True)


def test_an_evaluator_that_gets_no_cpu_has_more_time(silent: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    silent.used_s = 1.0
    assert silent.hung(5.0, in_flight=True) == ""
    monkeypatch.setattr("tocsin.processes.child.time.monotonic", lambda: 1021.0)
    assert "said nothing for 21 s" in silent.hung(5.0, in_flight=True)


def test_an_evaluator_that_speaks_and_does_not_move_counts_as_hung(silent: Busy) -> None:
    silent.used_s = 4.0
    silent.hears(Message(Kind.HEARTBEAT, b=1))
    assert "made no progress for 6 s" in silent.hung(5.0, in_flight=True)
    assert silent.hung(5.0, in_flight=False) == ""


def test_a_held_release_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = release_file(tmp_path, b"one")
    held = hold_path(path)
    path.write_bytes(b"two")
    assert os.pread(held.fd, 10, 0) == b"one"
    with pytest.raises(PermissionError):
        os.pwrite(held.fd, b"x", 0)
    held.close()


def test_a_pipe_is_no_release() -> None:
    reading, writing = os.pipe()
    with pytest.raises(ContentError, match="no regular file"):
        hold(reading, "load")
    os.close(reading)
    os.close(writing)


def test_a_release_above_the_limit_is_not_read(tmp_path: Path) -> None:
    path = release_file(tmp_path, b"")
    os.truncate(path, MAX_RELEASE_BYTES + 1)
    with pytest.raises(ContentError, match="expected at most"):
        hold_path(path)


def test_nothing_is_active_in_an_empty_store(store: ReleaseStore) -> None:
    assert store.active() is None


def test_an_activated_release_is_found_again_and_is_the_only_one(store: ReleaseStore, tmp_path: Path) -> None:
    for data in (b"one", b"two"):
        held = hold_path(release_file(tmp_path, data))
        store.store(held)
        store.activate(held)
        held.close()
    found = store.active()
    assert found is not None
    assert os.pread(found.fd, 10, 0) == b"two"
    assert len(list((tmp_path / "content").glob("*.release"))) == 1
    found.close()


def test_a_stored_release_with_other_bytes_than_its_name_says_is_not_used(store: ReleaseStore, tmp_path: Path) -> None:
    held = hold_path(release_file(tmp_path, b"one"))
    store.store(held)
    store.activate(held)
    (tmp_path / "content" / f"{held.digest.hex()}.release").write_bytes(b"changed")
    with pytest.raises(ContentError, match="its bytes have digest"):
        store.active()
    held.close()


def test_a_name_that_is_no_digest_is_not_followed(store: ReleaseStore, tmp_path: Path) -> None:
    (tmp_path / "content" / "active").write_text("../../etc/passwd\n")
    with pytest.raises(ContentError, match="is no digest"):
        store.active()


def test_a_replaced_file_leaves_no_other_behind(tmp_path: Path) -> None:
    for data in (b"a former one", b"new"):
        replace(tmp_path / "some.file", data)
    assert (tmp_path / "some.file").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["some.file"]


def test_a_file_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    replace(tmp_path / "some.file", b"old")
    (tmp_path / ".some.file.new").mkdir()
    with pytest.raises(IsADirectoryError):
        replace(tmp_path / "some.file", b"new")
    assert (tmp_path / "some.file").read_bytes() == b"old"
