"""Metrics of services that share a process: each sample stands on one page, whoever is asked first."""

from prometheus_client import REGISTRY

from services.metrics import _Page


def names(page: _Page) -> set[str]:
    return {family.name for family in page.collect()}


def test_a_guest_takes_nothing_from_its_hosts_page() -> None:
    host, guest = _Page("gateway", is_guest=False), _Page("ranker", is_guest=True)
    before = names(host)
    assert "python_info" in before
    assert "python_info" not in names(guest)
    assert names(host) == before
    assert {family.name for family in REGISTRY.collect()} >= before
