"""Item texts, and MiniLM vectors without a network."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from models.tokenizers.text import TEXT_DIM, TextEmbedder, item_text, weights_folder


@pytest.mark.parametrize(
    ("title", "brand", "categories", "expected"),
    [
        ("Red Polish", "OPI", ["Makeup", "Nails"], "Red Polish. OPI. Makeup, Nails"),
        (" Red ", "Unknown", ["unknown", "Nails", " "], "Red. Nails"),
        (None, None, None, ""),
        ("", "OPI", [], "OPI"),
    ],
)
def test_item_text_leaves_out_what_is_not_known(
    title: str | None, brand: str | None, categories: list[str] | None, expected: str
) -> None:
    assert item_text(title, brand, categories) == expected


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return TextEmbedder()


def test_vectors_are_unit_length_in_the_order_of_the_texts(embedder: TextEmbedder) -> None:
    texts = ["red nail polish that lasts and shines", "", "car tyre", "crimson nail lacquer"] * 20
    seen: list[tuple[str, int, int]] = []
    vectors = embedder.embed_many(texts, lambda *report: seen.append(report[:3]))
    assert vectors.shape == (80, TEXT_DIM)
    assert vectors.dtype == torch.float32
    assert seen == [("embed items", 64, 80), ("embed items", 80, 80)]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(80))
    torch.testing.assert_close(vectors[:4], embedder.embed_many(texts[:4]), atol=0.01, rtol=0)
    similarity = vectors[:4] @ vectors[:4].T
    assert float(similarity[0, 3]) > 0.4 > 0.3 > float(similarity[0, 2])


def test_no_texts_and_a_very_long_one(embedder: TextEmbedder) -> None:
    assert embedder.embed_many([]).shape == (0, TEXT_DIM)
    assert bool(torch.isfinite(embedder.embed_many(["word " * 5_000])).all())


def test_the_vectors_are_those_of_transformers() -> None:
    texts = [
        "red nail polish",
        "Crème brûlée №5 — 日本 x\u200by",
        "",
        "word " * 400,
        "a",
        *(f"item {n}" for n in range(40)),
    ]
    folder = weights_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden_NTE = model(**tokens).last_hidden_state
    mask_NT1 = tokens["attention_mask"][:, :, None].float()
    mean_NE = (hidden_NTE * mask_NT1).sum(1) / mask_NT1.sum(1)
    expected_NE = torch.nn.functional.normalize(mean_NE, dim=1)
    found_NE = TextEmbedder(dtype=torch.float32).embed_many(texts)
    torch.testing.assert_close(found_NE, expected_NE, atol=1e-5, rtol=0)
