from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thalweg.data import encoder
from thalweg.data.corpora import open_corpus
from thalweg.data.encoder import Encoder, EncoderPool, encodes_word_by_word
from thalweg.data.tokenization import SEPARATOR, train_bpe

DOCUMENTS = [
    b"the valley's river ran; it'll run, don't\n\n\n    stop 12 345\t\tx==y",
    "naïve über\u00a0alles \u3000 日本語 の 文章。\n次の行 \u2028 end".encode(),
    "Привет мир, как дела? 'ß' e\u0301\u200b !\u200b\u200b ".encode(),
    b"<|endoftext|> is text",
] * 3
TOKENIZER = train_bpe(DOCUMENTS, 400)
BACKEND = TOKENIZER.backend_tokenizer.to_str()


def plainly(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)


def cached(text: str, tool: Encoder) -> list[int]:
    counts, ids = tool.encode([text.encode()])
    found = np.frombuffer(ids, "<u2").tolist()
    assert counts == [len(found)]
    assert found[-1] == 0
    return found[:-1]


# Spaces of all kinds, marks, letters, digits and the apostrophes of the pattern, so that borders meet often.
_ALPHABET = st.sampled_from(
    list("ab1' .,\n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u200b\u2003\u2028\u3000\ufeffßéя日٣\u0301😀stl")
)


@given(st.text(alphabet=_ALPHABET, max_size=40) | st.text(max_size=40))
@example("foo\u3000 bar")
@example("!\u200b x'll 'll\n \n")
@settings(max_examples=1000)
def test_the_word_cache_gives_the_tokenizers_own_ids(text: str) -> None:
    assert cached(text, _TOOL) == plainly(text)


_TOOL = Encoder(BACKEND, 0, wide=False)


def test_the_standard_library_encodes_as_the_tokenizer_encodes_it() -> None:
    documents = [document for _, document in zip(range(120), open_corpus("stdlib").documents(), strict=False)]
    counts, ids = _TOOL.encode(documents)
    expected = [[*plainly(document.decode()), 0] for document in documents]
    assert counts == [len(part) for part in expected]
    assert np.frombuffer(ids, "<u2").tolist() == [token for part in expected for token in part]


def test_a_full_cache_starts_anew_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CACHED_WORDS", 5)
    tool = Encoder(BACKEND, 0, wide=False)
    for document in DOCUMENTS:
        assert cached(document.decode(), tool) == plainly(document.decode())
    assert len(tool._cache) <= 5


def test_special_tokens_in_text_are_text() -> None:
    ids = cached(f"a{SEPARATOR}b", _TOOL)
    assert 0 not in ids
    assert TOKENIZER.decode(ids) == f"a{SEPARATOR}b"


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(BACKEND), **changes})


def test_which_tokenizers_encode_word_by_word() -> None:
    assert encodes_word_by_word(BACKEND)
    words = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert not encodes_word_by_word(changed(pre_tokenizer=words))
    assert not encodes_word_by_word(changed(pre_tokenizer={**words, "add_prefix_space": False, "use_regex": False}))
    assert not encodes_word_by_word(changed(pre_tokenizer=None))
    assert not encodes_word_by_word(changed(normalizer={"type": "Lowercase"}))
    assert not encodes_word_by_word(changed(model={**json.loads(BACKEND)["model"], "dropout": 0.1}))
    assert not encodes_word_by_word(changed(model={"type": "Unigram", "vocab": []}))


def test_other_tokenizers_take_the_long_way() -> None:
    lower = changed(normalizer={"type": "Lowercase"})
    tool = Encoder(lower, 0, wide=True)
    assert tool._cache is None
    counts, ids = tool.encode([b"The RIVER", b"<|endoftext|>"])
    one, two = plainly("the river"), plainly("<|endoftext|>")
    assert np.frombuffer(ids, "<u4").tolist() == [*one, 0, *two, 0]
    assert counts == [len(one) + 1, len(two) + 1]


@pytest.mark.parametrize("backend", [BACKEND, changed(normalizer={"type": "Lowercase"})])
def test_any_number_of_workers_gives_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 100)
    results = [list(EncoderPool(backend, 0, False, workers).encode(DOCUMENTS * 4)) for workers in (1, 2, 3)]
    assert results[0] == results[1] == results[2]
    assert [document for batch, _, _ in results[0] for document in batch] == DOCUMENTS * 4
    assert len(results[0]) > 10


def test_workers_end_when_the_consumer_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 100)
    pool = EncoderPool(BACKEND, 0, False, 2)
    stream = pool.encode(DOCUMENTS * 10)
    next(stream)
    children = list(pool._children)
    assert 1 <= len(children) <= 2
    stream.close()
    assert all(child.returncode is not None for child in children)


def test_a_worker_that_dies_is_an_error_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "BATCH_BYTES", 100)
    pool = EncoderPool(BACKEND, 0, False, 2)
    stream = pool.encode(DOCUMENTS * 100)
    next(stream)
    for child in pool._children:
        child.kill()
    with pytest.raises(RuntimeError, match="tokenizing process ended early"):
        list(stream)
