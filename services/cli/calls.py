"""One call from the command to a running service, with a line that helps when nobody answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from services.errors import BackendUnavailable
from services.settings import Settings

if TYPE_CHECKING:
    import grpc

    from protos.headrace.v1.learner_pb2_grpc import LearnerServiceStub
    from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub
    from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceStub

CALL_TIMEOUT_S = 30.0
_NOT_CONNECTED = "failed to connect to all addresses"
Stub = TypeVar("Stub")


@contextmanager
def _open(settings: Settings, service: str, stub: "Callable[[grpc.Channel], Stub]") -> Iterator[Stub]:
    import grpc

    address = settings.endpoints.address(service)
    with grpc.insecure_channel(address) as channel:
        try:
            yield stub(channel)
        except grpc.RpcError as error:
            code, details = status_of(error)
            if code == "UNAVAILABLE":
                raise BackendUnavailable(
                    f"the {service} at {address} does not answer ({details}); is `headrace up` running?"
                ) from error
            if code == "UNIMPLEMENTED":
                raise BackendUnavailable(
                    f"what answers at {address} is not the {service}: is HEADRACE_ENDPOINTS__BASE_PORT right?"
                ) from error
            raise


def status_of(error: "grpc.RpcError") -> tuple[str, str]:
    """The name of a failed call's status code, and what the server said."""
    # What a stub raises is also a grpc.Call, which the type stubs do not know.
    call: Any = error
    details = str(call.details())
    if details.startswith(_NOT_CONNECTED):
        # the rest is gRPC's way to it: addresses, states, codes
        details = details.rpartition(": ")[2]
    return str(call.code().name), details


@contextmanager
def gateway(settings: Settings) -> "Iterator[RecommenderServiceStub]":
    """The public API; raises BackendUnavailable inside the block when it does not answer."""
    from protos.headrace.v1.recommend_pb2_grpc import RecommenderServiceStub

    with _open(settings, "gateway", RecommenderServiceStub) as stub:
        yield stub


@contextmanager
def learner(settings: Settings) -> "Iterator[LearnerServiceStub]":
    """The learner; raises BackendUnavailable inside the block when it does not answer."""
    from protos.headrace.v1.learner_pb2_grpc import LearnerServiceStub

    with _open(settings, "learner", LearnerServiceStub) as stub:
        yield stub


@contextmanager
def tokenizer(settings: Settings) -> "Iterator[TokenizerServiceStub]":
    """The tokenizer; raises BackendUnavailable inside the block when it does not answer."""
    from protos.headrace.v1.tokenizer_pb2_grpc import TokenizerServiceStub

    with _open(settings, "tokenizer", TokenizerServiceStub) as stub:
        yield stub
