"""What every error means to a caller: a gRPC status code and a google.rpc.Status that fits into metadata.

`STATUS` is the one table of errors; it is looked up along the exception's MRO, so the most specific row wins.
A status travels in the trailing metadata, of which gRPC peers take 8 KB: what is larger reaches the caller as
RESOURCE_EXHAUSTED, which clients retry. So all text is cut here, for every service, whatever a request held.
"""

from collections.abc import Sequence

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from models import errors as model_errors
from services import errors
from streaming import errors as stream_errors

_CODE = grpc.StatusCode
STATUS: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidRequest: _CODE.INVALID_ARGUMENT,
    errors.NotFound: _CODE.NOT_FOUND,
    errors.NotReady: _CODE.UNAVAILABLE,
    errors.WrongRelease: _CODE.FAILED_PRECONDITION,
    errors.BackendUnavailable: _CODE.UNAVAILABLE,
    errors.Overloaded: _CODE.RESOURCE_EXHAUSTED,
    errors.DeadlineExpired: _CODE.DEADLINE_EXCEEDED,
    errors.InvalidSettings: _CODE.INTERNAL,
    errors.ServiceError: _CODE.INTERNAL,
    model_errors.IncompatibleCheckpoint: _CODE.FAILED_PRECONDITION,
    model_errors.PrefixFull: _CODE.FAILED_PRECONDITION,
    model_errors.NothingToTest: _CODE.FAILED_PRECONDITION,
    model_errors.NonFiniteLoss: _CODE.INTERNAL,
    model_errors.ModelError: _CODE.INTERNAL,
    stream_errors.BrokerUnavailable: _CODE.UNAVAILABLE,
    stream_errors.MalformedEvent: _CODE.INVALID_ARGUMENT,
    stream_errors.DatasetError: _CODE.FAILED_PRECONDITION,
    stream_errors.StreamingError: _CODE.INTERNAL,
    TimeoutError: _CODE.DEADLINE_EXCEEDED,
    NotImplementedError: _CODE.UNIMPLEMENTED,
    Exception: _CODE.INTERNAL,
}
# A failure behind us that the caller can act on keeps its code; any other is our own bug.
_PASSED_ON = (_CODE.UNAVAILABLE, _CODE.DEADLINE_EXCEEDED, _CODE.RESOURCE_EXHAUSTED, _CODE.FAILED_PRECONDITION)

# On the wire a message takes up to three times its bytes (percent-encoded), and once more, as the violations
# do, a third more than its bytes (base64): 3 * 1,000 + 4/3 * (1,000 + 1,000 + 20 * 8) < 6,000 of the 8,192.
_MAX_MESSAGE_BYTES = 1_000
_MAX_FIELD_BYTES = 100
_MAX_PROBLEM_BYTES = 300
_MAX_VIOLATIONS = 20
_ROOM_FOR_REST = len("; and 1000000 more")

Violation = tuple[str, str]


def code_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status code that an error means to the caller."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() if error.code() in _PASSED_ON else _CODE.INTERNAL
    return next(STATUS[base] for base in type(error).__mro__ if base in STATUS)


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status for an error, with BadRequest or RetryInfo where they help.

    Takes less than 8 KB as metadata. The text of an INTERNAL error never reaches the caller. Of many
    violations the first few are named, and the message says how many more there are.
    """
    code = code_of(error)
    message = str(error) or code.name.replace("_", " ").lower()
    details: list[Message] = []
    if code is _CODE.INTERNAL:
        message = f"internal error; the log has it under request id {request_id}"
    elif isinstance(error, grpc.aio.AioRpcError):
        message = f"a service behind this one: {error.details()}"
    elif isinstance(error, errors.InvalidRequest):
        shown = _first(error.violations)
        num_more = len(error.violations) - len(shown)
        message = _joined(shown) + (f"; and {num_more} more" if num_more else "")
        violation = error_details_pb2.BadRequest.FieldViolation
        named = [violation(field=field, description=problem) for field, problem in shown]
        details.append(error_details_pb2.BadRequest(field_violations=named))
    elif isinstance(error, errors.Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    return status_pb2.Status(code=code.value[0], message=_cut(message, _MAX_MESSAGE_BYTES), details=packed)


def _first(violations: Sequence[Violation]) -> list[Violation]:
    """As many as fit into a message with the count of the rest; always one."""
    shown: list[Violation] = []
    for field, problem in violations[:_MAX_VIOLATIONS]:
        more = [*shown, (_cut(field, _MAX_FIELD_BYTES), _cut(problem, _MAX_PROBLEM_BYTES))]
        if len(_joined(more).encode()) > _MAX_MESSAGE_BYTES - _ROOM_FOR_REST:
            break
        shown = more
    return shown


def _joined(violations: Sequence[Violation]) -> str:
    return "; ".join(f"{field}: {problem}" for field, problem in violations)


def _cut(text: str, num_bytes: int) -> str:
    """The text, or as much of it as takes `num_bytes` in UTF-8 with an ellipsis."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= num_bytes:
        return encoded.decode()
    return encoded[: num_bytes - len("…".encode())].decode(errors="ignore") + "…"
