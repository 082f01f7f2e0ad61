"""The gRPC services, as each kind of local caller sees them.

Three servers share one loop: for operators, for readers, and for everybody
else, who learns that he is denied. What a service does is decided in `hub` and
`loading`; here are the RPCs only.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tocsin.api.content.v1 import content_service_pb2 as content
from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.errors import PeerError, WireError
from tocsin.stream.hub import Hub, Subscriber
from tocsin.stream.loading import MAX_CHUNK_BYTES, TooBigError, Upload
from tocsin.stream.peers import Access
from tocsin.stream.subscription import checked

CONTROL: Final = "tocsin.api.control.v1.ControlService"
CONTENT: Final = "tocsin.api.content.v1.ContentService"
SERVICES: Final = (CONTROL, CONTENT, health.SERVICE_NAME, reflection.SERVICE_NAME)
MAX_RPCS: Final = 512
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_CHUNK_BYTES + 1024),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Agent:
    """What the services need of the courier."""

    version: str
    hub: Hub
    status: Callable[[], control.GetStatusResponse]
    load: Callable[[Upload], Awaitable[content.LoadReleaseResponse]]
    """Raises PeerError while another load is under way, TimeoutError without an answer."""


class ControlRpcs:
    """ControlService."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def get_status(self, _request: control.GetStatusRequest, _context: object) -> control.GetStatusResponse:
        """GetStatus."""
        return self._agent.status()

    async def subscribe(self, request: control.SubscribeRequest, context: Context) -> AsyncIterator[bytes]:
        """Subscribe: serialised responses, for the bytes of batches go through as they came."""
        ready = asyncio.Event()
        subscriber = await self._open(request, ready, context)
        try:
            hub = self._agent.hub
            start = control.StreamStart(version=self._agent.version, position=hub.position, users=hub.users)
            yield control.SubscribeResponse(start=start).SerializeToString()
            while True:
                ready.clear()
                while (message := subscriber.backlog.pop()) is not None:
                    yield message
                await ready.wait()
        finally:
            self._agent.hub.unsubscribe(subscriber)

    async def _open(self, request: control.SubscribeRequest, ready: asyncio.Event, context: Context) -> Subscriber:
        try:
            return self._agent.hub.subscribe(checked(request), ready.set)
        except WireError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except PeerError as error:
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))


class ContentRpcs:
    """ContentService."""

    def __init__(self, agent: Agent, access: Access) -> None:
        self._agent = agent
        self._access = access

    async def load_release(
        self, requests: AsyncIterator[content.LoadReleaseRequest], context: Context
    ) -> content.LoadReleaseResponse:
        """LoadRelease."""
        if self._access is not Access.OPERATOR:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "LoadRelease is for operators: run it as root")
        with Upload() as upload:
            try:
                async for request in requests:
                    upload.add(request.chunk)
                return await self._agent.load(upload)
            except TooBigError as error:
                await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            except PeerError as error:
                await refuse(context, grpc.StatusCode.ABORTED, str(error))
            except TimeoutError:
                await refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the monitor did not answer")


class DeniedRpcs(grpc.GenericRpcHandler):
    """Every RPC of a caller without rights."""

    def __init__(self, reader_group: str) -> None:
        self._reader_group = reader_group

    def service(self, _call: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        """The same answer for every method."""
        return grpc.stream_stream_rpc_method_handler(self._deny)

    async def _deny(self, _requests: object, context: Context) -> None:
        words = f"this user may not talk to the agent: be root or a member of the group {self._reader_group}"
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, words)


async def refuse(context: Context, code: grpc.StatusCode, words: str) -> NoReturn:
    """Ends an RPC with an error."""
    await context.abort(code, words)
    raise AssertionError("abort returned")


class Servers:
    """The inner servers."""

    def __init__(self, agent: Agent, reader_group: str) -> None:
        self._agent = agent
        self._health = health.aio.HealthServicer()
        self._servers = {
            Access.OPERATOR: self._server(Access.OPERATOR),
            Access.READER: self._server(Access.READER),
            Access.DENIED: grpc.aio.server(handlers=[DeniedRpcs(reader_group)], options=_OPTIONS),
        }

    def _server(self, access: Access) -> grpc.aio.Server:
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_RPCS)
        server.add_generic_rpc_handlers(
            (_control_methods(ControlRpcs(self._agent)), _content_methods(ContentRpcs(self._agent, access)))
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(SERVICES, server)
        return server

    async def start(self, paths: Mapping[Access, str]) -> None:
        """Listens on the paths and serves. Raises RuntimeError when a path cannot be bound."""
        for access, server in self._servers.items():
            server.add_insecure_port(f"unix:{paths[access]}")
            await server.start()
        await self.set_serving(serving=True)

    async def set_serving(self, *, serving: bool) -> None:
        """What grpc.health.v1 answers."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def stop(self) -> None:
        """Ends every RPC."""
        await asyncio.gather(*(server.stop(0) for server in self._servers.values()))


def _control_methods(rpcs: ControlRpcs) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetStatus": grpc.unary_unary_rpc_method_handler(
            rpcs.get_status,
            control.GetStatusRequest.FromString,
            control.GetStatusResponse.SerializeToString,
        ),
        "Subscribe": grpc.unary_stream_rpc_method_handler(rpcs.subscribe, control.SubscribeRequest.FromString, None),
    }
    return grpc.method_handlers_generic_handler(CONTROL, methods)


def _content_methods(rpcs: ContentRpcs) -> grpc.GenericRpcHandler:
    load = grpc.stream_unary_rpc_method_handler(
        rpcs.load_release,
        content.LoadReleaseRequest.FromString,
        content.LoadReleaseResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(CONTENT, {"LoadRelease": load})
