"""Models of this process that answer in a chat, with the engine of `serve`."""

from __future__ import annotations

import contextlib
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence

from instructgpt.errors import RunError
from instructgpt.models.loading import parse_named_models
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Message, Prompt
from instructgpt.sampling.decoder import SamplingParams
from instructgpt.serve.chat_models import ChatReply, ChatSettings
from instructgpt.serve.engine import CompletionDelta, GenerationError, GenerationEvent, GenerationRequest
from instructgpt.serve.errors import APIError
from instructgpt.serve.served_model import ServedModel


class LocalChatModel:
    """A model of this process."""

    def __init__(self, served: ServedModel) -> None:
        self.served, self.name = served, served.name

    def close(self) -> None:
        """End the engine."""
        self.served.engine.close()

    def answer(
        self,
        messages: Sequence[Message],
        settings: ChatSettings,
        show: Callable[[str], None],
        interrupt: threading.Event,
    ) -> ChatReply:
        """Sample with the engine."""
        events: queue.Queue[Sequence[GenerationEvent]] = queue.Queue()
        try:
            prompt = self.served.encode_chat(tuple(messages))
        except APIError as error:
            raise RunError(str(error)) from error
        if len(prompt) >= self.served.context:
            raise RunError(
                f"the conversation has {len(prompt)} tokens, the context is {self.served.context}; /new starts again"
            )
        request = GenerationRequest(
            prompt=prompt,
            max_tokens=min(settings.max_tokens, self.served.context - len(prompt)),
            params=SamplingParams(self.served.tokenizer.stop_tokens, settings.temperature, settings.top_p),
            deliver=events.put,
            seed=secrets.randbits(63) if settings.seed is None else settings.seed,
            stream=True,
        )
        self.served.engine.submit([request])
        text = ""
        for event in _iter_events(events, interrupt):
            if isinstance(event, GenerationError):
                raise RunError(event.message)
            if isinstance(event, CompletionDelta):
                text += event.text
                show(text)
                if event.finish_reason is not None:
                    return ChatReply(self.name, text, event.finish_reason)
        self.served.engine.cancel([request])
        return ChatReply(self.name, text, "length")


def _iter_events(
    events: queue.Queue[Sequence[GenerationEvent]], interrupt: threading.Event
) -> Iterator[GenerationEvent]:
    while not interrupt.is_set():
        with contextlib.suppress(queue.Empty):
            yield from events.get(timeout=0.05)


class ReplyScorer:
    """Scores answers with a reward model."""

    def __init__(self, reward_model: ScalarModel) -> None:
        self.reward_model = reward_model

    def score(self, messages: Sequence[Message], answer: ChatReply) -> float:
        """Return the score of an answer to a conversation; NaN where both exceed the context."""
        prompt = Prompt.model_validate({"messages": tuple(messages)})
        finished = answer.finish == "stop"
        example = self.reward_model.tokenizer.encode_example(prompt, answer.text, finished=finished)
        if len(example) > self.reward_model.context:
            return float("nan")
        return float(self.reward_model.score([example])[0])


def load_chat_models(models: Sequence[str], device_name: str) -> list[LocalChatModel]:
    """Load models of [NAME=]MODEL arguments. Raises InputError where one cannot be loaded."""
    device = pick_device(device_name)
    return [
        LocalChatModel(ServedModel.load(name, source, device, max_rows=4, max_waiting=4))
        for name, source in parse_named_models(models).items()
    ]


def load_scorer(source: str, device_name: str) -> ReplyScorer:
    """Load a reward model. Raises InputError where it cannot be loaded."""
    return ReplyScorer(load_reward_model(source, pick_device(device_name)))
