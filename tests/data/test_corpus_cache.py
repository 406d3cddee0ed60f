"""Pretraining text in a mapped file: the windows of a slow definition, written once, known by what it is made from.

pytest tests/data/test_corpus_cache.py
"""

import json
import threading

import pytest
import tokenizers
import torch
from conftest import TEXT

from instructgpt.data import corpus_cache, pretraining_text
from instructgpt.data.corpus_cache import load_corpus
from instructgpt.data.pretraining_text import train_tokenizer
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError

DOCUMENTS = [text * (1 + index % 4) for index, text in enumerate(TEXT * 5)]


def make_tokenizer(*, bos):
    tokenizer = train_tokenizer(TEXT, 300)
    if bos:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        start = ("<s>", tokenizer.bos_token_id)
        template = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
        tokenizer.backend_tokenizer.post_processor = template
    return PromptTokenizer(tokenizer)


@pytest.fixture(params=[False, True], ids=["without BOS", "with BOS"])
def renderer(request):
    return make_tokenizer(bos=request.param)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(corpus_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def windows_by_definition(renderer, width):
    """All documents as one list of tokens, then row after row; a row within a document begins with BOS."""
    tokens, has_bos = [], renderer.bos != renderer.eos
    for text in DOCUMENTS:
        ids = renderer.hf_tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens += [renderer.bos] * has_bos + ids + [renderer.eos]
    rows = []
    while tokens:
        row = ([renderer.bos] if has_bos and tokens[0] != renderer.bos else []) + tokens[:width]
        tokens = tokens[len(row[:width]) - (len(row) - len(tokens[:width])) :]
        rows.append(row[:width])
    return [row for row in rows if len(row) == width]


@pytest.mark.parametrize("chunk", [1, 3, 500])
@pytest.mark.parametrize("window", [1, 7, 40])
def test_windows_are_those_of_the_definition(renderer, folder, corpus_file, window, chunk, monkeypatch):
    assert renderer.bos is not None
    monkeypatch.setattr(pretraining_text, "_ENCODE_CHUNK_SIZE", chunk)
    expected = windows_by_definition(renderer, window + 1)
    assert len(expected) > 10
    for most in (3, len(expected), 10_000):
        corpus = load_corpus([corpus_file], renderer, window, 5, most, report=lambda _: None)
        assert corpus.tokens.dtype == torch.int32
        assert corpus.tokens.tolist() == expected[:most]
        in_memory = pretraining_text.build_corpus(DOCUMENTS, renderer, window, 5, most)
        assert torch.equal(in_memory.tokens, corpus.tokens)
        assert corpus.examples(0, 9) == in_memory.examples(0, 9)
    assert len(list(folder.glob("*.tokens"))) == 3


def test_a_second_run_tokenizes_nothing_and_another_input_has_another_file(folder, corpus_file, monkeypatch):
    said = []

    def load(tokenizer, window=7, **options):
        return load_corpus([corpus_file], tokenizer, window, 0, 50, report=said.append, **options).tokens

    plain = make_tokenizer(bos=False)
    first = load(plain)
    assert [text.partition(" into ")[0] for text in said] == ["pretraining text is tokenized"]
    with monkeypatch.context() as patch:
        patch.setattr(corpus_cache, "iter_windows", lambda *_: pytest.fail("tokenized again"))
        plain.hf_tokenizer(["a", "a b c"], truncation=True, max_length=2)  # sets what changes no token
        assert torch.equal(load(plain), first)
    load(make_tokenizer(bos=True))
    load(plain, window=8)
    assert len(list(folder.glob("*.tokens"))) == 3
    corpus_file.write_text(corpus_file.read_text().replace("frog", "toad"))
    assert not torch.equal(load(plain), first)
    assert len(list(folder.glob("*.tokens"))) == 4


@pytest.mark.usefixtures("folder")
def test_the_first_process_writes_and_the_others_wait(corpus_file, monkeypatch):
    """Flock holds between threads, too, as each opens the file itself."""
    renderer, builds, iter_windows = make_tokenizer(bos=False), [], corpus_cache.iter_windows
    started = threading.Barrier(4)

    def count(*arguments):
        builds.append(1)
        yield from iter_windows(*arguments)

    def load(results):
        started.wait()
        results.append(load_corpus([corpus_file], renderer, 7, 0, 50, report=lambda _: None).tokens)

    monkeypatch.setattr(corpus_cache, "iter_windows", count)
    results = []
    threads = [threading.Thread(target=load, args=(results,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(results) == 4
    assert all(torch.equal(tokens, results[0]) for tokens in results)


def test_what_fails_leaves_no_file(folder, corpus_file, tmp_path, monkeypatch):
    renderer = make_tokenizer(bos=False)
    with pytest.raises(InputError, match="less than one window of 5001"):
        load_corpus([corpus_file], renderer, 5000, 0, 3)
    assert not list(folder.glob("*.tokens")) + list(folder.glob("*.part"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(corpus_cache.CACHE_VARIABLE, str(tmp_path / "file"))
    said = []
    corpus = load_corpus([corpus_file], renderer, 7, 0, 3, report=said.append)
    assert "tokenized into memory" in said[0]
    assert corpus.tokens.tolist() == windows_by_definition(renderer, 8)[:3]


@pytest.mark.usefixtures("folder")
def test_writes_to_the_windows_reach_no_file(corpus_file):
    renderer = make_tokenizer(bos=False)
    load_corpus([corpus_file], renderer, 7, 0, 3).tokens.zero_()
    assert load_corpus([corpus_file], renderer, 7, 0, 3).tokens.any()
