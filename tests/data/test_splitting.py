from __future__ import annotations

import pytest

from thalweg.data.splitting import document_hash, survey
from thalweg.errors import DataError

DOCUMENTS = [b"document %d" % number * 20 for number in range(2000)]


def test_the_share_held_out_is_the_share_wanted() -> None:
    found = survey(DOCUMENTS, 0.05, "here")
    held = sum(document_hash(document) < found.threshold for document in DOCUMENTS)
    # Binomial(2000, 0.05): mean 100, standard deviation 9.7.
    assert 70 <= held <= 130
    assert not found.forced
    assert found.documents == 2000


def test_a_document_stays_on_its_side_when_others_come() -> None:
    assert survey(DOCUMENTS[:1000], 0.05, "here").threshold == survey(DOCUMENTS, 0.05, "here").threshold


def test_an_empty_side_gets_the_outermost_document() -> None:
    few = DOCUMENTS[:5]
    marks = sorted(document_hash(document) for document in few)
    low = survey(few, 1e-12, "here")
    assert low.forced
    assert [mark for mark in marks if mark < low.threshold] == marks[:1]
    high = survey(few, 1 - 1e-12, "here")
    assert high.forced
    assert [mark for mark in marks if mark >= high.threshold] == marks[-1:]
    assert [document_hash(document) for document in high.sample] == marks[-1:]


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "is empty"), ([b"one"], "holds one document"), ([b"same"] * 3, "the same document 3 times")],
)
def test_nothing_to_split(documents: list[bytes], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        survey(documents, 0.05, "here")
    assert caught.value.where == "here"


def test_the_sample_is_bounded_spread_ordered_and_without_held_out_documents() -> None:
    bound = sum(map(len, DOCUMENTS)) // 5
    found = survey(DOCUMENTS, 0.1, "here", sample_bytes=bound)
    size = sum(map(len, found.sample))
    assert bound / 4 < size <= bound
    places = [DOCUMENTS.index(document) for document in found.sample]
    assert places == sorted(places)
    # Spread: every tenth of the corpus gives between half and twice its share.
    for tenth in range(10):
        share = sum(tenth * 200 <= place < tenth * 200 + 200 for place in places) / len(places)
        assert 0.05 < share < 0.2
    assert all(document_hash(document) >= found.threshold for document in found.sample)
    assert found.sample == survey(DOCUMENTS, 0.1, "here", sample_bytes=bound).sample


def test_no_sample_when_none_is_wanted() -> None:
    assert survey(DOCUMENTS, 0.1, "here", sample_bytes=0).sample == []
