"""Where state lives: what a running service says of it, and how a command finds it.

A relative state folder is one under the folder in which a process was started. So the service says where
its own is, and a command uses that, or refuses before it has done anything.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from protos.headrace.v1 import state_pb2, state_pb2_grpc
from services.errors import ServiceError
from services.rpc.server import ServiceServer
from services.settings import Settings, StoreSettings

STATE_SERVICE = state_pb2.DESCRIPTOR.services_by_name["StateService"].full_name
_ASKED = ("gateway", "learner")
_TIMEOUT_S = 0.8


class StateElsewhere(ServiceError):
    """The services that answer keep their state where this command cannot, or was told not to, use it."""


class StateServicer(state_pb2_grpc.StateServiceServicer):
    """Answers with the settings of its own process."""

    def __init__(self, service: str, settings: Settings) -> None:
        store = settings.store.absolute()
        self._answer = state_pb2.GetStateResponse(
            service=service,
            host=socket.gethostname(),
            pid=os.getpid(),
            root=str(store.root),
            releases_url=store.releases_url,
            bootstrap_servers=settings.broker.bootstrap_servers,
        )

    async def GetState(
        self, request: state_pb2.GetStateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> state_pb2.GetStateResponse:
        """Where this service's state is."""
        return self._answer


def add_state_service(server: ServiceServer, settings: Settings) -> None:
    """Lets a service say where its state is; before the server's start, and give `start` `STATE_SERVICE`."""
    servicer = StateServicer(server.name, settings)
    state_pb2_grpc.add_StateServiceServicer_to_server(servicer, server.server)


@dataclass(frozen=True, kw_only=True)
class State:
    """`settings` with absolute paths of the state; `answered_by` names the service that said so, if any."""

    settings: Settings
    answered_by: str = ""


def find_state(settings: Settings) -> State:
    """The state of the services that answer at these settings' endpoints; with none, the settings' own.

    Takes a second at most. Raises StateElsewhere where the services' state is on another machine or not
    there, or where these settings name another folder or broker than the services use.
    """
    own = settings.store.absolute()
    for service in _ASKED:
        address = settings.endpoints.address(service)
        answer = _ask(address)
        if answer is not None:
            who = f"the {service} at {address}"
            _check(settings, own, answer, who)
            store = StoreSettings(root=Path(answer.root), releases=answer.releases_url)
            return State(settings=settings.model_copy(update={"store": store}), answered_by=who)
    return State(settings=settings.model_copy(update={"store": own}))


def _ask(address: str) -> state_pb2.GetStateResponse | None:
    """What the service says; None where there is none, or one that does not know the question."""
    with grpc.insecure_channel(address) as channel:
        try:
            stub = state_pb2_grpc.StateServiceStub(channel)
            return stub.GetState(state_pb2.GetStateRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            call: Any = error
            if call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED):
                return None
            raise StateElsewhere(
                f"{address} does not say where its state is ({call.code().name}: {call.details()}): "
                "try again, or stop what listens there"
            ) from error


def _check(settings: Settings, own: StoreSettings, answer: state_pb2.GetStateResponse, who: str) -> None:
    if answer.host != socket.gethostname():
        raise StateElsewhere(
            f"{who} runs on {answer.host} and keeps its state in {answer.root} there: run this command there"
        )
    if settings.store.root != StoreSettings().root and own.root.resolve() != Path(answer.root).resolve():
        raise StateElsewhere(
            f"HEADRACE_STORE__ROOT is {own.root}, but {who} keeps its state in {answer.root}: "
            "unset the one or name another service with HEADRACE_ENDPOINTS__*"
        )
    if settings.store.releases and own.releases_url != answer.releases_url:
        raise StateElsewhere(
            f"HEADRACE_STORE__RELEASES is {own.releases_url}, but {who} reads {answer.releases_url}"
        )
    if settings.broker.bootstrap_servers != answer.bootstrap_servers:
        raise StateElsewhere(
            f"{who} uses the broker at {answer.bootstrap_servers}, these settings name "
            f"{settings.broker.bootstrap_servers}: set HEADRACE_BROKER__BOOTSTRAP_SERVERS to the first"
        )
    if not os.access(answer.root, os.R_OK | os.X_OK):
        raise StateElsewhere(f"{who} keeps its state in {answer.root}, which cannot be read from here")
