"""Texts to vectors. The libraries are heavy: they are imported where they run, in the compute pool's processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from db.models import DIMENSIONS


class Embedder(Protocol):
    def embed(self, texts: Sequence[str]) -> list[list[float]]: ...


class HashedWords:
    """Words and pairs of words, hashed into a fixed number of dimensions; needs no model and no training."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import HashingVectorizer  # noqa: PLC0415 - a second and 100 MB

        self._vectorizer: Any = HashingVectorizer(n_features=DIMENSIONS, ngram_range=(1, 2), stop_words="english")

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._vectorizer.transform(texts).toarray().tolist()
        return vectors


class SentenceTransformer:
    """A sentence-transformers model; needs the dependency group of that name."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import (  # noqa: PLC0415 - optional, and imports torch  # pyright: ignore[reportMissingImports]
            SentenceTransformer as Model,  # pyright: ignore[reportUnknownVariableType]
        )

        self._model: Any = Model(model)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._model.encode(list(texts), normalize_embeddings=True).tolist()
        return vectors


def embed(model: str | None, texts: Sequence[str]) -> list[list[float]]:
    """One vector per text, of `DIMENSIONS` numbers and, but for a text without words, of length 1."""
    return _embedder(model).embed(texts)


@cache
def _embedder(model: str | None) -> Embedder:
    return SentenceTransformer(model) if model else HashedWords()
