"""Completions as text: prompts are tokenized, sampled, and decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.records import PromptFields
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import SampledTokens, sample_tokens
from instructgpt.sampling.random_streams import StreamKey, default_stream_keys
from instructgpt.sampling.stop_strings import StopStrings, as_stop_strings, cut_at_stop


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One completion as text and as tokens."""

    prompt: PromptFields
    text: str
    """Without the stop string that ended it, if one did."""
    example: TokenizedExample
    finished: bool
    """Whether it ended with a stop token."""
    stopped: bool = False
    """Whether a stop string ended it, which the tokens contain."""

    @property
    def finish(self) -> Literal["stop", "length"]:
        """The reason why it ended, as records say it."""
        return "stop" if self.finished or self.stopped else "length"


def generate(
    model: Any,
    tokenizer: PromptTokenizer,
    prompts: Sequence[PromptFields],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    per_prompt: int = 1,
    keys: Sequence[StreamKey] | None = None,
) -> list[SampledCompletion]:
    """Sample `per_prompt` completions of each prompt, in order. Raises InputError where a prompt is too long.

    Args:
        stop: texts that end a completion as soon as they appear in it; they are not part of its text.
        keys: the stream of random numbers of each completion, where these are a part of more.
    """
    stop_strings = as_stop_strings(stop, tokenizer.decode)
    repeated_prompts = [prompt for prompt in prompts for _ in range(per_prompt)]
    prompt_ids = [tokenizer.encode_prompt(prompt) for prompt in repeated_prompts]
    samples = sample_on_ranks(
        model,
        prompt_ids,
        stop_tokens=tokenizer.stop_tokens,
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        stop=stop_strings,
        keys=default_stream_keys(len(prompts), per_prompt) if keys is None else keys,
    )
    return decode_samples(tokenizer, repeated_prompts, prompt_ids, samples, stop_strings)


def decode_samples(
    tokenizer: PromptTokenizer,
    prompts: Sequence[PromptFields],
    prompt_ids: Sequence[list[int]],
    samples: Sequence[SampledTokens],
    stop: StopStrings | None = None,
) -> list[SampledCompletion]:
    """Decode sampled tokens, up to the stop strings they were sampled with."""
    strings = stop.strings if stop else ()
    texts = [cut_at_stop(tokenizer.decode(sample.tokens), strings) for sample in samples]
    return [
        SampledCompletion(prompt, text, TokenizedExample(ids, sample.tokens), sample.finished, stopped)
        for prompt, ids, sample, (text, stopped) in zip(prompts, prompt_ids, samples, texts, strict=True)
    ]


def retokenize_for(
    tokenizer: PromptTokenizer, source_tokenizer: PromptTokenizer, completions: Sequence[SampledCompletion]
) -> list[TokenizedExample]:
    """Return completions as tokens of another model: the same where both share a tokenizer, else encoded from text.

    A finished completion ends with the end of the turn, whichever stop token ended it; one that a stop string ended is
    encoded from its text, without the string.
    """
    if not tokenizer.is_compatible(source_tokenizer):
        return [tokenizer.encode_example(x.prompt, x.text, finished=x.finish == "stop") for x in completions]
    return [
        tokenizer.encode_example(x.prompt, x.text, finished=True)
        if x.stopped
        else tokenizer.with_end_of_turn(x.example)
        if x.finished
        else x.example
        for x in completions
    ]


def continue_text(
    model: Any,
    tokenizer: PromptTokenizer,
    texts: Sequence[str],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = "\n",
    per_text: int = 1,
) -> list[tuple[str, bool]]:
    """Continue texts without a prompt template, up to a stop string (paper, appendix D: temperature 0, a newline).

    Returns `per_text` consecutive continuations of each, and whether each reached a stop string or token.
    """
    stop_strings = as_stop_strings(stop, tokenizer.decode)
    text_ids = [tokenizer.encode_text(text) for text in texts]
    samples = sample_tokens(
        model,
        [ids for ids in text_ids for _ in range(per_text)],
        stop_tokens=tokenizer.stop_tokens,
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        stop=stop_strings,
        keys=default_stream_keys(len(texts), per_text),
    )
    strings = stop_strings.strings if stop_strings else ()
    continuations = [cut_at_stop(tokenizer.decode(sample.tokens), strings) for sample in samples]
    return [(text, stopped or x.finished) for (text, stopped), x in zip(continuations, samples, strict=True)]
