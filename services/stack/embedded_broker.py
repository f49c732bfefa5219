"""The embedded broker: `streaming.broker` as a child process on loopback.

For one machine; everything else speaks Kafka's protocol and does not know which broker it is.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from services.errors import BackendUnavailable, InvalidSettings
from streaming.clients.topic_admin import existing_topics
from streaming.errors import BrokerUnavailable

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLL_S = 0.1


class EmbeddedBroker:
    """`with EmbeddedBroker(folder, "127.0.0.1:7492") as broker: ...` or `start` and `stop`.

    Its data and its log (`broker.log`) are in `folder`, which only one broker at a time can use.
    """

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.bootstrap = bootstrap_servers
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Starts the broker and returns when it answers.

        Raises InvalidSettings if the address is not on loopback, BackendUnavailable if it is taken, or the
        broker does not come up.
        """
        host, port = loopback_address(self.bootstrap)
        _check_free(host, port)
        self._folder.mkdir(parents=True, exist_ok=True)
        log_path = self._folder / "broker.log"
        command = [sys.executable, "-m", "services.stack.launch", str(os.getpid()), "streaming.broker"]
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--folder", str(self._folder), "--host", host, "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the whole foreground group; whoever started the broker stops it last
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout_s
        while True:
            if self._process.poll() is not None:
                code, self._process = self._process.returncode, None
                raise BackendUnavailable(f"the embedded broker ended ({code}): {_last_line(log_path)}")
            try:
                # kafka-python leaks sockets that could not connect, so it is only given a port that is open
                if not _listens(host, port):
                    raise BrokerUnavailable(f"nothing listens on {self.bootstrap}")
                existing_topics(self.bootstrap, timeout_s=2.0)
                return
            except BrokerUnavailable as error:
                if time.monotonic() > deadline:
                    self.stop()
                    raise BackendUnavailable(f"the embedded broker does not answer: {error}") from error
                time.sleep(_POLL_S)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Ends the broker; kills it if that takes longer than `timeout_s`."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def loopback_address(bootstrap: str) -> tuple[str, int]:
    """Host and port of a broker's address; raises InvalidSettings unless it is one on loopback."""
    host, _, port = bootstrap.rpartition(":")
    if host not in _LOOPBACK or not port.isdigit():
        raise InvalidSettings(
            f"the embedded broker listens on loopback only, not on {bootstrap!r}; "
            "set HEADRACE_BROKER__BOOTSTRAP_SERVERS to 127.0.0.1:PORT, or run a broker of your own"
        )
    return host, int(port)


def _check_free(host: str, port: int) -> None:
    if _listens(host, port):
        raise BackendUnavailable(f"{host}:{port} is taken by another program")


def _listens(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return probe.connect_ex((host, port)) == 0


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "no message"
