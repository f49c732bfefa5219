"""What nobody should send, through real services on real channels: refused as the caller's fault."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from protos.headrace.v1 import generator_pb2, ranker_pb2, recommend_pb2, tokenizer_pb2
from protos.headrace.v1.items_pb2 import Embedding, Item
from protos.headrace.v1.release_pb2 import RELEASE_STATE_LIVE
from services.gateway.__main__ import serve as serve_gateway
from services.generator.__main__ import serve as serve_generator
from services.ranker.__main__ import serve as serve_ranker
from services.releases.publisher import ReleasePublisher
from services.settings import EndpointSettings
from services.tokenizer.__main__ import serve as serve_tokenizer
from tests.conftest import find_port_pair
from tests.factories import make_release
from tests.integration.serving import (
    SERVING,
    health,
    make_settings,
    own_broker,
    ready,
    serving,
    violated_fields,
)

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CODE = grpc.StatusCode
SERVICES = {
    "gateway": (serve_gateway, recommend_pb2.DESCRIPTOR.services_by_name["RecommenderService"]),
    "generator": (serve_generator, generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]),
    "ranker": (serve_ranker, ranker_pb2.DESCRIPTOR.services_by_name["RankerService"]),
    "tokenizer": (serve_tokenizer, tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channels(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each service, all of them ready with a small release."""
    root = tmp_path_factory.mktemp("services")
    names = ("gateway", "tokenizer", "generator", "ranker", "learner", "console")
    endpoints = EndpointSettings(**{name: find_port_pair() for name in names}, metrics_offset=1)
    async with AsyncExitStack() as parts:
        bootstrap = parts.enter_context(own_broker(root / "broker"))
        settings = make_settings(bootstrap, root).model_copy(update={"endpoints": endpoints})
        publisher = ReleasePublisher(settings)
        await asyncio.to_thread(publisher.publish, make_release("r1"), RELEASE_STATE_LIVE, "test")
        opened = {}
        for name, (serve, _) in SERVICES.items():
            opened[name] = await parts.enter_async_context(serving(name, serve, settings))
        for channel in opened.values():
            await ready(channel)
        yield opened


# A letter that takes three bytes, and nine on the wire.
WIDE = "\N{SNOWMAN}"


def bad_lists() -> dict[tuple[str, str], tuple[Message, int, str]]:
    """By service and method: a request, how many violations it has, and the first of their fields."""
    items = [Item(item_id="" if n < 150 else f"i{n}") for n in range(1_000)]
    worse = [Item(item_id=WIDE * 257, embeddings=[Embedding(modality=WIDE * 99)]) for n in range(1_000)]
    pb = recommend_pb2
    ids = [WIDE * 300] * 1_000
    return {
        ("gateway", "UpsertItems"): (pb.UpsertItemsRequest(items=items), 150, "items[0].item_id"),
        ("gateway", "UpsertItems "): (pb.UpsertItemsRequest(items=worse), 3_000, "items[0].item_id"),
        ("gateway", "Recommend"): (
            pb.RecommendRequest(user_id="u", exclude_item_ids=ids, categories=ids[:100]),
            1_100,
            "exclude_item_ids[0]",
        ),
        ("gateway", "RecommendStream"): (
            pb.RecommendStreamRequest(request=pb.RecommendRequest(user_id="u", exclude_item_ids=ids)),
            1_000,
            "request.exclude_item_ids[0]",
        ),
        ("generator", "Generate"): (
            generator_pb2.GenerateRequest(exclude_item_ids=ids, disabled_sources=[99] * 500),
            1_007,  # no more sources are looked at than there are
            "exclude_item_ids[0]",
        ),
        ("ranker", "Rank"): (ranker_pb2.RankRequest(exclude_item_ids=ids), 1_000, "exclude_item_ids[0]"),
        ("tokenizer", "Tokenize"): (tokenizer_pb2.TokenizeRequest(item_ids=ids), 1_000, "item_ids[0]"),
        ("tokenizer", "Detokenize"): (
            tokenizer_pb2.DetokenizeRequest(sids=[{} for _ in range(1_000)]),
            1_000,
            "sids[0].codes",
        ),
    }  # fmt: skip


