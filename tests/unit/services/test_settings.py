"""The environment as people and Kubernetes fill it: settings, strangers, and misspelt names."""

import json
import os

import pytest

from services.environment import PREFIX
from services.errors import InvalidSettings
from services.settings import EndpointSettings, Settings, load_settings, to_environment


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def of_service(name: str, host: str, port: int, protocol: str = "tcp") -> dict[str, str]:
    """What Kubernetes puts into every container for one Service with one named port."""
    bracketed = f"[{host}]" if ":" in host else host
    link = f"{protocol}://{bracketed}:{port}"
    one = f"{name}_PORT_{port}_{protocol.upper()}"
    return {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_GRPC": str(port),
        f"{name}_SERVICE_PORT_GRPC_WEB": str(port),
        f"{name}_PORT": link,
        one: link,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": host,
    }


@pytest.mark.case("environment of a Kubernetes Service named headrace")
@pytest.mark.parametrize(
    "service",
    ["HEADRACE", "HEADRACE_GATEWAY", "HEADRACE_BROKER", "HEADRACE_MODEL", "HEADRACE__SERVER", "HEADRACE_2"],
)
@pytest.mark.parametrize(
    ("host", "protocol"), [("10.0.0.1", "tcp"), ("fd00::17", "udp"), ("10.96.0.9", "sctp")]
)
def test_the_variables_of_a_service_are_passed_over(
    service: str, host: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in of_service(service, host, 7400, protocol).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_GATEWAY__MAX_K", "7")
    assert load_settings().gateway.max_k == 7


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("HEADRACE_LOGLEVEL", "DEBUG", "did you mean HEADRACE_LOG_LEVEL?"),
        ("HEADRACE_GATEWAY_MAX_K", "7", "did you mean HEADRACE_GATEWAY__MAX_K?"),
        ("HEADRACE_GATWAY__MAX_K", "7", "did you mean HEADRACE_GATEWAY__MAX_K?"),
        ("HEADRACE_GATEWAY__MAXK", "7", "did you mean HEADRACE_GATEWAY__MAX_K?"),
        ("headrace_torch_treads", "2", "did you mean HEADRACE_TORCH_THREADS?"),
        ("HEADRACE_PORT", "7400", "no such setting"),
        ("HEADRACE_SERVICE_PORT", "tcp", "no such setting"),
        ("HEADRACE_SERVICE_HOST", "gateway", "no such setting"),
        ("HEADRACE_GATEWAY_PORT", "tcp://nowhere", "no such setting"),
        ("HEADRACE_PORT_7400_TCP_ADR", "10.0.0.1", "no such setting"),
        ("HEADRACE_QWQWQW", "1", "known are HEADRACE_BROKER, "),
        ("HEADRACE_GATEWAY__MAX_K", "many", "HEADRACE_GATEWAY__MAX_K: Input should be a valid integer"),
        (
            "HEADRACE_GATEWAY__MAX_K",
            "-1",
            "HEADRACE_GATEWAY__MAX_K: Input should be greater than or equal to 1",
        ),
        ("HEADRACE_MODEL__NUM_HEADS", "0", "HEADRACE_MODEL: Value error, num_heads must be 1 to"),
        ("HEADRACE_MODEL__D_MODEL", "-8", "d_model must be 1 to"),
        ("HEADRACE_TRAIN__SEED", "-1", "seed must not be negative"),
        ("HEADRACE_MEANING__LIKED_RATING", "nan", "liked_rating must be a finite number"),
        ("HEADRACE_BROKER__BOOTSTRAP_SERVERS", "hello world", "must be host:port"),
        ("HEADRACE_BROKER__BOOTSTRAP_SERVERS", "a:1,b", "must be host:port"),
        ("HEADRACE_ENDPOINTS__METRICS_OFFSET", "0", "greater than or equal to 1"),
        ("HEADRACE_ENDPOINTS__HOST", "", "at least 1 character"),
        ("HEADRACE_LOG_LEVEL", "LOUD", "HEADRACE_LOG_LEVEL: Input should be 'DEBUG', 'INFO'"),
        ("HEADRACE_ENDPOINTS__BASE_PORT", "7777777", "should be less than or equal to 65535"),
        ("HEADRACE_SERVER__DEFAULT_DEADLINE_S", "nan", "should be a finite number"),
        ("HEADRACE_LEARNER_SERVICE__BATCH_WAIT_S", "-1", "should be greater than or equal to 0"),
        ("HEADRACE_GATEWAY", "{", "HEADRACE_GATEWAY: is no JSON object"),
        ("HEADRACE_STATISTICS__HALF_LIVES_S", "[1, 2", "HEADRACE_STATISTICS__HALF_LIVES_S: "),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    name: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=r"(?i)headrace") as caught:
        load_settings()
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_a_group_may_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_STATISTICS__HALF_LIVES_S", "[60, 3600.5]")
    monkeypatch.setenv("HEADRACE_STATISTICS__TRENDING_HALF_LIFE", "1")
    assert load_settings().statistics.half_lives_s == (60.0, 3600.5)


def test_a_child_process_builds_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(endpoints=EndpointSettings(gateway=1234), log_level="DEBUG")
    for name, value in to_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert json.loads(load_settings().model_dump_json()) == json.loads(settings.model_dump_json())


def test_an_ipv6_host_is_bracketed() -> None:
    assert EndpointSettings(host="::1").address("gateway") == "[::1]:7400"
    assert EndpointSettings().address("gateway") == "127.0.0.1:7400"
