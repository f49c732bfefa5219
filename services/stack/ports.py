"""The ports of a stack: which there are, and whether something else has one."""

import socket
import time

from services.errors import BackendUnavailable
from services.settings import Settings
from services.stack.children import BROKER, SERVICES
from services.stack.launch import ORPHAN_S

_POLL_INTERVAL_S = 0.2
_GRACE_S = 1.0


def ports_of(settings: Settings) -> dict[str, tuple[int, str]]:
    """Every port of the services: what it is for -> number, and the setting that moves it."""
    endpoints = settings.endpoints
    setting = "HEADRACE_ENDPOINTS__{}".format
    ports = {name: (endpoints.port(name), setting(name.upper())) for name in (*SERVICES, "console")}
    for name in SERVICES:
        ports[f"{name} metrics"] = (endpoints.metrics_port(name), setting("METRICS_OFFSET"))
    return ports


def check_ports(settings: Settings, *, embedded_broker: bool = False) -> None:
    """Raises BackendUnavailable, naming the first port that is taken by something else, or is none."""
    ports = ports_of(settings)
    if embedded_broker:
        port = int(settings.broker.bootstrap_servers.rpartition(":")[2])
        ports[BROKER] = (port, "HEADRACE_BROKER__BOOTSTRAP_SERVERS")
    taken: dict[int, str] = {}
    for what, (port, variable) in ports.items():
        if port in taken:
            raise BackendUnavailable(f"port {port} is that of {taken[port]} and of {what}: set {variable}")
        taken[port] = what
        family = socket.AF_INET6 if ":" in settings.endpoints.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.endpoints.host, port))
            except (OSError, OverflowError) as error:
                reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
                raise BackendUnavailable(
                    f"port {port} ({what}) on {settings.endpoints.host} cannot be used: {reason}; stop what "
                    f"listens there or set {variable} (HEADRACE_ENDPOINTS__BASE_PORT moves all ports)"
                ) from error


def wait_for_orphans(settings: Settings, *, embedded_broker: bool) -> None:
    """Returns when the services of an `up` that was killed hold no port any more, or should not."""
    until_s = time.monotonic() + ORPHAN_S + _GRACE_S
    while time.monotonic() < until_s:
        try:
            return check_ports(settings, embedded_broker=embedded_broker)
        except BackendUnavailable:
            time.sleep(_POLL_INTERVAL_S)
