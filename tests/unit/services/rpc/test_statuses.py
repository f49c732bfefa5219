"""Every error of the project means one gRPC status, and none tells a caller what it should not."""

import base64
import urllib.parse

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.errors import InvalidRequest, NotFound, Overloaded
from services.rpc.statuses import STATUS, code_of, status_of
from tests.sources import classes

PACKAGES = ("models", "services", "streaming")
# What the embedded broker finds wrong it answers in Kafka's protocol, by Kafka's error codes: none of these
# comes near a gRPC handler.
SAID_IN_KAFKAS_WORDS = {
    "streaming.broker.batches.BadBatch",
    "streaming.broker.groups.GroupError",
    "streaming.broker.log.Fenced",
    "streaming.broker.log.OutOfOrder",
    "streaming.broker.server.BadRequest",
    "streaming.broker.topics.BadTopic",
}


def error_classes(package: str) -> list[type[BaseException]]:
    """Every exception class that is defined anywhere in a package."""
    return [one for one in classes(package) if issubclass(one, BaseException)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_anywhere_means_a_status_of_its_own_or_of_a_base_of_ours(package: str) -> None:
    """The row of `Exception` is for what others raise."""
    lost = {
        f"{error.__module__}.{error.__qualname__}"
        for error in error_classes(package)
        if next((base for base in error.__mro__ if base in STATUS), Exception) is Exception
    }
    assert lost == {name for name in SAID_IN_KAFKAS_WORDS if name.startswith(f"{package}.")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_error_of_a_package_has_a_row(package: str) -> None:
    public = [one for one in error_classes(package) if one.__module__ == f"{package}.errors"]
    assert len(public) > 1
    assert [one.__name__ for one in public if one not in STATUS] == []


def test_most_specific_row_wins() -> None:
    class StrangeRequest(InvalidRequest):
        pass

    assert code_of(StrangeRequest(("k", "odd"))) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(KeyError("x")) is grpc.StatusCode.INTERNAL
    assert code_of(TimeoutError()) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_invalid_request_names_its_fields() -> None:
    status = status_of(InvalidRequest(("k", "must be 1 to 100"), ("user_id", "is empty")), "r1")
    detail = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(detail)
    assert [(v.field, v.description) for v in detail.field_violations] == [
        ("k", "must be 1 to 100"),
        ("user_id", "is empty"),
    ]
    assert status.message == "k: must be 1 to 100; user_id: is empty"


def test_overload_says_when_to_try_again() -> None:
    status = status_of(Overloaded("full", retry_after_s=1.5), "r1")
    detail = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(detail)
    assert detail.retry_delay.ToMilliseconds() == 1500


def test_text_of_an_unknown_error_stays_inside() -> None:
    status = status_of(RuntimeError("password=hunter2"), "r7")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "hunter2" not in status.message
    assert "r7" in status.message


def test_of_many_violations_the_first_are_named_and_the_rest_counted() -> None:
    status = status_of(
        InvalidRequest(*((f"items[{n}].item_id", "must not be empty") for n in range(1_000))), "r1"
    )
    detail = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(detail)
    assert [v.field for v in detail.field_violations] == [f"items[{n}].item_id" for n in range(20)]
    assert status.message.startswith("items[0].item_id: must not be empty; items[1].item_id")
    assert status.message.endswith("; and 980 more")


@given(
    st.lists(st.tuples(st.text(max_size=400), st.text(max_size=4_000)), min_size=1, max_size=60),
    st.integers(1, 40),
)
def test_a_status_fits_into_metadata_whatever_a_request_held(
    violations: list[tuple[str, str]], times: int
) -> None:
    error = InvalidRequest(*violations * times)
    detail = error_details_pb2.BadRequest()
    status = status_of(error, "r" * 128)
    assert status.details[0].Unpack(detail)
    assert detail.field_violations
    num_more = len(error.violations) - len(detail.field_violations)
    assert status.message.endswith(f"; and {num_more} more") == (num_more > 0)
    for any_error in (error, NotFound(violations[0][1] * times)):
        assert size_in_trailers(any_error) < 7_000


def size_in_trailers(error: Exception) -> int:
    """Bytes of grpc-message and grpc-status-details-bin on the wire."""
    status = status_of(error, "r1")
    return len(urllib.parse.quote(status.message, safe="")) + len(
        base64.b64encode(status.SerializeToString())
    )
