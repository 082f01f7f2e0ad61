"""The profiles, entered for real in a child process which then tries what it must not be able to do."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = """
import ctypes, errno, json, mmap, os, resource, signal, socket, sys, threading, time
from pathlib import Path
import hyperscan
from tocsin.sandbox import landlock
from tocsin.sandbox.profiles import enter_courier, enter_enricher, enter_evaluator, enter_sensor

libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()

def attempt(action):
    try:
        return str(action())
    except BaseException as error:
        return type(error).__name__
"""
IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")


def in_child(code: str, *, status: int = 0) -> str:
    """Runs code after the prelude in a child process; its standard output."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


def in_evaluator(expression: str, setup: str = "") -> str:
    """What became of an expression inside the evaluator's sandbox."""
    return in_child(f"""
{textwrap.dedent(setup)}
enter_evaluator(65490 if os.geteuid() == 0 else os.getuid(), 1 << 30)
print(attempt(lambda: {expression}))
""")


def test_evaluator_cannot_open_a_file() -> None:
    assert in_evaluator("open('/etc/passwd').read()") == "PermissionError"


def test_evaluator_cannot_create_a_file(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert in_evaluator(f"open('{tmp_path}/made', 'w')") == "PermissionError"
    assert not list(tmp_path.iterdir())


def test_evaluator_cannot_make_a_socket() -> None:
    assert in_evaluator("socket.socket()") == "PermissionError"
    assert in_evaluator("socket.socket(socket.AF_UNIX)") == "PermissionError"


def test_evaluator_cannot_fork() -> None:
    assert in_evaluator("os.fork()") == "PermissionError"


def test_evaluator_cannot_start_a_thread() -> None:
    assert in_evaluator("threading.Thread(target=print).start()") == "RuntimeError"


def test_evaluator_cannot_execute_a_program() -> None:
    assert in_evaluator("os.execv('/bin/true', ['true'])") == "PermissionError"


def test_evaluator_cannot_signal_its_parent() -> None:
    assert in_evaluator("os.kill(parent, 0)") == "PermissionError"


def test_evaluator_cannot_trace_its_parent() -> None:
    assert in_evaluator("(libc.ptrace(16, parent, 0, 0), errno.errorcode[ctypes.get_errno()])") == "(-1, 'EPERM')"


def test_evaluator_cannot_make_memory_executable() -> None:
    assert in_evaluator("mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)") == "PermissionError"


def test_evaluator_cannot_raise_its_limits() -> None:
    assert in_evaluator("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))") in {"ValueError", "PermissionError"}


@root_only
def test_evaluator_cannot_become_root_again() -> None:
    assert in_evaluator("os.setuid(0)") == "PermissionError"


def test_evaluator_beyond_its_memory_gets_a_memory_error_and_lives() -> None:
    assert in_evaluator("bytearray(2 << 30)") == "MemoryError"


def test_evaluator_can_still_compile_and_scan() -> None:
    setup = """
    def scan():
        found = []
        database = hyperscan.Database()
        database.compile(expressions=[b"needle"], ids=[7], elements=1, flags=[0])
        database.scan(b"a needle in hay", match_event_handler=lambda i, *rest: found.append(i))
        return found
    """
    assert in_evaluator("scan()", setup) == "[7]"


def test_evaluator_can_still_talk_over_its_channel() -> None:
    setup = "left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)"
    assert in_evaluator("(left.sendmsg([b'x']), right.recvmsg(9)[0])", setup) == "(1, b'x')"


def test_evaluator_can_still_take_a_channel_from_the_monitor() -> None:
    setup = """
    from tocsin.processes.channel import Channel, Kind, Message, pair
    (ours, theirs), (left, right) = pair(), pair()
    ours, theirs = Channel(ours), Channel(theirs)
    ours.send(Message(Kind.ATTACH, fds=(left.fileno(),)))

    def attach():
        peer = Channel(socket.socket(fileno=theirs.receive().fds[0]))
        peer.send(Message(Kind.ACK))
        return Channel(right).receive().kind.name
    """
    assert in_evaluator("attach()", setup) == "ACK"


def test_evaluator_cannot_control_a_terminal() -> None:
    assert in_evaluator("fcntl.ioctl(0, termios.TIOCSTI, b'x')", "import fcntl, termios") == "PermissionError"


def test_evaluator_may_be_ended_by_a_forbidden_call() -> None:
    code = """
    enter_evaluator(65490 if os.geteuid() == 0 else os.getuid(), 1 << 30, kill_on_violation=True)
    socket.socket()
    """
    in_child(code, status=-31)


def test_every_step_is_reported() -> None:
    report = in_child("""
    print(enter_evaluator(65490 if os.geteuid() == 0 else os.getuid(), 1 << 30))
    """)
    for step in ("threads", "user", "capabilities", "parent death", "no new privileges", "landlock: ABI", "seccomp"):
        assert step in report


@root_only
def test_without_root_what_can_be_done_is_done_and_the_rest_is_reported() -> None:
    report, opened = in_child("""
    os.setresgid(65492, 65492, 65492)
    os.setresuid(65492, 65492, 65492)
    report = enter_evaluator(65490, 1 << 30)
    print(json.dumps([str(report), attempt(lambda: open("/etc/passwd"))]))
    """)[2:-2].split('", "')
    assert "user (missing): stays uid 65492" in report
    assert "capability bounds (missing)" in report
    assert opened == "PermissionError"


def test_a_process_with_threads_is_refused() -> None:
    answer = in_child("""
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    try:
        enter_evaluator(os.getuid(), 1 << 30)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
    """)
    assert answer.startswith("KernelError got 2 threads, expected 1")


def test_the_log_goes_on_when_standard_error_is_a_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        code = f"enter_evaluator({65490 if IS_ROOT else os.getuid()}, 1 << 30)\nprint('still here', file=sys.stderr)"
        subprocess.run([sys.executable, "-P", "-c", PRELUDE + code], stderr=file, timeout=60, check=True)
    assert log.read_text() == "still here\n"


def test_a_sandboxed_child_dies_with_its_parent() -> None:
    pid = int(
        in_child("""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        enter_evaluator(65490 if os.geteuid() == 0 else os.getuid(), 1 << 30)
        os.write(writer, b"x")
        time.sleep(60)
    os.read(reader, 1)
    print(child)
    """)
    )
    deadline = 50
    while Path(f"/proc/{pid}").exists() and deadline:
        subprocess.run(["sleep", "0.1"], check=True)
        deadline -= 1
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
    assert deadline, f"{pid} still runs"


COURIER = """
import asyncio, grpc, grpc.aio, grpc._utilities, logging, encodings.idna
runtime = Path({runtime!r})
uid = 65491 if os.geteuid() == 0 else os.getuid()
os.chown(runtime, uid, -1)
os.chdir(runtime)
enter_courier(uid, Path())
"""


def test_courier_serves_grpc_inside_its_sandbox(tmp_path: Path) -> None:
    code = (
        COURIER.format(runtime=str(tmp_path))
        + """
async def echo(request, context):
    return request[::-1]

async def main():
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler("t.T", {"Echo": grpc.unary_unary_rpc_method_handler(echo)})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port("unix:inner.sock")
    await server.start()
    async with grpc.aio.insecure_channel("unix:inner.sock") as channel:
        print(await channel.unary_unary("/t.T/Echo")(b"abc"))
    await server.stop(0)

asyncio.run(main())
"""
    )
    assert in_child(code) == "b'cba'"


@pytest.mark.parametrize(
    "expression",
    [
        "open('/etc/passwd')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(parent, 0)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "open(runtime.parent / 'outside', 'w')",
    ],
)
def test_courier_cannot(expression: str, tmp_path: Path) -> None:
    code = COURIER.format(runtime=str(tmp_path)) + f"print(attempt(lambda: {expression}))"
    assert in_child(code) == "PermissionError"


def in_enricher(expression: str, setup: str = "") -> str:
    """What became of an expression inside the enricher's sandbox."""
    return in_child(f"""
{textwrap.dedent(setup)}
enter_enricher(65492 if os.geteuid() == 0 else os.getuid())
print(attempt(lambda: {expression}))
""")


@pytest.mark.parametrize(
    "expression",
    [
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_INET)",
        "socket.socketpair()",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(parent, 0)",
        "os.kill(os.getpid(), 0)",
        "os.mkdir('/tmp/made-by-the-enricher')",
        "os.unlink('/tmp/nothing')",
        "os.open('/tmp', os.O_RDWR | os.O_TMPFILE)",
        "os.open('/dev/null', os.O_WRONLY)",
        "os.open('/dev/null', os.O_RDONLY | os.O_TRUNC)",
        "os.open('/dev/null', os.O_RDONLY | os.O_APPEND)",
        "open('/tmp/made-by-the-enricher', 'w')",
        "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    ],
)
def test_enricher_cannot(expression: str) -> None:
    assert in_enricher(expression) == "PermissionError"


def test_enricher_cannot_trace_its_parent() -> None:
    assert in_enricher("(libc.ptrace(16, parent, 0, 0), errno.errorcode[ctypes.get_errno()])") == "(-1, 'EPERM')"


def test_enricher_has_a_bound_on_its_memory() -> None:
    assert in_enricher("bytearray(1 << 30)") == "MemoryError"


def test_enricher_can_start_a_thread() -> None:
    setup = """
    def thread():
        started = threading.Event()
        threading.Thread(target=started.set, daemon=True).start()
        return started.wait(10)
    """
    assert in_enricher("thread()", setup) == "True"


@root_only
def test_enricher_cannot_become_root_again() -> None:
    assert in_enricher("os.setuid(0)") == "PermissionError"


@root_only
def test_enricher_keeps_what_it_needs_to_read_of_others_and_nothing_else() -> None:
    facts = in_enricher("Path('/proc/self/status').read_text()").splitlines()
    sets = {line.split()[0]: int(line.split()[1], 16) for line in facts if line.startswith("Cap")}
    others_proc = 1 << 19 | 1 << 2
    assert sets["CapPrm:"] == sets["CapEff:"] == sets["CapBnd:"] == others_proc
    assert sets["CapAmb:"] == sets["CapInh:"] == 0


@root_only
def test_enricher_can_read_what_others_run_and_hide(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    assert in_enricher(f"open('{secret}').read()") == "x"
    with subprocess.Popen(["sleep", "60"], user=65490, group=65490) as other:
        try:
            assert in_enricher(f"open('/proc/{other.pid}/exe', 'rb').read(4)") == repr(b"\x7fELF")
            assert in_enricher(f"'etc' in os.listdir('/proc/{other.pid}/root')") == "True"
        finally:
            other.kill()


SENSOR = "import hyperscan\nenter_sensor()\n"


@root_only
@pytest.mark.parametrize(
    "expression", ["socket.socket()", "os.execv('/bin/true', ['true'])", "os.setuid(65490)", "os.chown('/tmp', 1, 1)"]
)
def test_sensor_cannot(expression: str) -> None:
    assert in_child(f"{SENSOR}print(attempt(lambda: {expression}))") == "PermissionError"


@root_only
def test_sensor_can_still_read_what_others_hide(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    os.chown(secret, 65492, 65492)
    secret.chmod(0)
    assert in_child(f"{SENSOR}print(attempt(lambda: open('{secret}').read()))") == "x"


def test_report_as_json_of_its_steps() -> None:
    steps = json.loads(
        in_child("""
    report = enter_evaluator(65490 if os.geteuid() == 0 else os.getuid(), 1 << 30)
    print(json.dumps([[s.name, s.outcome.value, s.detail] for s in report.steps]))
    """)
    )
    assert [name for name, _, _ in steps][-2:] == ["landlock", "seccomp"]
