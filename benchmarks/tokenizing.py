"""How fast a corpus becomes a token store, beside `datasets.map` with the same tokenizer on the same file.

The corpus is the Python standard library several times over, as JSON lines. In every copy but the first, a third of the
longer words is spelled anew (letters shifted), so that neither documents nor words just repeat: a word cache that
lives on repetition must not be flattered. `datasets.map` runs batched, on all cores, and makes nothing but
`input_ids`; the time to load the JSON lines into Arrow first is shown beside and is not in the ratio.
Repetitions are interleaved, and the ratio is the median over pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import string
import tempfile
import time
from pathlib import Path

from thalweg.data import TokenStore, prepare
from thalweg.data.corpora import open_corpus


def respell(text: str, copy: int) -> str:
    """Shift the letters of a third of the words of six letters and more by `copy` places."""
    lower = string.ascii_lowercase
    shift = copy % 26
    table = str.maketrans(lower, lower[shift:] + lower[:shift])
    known: dict[str, str] = {}

    def change(match: re.Match[str]) -> str:
        word = match[0]
        if word not in known:
            mark = hashlib.blake2b(f"{copy} {word}".encode(), digest_size=1).digest()[0]
            known[word] = word.translate(table) if mark % 3 == 0 else word
        return known[word]

    return re.sub(r"[A-Za-z]{6,}", change, text)


def write_corpus(path: Path, megabytes: float) -> None:
    """Write about `megabytes` of text as JSON lines {"text": ...}, one standard library file a line."""
    documents = [document.decode() for document in open_corpus("stdlib").documents()]
    written, copy = 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes * 1e6:
            for document in documents:
                text = respell(document, copy) + f"\n# copy {copy}\n"
                file.write(json.dumps({"text": text}) + "\n")
                written += len(text.encode())
            copy += 1


def time_thalweg(corpus: Path, tokenizer: Path, cache: Path, workers: int) -> tuple[float, TokenStore]:
    """Seconds from the file to a finished, synced store."""
    started = time.perf_counter()
    store = prepare(corpus, tokenizer=tokenizer, cache=cache, progress=False, workers=workers)
    return time.perf_counter() - started, store


def time_datasets(corpus: Path, tokenizer: Path, cache: Path, workers: int) -> tuple[float, float, int]:
    """Seconds to load the JSON lines, seconds to map them, tokens made."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    separator = fast.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = fast(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*document, separator] for document in ids]}

    started = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(cache))
    middle = time.perf_counter()
    mapped = loaded.map(encode, batched=True, num_proc=workers, remove_columns=["text"])
    finished = time.perf_counter()
    tokens = sum(len(ids) for batch in mapped.with_format("numpy").iter(100) for ids in batch["input_ids"])
    return middle - started, finished - middle, tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=60, help="size of the corpus")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of measurements")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes for either side")
    parser.add_argument("--tokenizer", default="bpe:4096", help="bpe:<entries> trained on the corpus, or a folder")
    parser.add_argument("--corpus", type=Path, help='measure on this .jsonl (field "text") instead')
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="thalweg-benchmark-") as name:
        measure(options, Path(name))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run the pairs and print the table."""
    corpus = options.corpus or folder / "corpus.jsonl"
    if options.corpus is None:
        write_corpus(corpus, options.megabytes)
    first = prepare(corpus, tokenizer=options.tokenizer, cache=folder / "first", progress=False)
    tokenizer = first.folder / "tokenizer"
    megabytes = (first.train.byte_count + first.held_out.byte_count) / 1e6
    tokens = first.train.token_count + first.held_out.token_count
    print(f"{megabytes:.1f} MB of text, {tokens:,} tokens, {options.workers} workers")
    print(f"{'pair':>4}  {'thalweg':>12}  {'datasets.map':>12}  {'(loading)':>10}  {'ratio':>6}")
    rows = []
    for pair in range(options.repetitions):
        caches = folder / f"ours-{pair}", folder / f"theirs-{pair}"
        if pair % 2:
            load, theirs, made = time_datasets(corpus, tokenizer, caches[1], options.workers)
            ours, store = time_thalweg(corpus, tokenizer, caches[0], options.workers)
        else:
            ours, store = time_thalweg(corpus, tokenizer, caches[0], options.workers)
            load, theirs, made = time_datasets(corpus, tokenizer, caches[1], options.workers)
        if made != store.train.token_count + store.held_out.token_count:
            raise SystemExit("the two sides made different numbers of tokens")
        rows.append({"ours": ours, "theirs": theirs, "load": load})
        print(
            f"{pair:>4}  {megabytes / ours:>7.1f} MB/s  {megabytes / theirs:>7.1f} MB/s  {load:>8.1f} s  "
            f"{theirs / ours:>6.2f}"
        )
        for cache in caches:
            shutil.rmtree(cache, ignore_errors=True)
    ratio = statistics.median(row["theirs"] / row["ours"] for row in rows)
    whole = statistics.median((row["theirs"] + row["load"]) / row["ours"] for row in rows)
    print(f"median ratio {ratio:.2f} against map alone, {whole:.2f} against load and map (goal 1.5)")
    if options.json:
        options.json.write_text(json.dumps({"megabytes": megabytes, "pairs": rows, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
