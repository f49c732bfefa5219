"""Which `HEADRACE_*` variables of the environment are settings, and what a misspelt one was meant to be.

Kubernetes gives every container the addresses of the Services in its namespace. Those of a Service named
headrace, or headrace-gateway, begin as settings do; they are recognised by their whole shape, name and value,
and passed over.
"""

import difflib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping

PREFIX = "HEADRACE_"

_PROTOCOL = "(?:TCP|UDP|SCTP)"
_LINK = re.compile(r"(?:tcp|udp|sctp)://(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+):\d{1,5}")
_PORT = re.compile(r"\d{1,5}")


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value.strip("[]"))
    except ValueError:
        return False
    return True


def _is_port(value: str) -> bool:
    return _PORT.fullmatch(value) is not None


def _is_link(value: str) -> bool:
    match = _LINK.fullmatch(value)
    return match is not None and _is_address(match["host"])


def _name(end: str) -> re.Pattern[str]:
    return re.compile(rf"{PREFIX}(?:[A-Z0-9_]*[A-Z0-9]_)?{end}")


# Names as https://kubernetes.io/docs/concepts/containers/container-environment makes them, and their values.
_OF_KUBERNETES = (
    (_name("SERVICE_HOST"), _is_address),
    (_name("SERVICE_PORT(?:_[A-Z0-9_]+)?"), _is_port),
    (_name("PORT"), _is_link),
    (_name(rf"PORT_\d+_{_PROTOCOL}"), _is_link),
    (_name(rf"PORT_\d+_{_PROTOCOL}_ADDR"), _is_address),
    (_name(rf"PORT_\d+_{_PROTOCOL}_PORT"), _is_port),
    (_name(rf"PORT_\d+_{_PROTOCOL}_PROTO"), re.compile("tcp|udp|sctp").fullmatch),
)


def is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes makes this variable for a Service that is named headrace, or headrace-anything."""
    return any(pattern.fullmatch(name) and is_shaped(value) for pattern, is_shaped in _OF_KUBERNETES)


def unknown_settings(environment: Mapping[str, str], groups: Collection[str]) -> list[str]:
    """The variables that look like settings and are none: their group, before `__`, is not among `groups`."""
    return [
        name
        for name, value in environment.items()
        if name.upper().startswith(PREFIX)
        and name.upper().split("__")[0] not in groups
        and not is_of_kubernetes(name, value)
    ]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as the end of a sentence; empty if none is near."""
    nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.7)
    return f"; did you mean {nearest[0]}?" if nearest else ""
