from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thalweg.data.tokenization import (
    SEPARATOR,
    check_tokenizer,
    choose_tokenizer,
    load_tokenizer,
    required_vocabulary,
    tokenizer_hash,
    train_bpe,
)
from thalweg.errors import DataError

SAMPLE = [b"the river runs down the valley, the river runs on\n" * 3, "über naïve 日本".encode()]
TOKENIZER = train_bpe(SAMPLE, 300)


@given(st.text())
@settings(max_examples=300)
def test_decoding_gives_back_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("text", ["a .  b , c n't", SEPARATOR, " \r\n\t\x00 \x85\u2028", "e\u0301 \u200d👩‍👩‍👧"])
def test_decoding_leaves_spaces_and_odd_characters_alone(text: str, tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.decode(loaded.encode(text, add_special_tokens=False, split_special_tokens=True)) == text


def test_the_vocabulary_is_bounded_and_the_separator_comes_first() -> None:
    assert len(TOKENIZER) == required_vocabulary(TOKENIZER) <= 300
    assert TOKENIZER.eos_token_id == 0
    assert TOKENIZER.eos_token == SEPARATOR
    # Training learnt something: the word takes fewer tokens than bytes.
    assert len(TOKENIZER.encode(" river")) == 1


def test_training_is_deterministic() -> None:
    assert tokenizer_hash(train_bpe(SAMPLE, 300)) == tokenizer_hash(TOKENIZER)
    assert tokenizer_hash(train_bpe(SAMPLE, 290)) != tokenizer_hash(TOKENIZER)


@pytest.mark.parametrize("spelled", ["bpe", "bpe:", "bpe:256", "bpe:x", "bpe:99999999"])
def test_bad_vocabulary(spelled: str) -> None:
    with pytest.raises(DataError, match="A BPE vocabulary has 257"):
        choose_tokenizer(spelled)


def test_choices() -> None:
    assert choose_tokenizer("bpe:257").vocabulary == 257
    with pytest.raises(DataError, match="no such tokenizer folder"):
        choose_tokenizer("gpt2-but-missing")


def test_the_identity_of_a_folder_follows_its_tokenizer_files(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    first = choose_tokenizer(tmp_path).identity
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert choose_tokenizer(tmp_path).identity == first
    (tmp_path / "tokenizer.json").write_text("{}")
    assert choose_tokenizer(tmp_path).identity != first


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("not json")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_a_separator(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="no end-of-text token") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_a_tokenizer_that_does_not_fit() -> None:
    needed = required_vocabulary(TOKENIZER)
    check_tokenizer(TOKENIZER, needed)
    with pytest.raises(DataError, match=f"has {needed} entries but the model has room for {needed - 1}"):
        check_tokenizer(TOKENIZER, needed - 1)