async def failure(
    channel: grpc.aio.Channel, method: MethodDescriptor, bodies: Sequence[bytes]
) -> grpc.aio.AioRpcError | None:
    """How a call with these bodies fails, if it does; of a stream of answers, the first is awaited."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            answers = channel.unary_stream(path)(bodies[0], timeout=20)
            await answers.read()
            answers.cancel()
        elif method.client_streaming:
            await channel.stream_unary(path)(iter(bodies), timeout=20)
        else:
            await channel.unary_unary(path)(bodies[0], timeout=20)
    except grpc.aio.AioRpcError as error:
        return error
    return None


@pytest.mark.case("1,000 bad items or ids in a call")
async def test_long_lists_of_mistakes_are_invalid_arguments(channels: dict[str, grpc.aio.Channel]) -> None:
    for (name, method_name), (request, num_violations, first) in bad_lists().items():
        method = SERVICES[name][1].methods_by_name[method_name.strip()]
        error = await failure(channels[name], method, [request.SerializeToString()])
        assert error is not None
        assert error.code() is CODE.INVALID_ARGUMENT
        shown = violated_fields(error)
        assert shown[0] == first
        assert (error.details() or "").endswith(f"; and {num_violations - len(shown)} more")


@pytest.mark.case("bodies that are no message, or an absurd one")
async def test_random_bodies_are_refused_and_harm_nobody(
    channels: dict[str, grpc.aio.Channel], record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(7)
    allowed = {
        CODE.INVALID_ARGUMENT,
        CODE.NOT_FOUND,
        CODE.FAILED_PRECONDITION,  # ranked for a release that is not live
        CODE.UNAVAILABLE,  # no model answers, and the request forbids the fallback
    }
    num_calls = 0
    for name, (_, service) in SERVICES.items():
        for method in service.methods:
            for body in bodies_for(method, rng):
                error = await failure(channels[name], method, [body] * 3)
                assert error is None or error.code() in allowed, (method.full_name, body)
                num_calls += 1
            if not method.client_streaming:
                error = await failure(channels[name], method, [b"\x0a\xff"])
                assert error is not None
                assert error.code() is CODE.INVALID_ARGUMENT
    for channel in channels.values():
        assert await health(channel) == SERVING
    ask = recommend_pb2.RecommendRequest(user_id="u", k=3).SerializeToString()
    recommend = SERVICES["gateway"][1].methods_by_name["Recommend"]
    assert await failure(channels["gateway"], recommend, [ask]) is None
    record_property("figure", f"{num_calls} calls")


def bodies_for(method: MethodDescriptor, rng: random.Random, num_each: int = 40) -> list[bytes]:
    """Random bytes, random messages of the method's type, and such messages with some bytes changed."""
    kind = GetMessageClass(method.input_type)
    shares = [rng.choice((0.1, 0.3, 0.7)) for _ in range(num_each)]
    messages = [random_message(kind(), rng, share).SerializeToString() for share in shares]
    mutated = [bytearray(message) for message in messages if message]
    for body in mutated:
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    noise = [rng.randbytes(rng.choice((1, 3, 40, 5_000))) for _ in range(num_each)]
    return [b"", *noise, *messages, *map(bytes, mutated)]


_INTEGERS = (0, 1, 3, 7, 2**31 - 1)
_VALUES: dict[int, Callable[[random.Random], object]] = {
    FieldDescriptor.CPPTYPE_INT32: lambda rng: rng.choice((*_INTEGERS, -1, -(2**31))),
    FieldDescriptor.CPPTYPE_UINT32: lambda rng: rng.choice((*_INTEGERS, 2**32 - 1)),
    FieldDescriptor.CPPTYPE_INT64: lambda rng: rng.choice((*_INTEGERS, -1, 2**63 - 1, -(2**63))),
    FieldDescriptor.CPPTYPE_UINT64: lambda rng: rng.choice((*_INTEGERS, 2**64 - 1)),
    FieldDescriptor.CPPTYPE_ENUM: lambda rng: rng.choice((*_INTEGERS, -1)),
    FieldDescriptor.CPPTYPE_BOOL: lambda rng: rng.random() < 0.5,
    FieldDescriptor.CPPTYPE_FLOAT: lambda rng: rng.choice((0.0, 1.5, -1e38, float("inf"), float("nan"))),
    FieldDescriptor.CPPTYPE_DOUBLE: lambda rng: rng.choice((0.0, 1.5, -1e308, float("inf"), float("nan"))),
    FieldDescriptor.CPPTYPE_STRING: lambda rng: rng.choice(
        ("u", "item-1", "item-2", "r1", "", "\0", WIDE * 300, "x" * 257, "../..", "\u202e")
    ),
}


def random_message(message: Message, rng: random.Random, share: float) -> Message:
    """Fills a share of the fields, and all ids, each with a plain or an extreme value."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > share and not field.name.endswith("_id"):
            continue
        held = getattr(message, field.name)
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            entry = field.message_type.fields_by_name
            if entry["value"].message_type is None:
                held[_value(entry["key"], rng)] = _value(entry["value"], rng)
        elif field.message_type is not None and field.is_repeated:
            for _ in range(rng.choice((0, 1, 3))):
                random_message(held.add(), rng, share)
        elif field.message_type is not None:
            random_message(held, rng, share)
            held.SetInParent()
        elif field.is_repeated:
            held.extend(_value(field, rng) for _ in range(rng.choice((0, 1, 3))))
        else:
            setattr(message, field.name, _value(field, rng))
    return message


def _value(field: FieldDescriptor, rng: random.Random) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(5)
    return _VALUES[field.cpp_type](rng)
