"""What is given back, and how often."""

import os

import pytest

from services import memory


def test_the_environment_decides_before_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    memory.keep_few_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "64"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    memory.keep_few_products(memory.TRAINING_PRODUCTS)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "256"
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    memory.keep_few_products()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"


def test_a_callback_gives_back_once_in_so_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: happened.append("given back"))
    called = memory.giving_back(happened.append, every=2)
    for name in "abc":
        called(name)
    assert happened == ["a", "b", "given back", "c"]
