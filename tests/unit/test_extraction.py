from __future__ import annotations

import pickle
from contextlib import suppress
from itertools import pairwise

import pytest
from fpdf import FPDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.extraction import UnreadableDocumentError, chunks_of, count_pages, extract_pages

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
lengths = st.integers(1, 40)
all_characters = st.text(st.characters(exclude_categories=()))


def pdf(*pages: str, password: str | None = None, compressed: bool = True) -> bytes:
    document = FPDF()
    document.set_compression(compressed)
    document.set_font("helvetica", size=12)
    for text in pages:
        document.add_page()
        document.multi_cell(0, text=text)
    if password is not None:
        document.set_encryption(owner_password="owner", user_password=password)
    return bytes(document.output())


def handwritten_pdf(*objects: bytes, trailer: bytes = b"") -> bytes:
    """Objects are numbered from 1, which is the catalogue; without a table of them, as damaged files are."""
    numbered = b"\n".join(b"%d 0 obj %b endobj" % (number, given) for number, given in enumerate(objects, start=1))
    return b"%%PDF-1.7\n%b\ntrailer << /Root 1 0 R %b >>\nstartxref\n0\n%%%%EOF\n" % (numbered, trailer)


def stream(content: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content)


CATALOGUE = b"<< /Type /Catalog /Pages 2 0 R >>"
ONE_PAGE = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
TWO_PAGES = pdf("It was the best of times,", "it was the worst of times.")
SPELT_OUT = pdf("It was the best of times,", "it was the worst of times.", compressed=False)


def read_or_refuse(content: bytes) -> None:
    """Whatever else is raised than `UnreadableDocumentError` would be tried again, though it can never succeed."""
    with suppress(UnreadableDocumentError):
        assert count_pages(content) > 0
    with suppress(UnreadableDocumentError):
        assert len(extract_pages(content, 0, 3)) <= 3


@steadily
@given(all_characters, lengths)
def test_no_chunk_is_longer_than_the_limit_or_empty(text: str, longest: int) -> None:
    assert all(0 < len(chunk) <= longest for chunk in chunks_of(text, longest))


@steadily
@given(st.text(), lengths)
def test_no_character_of_a_word_is_lost_or_moved(text: str, longest: int) -> None:
    chunks = " ".join(chunks_of(text, longest))
    assert "".join(chunks.split()) == "".join(text.replace("\0", "").split())


@steadily
@given(st.lists(st.text("abc", min_size=1, max_size=10)), st.integers(10, 40))
def test_words_that_fit_are_kept_whole_and_in_order(words: list[str], longest: int) -> None:
    chunks = list(chunks_of("  ".join(words), longest))
    assert [word for chunk in chunks for word in chunk.split(" ")] == words


@steadily
@given(st.lists(st.text("abc", min_size=1, max_size=10)), st.integers(10, 40))
def test_no_chunk_has_room_for_the_next_word(words: list[str], longest: int) -> None:
    chunks = list(chunks_of(" ".join(words), longest))
    for chunk, following in pairwise(chunks):
        assert len(f"{chunk} {following.split(' ')[0]}") > longest


def test_a_word_that_is_longer_than_the_limit_is_cut() -> None:
    assert list(chunks_of("ab cdefghijk lm", 4)) == ["ab", "cdef", "ghij", "k lm"]


@pytest.mark.parametrize("text", ["", " \n\t", "\0", "\0 \0"])
def test_a_text_without_words_has_no_chunks(text: str) -> None:
    assert list(chunks_of(text, 10)) == []


@steadily
@given(all_characters, lengths)
def test_every_chunk_can_be_stored(text: str, longest: int) -> None:
    for chunk in chunks_of(text, longest):
        assert "\0" not in chunk
        chunk.encode("utf-8")


@steadily
@given(st.text("ab \n\0\ud800"))
def test_what_cannot_be_stored_is_left_out_and_nothing_else(text: str) -> None:
    kept = text.replace("\0", "").replace("\ud800", "")
    assert " ".join(chunks_of(text, 1000)) == " ".join(kept.split())


def test_two_halves_of_a_character_become_that_character() -> None:
    assert list(chunks_of("a \ud83d\ude00 b", 10)) == ["a \N{GRINNING FACE} b"]


@pytest.mark.parametrize("content", [TWO_PAGES, SPELT_OUT], ids=["compressed", "spelt out"])
def test_pages_are_counted_and_read(content: bytes) -> None:
    assert count_pages(content) == 2
    assert extract_pages(content, 0, 2) == ["It was the best of times,", "it was the worst of times."]


@pytest.mark.parametrize(("first", "last", "pages"), [(0, 2, "01"), (1, 2, "1"), (2, 25, "23"), (4, 5, ""), (0, 0, "")])
def test_pages_count_from_0_up_to_the_last_without_it(first: int, last: int, pages: str) -> None:
    assert extract_pages(pdf("0", "1", "2", "3"), first, last) == list(pages)


def test_a_page_without_text_is_empty() -> None:
    assert extract_pages(pdf("", "text"), 0, 2) == ["", "text"]


@pytest.mark.parametrize("password", ["secret", ""], ids=["to open", "to change"])
def test_an_encrypted_pdf_is_refused_with_the_remedy(password: str) -> None:
    with pytest.raises(UnreadableDocumentError, match="the PDF is encrypted: upload it without a password"):
        count_pages(pdf("text", password=password))


