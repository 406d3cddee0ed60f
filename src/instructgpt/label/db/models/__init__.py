"""The site's tables, one class a table.

Times are integer milliseconds since 1970 (UTC). Ids are UUIDs version 7, which sort by time; those of completions are
random (version 4), because labelers get them and files are ordered by model. Columns with few values have a CHECK.
Rows are withdrawn, revoked, replaced or expired by a time column and not deleted.
"""

from __future__ import annotations

from instructgpt.label.db.models.base import Base, current_time_ms, new_id, new_random_id
from instructgpt.label.db.models.bulk import BulkChange, BulkItem
from instructgpt.label.db.models.integrations import Delivery, OpenIDFlow, ProviderIdentity, Webhook
from instructgpt.label.db.models.people import (
    ApiKey,
    AuditLogEntry,
    Consent,
    ConsentText,
    Instructions,
    InstructionsRead,
    Invite,
    Person,
    RateBucket,
    SignInChallenge,
    SurveyParticipation,
    SurveyReply,
    UserSession,
)
from instructgpt.label.db.models.playground import (
    PlaygroundAgreement,
    PlaygroundAnswer,
    PlaygroundConsentText,
    PlaygroundCount,
    PlaygroundFeedback,
    PlaygroundLink,
    PlaygroundRound,
    PlaygroundSession,
    PlaygroundTurn,
    PlaygroundUser,
    RoundSample,
)
from instructgpt.label.db.models.quality import (
    Adjudication,
    CalibrationRemark,
    CalibrationRoom,
    CalibrationVote,
    Decision,
    GoldAnswer,
    Grade,
)
from instructgpt.label.db.models.submissions import (
    Assignment,
    DemonstrationRow,
    Draft,
    MessageRow,
    PromptReview,
    RankingItem,
    RankingRow,
    Rating,
    Skip,
    Submission,
)
from instructgpt.label.db.models.tasks import Batch, CompletionRow, PromptRow, Task, TaskCompletion

__all__ = [
    "Adjudication",
    "ApiKey",
    "Assignment",
    "AuditLogEntry",
    "Base",
    "Batch",
    "BulkChange",
    "BulkItem",
    "CalibrationRemark",
    "CalibrationRoom",
    "CalibrationVote",
    "CompletionRow",
    "Consent",
    "ConsentText",
    "Decision",
    "Delivery",
    "DemonstrationRow",
    "Draft",
    "GoldAnswer",
    "Grade",
    "Instructions",
    "InstructionsRead",
    "Invite",
    "MessageRow",
    "OpenIDFlow",
    "Person",
    "PlaygroundAgreement",
    "PlaygroundAnswer",
    "PlaygroundConsentText",
    "PlaygroundCount",
    "PlaygroundFeedback",
    "PlaygroundLink",
    "PlaygroundRound",
    "PlaygroundSession",
    "PlaygroundTurn",
    "PlaygroundUser",
    "PromptReview",
    "PromptRow",
    "ProviderIdentity",
    "RankingItem",
    "RankingRow",
    "RateBucket",
    "Rating",
    "RoundSample",
    "SignInChallenge",
    "Skip",
    "Submission",
    "SurveyParticipation",
    "SurveyReply",
    "Task",
    "TaskCompletion",
    "UserSession",
    "Webhook",
    "current_time_ms",
    "new_id",
    "new_random_id",
]
