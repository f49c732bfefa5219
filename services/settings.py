"""The one settings tree: environment `HEADRACE_*`, nested with `__`, built once and passed down.

`HEADRACE_MODEL__D_MODEL=128` sets `settings.model.d_model`. Nothing else reads the environment. A
misspelt nested name is refused by pydantic, a misspelt top-level one by `load_settings`; what Kubernetes adds
for a Service of that name is passed over (`services.environment`).
"""

import contextlib
import json
import os
import re
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from models.decoding.config import SearchConfig
from models.networks.config import ModelConfig
from models.online.config import LearnerConfig
from models.ranking.config import StatisticsConfig
from models.tokenizers.config import CodebookConfig
from models.training.config import TrainConfig
from services.environment import PREFIX, did_you_mean, unknown_settings
from services.errors import InvalidSettings
from streaming.messages.meaning import EventMeaning

BASE_PORT = 7400


def _require_servers(text: str) -> str:
    if not all(_SERVER.fullmatch(server.strip()) for server in text.split(",")):
        raise ValueError("must be host:port, or several with commas between them")
    return text


_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+|[0-9A-Fa-f:]+):[0-9]{1,5}")
# Checked where a setting is read from the environment.
Servers = Annotated[str, AfterValidator(_require_servers)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Patience = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda text: text.upper() if isinstance(text, str) else text),
]


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """Where the Kafka-protocol broker is, and how topics are made there."""

    bootstrap_servers: Servers = "127.0.0.1:7492"
    num_partitions: Count = 4
    replication_factor: Count = 1


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where state lives. `releases` may be any fsspec URL; empty paths mean folders under `root`."""

    root: Path = Path(".headrace")
    releases: str = ""

    def absolute(self) -> "StoreSettings":
        """The same places, however the process changes its folder; a store that has a protocol stays."""
        releases = (
            self.releases_url if "://" in self.releases_url else str(Path(self.releases_url).absolute())
        )
        return StoreSettings(root=self.root.absolute(), releases=releases)

    @property
    def releases_url(self) -> str:
        """The release store."""
        return self.releases or str(self.root / "releases")

    @property
    def history_path(self) -> Path:
        """The LMDB environment of the user histories."""
        return self.root / "history"

    @property
    def checkpoint_path(self) -> Path:
        """The learner's checkpoints."""
        return self.root / "learner"

    @property
    def broker_path(self) -> Path:
        """The data of the embedded broker."""
        return self.root / "broker"


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where each service listens; its Prometheus port is its gRPC port + `metrics_offset`.

    `projector` and `trends` speak only gRPC health and reflection; `console` is the gateway's HTTP port.
    Another `base_port` moves all those that are not set themselves, the embedded broker's too.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    base_port: Port = BASE_PORT
    gateway: Port = 7400
    tokenizer: Port = 7401
    generator: Port = 7402
    ranker: Port = 7403
    learner: Port = 7404
    projector: Port = 7405
    trends: Port = 7406
    console: Port = 7480
    metrics_offset: Count = 10

    def port(self, service: str) -> int:
        """The port of a service by name, or of the console."""
        port = int(getattr(self, service))
        is_own = port != getattr(EndpointSettings, service)
        return port if is_own else port + self.base_port - BASE_PORT

    def address(self, service: str) -> str:
        """host:port of a service's gRPC server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port(service)}"

    def metrics_port(self, service: str) -> int:
        """The port of a service's Prometheus page."""
        return self.port(service) + self.metrics_offset


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What every gRPC server does alike; `max_inflight` requests are worked on at once, more are refused.

    `max_streams` streams and `max_watches` watches of the health may be open; they are worked on only while
    they answer. `default_deadline_s` binds a unary request whose caller gave no deadline. A connection
    without a call is closed after `max_connection_idle_s`; a client may ping every `min_ping_interval_s`.
    """

    max_inflight: Count = 64
    max_streams: Count = 1_024
    max_watches: Count = 1_024
    max_connection_idle_s: Patience = 300.0
    min_ping_interval_s: Patience = 5.0
    default_deadline_s: Patience = 10.0
    stop_grace_s: Seconds = 5.0
    max_message_bytes: Count = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The public API: deadlines in seconds, and what a request may ask for."""

    default_deadline_s: Patience = 2.0
    track_deadline_s: Patience = 5.0
    max_k: Count = 100
    history_limit: Count = 200


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """At most `max_batch` waiting requests are searched together; 1 answers each alone.

    The states of the `max_kept_users` users who asked last are kept (0: none): with the default
    model 4 KB in float32 (2 KB in bfloat16) for each event of a history, 200 KB for a user with 50 of them.
    """

    max_batch: int = 32
    max_kept_users: int = 2_000

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError("max_batch must be at least 1")
        if self.max_kept_users < 0:
            raise ValueError("max_kept_users must not be negative")


