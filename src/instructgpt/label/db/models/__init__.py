"""What the site remembers: people, tasks, work, quality. One class a table, one file a part.

Times are integer milliseconds since 1970 in UTC, ids are UUIDs of version 7 (they sort by time), words with few values are checked text.
Nothing is deleted: rows are withdrawn, revoked, replaced or expired by a time of their own, and labels never cascade from people.
"""

from __future__ import annotations

from instructgpt.label.db.models.base import Base, new_id, now
from instructgpt.label.db.models.people import (
    ApiKey,
    Consent,
    ConsentText,
    Instructions,
    Invite,
    Journal,
    Login,
    Person,
    RateBucket,
    Reading,
    SurveyDone,
    SurveyReply,
)
from instructgpt.label.db.models.quality import Adjudication, Decision, Gold, Grade, Remark, Room, Vote
from instructgpt.label.db.models.submissions import (
    Assignment,
    Demonstration,
    Draft,
    Message,
    PromptReview,
    Ranking,
    RankingItem,
    Rating,
    Skip,
    Submission,
)
from instructgpt.label.db.models.tasks import Batch, Completion, Prompt, Task, TaskCompletion

__all__ = [
    "Adjudication", "ApiKey", "Assignment", "Base", "Batch", "Completion", "Consent", "ConsentText", "Decision", "Demonstration",
    "Draft", "Gold", "Grade", "Instructions", "Invite", "Journal", "Login", "Message", "Person", "Prompt", "PromptReview", "Ranking",
    "RankingItem", "RateBucket", "Rating", "Reading", "Remark", "Room", "Skip", "Submission", "SurveyDone", "SurveyReply", "Task",
    "TaskCompletion", "Vote", "new_id", "now",
]  # fmt: skip
