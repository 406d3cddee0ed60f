"""The playground: links, users without accounts, consent, prompts with the answers to them, feedback, rounds.

A user is a pseudonym and the hash of a cookie: no name, no address. Texts are only in the tables `playground_turn`,
`playground_answer`, `playground_feedback` and `round_sample`; erasure deletes their rows, except
that a turn keeps its row without messages.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id, new_random_id

TurnState = Literal["kept", "review", "erased"]
TURN_STATES: tuple[TurnState, ...] = ("kept", "review", "erased")
"""`review`: personal data was detected or somebody reported it; labelers review the prompt first. `erased`: no text is
left; the row keeps a retry of the same request from being stored."""

FeedbackKind = Literal["ranking", "edit", "thumb", "report"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = ("ranking", "edit", "thumb", "report")

RoundState = Literal["sampling", "done", "failed"]
ROUND_STATES: tuple[RoundState, ...] = ("sampling", "done", "failed")


class PlaygroundLink(Base):
    """A link to the playground. Its token is stored as it is: it admits to the playground only, and owners copy it."""

    __tablename__ = "playground_link"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    token: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    revoked_at: Mapped[int | None]


class PlaygroundConsentText(Base):
    """One version of the playground's consent text; `bodies` is Markdown by language."""

    __tablename__ = "playground_consent_text"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bodies: Mapped[dict[str, Any]]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class PlaygroundUser(Base):
    """A browser that opened the link; `pseudonym` is the `user` of its prompts. The cookie's SHA-256 is stored."""

    __tablename__ = "playground_user"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    pseudonym: Mapped[str] = mapped_column(unique=True)
    token_hash: Mapped[str] = mapped_column(unique=True)
    link_id: Mapped[str | None] = mapped_column(ForeignKey("playground_link.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    erased_at: Mapped[int | None]
    """When the user last deleted everything: requests that began before it are not stored."""


class PlaygroundSession(Base):
    """A browser session of a user; each one shows the consent text again."""

    __tablename__ = "playground_session"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[str] = mapped_column(unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("playground_user.id"), index=True)
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class PlaygroundAgreement(Base):
    """A user's agreement, in one session, to one version of the consent text."""

    __tablename__ = "playground_agreement"
    __table_args__ = (Index("ix_playground_agreement_session", "session_id", "version"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[str] = mapped_column(ForeignKey("playground_user.id"), index=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("playground_session.id"))
    version: Mapped[int] = mapped_column(ForeignKey("playground_consent_text.version"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    withdrawn_at: Mapped[int | None]


class PlaygroundTurn(Base):
    """A prompt that a user sent under an agreement: the whole conversation up to the user's last message."""

    __tablename__ = "playground_turn"
    __table_args__ = (
        UniqueConstraint("user_id", "key"),
        choices_constraint("state", TURN_STATES),
        Index("ix_playground_turn_created", "created_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    key: Mapped[str]  # of the browser's request: a retry carries the same
    user_id: Mapped[str] = mapped_column(ForeignKey("playground_user.id"))
    agreement_id: Mapped[str] = mapped_column(ForeignKey("playground_agreement.id"))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("playground_turn.id"), index=True)
    messages: Mapped[list[Any]] = mapped_column(type_=Base.type_annotation_map[list[str]])
    state: Mapped[TurnState] = mapped_column(default="kept")
    personal_data: Mapped[list[str]]  # kinds that the detectors found
    client: Mapped[str] = mapped_column(default="playground")
    prompt_id: Mapped[str | None] = mapped_column(ForeignKey("prompt.id"), index=True)
    """The site's prompt, once the turn went to review or into a batch."""
    round_id: Mapped[str | None] = mapped_column(ForeignKey("playground_round.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    use_case: Mapped[str | None]  # of the API key


class PlaygroundAnswer(Base):
    """An answer, with what a later reader needs to sample it again. Its id is random: its order tells no model."""

    __tablename__ = "playground_answer"
    __table_args__ = (UniqueConstraint("turn_id", "position"), CheckConstraint("position >= 0", name="position"))
    id: Mapped[str] = mapped_column(primary_key=True, default=new_random_id)
    turn_id: Mapped[str] = mapped_column(ForeignKey("playground_turn.id"))
    position: Mapped[int]  # on the page, from 0; random
    model: Mapped[str]
    checkpoint: Mapped[str | None]  # the endpoint's `system_fingerprint`
    sampling: Mapped[dict[str, Any]]
    text: Mapped[str]
    finish: Mapped[str]  # stop, length, or stopped (by the user)


class PlaygroundFeedback(Base):
    """One act of feedback. Append-only: a later one of the same kind and answer sets `replaced_at` of the earlier one.

    `value` by kind: ranking `{"ranks": {answer id: rank}, "all_bad": bool}`; edit `{"text": str}`;
    thumb `{"up": bool}`; report `{"reason": str}`.
    """

    __tablename__ = "playground_feedback"
    __table_args__ = (choices_constraint("kind", FEEDBACK_KINDS), Index("ix_playground_feedback_turn", "turn_id"))
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    turn_id: Mapped[str] = mapped_column(ForeignKey("playground_turn.id"))
    answer_id: Mapped[str | None] = mapped_column(ForeignKey("playground_answer.id"))
    kind: Mapped[FeedbackKind]
    value: Mapped[dict[str, Any]]
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    replaced_at: Mapped[int | None]


class PlaygroundCount(Base):
    """How many requests of a day (UTC) were not stored, by reason; no texts, no users."""

    __tablename__ = "playground_count"
    day: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]


class PlaygroundRound(Base):
    """One round: the turns that became a batch, and how. `settings` is `playground.rounds.RoundSettings` as JSON."""

    __tablename__ = "playground_round"
    __table_args__ = (choices_constraint("state", ROUND_STATES),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    number: Mapped[int] = mapped_column(unique=True)
    state: Mapped[RoundState] = mapped_column(default="sampling")
    settings: Mapped[dict[str, Any]]
    counts: Mapped[dict[str, Any]]  # reason -> prompts that were left out
    error: Mapped[str | None]
    batch_id: Mapped[str | None] = mapped_column(ForeignKey("batch.id"))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    finished_at: Mapped[int | None]


class RoundSample(Base):
    """A completion to sample, or sampled, for a round; deleted when the batch exists. `text` None: to do."""

    __tablename__ = "round_sample"
    __table_args__ = (Index("ix_round_sample_round", "round_id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    round_id: Mapped[str] = mapped_column(ForeignKey("playground_round.id"))
    turn_id: Mapped[str] = mapped_column(ForeignKey("playground_turn.id"), index=True)
    model: Mapped[str]
    seed: Mapped[int]
    text: Mapped[str | None]
    finish: Mapped[str | None]