@dataclass(frozen=True, kw_only=True)
class RankerSettings:
    """At most `max_batch` waiting requests are ranked together; 1 answers each alone."""

    max_batch: int = 32

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ValueError("max_batch must be at least 1")


@dataclass(frozen=True, kw_only=True)
class LearnerServiceSettings:
    """How the learner's loop cuts the stream: a batch has `batch_events`, or what came in `batch_wait_s`
    since the one before was cut. `ledger` names a file of learned event ids, for audits."""

    batch_events: Count = 256
    batch_wait_s: Seconds = 1.5
    checkpoint_interval_s: Seconds = 20.0
    release_interval_events: Count = 5_000
    unknown_item_grace_s: Seconds = 5.0
    ledger: bool = True


class Settings(BaseSettings):
    """Every setting of every component.

    `layout`: gateway, generator and ranker "together" in one process with one copy of the model, or "apart",
    each in a process of its own.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    broker: BrokerSettings = BrokerSettings()
    store: StoreSettings = StoreSettings()
    endpoints: EndpointSettings = EndpointSettings()
    server: ServerSettings = ServerSettings()
    gateway: GatewaySettings = GatewaySettings()
    generator: GeneratorSettings = GeneratorSettings()
    ranker: RankerSettings = RankerSettings()
    learner_service: LearnerServiceSettings = LearnerServiceSettings()
    meaning: EventMeaning = EventMeaning()
    codebook: CodebookConfig = CodebookConfig()
    model: ModelConfig = ModelConfig()
    search: SearchConfig = SearchConfig()
    train: TrainConfig = TrainConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    learner: LearnerConfig = LearnerConfig()
    layout: Literal["together", "apart"] = "together"
    torch_threads: Count = 1
    log_level: LogLevel = "INFO"

    @field_validator("*", mode="before")
    @classmethod
    def _read_lists(cls, group: Any) -> Any:
        """A list of a group has a variable of its own, in which it stands as JSON."""
        if isinstance(group, dict):
            return {name: _list_or_text(value) for name, value in group.items()}
        return group

    @model_validator(mode="after")
    def _move_broker(self) -> "Settings":
        """The embedded broker's port moves with the others."""
        shift = self.endpoints.base_port - BASE_PORT
        if shift and self.broker == BrokerSettings():
            host, _, port = self.broker.bootstrap_servers.rpartition(":")
            moved = replace(self.broker, bootstrap_servers=f"{host}:{int(port) + shift}")
            object.__setattr__(self, "broker", moved)
        return self

    @property
    def embedded_bootstrap(self) -> str:
        """Where `headrace up` puts its own broker."""
        host, _, port = BrokerSettings().bootstrap_servers.rpartition(":")
        return f"{host}:{int(port) + self.endpoints.base_port - BASE_PORT}"


def load_settings() -> Settings:
    """The settings of this process; raises InvalidSettings, naming the variable, when one is wrong."""
    groups = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in unknown_settings(os.environ, groups):
        hint = did_you_mean(name, _names()) or f"; known are {', '.join(sorted(groups))}"
        raise InvalidSettings(f"{name}: no such setting{hint}")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "__".join(str(part).upper() for part in first["loc"])
        hint = did_you_mean(name, _names()) if first["type"] == "unexpected_keyword_argument" else ""
        raise InvalidSettings(f"{name}: {first['msg']}{hint}") from error
    except SettingsError as error:  # a whole group that is no JSON
        found = re.search(r'field "(\w+)"', str(error))
        name = f"{PREFIX}{found[1].upper()}" if found else f"{PREFIX}*"
        raise InvalidSettings(
            f"{name}: is no JSON object of the whole group; a single setting is {name}__ and its name"
        ) from error


def _list_or_text(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value


def _names() -> list[str]:
    """The variables of all settings: HEADRACE_LOG_LEVEL, HEADRACE_GATEWAY__MAX_K, ..."""
    names: list[str] = []
    for name, field in Settings.model_fields.items():
        group = f"{PREFIX}{name.upper()}"
        parts = fields(field.default) if is_dataclass(field.default) else ()
        names += [f"{group}__{part.name.upper()}" for part in parts] or [group]
    return names


def to_environment(settings: Settings) -> dict[str, str]:
    """The `HEADRACE_*` variables with which a child process builds the same settings."""
    dumped = settings.model_dump(mode="json")
    return {
        f"{PREFIX}{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in dumped.items()
    }
