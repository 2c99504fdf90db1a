from __future__ import annotations

import pytest

from db.models import DIMENSIONS
from tasks.embedding import embed

LIBRARY = [
    "Cats sleep for most of the day and hunt at night.",
    "The commit of a transaction makes its changes durable.",
    "Bread rises because yeast turns sugar into gas.",
    "Ein Fernrohr sammelt das Licht ferner Sterne.",
]


def dot(one: list[float], other: list[float]) -> float:
    return sum((x * y for x, y in zip(one, other, strict=True)), 0.0)


def test_every_text_has_a_vector_of_as_many_numbers_as_the_table_stores() -> None:
    vectors = embed(None, [*LIBRARY, ""])
    assert [len(vector) for vector in vectors] == [DIMENSIONS] * 5


@pytest.mark.parametrize("text", [*LIBRARY, "word", "12 monkeys", "word " * 10_000, " ".join(map(str, range(10_000)))])
def test_vectors_have_the_length_1(text: str) -> None:
    [vector] = embed(None, [text])
    assert dot(vector, vector) == pytest.approx(1)


@pytest.mark.parametrize("text", ["", " \n", "?!", "the of and"])
def test_a_text_without_words_that_mean_something_is_like_no_other(text: str) -> None:
    [vector] = embed(None, [text])
    assert vector == [0] * DIMENSIONS


@pytest.mark.parametrize("text", LIBRARY)
def test_the_same_text_has_the_same_vector_in_any_company(text: str) -> None:
    [alone] = embed(None, [text])
    [_, beside, _] = embed(None, ["before", text, "after"])
    assert alone == beside


def test_different_texts_have_different_vectors() -> None:
    assert len({tuple(vector) for vector in embed(None, LIBRARY)}) == len(LIBRARY)


@pytest.mark.parametrize(
    ("query", "nearest"),
    [
        ("When do cats hunt?", 0),
        ("durable CHANGES", 1),
        ("why does bread rise with yeast", 2),
        ("licht ferner sterne", 3),
    ],
)
def test_the_nearest_text_is_the_one_that_shares_words(query: str, nearest: int) -> None:
    asked, *library = embed(None, [query, *LIBRARY])
    likeness = [dot(asked, vector) for vector in library]
    assert max(range(len(LIBRARY)), key=likeness.__getitem__) == nearest


def test_words_in_the_same_order_are_nearer_than_the_same_words_in_another() -> None:
    asked, same, other = embed(None, ["dog bites man", "yesterday dog bites man", "yesterday man bites dog"])
    assert dot(asked, same) > dot(asked, other)
