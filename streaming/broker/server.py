"""The broker's connections: frames in, frames out, and which handler answers which request."""

import asyncio
import contextlib
import io
import logging
import signal
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from kafka.errors import UnsupportedVersionError
from kafka.protocol import admin, consumer, metadata, producer
from kafka.protocol.api_header import RequestHeader
from kafka.protocol.api_message import ApiMessage

from streaming.broker.admin import AdminHandlers
from streaming.broker.membership import MembershipHandlers
from streaming.broker.node import Node
from streaming.broker.records import RecordHandlers
from streaming.header_names import read_any_header_name

logger = logging.getLogger(__name__)

_MAX_FRAME_BYTES = 100 << 20
_MAX_PIPELINED = 32
_EXPIRE_EVERY_S = 0.5
_CLEAN_EVERY_S = 30.0
_PRODUCE, _API_VERSIONS = 0, 18

Handler = Callable[[Any, str], Awaitable[ApiMessage]]


class _Api(NamedTuple):
    """One kind of request: the versions that are answered, and those that are announced."""

    request: type[ApiMessage]
    versions: range
    announced_from: int
    handler: Handler


def run(folder: Path, host: str, port: int) -> None:
    """Serves `folder` until SIGTERM or SIGINT; raises OSError if the folder or the port cannot be used."""

    async def serve() -> None:
        serving = asyncio.current_task()
        assert serving is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        server = BrokerServer(folder, host, port)
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve(lambda: logger.info("listens host=%s port=%d", host, port))

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    read_any_header_name()
    uvloop.run(serve())


class BadRequest(Exception):
    """Bytes that are no request this broker knows: the connection is closed, as Kafka does."""


