"""A connection to the running agent: its RPCs, and its errors in the words of the command line."""

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.errors import ConfigError, KernelError, PeerError

_CONTROL: Final = "/tocsin.api.control.v1.ControlService/"
_CONTENT: Final = "/tocsin.api.content.v1.ContentService/"
CHUNK_BYTES: Final = 512 << 10
CALL_TIMEOUT_S: Final = 10.0
LOAD_TIMEOUT_S: Final = 180.0
MAX_MESSAGE_BYTES: Final = 4 << 20


class RunningAgent:
    """The agent's services. Every method raises ConfigError, KernelError or PeerError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def status(self) -> control.GetStatusResponse:
        """GetStatus."""
        call = self._channel.unary_unary(
            f"{_CONTROL}GetStatus",
            control.GetStatusRequest.SerializeToString,
            control.GetStatusResponse.FromString,
        )
        with translated():
            return call(control.GetStatusRequest(), timeout=CALL_TIMEOUT_S)

    def subscribe(self, request: control.SubscribeRequest, seconds: float | None) -> Iterator[bytes]:
        """Subscribe: serialised SubscribeResponses, until the time is over."""
        call: Callable[..., Iterator[bytes]] = self._channel.unary_stream(
            f"{_CONTROL}Subscribe", control.SubscribeRequest.SerializeToString, None
        )
        with translated():
            try:
                yield from call(request, timeout=seconds)
            except grpc.RpcError as error:
                if seconds is None or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise

    def load(self, release: bytes) -> content.LoadReleaseResponse:
        """LoadRelease."""
        call: Callable[..., content.LoadReleaseResponse] = self._channel.stream_unary(
            f"{_CONTENT}LoadRelease",
            content.LoadReleaseRequest.SerializeToString,
            content.LoadReleaseResponse.FromString,
        )
        with translated():
            return call(_chunks(release), timeout=LOAD_TIMEOUT_S)


def _chunks(release: bytes) -> Iterable[content.LoadReleaseRequest]:
    for start in range(0, len(release), CHUNK_BYTES):
        yield content.LoadReleaseRequest(chunk=release[start : start + CHUNK_BYTES])


@contextmanager
def connected(path: Path) -> Iterator[RunningAgent]:
    """The agent that listens on a socket. Raises PeerError, KernelError."""
    _try(path)
    options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.enable_http_proxy", 0))
    with grpc.insecure_channel(f"unix:{path.absolute()}", options) as channel:
        yield RunningAgent(channel)


def _try(path: Path) -> None:
    """gRPC would retry, and then tell less."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise KernelError(f"{path}: permission denied: run it as root or as the agent's user") from error
            raise PeerError(
                f"no agent listens on {path} ({error.strerror or error}): start it with `tocsin run`"
            ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Turns an RPC's error into the tree of tocsin.errors."""
    try:
        yield
    except grpc.RpcError as error:
        code, words = error.code(), error.details()
        if code is grpc.StatusCode.PERMISSION_DENIED:
            raise KernelError(f"permission denied: {words}") from error
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise ConfigError(f"the agent refuses the request: {words}") from error
        raise PeerError(f"the agent ended the call: {code.name}: {words}") from error
