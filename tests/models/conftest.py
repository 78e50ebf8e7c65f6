"""A tokenizer of bytes, and a split that lives in memory."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """In every test of this folder."""


@pytest.fixture
def llama():
    """Makes tiny Llamas of two layers."""

    def make(tied: bool = True) -> LlamaForCausalLM:
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=37, num_hidden_layers=2, tie_word_embeddings=tied, **sizes))

    return make


@pytest.fixture(scope="session")
def tokenizer():
    """256 bytes and an end of text: 257 tokens."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = 256
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


class ArraySplit:
    """Documents of the given lengths in tokens; each token but the closing one is a byte."""

    def __init__(self, lengths, vocabulary=257, seed=0):
        self.tokens = np.random.default_rng(seed).integers(0, vocabulary, sum(lengths))
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.bytes = np.asarray(lengths) - 1
        self.token_count = int(sum(lengths))
        self.most_read = 0

    def read(self, start, stop):
        self.most_read = max(self.most_read, stop - start)
        return self.tokens[start:stop].astype(np.int64)

    def documents(self):
        return self.offsets, self.bytes


@pytest.fixture(scope="session")
def array_split():
    return ArraySplit