class BrokerServer:
    """Serves one folder on one address: `await serve(...)`, until it is cancelled."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._node = Node.open(folder, host, port)
        self._apis = {api.request.API_KEY: api for api in self._make_apis()}
        self._connections: set[asyncio.Task[None]] = set()

    def _make_apis(self) -> list[_Api]:
        records, topics = RecordHandlers(self._node), AdminHandlers(self._node)
        groups = MembershipHandlers(self._node)
        # up to the last version that names topics and not their ids
        wanted: list[tuple[Any, int, int, Any]] = [
            (producer.ProduceRequest, 3, 12, records.produce),
            (producer.InitProducerIdRequest, 0, 4, records.new_producer),
            (consumer.FetchRequest, 4, 12, records.fetch),
            (consumer.ListOffsetsRequest, 1, 7, records.list_offsets),
            (consumer.OffsetForLeaderEpochRequest, 2, 4, records.epoch_ends),
            (admin.DeleteRecordsRequest, 0, 2, records.delete_records),
            (metadata.MetadataRequest, 0, 12, topics.metadata),
            (metadata.ApiVersionsRequest, 0, 4, self._api_versions),
            (admin.DescribeClusterRequest, 0, 1, topics.describe_cluster),
            (admin.CreateTopicsRequest, 2, 7, topics.create_topics),
            (admin.DeleteTopicsRequest, 1, 5, topics.delete_topics),
            (admin.CreatePartitionsRequest, 0, 3, topics.create_partitions),
            (admin.DescribeConfigsRequest, 1, 4, topics.describe_configs),
            (admin.AlterConfigsRequest, 0, 2, topics.alter_configs),
            (admin.IncrementalAlterConfigsRequest, 0, 1, topics.change_configs),
            (metadata.FindCoordinatorRequest, 0, 4, groups.find_coordinator),
            (consumer.JoinGroupRequest, 0, 9, groups.join),
            (consumer.SyncGroupRequest, 0, 5, groups.sync),
            (consumer.HeartbeatRequest, 0, 4, groups.heartbeat),
            (consumer.LeaveGroupRequest, 0, 5, groups.leave),
            (consumer.OffsetCommitRequest, 2, 8, groups.commit),
            (consumer.OffsetFetchRequest, 1, 8, groups.committed),
            (admin.ListGroupsRequest, 0, 4, groups.list_groups),
            (admin.DescribeGroupsRequest, 0, 5, groups.describe_groups),
        ]
        # KAFKA-18659: librdkafka before 2.8 takes a broker that does not announce Produce 0 for one that
        # cannot decompress
        return [
            _Api(request, range(first, last + 1), 0 if request is producer.ProduceRequest else first, handler)
            for request, first, last, handler in wanted
        ]

    async def _api_versions(self, request: Any, client_id: str) -> metadata.ApiVersionsResponse:
        one = metadata.ApiVersionsResponse.ApiVersion
        keys = [
            one(api_key=key, min_version=api.announced_from, max_version=api.versions[-1])
            for key, api in sorted(self._apis.items())
        ]
        return metadata.ApiVersionsResponse(error_code=0, api_keys=keys)

    async def serve(self, ready: Callable[[], None]) -> None:
        """Listens until it is cancelled; calls `ready` once it does. Raises OSError if it cannot."""
        server = await asyncio.start_server(self._connected, self._node.host, self._node.port)
        keeper = asyncio.create_task(self._keep())
        try:
            ready()
            await keeper
        finally:
            keeper.cancel()
            server.close()
            for task in self._connections:
                task.cancel()
            await asyncio.gather(keeper, *self._connections, return_exceptions=True)
            self._node.close()

    async def _keep(self) -> None:
        """Expires members; deletes and compacts."""
        for round_ in range(1 << 62):
            await asyncio.sleep(_EXPIRE_EVERY_S)
            for group in self._node.groups.values():
                group.expire()
            if round_ % int(_CLEAN_EVERY_S / _EXPIRE_EVERY_S) == 0:
                for _ in self._node.topics.clean():
                    await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        answers: asyncio.Queue[asyncio.Task[bytes]] = asyncio.Queue(_MAX_PIPELINED)
        sending = asyncio.create_task(_send(answers, writer))
        # a request that cannot be answered ends its connection, also while nothing more comes in
        sending.add_done_callback(lambda _: writer.close())
        try:
            await self._read(reader, answers, sending)
        except (asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass  # the client has gone, or the broker ends
        except BadRequest as error:
            logger.warning("connection_closed error=%s", error)
        except Exception:  # one connection's trouble, of whatever kind, is no other's
            logger.exception("connection_closed")
        finally:
            sending.cancel()
            while not answers.empty():
                answers.get_nowait().cancel()
            writer.close()
            self._connections.discard(task)

    async def _read(
        self,
        reader: asyncio.StreamReader,
        answers: asyncio.Queue[asyncio.Task[bytes]],
        sending: asyncio.Task[None],
    ) -> None:
        """Answers one request after the other; those to produce may overlap, and begin in their order."""
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            if not 0 < size <= _MAX_FRAME_BYTES:
                raise BadRequest(f"a frame of {size} bytes")
            frame = await reader.readexactly(size)
            answer = asyncio.create_task(self._answer(frame))
            await answers.put(answer)
            if int.from_bytes(frame[:2], "big") != _PRODUCE:
                # until it is sent: a client that asks and never reads must not fill the memory with answers
                sent = asyncio.ensure_future(answers.join())
                await asyncio.wait([sent, sending], return_when=asyncio.FIRST_COMPLETED)
                sent.cancel()
            if sending.done():
                sending.result()
                raise BadRequest("nothing can be sent any more")

    async def _answer(self, frame: bytes) -> bytes:
        """The frame that answers one; empty where none is expected. Raises BadRequest."""
        if len(frame) < 4:
            raise BadRequest("a request of less than 4 bytes")
        key, version = struct.unpack_from(">hh", frame)
        api = self._apis.get(key)
        if api is None:
            raise BadRequest(f"a request of kind {key}")
        is_known = version in api.versions
        if not is_known and key != _API_VERSIONS:
            raise BadRequest(f"version {version} of requests of kind {key}")
        try:
            stream = io.BytesIO(frame)
            header = RequestHeader.decode(
                stream, flexible=is_known and api.request.flexible_version_q(version)
            )
            if is_known:
                request = api.request.decode(memoryview(frame)[stream.tell() :], version=version)
        except Exception as error:  # the decoder raises whatever odd bytes lead it to
            raise BadRequest(f"a request of kind {key} that cannot be decoded ({error!r})") from error
        if is_known:
            try:
                response = await api.handler(request, header.client_id or "")
            except OSError as error:
                raise BadRequest(f"a request of kind {key} that the disk refuses ({error})") from error
        else:
            response = await self._api_versions(None, "")
            response.error_code, version = UnsupportedVersionError.errno, 0
        if is_known and not request.expect_response():
            return b""
        response.API_VERSION = version  # before the header, which has no version of its own
        response.with_header(correlation_id=header.correlation_id)
        return bytes(response.encode(header=True, framed=True))


async def _send(answers: asyncio.Queue[asyncio.Task[bytes]], writer: asyncio.StreamWriter) -> None:
    """Sends answers in the order of their requests."""
    while True:
        answer = await answers.get()
        writer.write(await answer)
        await writer.drain()
        answers.task_done()