@pytest.mark.parametrize(("version", "revision", "method"), [(4, 4, b"AESV2"), (5, 6, b"AESV3")])
def test_a_pdf_with_an_encryption_that_pypdf_cannot_undo_is_refused_with_the_remedy(
    version: int, revision: int, method: bytes
) -> None:
    key = b"<%b>" % (b"00" * 48)
    content = handwritten_pdf(
        CATALOGUE,
        ONE_PAGE,
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] >>",
        b"<< /Filter /Standard /V %d /R %d /Length 256 /P -4 /O %b /U %b /OE <%b> /UE <%b> /Perms <%b> /StmF /StdCF "
        b"/StrF /StdCF /CF << /StdCF << /CFM /%b /AuthEvent /DocOpen /Length 32 >> >> >>"
        % (version, revision, key, key, b"00" * 32, b"00" * 32, b"00" * 16, method),
        trailer=b"/Encrypt 4 0 R /ID [<00> <00>]",
    )
    with pytest.raises(UnreadableDocumentError, match="the PDF is encrypted: upload it without a password"):
        count_pages(content)
    with pytest.raises(UnreadableDocumentError):
        extract_pages(content, 0, 1)


def test_a_pdf_without_pages_is_refused() -> None:
    content = handwritten_pdf(CATALOGUE, b"<< /Type /Pages /Kids [] /Count 0 >>")
    with pytest.raises(UnreadableDocumentError, match="the PDF has no pages"):
        count_pages(content)


def test_a_pdf_whose_font_names_half_a_character_can_be_cut_into_chunks() -> None:
    content = handwritten_pdf(
        CATALOGUE,
        ONE_PAGE,
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>",
        stream(b"BT /F 12 Tf 20 100 Td (A B) Tj ET"),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>",
        stream(
            b"begincmap 1 begincodespacerange <00> <FF> endcodespacerange 1 beginbfchar <41> <D800> endbfchar endcmap"
        ),
    )
    [page] = extract_pages(content, 0, 1)
    assert list(chunks_of(page, 10)) == ["B"]


@pytest.mark.parametrize(
    "content",
    [b"", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"Dear Sir or Madam,", b"\0" * 5000, b"%PDF-1.7\n" * 500],
    ids=["nothing", "a head", "a picture", "an archive", "a letter", "zeros", "many heads"],
)
def test_what_is_no_pdf_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableDocumentError, match="not a readable PDF"):
        count_pages(content)
    with pytest.raises(UnreadableDocumentError):
        extract_pages(content, 0, 1)


@pytest.mark.parametrize(
    ("good", "damaged"),
    [(b"/Kids", b"/Kicks"), (b"/Type /Page\n", b"/Type /Cage\n"), (b"endstream", b"endscream"), (b"/Root", b"/Boot")],
    ids=["no children", "no pages", "no end of a stream", "no root"],
)
def test_a_pdf_that_lost_a_part_is_read_or_refused(good: bytes, damaged: bytes) -> None:
    assert good in SPELT_OUT
    read_or_refuse(SPELT_OUT.replace(good, damaged))


def test_a_filter_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnreadableDocumentError, match="the PDF is damaged"):
        extract_pages(TWO_PAGES.replace(b"/FlateDecode", b"/PlateDecode"), 0, 2)


def test_a_page_tree_that_contains_itself_is_refused() -> None:
    content = handwritten_pdf(CATALOGUE, b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>")
    with pytest.raises(UnreadableDocumentError):
        extract_pages(content, 0, 1)


@pytest.mark.parametrize("content", [TWO_PAGES, SPELT_OUT], ids=["compressed", "spelt out"])
def test_a_pdf_that_was_cut_off_anywhere_is_read_or_refused(content: bytes) -> None:
    for length in range(0, len(content), 5):
        read_or_refuse(content[:length])


@pytest.mark.parametrize("content", [TWO_PAGES, SPELT_OUT], ids=["compressed", "spelt out"])
@settings(steadily, max_examples=300)
@given(st.dictionaries(st.floats(0, 1, exclude_max=True), st.integers(0, 255), min_size=1, max_size=8))
def test_a_pdf_whose_bytes_were_changed_is_read_or_refused(content: bytes, changes: dict[float, int]) -> None:
    damaged = bytearray(content)
    for place, byte in changes.items():
        damaged[int(place * len(content))] = byte
    read_or_refuse(bytes(damaged))


@settings(steadily, max_examples=200)
@given(st.integers(0, len(SPELT_OUT)), st.integers(0, 40), st.binary(max_size=10))
def test_a_pdf_of_which_a_piece_was_replaced_is_read_or_refused(first: int, length: int, piece: bytes) -> None:
    read_or_refuse(SPELT_OUT[:first] + piece + SPELT_OUT[first + length :])


@settings(steadily, max_examples=100)
@given(st.binary(max_size=200))
def test_bytes_at_random_are_refused(content: bytes) -> None:
    for garbage in (content, b"%PDF-1.7\n" + content):
        with pytest.raises(UnreadableDocumentError):
            count_pages(garbage)


def test_the_refusal_reaches_another_process() -> None:
    refused = UnreadableDocumentError("the PDF has no pages")
    received = pickle.loads(pickle.dumps(refused))
    assert (type(received), received.args) == (UnreadableDocumentError, refused.args)
