"""The courier: talks gRPC, has no privileges.

Its life: bind the public socket and import everything as root, enter the
sandbox, tell the monitor READY, then one loop over the channels and the gRPC
servers until the monitor says SHUTDOWN or is gone.
"""

import argparse
import asyncio
import encodings.idna  # noqa: F401 - the same
import grp
import importlib.metadata
import logging
import os
import platform
import signal
import socket
import sys
import traceback  # noqa: F401 - a report of an error must not need a file
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc._utilities  # noqa: F401 - the same

from tocsin import config as configuration
from tocsin.errors import TocsinError
from tocsin.processes.channel import Channel
from tocsin.processes.courier_links import Links
from tocsin.records import framing
from tocsin.sandbox.profiles import enter_courier
from tocsin.stream.front import Front
from tocsin.stream.peers import Access, Policy
from tocsin.stream.services import Agent, Servers

log = logging.getLogger("courier")

LISTEN_BACKLOG: Final = 128
INNER_PATHS: Final = {access: f"{access.value}.sock" for access in Access}
"""Relative to the courier's own directory, which is its working directory."""
PUBLIC_UMASK: Final = 0o111
"""Everybody may connect; the kernel tells who does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until the monitor ends it; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="tocsin.processes.courier")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=os.environ.get("TOCSIN_LOG_LEVEL", "INFO"), format="%(name)s: %(message)s"
    )
    try:
        config = configuration.from_json(arguments.config)
        control = Channel(socket.socket(fileno=arguments.control_fd))
        uid = configuration.process_uid("tocsin-courier")
        listener = listen(config.socket_path)
        enter_directory(Path(config.runtime_dir) / "courier", uid)
        policy = read_policy(config)
        version = importlib.metadata.version("tocsin")
        framing.index(b"")  # opens the native library, which the sandbox hides
        log.info("%s", enter_courier(uid, Path()))
    except (TocsinError, OSError) as error:
        log.error("cannot start: %s", error)  # noqa: TRY400 - an operator's error, not the program's
        return 1
    return asyncio.run(serve(config.courier, control, Front(listener, policy, INNER_PATHS), version))


def listen(path: Path) -> socket.socket:
    """The public socket. A former one is replaced: the monitor's lock says that no other agent runs."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    path.unlink(missing_ok=True)
    former = os.umask(PUBLIC_UMASK)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{path}: {error.strerror or error}") from error
    finally:
        os.umask(former)
    listener.listen(LISTEN_BACKLOG)
    return listener


def enter_directory(path: Path, uid: int) -> None:
    """Makes the courier's own directory, empty of sockets, and goes there: its parents may be closed to it."""
    path.mkdir(mode=0o700, exist_ok=True)
    os.chdir(path)
    if os.geteuid() == 0:
        os.chown(".", uid, -1)
    for name in INNER_PATHS.values():
        Path(name).unlink(missing_ok=True)


def read_policy(config: configuration.Config) -> Policy:
    """Who may do what on this host."""
    owner = os.stat(config.runtime_dir).st_uid  # noqa: PTH116
    try:
        reader_gid = grp.getgrnam(config.courier.reader_group).gr_gid
    except KeyError:
        log.info("no group %s on this host: only operators may look", config.courier.reader_group)
        reader_gid = None
    return Policy(frozenset({0, owner}), reader_gid)


async def serve(config: configuration.CourierConfig, control: Channel, front: Front, version: str) -> int:
    """Serves until the monitor ends it; the exit status."""
    loop = asyncio.get_running_loop()
    links = Links(control, config, loop, version, platform.release())
    servers = Servers(Agent(version, links.hub, links.status, links.load), config.reader_group)
    await servers.start(INNER_PATHS)
    loop.add_signal_handler(signal.SIGTERM, links.ended.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    public = loop.create_task(front.serve())
    links.open()
    try:
        while not links.ended.is_set():
            await servers.set_serving(serving=links.healthy)
            await links.tick()
    finally:
        public.cancel()
        await servers.stop()
    return 1 if links.failed else 0


if __name__ == "__main__":
    sys.exit(main())
