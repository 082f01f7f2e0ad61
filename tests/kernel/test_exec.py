"""exec: every field against /proc, stat and what was passed to execve."""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import oracle  # type: ignore[import-not-found]
from kernel.acting import Acts, Held, fork_and  # type: ignore[import-not-found]
from kernel.sensing import EXEC, EXIT, Sensor, boottime_ns  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2

ARGV_CUT, EXE_CUT = event_pb2.IMAGE_FLAG_ARGV_TRUNCATED, event_pb2.IMAGE_FLAG_EXE_TRUNCATED
CWD_CUT, SEEDED = event_pb2.IMAGE_FLAG_CWD_TRUNCATED, event_pb2.IMAGE_FLAG_SEEDED


@pytest.fixture
def hold(acts: Acts) -> str:
    return str(acts.path("hold"))


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder that is emptied afterwards even where its paths are longer than any system call takes."""
    folder = tmp_path / "deep"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def descend(folder: Path, names: list[bytes]) -> tuple[int, bytes]:
    """Makes nested folders; returns a descriptor of the innermost and its path."""
    inner = os.open(folder, os.O_DIRECTORY | os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=inner)
        outer, inner = inner, os.open(name, os.O_DIRECTORY | os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    return inner, b"/".join([os.fsencode(folder.resolve()), *names])


def check_cut(got: bytes, real: bytes, flagged: bool, name: str, least: int) -> None:
    """Whole and not flagged, or flagged and a tail."""
    if flagged:
        assert got != real, f"{name} is whole, yet flagged"
        assert real.endswith(got), f"{name} is not a tail: {got!r}"
        assert len(got) >= least, f"only {len(got)} bytes of {name} are kept"
    else:
        assert got == real, f"{name} of {len(real)} bytes is cut to {len(got)} without a flag"


def check_exec_body(event: event_pb2.Event, argv: list[bytes], filename: bytes) -> None:
    body, process = event.exec, event.process
    text = b"".join(argument + b"\0" for argument in argv)
    executable = os.stat(f"/proc/{process.pid}/exe")
    assert process.argv == text
    environment = Path(f"/proc/{process.pid}/environ").read_bytes().count(b"\0")
    assert (body.argc, body.envc, body.argv_bytes) == (len(argv), environment, len(text))
    assert (body.exe_mode, body.exe_nlink) == (executable.st_mode, executable.st_nlink)
    assert (body.exe_uid, body.exe_gid) == (executable.st_uid, executable.st_gid)
    assert body.filename == filename


def test_every_field_of_an_exec_is_as_proc_and_stat_say(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "hold-here")
    (tmp_path / "second-name").hardlink_to(program)
    program.chmod(0o751)
    os.chown(program, 1234, 2345)
    before = boottime_ns()
    with Held([str(program), "one", "two words", ""], env={"A": "1", "B": "2", "C": ""}, cwd="/usr") as held:
        after = boottime_ns()
        event = sensor.one(held.pid, EXEC)
        oracle.check(event.process, oracle.task(held.pid) | oracle.image(held.pid) | {"tid": held.pid})
        argv = [os.fsencode(program), b"one", b"two words", b""]
        check_exec_body(event, argv, os.fsencode(program))
    assert (event.exec.exe_uid, event.exec.exe_gid, event.exec.exe_nlink) == (1234, 2345, 2)
    assert event.process.cwd == b"/usr"
    assert event.exec.envc == 3
    assert event.exec.caller_tid == held.pid
    assert before < event.process.exec_boottime_ns < after
    assert before < event.boottime_ns < after
    assert before < event.process.start_boottime_ns < event.process.exec_boottime_ns
    assert event.process.image_flags == 0
    assert (event.exec.exec_flags, event.exec.interpreter) == (0, b"")
    assert event.flags == 0
    assert event.cpu < (os.cpu_count() or 1)
    assert event.cpu_sequence > 0


def test_the_parent_is_this_process_with_its_seeded_image(sensor: Sensor, hold: str) -> None:
    with Held([hold]) as held:
        event = sensor.one(held.pid, EXEC)
    me = os.getpid()
    expected = oracle.task(me) | oracle.image(me)
    expected["argv"] = Path("/proc/self/cmdline").read_bytes()[:4096]
    del expected["comm"]
    oracle.check(event.parent, expected | {"exec_boottime_ns": 0})
    assert event.parent.image_flags & SEEDED
    assert event.parent.exe == os.readlink(b"/proc/self/exe")
    assert event.parent.cwd == os.getcwdb()
    assert event.flags == 0


def test_a_grandchild_has_its_parents_image_from_that_parents_exec(sensor: Sensor, hold: str) -> None:
    held = Held(["/bin/sh", "-c", f"{hold}; exit 3"], cwd="/usr")
    sensor.one(held.pid, EXEC)
    sensor.collect(lambda: any(e.type == EXEC and e.process.ppid == held.pid for e in sensor.events), "the grandchild")
    event = next(e for e in sensor.events if e.type == EXEC and e.process.ppid == held.pid)
    expected = oracle.task(held.pid) | oracle.image(held.pid)
    assert held.release() == 3
    oracle.check(event.parent, expected | {"image_flags": 0})
    assert event.parent.exec_boottime_ns == sensor.one(held.pid, EXEC).process.exec_boottime_ns
    assert event.parent.argv == f"/bin/sh\0-c\0{hold}; exit 3\0".encode()


def test_each_part_of_a_pipeline_has_the_shell_as_parent(sensor: Sensor) -> None:
    shell = subprocess.Popen(["/bin/sh", "-c", "/bin/echo one | /bin/cat | /usr/bin/wc -l; :"], stdout=subprocess.PIPE)
    assert shell.communicate()[0].strip() == b"1"
    sensor.one(shell.pid, EXIT)
    parts = [e for e in sensor.events if e.type == EXEC and e.process.ppid == shell.pid]
    assert {e.process.argv for e in parts} == {b"/bin/echo\0one\0", b"/bin/cat\0", b"/usr/bin/wc\0-l\0"}
    start = sensor.one(shell.pid, EXEC).process.start_boottime_ns
    for part in parts:
        assert (part.parent.pid, part.parent.start_boottime_ns) == (shell.pid, start)
        assert part.parent.exe == os.fsencode(Path("/bin/sh").resolve())
        assert part.parent.argv.startswith(b"/bin/sh\0-c\0/bin/echo one | ")


def test_a_relative_path_is_kept_as_given(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "relative")
    with Held(["zero"], program="./../" + tmp_path.name + "/relative", cwd=tmp_path) as held:
        event = sensor.one(held.pid, EXEC)
        check_exec_body(event, [b"zero"], b"./../" + tmp_path.name.encode() + b"/relative")
    assert event.process.exe == os.fsencode(program.resolve())
    assert event.process.cwd == os.fsencode(tmp_path.resolve())


def test_a_symlink_is_kept_as_given_and_exe_is_its_target(sensor: Sensor, hold: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(hold)
    with Held([str(link)]) as held:
        event = sensor.one(held.pid, EXEC)
        check_exec_body(event, [os.fsencode(link)], os.fsencode(link))
    assert event.process.exe == os.fsencode(Path(hold).resolve())
    assert event.process.comm == b"link"


def test_a_script_is_the_filename_and_exe_its_interpreter(sensor: Sensor, hold: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{hold} option\n")
    script.chmod(0o755)
    with Held([str(script), "last"]) as held:
        event = sensor.one(held.pid, EXEC)
        argv = [hold.encode(), b"option", os.fsencode(script), b"last"]
        check_exec_body(event, argv, os.fsencode(script))
        oracle.check(event.process, oracle.task(held.pid) | oracle.image(held.pid))
    assert event.process.comm == b"script"
    assert event.exec.exec_flags == event_pb2.EXEC_FLAG_SCRIPT
    assert event.exec.interpreter == hold.encode()


def test_a_long_comm_is_cut_at_15_bytes(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "a-name-of-over-15-bytes")
    with Held([str(program)]) as held:
        event = sensor.one(held.pid, EXEC)
    assert event.process.comm == b"a-name-of-over-"


def test_a_filename_over_255_bytes_is_cut(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "end")
    given = str(tmp_path) + "/." * 150 + "/end"
    with Held([given]) as held:
        event = sensor.one(held.pid, EXEC)
    assert event.exec.filename
    assert len(event.exec.filename) <= 255
    assert given.encode().startswith(event.exec.filename)
    assert event.process.exe == os.fsencode(program.resolve())


def cut(argv: bytes, size: int = 4096, tail: int = 1024) -> bytes:
    """Head and tail of an argv that is too long, an argument "..." between."""
    gap = b"...\0"
    return argv[: size - tail - len(gap)] + gap + argv[-tail:]


def test_the_kept_image_of_a_long_argv_has_its_head_and_its_tail(sensor: Sensor, hold: str) -> None:
    with Held([hold, "first", "x" * 3000, "last"]) as held:
        sensor.one(held.pid, EXEC)
    kept = sensor.one(held.pid, EXIT).process
    assert kept.image_flags == ARGV_CUT
    assert kept.argv.startswith(os.fsencode(hold) + b"\0first\0xxxx")
    assert b"xxx...\0xxx" in kept.argv
    assert kept.argv.endswith(b"xxx\0last\0")


def test_ancestors_are_those_of_proc_nearest_first(sensor: Sensor, hold: str) -> None:
    with Held(["/bin/sh", "-c", f"{hold}; true"]) as held:
        sensor.settle()
        below = next(event for event in sensor.events if event.type == EXEC and event.process.ppid == held.pid)
        chain = oracle.ancestors(below.process.pid)
    assert chain[:2] == [os.path.realpath(b"/bin/sh"), os.readlink(b"/proc/self/exe")]
    whole = b"".join(path + b"\0" for path in chain)
    told = below.process.ancestors
    known = min(len(told), len(whole))
    assert told[:known] == whole[:known]
    assert known == len(whole) or known > 192, "cut, though there was room"
    assert below.parent.ancestors == b""
    of_shell = sensor.one(held.pid, EXEC).process.ancestors
    assert of_shell
    assert told.startswith(chain[0] + b"\0" + of_shell[:150])


def test_argv_over_4096_bytes_is_cut_flagged_and_counted_in_full(sensor: Sensor, hold: str) -> None:
    arguments = [hold, *(f"argument-{number:05}" for number in range(800))]
    text = "".join(f"{argument}\0" for argument in arguments).encode()
    with Held(arguments) as held:
        event = sensor.one(held.pid, EXEC)
    assert event.process.image_flags == ARGV_CUT
    assert event.process.argv == cut(text)
    assert (event.exec.argc, event.exec.argv_bytes) == (801, len(text))


@pytest.mark.parametrize("size", [4095, 4096, 4097])
def test_argv_is_flagged_only_when_it_does_not_fit(sensor: Sensor, hold: str, size: int) -> None:
    padding = "x" * (size - len(hold) - 2)
    text = f"{hold}\0{padding}\0".encode()
    with Held([hold, padding]) as held:
        event = sensor.one(held.pid, EXEC)
    assert event.process.argv == (cut(text) if size > 4096 else text)
    assert event.exec.argv_bytes == size
    assert bool(event.process.image_flags & ARGV_CUT) == (size > 4096)


def test_empty_and_non_utf8_arguments_are_kept_byte_by_byte(sensor: Sensor, hold: str) -> None:
    argv = [b"", b"", b"\xff\xfe", b"\n\t\x01", b"", b"\xc3"]
    with Held(argv, program=hold) as held:
        event = sensor.one(held.pid, EXEC)
        check_exec_body(event, argv, hold.encode())


def test_a_path_that_is_no_utf8_is_kept(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff\xfe dir"
    os.mkdir(folder)
    program = folder + b"/\x80prog\n"
    acts.copy("hold", Path(os.fsdecode(program)))
    with Held([program], program=program, cwd=folder) as held:
        event = sensor.one(held.pid, EXEC)
        check_exec_body(event, [program], program)
    assert (event.process.exe, event.process.cwd) == (program, folder)
    assert event.process.comm == b"\x80prog\n"


@pytest.mark.parametrize(
    "names",
    [[b"d%03d" % n for n in range(20)], [b"d%03d" % n for n in range(70)], [b"%c" % (97 + n % 26) for n in range(300)]],
    ids=["20-folders", "70-folders", "300-folders"],
)
def test_a_deep_folder_is_whole_or_flagged_with_its_tail(
    sensor: Sensor, acts: Acts, deep: Path, names: list[bytes]
) -> None:
    inner, path = descend(deep, names)
    program = path + b"/hold"
    acts.copy("hold", Path(os.fsdecode(program)))
    with Held([program], program=program, cwd=path) as held:
        event = sensor.one(held.pid, EXEC)
    os.close(inner)
    flags = event.process.image_flags
    check_cut(event.process.exe, program, bool(flags & EXE_CUT), "exe", 40)
    check_cut(event.process.cwd, path, bool(flags & CWD_CUT), "cwd", 0)
    if len(names) <= 20:
        assert flags == 0


def test_a_path_of_nearly_4_kib_is_whole_or_flagged_with_its_tail(sensor: Sensor, acts: Acts, deep: Path) -> None:
    room = 4085 - len(os.fsencode(deep.resolve()))
    inner, path = descend(deep, [bytes([65 + n]) * 199 for n in range(room // 200)])
    program = path + b"/hold"
    acts.copy("hold", Path(os.fsdecode(program)))
    with Held([program, b"argument"], program=program, cwd=path) as held:
        event = sensor.one(held.pid, EXEC)
        assert os.readlink(b"/proc/%d/exe" % held.pid) == program
    os.close(inner)
    ended = sensor.one(held.pid, EXIT)
    for process in (event.process, ended.process):
        check_cut(process.exe, program, bool(process.image_flags & EXE_CUT), "exe", 200)
        check_cut(process.cwd, path, bool(process.image_flags & CWD_CUT), "cwd", 0)
        text = program + b"\0argument\0"
        assert text.startswith(process.argv)
        assert (process.argv == text) == (not process.image_flags & ARGV_CUT)


def test_a_path_over_4_kib_is_flagged_and_its_tail_kept(sensor: Sensor, acts: Acts, deep: Path) -> None:
    inner, path = descend(deep, [b"%03d" % n + b"x" * 200 for n in range(30)])
    source, target = (
        os.open(acts.path("hold"), os.O_RDONLY),
        os.open("hold", os.O_CREAT | os.O_WRONLY, 0o755, dir_fd=inner),
    )
    os.sendfile(target, source, 0, os.fstat(source).st_size)
    os.close(source)
    os.close(target)
    with Held(["hold"], program="./hold", before_exec=lambda: os.fchdir(inner)) as held:
        event = sensor.one(held.pid, EXEC)
        inode = os.fstat(inner)
        assert inode.st_ino == os.stat(f"/proc/{held.pid}/cwd").st_ino
    os.close(inner)
    assert event.process.image_flags & EXE_CUT
    assert event.process.image_flags & CWD_CUT
    check_cut(event.process.exe, path + b"/hold", True, "exe", 200)
    check_cut(event.process.cwd, path, True, "cwd", 0)
    assert event.process.argv == b"hold\0"


def test_a_deleted_executable_has_no_names(sensor: Sensor, hold: str) -> None:
    memory = os.memfd_create("secret", 0)
    os.write(memory, Path(hold).read_bytes())
    with Held(["from-memory"], program=f"/proc/self/fd/{memory}", pass_fds=[memory]) as held:
        event = sensor.one(held.pid, EXEC)
        assert event.exec.exe_nlink == os.stat(f"/proc/{held.pid}/exe").st_nlink == 0
        assert event.process.exe_inode == os.fstat(memory).st_ino
        assert b"memfd:secret" in event.process.exe
        assert event.exec.filename == b"/proc/self/fd/%d" % memory
        assert event.exec.exec_flags == event_pb2.EXEC_FLAG_MEMFD | event_pb2.EXEC_FLAG_DELETED
    os.close(memory)


def test_a_file_that_only_calls_itself_memfd_is_none(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "memfd:secret")
    with Held([str(program)]) as held:
        assert sensor.one(held.pid, EXEC).exec.exec_flags == 0


def test_an_executable_that_was_deleted_is_flagged(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "gone")
    descriptor = os.open(program, os.O_RDONLY)
    program.unlink()
    with Held(["gone"], program=f"/proc/self/fd/{descriptor}", pass_fds=[descriptor]) as held:
        event = sensor.one(held.pid, EXEC)
    os.close(descriptor)
    assert event.exec.exec_flags == event_pb2.EXEC_FLAG_DELETED


def test_a_setuid_program_changes_effective_and_saved_ids_only(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    program = acts.copy("hold", tmp_path / "setuid")
    os.chown(program, 1111, 2222)
    program.chmod(0o6755)
    with Held([str(program)]) as held:
        event = sensor.one(held.pid, EXEC)
        expected = oracle.task(held.pid)
        if expected["euid"] == 0:
            pytest.skip("SETUID IS NOT TESTED: the file system of the temporary folder is mounted nosuid")
        oracle.check(event.process, expected)
    process = event.process
    assert (process.uid, process.euid, process.suid) == (0, 1111, 1111)
    assert (process.gid, process.egid, process.sgid) == (0, 2222, 2222)
    assert event.exec.exe_mode == 0o106755
    flags = event_pb2.EXEC_FLAG_SETUID | event_pb2.EXEC_FLAG_SETGID | event_pb2.EXEC_FLAG_SECURE
    assert event.exec.exec_flags == flags


def test_credentials_are_those_after_a_change(sensor: Sensor, hold: str) -> None:
    def change() -> None:
        os.setresgid(2001, 2002, 2003)
        os.setresuid(1001, 1002, 1003)

    with Held([hold], before_exec=change) as held:
        event = sensor.one(held.pid, EXEC)
        oracle.check(event.process, oracle.task(held.pid))
        assert (event.process.uid, event.process.euid, event.process.cap_effective) == (1001, 1002, 0)
    assert event.parent.euid == os.geteuid()


def test_effective_and_permitted_capabilities_are_told_apart(sensor: Sensor, hold: str) -> None:
    with Held([hold], before_exec=lambda: os.setresuid(1001, 0, 0)) as held:
        event = sensor.one(held.pid, EXEC)
        expected = oracle.task(held.pid)
        oracle.check(event.process, expected)
    assert expected["cap_permitted"] != 0


def test_the_cgroup_is_the_one_of_the_unified_hierarchy(sensor: Sensor, hold: str) -> None:
    if oracle.UNIFIED is None:
        pytest.skip("CGROUPS ARE NOT TESTED: no unified hierarchy is mounted")
    group = oracle.UNIFIED / f"tocsin-test-{os.getpid()}"
    group.mkdir()
    try:
        with Held(["/bin/sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {hold}"]) as held:
            event = sensor.one(held.pid, EXEC, count=2)
            assert event.process.cgroup_id == oracle.cgroup_id(held.pid) == group.stat().st_ino
        assert sensor.of(held.pid, EXEC)[0].process.cgroup_id == oracle.cgroup_id(os.getpid())
    finally:
        group.rmdir()


def test_login_uid_and_session_are_those_of_audit(sensor: Sensor, hold: str) -> None:
    if not Path("/proc/self/loginuid").exists():
        pytest.skip("LOGIN UIDS ARE NOT TESTED: this kernel has no audit")

    def log_in() -> None:
        Path("/proc/self/loginuid").write_text("4242")

    with Held([hold], before_exec=log_in) as held:
        event = sensor.one(held.pid, EXEC)
        assert event.process.login_uid == oracle.audit(held.pid, "loginuid") == 4242
        assert event.process.session_id == oracle.audit(held.pid, "sessionid") != 0xFFFFFFFF


def test_five_new_namespaces_are_told(sensor: Sensor, acts: Acts, hold: str) -> None:
    with Held([str(acts.path("isolate")), hold]) as held:
        event = sensor.one(held.pid, EXEC, count=2)
        oracle.check(event.process, oracle.task(held.pid) | oracle.image(held.pid))
        for field in ("mnt_ns", "net_ns", "uts_ns", "ipc_ns", "cgroup_ns"):
            assert getattr(event.process, field) != getattr(event.parent, field), field
        for field in ("pid_ns", "user_ns"):
            assert getattr(event.process, field) == getattr(event.parent, field), field


@pytest.mark.parametrize(("kind", "fields"), [("pid", ["mnt_ns", "pid_ns"]), ("user", ["user_ns"])])
def test_a_process_in_another_namespace_has_its_outer_pid(
    sensor: Sensor, acts: Acts, hold: str, kind: str, fields: list[str]
) -> None:
    with Held([str(acts.path("enclose")), kind, hold], says_pid=True) as held:
        # What it said is the pid in its parent's namespace, which is ours.
        event = sensor.one(held.said, EXEC)
        expected = oracle.task(held.said) | oracle.image(held.said)
        if kind == "user":  # /proc maps ids for its reader, whose namespace is the initial one: no mapping
            assert expected["euid"] == 0
        oracle.check(event.process, expected | {"ppid": held.pid, "tid": held.said})
        assert event.parent.pid == held.pid
        here = oracle.task(os.getpid())
        for field in oracle.NAMESPACES:
            assert (getattr(event.process, field) != here[field]) == (field in fields), field


def test_an_exec_under_another_root_has_the_path_inside(sensor: Sensor, acts: Acts, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    acts.copy("hold", root / "sub" / "hold")

    def enter() -> None:
        os.chroot(root)
        os.chdir("/sub")

    with Held(["hold"], program="/sub/hold", before_exec=enter) as held:
        event = sensor.one(held.pid, EXEC)
        assert event.exec.filename == b"/sub/hold"
        # A chroot is no mount namespace: in that, the path is the outer one.
        assert event.process.exe in (b"/sub/hold", os.fsencode(root.resolve()) + b"/sub/hold")
        assert event.process.exe_inode == (root / "sub" / "hold").stat().st_ino


def test_an_exec_by_a_thread_tells_the_thread_and_keeps_the_process(sensor: Sensor, acts: Acts, hold: str) -> None:
    with Held([str(acts.path("threads")), "exec", hold, "x"], says_pid=True) as held:
        event = sensor.one(held.pid, EXEC, count=2)
        assert event.exec.caller_tid == held.said
        assert held.said != held.pid
        oracle.check(event.process, oracle.task(held.pid) | oracle.image(held.pid) | {"tid": held.pid})
    first = sensor.of(held.pid, EXEC)[0]
    assert event.process.start_boottime_ns == first.process.start_boottime_ns
    assert not [e for e in sensor.events if e.type == EXIT and e.process.pid == held.said]
    sensor.one(held.pid, EXIT)


def test_an_exec_after_vfork_has_the_vforking_parent(sensor: Sensor, acts: Acts, hold: str) -> None:
    # The child is the one that holds still, its parent says the pid when the child has executed: either may be first.
    starter = str(acts.path("vfork_exec"))
    process = subprocess.Popen([starter, hold, "v"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    sensor.collect(lambda: any(e.type == EXEC and e.process.ppid == process.pid for e in sensor.events), "vfork's exec")
    event = next(e for e in sensor.events if e.type == EXEC and e.process.ppid == process.pid)
    oracle.check(
        event.process, {"start_ticks": oracle.start_ticks(event.process.pid), "argv": hold.encode() + b"\0v\0"}
    )
    assert event.parent.pid == process.pid
    assert event.parent.exe == os.fsencode(Path(starter).resolve())
    process.stdin.close()
    said = process.stdout.read().replace(b"r", b"")
    process.stdout.close()
    assert process.wait() == 0
    assert int(said) == event.process.pid


def test_posix_spawn_is_an_exec_of_the_child(sensor: Sensor) -> None:
    pid = os.posix_spawn("/bin/true", ["spawned", "arg"], {"X": "y"})
    os.waitpid(pid, 0)
    event = sensor.one(pid, EXEC)
    assert (event.process.ppid, event.parent.pid) == (os.getpid(), os.getpid())
    assert (event.process.argv, event.exec.envc, event.exec.filename) == (b"spawned\0arg\0", 1, b"/bin/true")
    assert event.process.exe == os.fsencode(Path("/bin/true").resolve())


def test_a_failed_exec_is_no_event(sensor: Sensor, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF and nothing")
    broken.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(broken, ["broken"])
        finally:
            os._exit(9)
    os.waitpid(pid, 0)
    assert sensor.one(pid, EXIT).exit.code == 9
    assert not sensor.of(pid, EXEC)


def test_an_argv_rewritten_after_exec_does_not_change_the_image(sensor: Sensor) -> None:
    rewrite = (
        "import ctypes,sys\n"
        "libc=ctypes.CDLL(None)\n"
        "start=int(open('/proc/self/stat').read().rpartition(') ')[2].split()[45])\n"
        "ctypes.memset(start, 88, 4)\n"
        "libc.prctl(15, b'renamed', 0, 0, 0)\n"
        "print(open('/proc/self/cmdline','rb').read()[:4], flush=True)\n"
    )
    done = subprocess.Popen([sys.executable, "-S", "-c", rewrite], stdout=subprocess.PIPE)
    assert done.communicate()[0].strip() == b"b'XXXX'"
    ended = sensor.one(done.pid, EXIT)
    assert ended.process.argv.startswith(os.fsencode(sys.executable) + b"\0-S\0-c\0")
    assert ended.process.comm == b"renamed"


def test_two_execs_of_one_process_are_two_events_with_one_key(sensor: Sensor, hold: str) -> None:
    with Held(["/bin/sh", "-c", f"exec {hold} again"]) as held:
        second = sensor.one(held.pid, EXEC, count=2)
    first = sensor.of(held.pid, EXEC)[0]
    assert first.process.exe == os.fsencode(Path("/bin/sh").resolve())
    assert second.process.exe == os.fsencode(Path(hold).resolve())
    assert first.process.start_boottime_ns == second.process.start_boottime_ns
    assert first.process.exec_boottime_ns < second.process.exec_boottime_ns
    assert second.parent.pid == os.getpid()


def test_an_orphan_has_its_new_parent(sensor: Sensor) -> None:
    said, gate = os.pipe(), os.pipe()

    def orphan() -> None:
        os.read(gate[0], 1)

    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come here
    try:
        middle = fork_and(lambda: os.write(said[1], b"%d" % fork_and(orphan)))
        os.waitpid(middle, 0)
        pid = int(os.read(said[0], 16))
        assert oracle.task(pid)["ppid"] == os.getpid()
        os.write(gate[1], b"x")
        os.waitpid(pid, 0)
    finally:
        libc.prctl(36, 0, 0, 0, 0)
    for end in (*said, *gate):
        os.close(end)
    ended = sensor.one(pid, EXIT)
    assert (ended.process.ppid, ended.parent.pid) == (os.getpid(), os.getpid())
    assert ended.parent.exe == os.readlink(b"/proc/self/exe")
