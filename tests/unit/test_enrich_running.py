"""What runs already, of this host's real /proc."""

import os
from pathlib import Path

from tocsin.enrich.cgroups import unified_path
from tocsin.enrich.hashes import Pace, look_at
from tocsin.enrich.running import running


def test_this_process_is_found_with_its_executable_and_group() -> None:
    [found] = [sighting for sighting in running() if sighting.pid == os.getpid()]
    state = Path("/proc/self/exe").stat()
    assert found.executable is not None
    assert found.executable.path == os.fsencode(Path("/proc/self/exe").readlink())
    assert (found.executable.key.inode, found.executable.key.size_bytes) == (state.st_ino, state.st_size)
    assert found.executable.key.mtime_ns == state.st_mtime_ns
    group = unified_path(Path("/proc/self/cgroup").read_text())
    mounted = Path("/sys/fs/cgroup").joinpath(group.lstrip("/"))
    assert found.cgroup_id == (mounted.stat().st_ino if group and mounted.exists() else 0)


def test_the_hasher_takes_what_was_found_for_the_very_file() -> None:
    [found] = [sighting for sighting in running() if sighting.pid == os.getpid()]
    assert found.executable is not None
    assert look_at(found.executable, 1 << 30, Pace(1 << 40), lambda: False).digests is not None


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir()
    assert not list(running(tmp_path))


def test_a_group_that_is_not_mounted_has_no_id(tmp_path: Path) -> None:
    process = tmp_path / "proc/7"
    process.mkdir(parents=True)
    (process / "exe").symlink_to("/bin/true")
    (process / "cgroup").write_text("0::/gone\n")
    [found] = running(tmp_path)
    assert (found.pid, found.cgroup_id) == (7, 0)
