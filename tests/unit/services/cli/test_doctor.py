"""What the doctor says of ports and of the state folder."""

import socket
from pathlib import Path

import pytest

from services.cli import doctor
from services.settings import EndpointSettings, Settings, StoreSettings
from tests.conftest import find_free_port


def test_ports_held_by_the_services_that_answer_are_in_order() -> None:
    port = find_free_port()
    settings = Settings(endpoints=EndpointSettings(projector=port))
    with socket.create_server(("127.0.0.1", port)):
        assert doctor._ports(settings, "the gateway at 127.0.0.1:7400").state == "ok"
        taken = doctor._ports(settings, "")
    assert (taken.state, f"port {port} (projector)" in taken.detail) == ("fail", True)


def test_a_port_that_is_none_fails() -> None:
    check = doctor._ports(Settings(endpoints=EndpointSettings(gateway=99_999)), "")
    assert (check.state, "ports go from 0 to 65535" in check.detail) == ("fail", True)


@pytest.mark.parametrize("root", ["/dev/null/x", "/proc/x", "/tmp/" + 300 * "x"])
def test_a_state_folder_that_cannot_be_made_fails(root: str) -> None:
    check = doctor._disk(Settings(store=StoreSettings(root=Path(root))))
    assert check.state == "fail"
    assert "set HEADRACE_STORE__ROOT" in check.detail


def test_a_state_folder_that_is_not_there_yet_is_in_order(tmp_path: Path) -> None:
    assert doctor._disk(Settings(store=StoreSettings(root=tmp_path / "a" / "b"))).state != "fail"
    assert not (tmp_path / "a").exists()
