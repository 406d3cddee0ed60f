"""Text while it is sampled: the pieces are the whole, no half characters, no part of a stop string."""

from functools import partial

import hypothesis
import pytest
import tokenizers
import transformers
from hypothesis import strategies as st

from instructgpt.serve.text_stream import TextStream, TokenTexts

TEXTS = ["서울은 어디에 있나요? 🌊🌊 — the sea.", "a\n\nb  c", "naïve café 😀", "<0x41> ▁ x"]


@pytest.fixture(scope="module")
def byte_fallback():
    """A unigram-like tokenizer with a space mark and one token a byte, as Llama's."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "▁the": 4, "sea": 5, "▁sea": 6}
    vocabulary |= {f"<0x{byte:02X}>": 7 + byte for byte in range(256)}
    vocabulary |= {letter: 263 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    model = tokenizers.models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    backend.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def run(words, tokens, stop=()):
    stream, pieces = TextStream(partial(decode, words), stop), []
    for token in tokens:
        pieces.append(stream.push(token))
        if stream.stop_text is not None:
            break
    return [*pieces, stream.finish()], stream


def decode(words, tokens):
    return words.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_pieces_are_the_text(tokenizer, byte_fallback, kind, text):
    words = tokenizer if kind == "bytes" else byte_fallback
    tokens = words.encode(text, add_special_tokens=False)
    pieces, _ = run(words, tokens)
    assert "".join(pieces) == decode(words, tokens)
    assert "\ufffd" not in "".join(pieces)
    assert sum(map(bool, pieces)) > 3


@hypothesis.given(st.data())
def test_random_tokens(tokenizer, data):
    """Also where the tokens are no text: all of it but an incomplete end, nothing taken back."""
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    pieces, _ = run(tokenizer, tokens)
    assert "".join(pieces).rstrip("\ufffd") == decode(tokenizer, tokens).rstrip("\ufffd")


def test_an_incomplete_character_is_never_shown(tokenizer):
    tokens = tokenizer.encode("ok 🌊", add_special_tokens=False)
    pieces, stream = run(tokenizer, tokens[:-1])
    assert "".join(pieces) == stream.text
    assert "\ufffd" not in stream.text
    assert stream.text.startswith("ok")


@hypothesis.given(
    st.text(alphabet="ab서 ", max_size=30), st.lists(st.text(alphabet="ab서 ", min_size=1, max_size=4), max_size=3)
)
def test_stop_strings(tokenizer, text, stop):
    """The text before the first one, whatever token it begins or ends in; no piece holds a part of it."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    pieces, stream = run(tokenizer, tokens, stop)
    # the first stop string to be complete ends the text; of several in one token the one that begins first
    cuts = [text.find(x) for x in stop if x in text]
    shown = "".join(pieces)
    assert not any(x in shown for x in stop)
    assert text.startswith(shown)
    assert (stream.stop_text is not None) == bool(cuts)
    if not cuts:
        assert shown == text
    else:
        assert text[len(shown) :].startswith(stream.stop_text)
        first_end = min(text.find(x) + len(x) for x in stop if x in text)
        assert len(shown) + len(stream.stop_text) <= first_end + max(len(tokenizer.decode([t])) for t in tokens)


def test_token_texts(tokenizer, byte_fallback):
    text = "a 🌊é"
    for words in (tokenizer, byte_fallback):
        texts = TokenTexts(words)
        tokens = words.encode(text, add_special_tokens=False)
        assert b"".join(map(texts.token_bytes, tokens)).decode().strip() == text
        assert any(texts.token_text(token).startswith("bytes:\\x") for token in tokens)
    assert TokenTexts(byte_fallback).token_text(4) == " the"
    assert TokenTexts(byte_fallback).token_text(2) == "</s>"
    assert TokenTexts(byte_fallback).token_bytes(10_000) == b""
