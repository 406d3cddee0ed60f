"""Options of the commands `label init | serve | import | export | backup | batch | simulate`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from instructgpt.config import CommandConfig, SamplingOptions
from instructgpt.label.vocabulary import (
    MAX_COMPLETIONS,
    MAX_RATING,
    OPENID_SECRET_VARIABLE,
    SMTP_PASSWORD_VARIABLE,
    ExportFileName,
    ExportFormat,
    ExportUse,
    LabelImportFormat,
    SecondFactorPolicy,
    TaskKind,
)
from instructgpt.records import Cohort
from instructgpt.world.labelers import LABELER_NOISE

if TYPE_CHECKING:  # their libraries take long to load, and help needs none of them
    from instructgpt.label.mail_server import MailServer
    from instructgpt.label.openid import OpenIDClient

API_KEY_VARIABLE = "INSTRUCTGPT_LABEL_KEY"
ENDPOINT_KEY_VARIABLE = "INSTRUCTGPT_ENDPOINT_KEY"


class SiteOptions(CommandConfig):
    site: Path = Field(description="folder of the site")
    database: str | None = Field(
        None,
        description="sqlite:///FILE or postgresql://USER@HOST/NAME, fixed when the site is created; by default site.db",
    )
    public_url: str | None = Field(
        None,
        description="public address of the site behind a reverse proxy, such as https://labels.example.org or "
        "https://example.org/label; other hosts are then refused",
    )

    @field_validator("public_url")
    @classmethod
    def _validate_public_url(cls, value: str | None) -> str | None:
        return value if value is None else parse_base_url(value)


class InitConfig(SiteOptions):
    stage: ClassVar[str] = "label init"


class ServeConfig(SiteOptions):
    stage: ClassVar[str] = "label serve"

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces")
    port: int = Field(8000, ge=0, le=65_535, description="port to listen on; 0 takes a free one")
    second_factor: SecondFactorPolicy = Field(
        "optional", description="who must set up a second factor (TOTP): nobody, owners, or owners and researchers"
    )
    endpoint: str | None = Field(
        None,
        description="OpenAI-compatible endpoint, such as http://127.0.0.1:8001, for a playground on the site; "
        f"its key is read from {ENDPOINT_KEY_VARIABLE}",
    )
    endpoint_models: tuple[str, ...] = Field(
        (), description="models of the endpoint that the playground offers; by default all of them"
    )
    retention_days: int = Field(
        365, ge=1, le=36_500, description="days after which messages of the playground that are in no batch are deleted"
    )

    @field_validator("endpoint")
    @classmethod
    def _validate_endpoint(cls, value: str | None) -> str | None:
        return value if value is None else parse_base_url(value)

    def ineffective_options(self) -> Iterator[str]:
        for name in ("endpoint_models", "retention_days"):
            if name in self.model_fields_set and self.endpoint is None:
                yield f"--{name.replace('_', '-')} has no effect without --endpoint"

    allow_networks: tuple[str, ...] = Field(
        (),
        description="networks that are not public and that webhooks and sign-in providers may reach all the same, such "
        "as 10.2.0.0/16",
    )

    smtp: str | None = Field(
        None,
        description="mail server for invitations and new passwords: smtps://USER@HOST (TLS), smtp://USER@HOST (STARTTLS) "
        f"or smtp+insecure://HOST; the password is in {SMTP_PASSWORD_VARIABLE}",
    )
    mail_from: str | None = Field(None, description="sender of e-mails, such as 'Labels <labels@example.org>'")

    openid_issuer: str | None = Field(
        None, description="OpenID provider that people may sign in at, such as https://login.example.org"
    )
    openid_client: str | None = Field(
        None, description=f"client ID at the provider; the client's secret is in {OPENID_SECRET_VARIABLE}"
    )
    openid_name: str | None = Field(None, description="name of the provider on the button; by default its host")
    openid_domains: tuple[str, ...] = Field(
        (),
        description="domains whose verified e-mail addresses become labelers in screening without an invitation",
    )

    @model_validator(mode="after")
    def _validate_openid(self) -> Self:
        if (self.openid_issuer is None) != (self.openid_client is None):
            raise ValueError("give both --openid-issuer and --openid-client, or none of them")
        if self.openid_issuer is None and (self.openid_name or self.openid_domains):
            raise ValueError("--openid-name and --openid-domains have no effect without --openid-issuer")
        if self.openid_issuer is not None and self.public_url is None:
            raise ValueError("--openid-issuer needs --public-url, the address that the provider returns to")
        self.build_openid_client()
        return self

    def build_openid_client(self) -> OpenIDClient | None:
        """Return the client of the provider; None without one. Raises ValueError."""
        if self.openid_issuer is None or self.openid_client is None:
            return None
        from instructgpt.label.openid import OpenIDClient, OpenIDProvider, validate_provider
        from instructgpt.label.outgoing import parse_network

        name = self.openid_name or str(urlsplit(self.openid_issuer).hostname)
        provider = OpenIDProvider(self.openid_issuer, self.openid_client, name, self.openid_domains)
        validate_provider(provider)
        networks = tuple(parse_network(text) for text in self.allow_networks)
        return OpenIDClient(provider, f"{self.public_url}/sign-in/openid/callback", networks)

    @model_validator(mode="after")
    def _validate_mail(self) -> Self:
        if (self.smtp is None) != (self.mail_from is None):
            raise ValueError("give both --smtp and --mail-from, or none of them")
        if self.smtp is not None and self.public_url is None:
            raise ValueError("--smtp needs --public-url, the address of the links in e-mails")
        self.mail_server()
        return self

    def mail_server(self) -> MailServer | None:
        """Return the mail server; None without one. Raises ValueError."""
        if self.smtp is None or self.mail_from is None:
            return None
        from instructgpt.label.mail_server import parse_mail_server

        return parse_mail_server(self.smtp, self.mail_from)

    @field_validator("allow_networks")
    @classmethod
    def _validate_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            return value
        from instructgpt.label.outgoing import parse_network

        return tuple(str(parse_network(text)) for text in value)


def parse_base_url(value: str) -> str:
    """Return an address without its trailing slash. Raises ValueError unless it is http(s)://HOST[/PATH]."""
    parts = urlsplit(value)
    has_host = parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc
    path = parts.path.rstrip("/")
    if not has_host or parts.query or parts.fragment or not re.fullmatch(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)*", path):
        raise ValueError(
            "expected https://HOST or https://HOST/PATH, the path of letters, digits and '.', '_', '~', '-'"
        )
    return f"{parts.scheme}://{parts.netloc}{path}"


class ExistingSiteOptions(CommandConfig):
    site: Path = Field(description="folder of the site, created by 'label init'")


class ResetLinkConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label reset-link"

    name: str | None = Field(None, description="whose password; by default the only owner's")
    end_second_factor: bool = Field(False, description="also remove the second factor, when phone and codes are lost")
    public_url: str | None = Field(None, description="public address of the site, for the link")

    @field_validator("public_url")
    @classmethod
    def _validate_public_url(cls, value: str | None) -> str | None:
        return value if value is None else parse_base_url(value)


class LabelImportConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label import"

    data: tuple[Path, ...] = Field(
        (), description="prompts, completions, demonstrations or rankings; also exports of Label Studio or Argilla"
    )
    archive: Path | None = Field(None, description="import an archive of 'label export --archive' into an empty site")
    requests: Path | None = Field(
        None, description="import what 'instructgpt serve --store' keeps: new prompts of API users, and withdrawals"
    )
    format: LabelImportFormat = Field("auto", description="file format; auto detects it from the columns of each row")
    name: str | None = Field(None, description="name of the new batch; by default the name of the first file")
    kind: Literal["demonstrate", "review"] | None = Field(
        None, description="also create a batch of the prompts, to demonstrate or to review"
    )
    purpose: Literal["training", "evaluation"] = Field("training", description="purpose of the batch")
    cohort: Cohort = Field("training", description="cohort of external labelers whose lines name none")
    baseline: str | None = Field(None, description="evaluation: the model to compare the others with")
    policy: str = Field(
        "{}",
        description="overlap policy as JSON: overlap, cohort_share, cohort_overlap, gold_share, repeat_share, k, seed",
    )
    open: bool = Field(False, description="open the batch to labelers at once")
    prompt_field: str | None = Field(None, description="other tools: name of the prompt field")
    questions: str = Field("", description="other tools: controls or questions to import, separated by commas")
    rating_max: int = Field(MAX_RATING, ge=2, description="other tools: highest rating; ratings are rescaled to 1 to 7")
    labeling_config: Path | None = Field(None, description="Label Studio: XML file of the labeling interface")
    skip_bad: bool = Field(False, description="skip and count bad lines")

    def ineffective_options(self) -> Iterator[str]:
        if sum((bool(self.data), self.archive is not None, self.requests is not None)) != 1:
            yield "give one of --data, --archive and --requests"
        effective = {"archive": {"archive"}, "requests": {"requests", "skip_bad"}}
        for source, names in effective.items():
            if getattr(self, source) is not None:
                for name in sorted(self.model_fields_set - {"site", *names}):
                    yield f"--{name.replace('_', '-')} has no effect with --{source}"


class LabelExportConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label export"

    out: Path = Field(description="output folder; must not exist")
    use: ExportUse = Field("training", description="training: for SFT and reward models; evaluation: to measure them")
    format: ExportFormat = Field("jsonl", description="jsonl, parquet, or datasets (Parquet with a dataset card)")
    files: tuple[str, ...] = Field(get_args(ExportFileName), description="files to write")
    batch: tuple[str, ...] = Field((), description="only these batches")
    labeler: tuple[str, ...] = Field((), description="only the work of these labelers, by pseudonym")
    since: int | None = Field(None, ge=0, description="only submissions from this time on, milliseconds since 1970 UTC")
    until: int | None = Field(None, ge=0, description="only submissions before this time, milliseconds since 1970 UTC")
    user_feedback: bool = Field(
        False, description="also rankings and edits of the playground's users, with cohort user (use training)"
    )
    archive: bool = Field(False, description="export every table of the site, for 'label import --archive'")
    people: Literal["whole", "pseudonyms"] = Field("whole", description="with --archive: whole accounts or pseudonyms")

    @field_validator("files", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        return tuple(part for name in names for part in str(name).split(","))

    def ineffective_options(self) -> Iterator[str]:
        exported = ("use", "format", "files", "batch", "labeler", "since", "until", "user_feedback")
        for name in exported if self.archive else ("people",):
            if name in self.model_fields_set:
                yield f"--{name.replace('_', '-')} has no effect {'with' if self.archive else 'without'} --archive"
        if self.user_feedback and (self.use != "training" or self.batch or self.labeler):
            yield "--user-feedback has no effect with --use evaluation, --batch or --labeler: no labeler wrote it"


class LabelBackupConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label backup"

    out: Path = Field(description="output file: an SQLite database, or a pg_restore archive of PostgreSQL")


class BatchConfig(SamplingOptions):
    stage: ClassVar[str] = "label batch"

    site: Path = Field(description="folder of the site, created by 'label init'")
    name: str = Field(description="name of the batch, unique on the site")
    prompts: tuple[Path, ...] = Field((), description="prompt files; for rankings only with --models or as a filter")
    completions: tuple[Path, ...] = Field((), description="rankings: completion files, as 'sample' writes them")
    models: tuple[str, ...] = Field((), description="rankings: NAME=MODEL pairs (directory or hub name) to sample from")
    n: int = Field(1, ge=1, le=MAX_COMPLETIONS, description="completions per prompt and model")
    gold: tuple[Path, ...] = Field((), description="gold answers: rankings, or 'prompt' and 'answer' for reviews")
    kind: TaskKind = Field("rank", description="task kind: rank, demonstrate or review")
    purpose: Literal["training", "evaluation"] = Field("training", description="purpose of the batch")
    cohort: Cohort | None = Field(None, description="cohort that may work on the batch; any by default")
    screening: Literal["sensitive", "ranking", "demonstration"] | None = Field(
        None, description="part of the screening test that the batch is for; by default ordinary work"
    )
    baseline: str | None = Field(None, description="evaluation: the model to compare the others with")
    priority: int = Field(0, ge=-1000, le=1000, description="batches with higher priority come first")
    overlap: int = Field(1, ge=1, le=100, description="labelers per task")
    cohort_share: float = Field(0.12, ge=0, le=1, description="share of tasks with --cohort-overlap labelers")
    cohort_overlap: int = Field(3, ge=1, le=100, description="labelers per task of that share")
    gold_share: float = Field(0.05, ge=0, le=1, description="share of gold tasks in each labeler's work")
    repeat_share: float = Field(0.02, ge=0, le=1, description="share of tasks that the same labeler gets a second time")
    k_least: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="minimum completions per ranking")
    k_most: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="maximum completions per ranking")
    seed: int = Field(0, ge=0, lt=2**32, description="random seed")
    questions: Path | None = Field(None, description="rankings: YAML file of required, optional and own questions")
    heldout_share: float | None = Field(
        None, ge=0, le=1, description="evaluation: share of tasks for held-out labelers; by default whoever comes first"
    )
    hourly: float | None = Field(None, gt=0, description="cost of an hour of work; kept with the batch")
    currency: str | None = Field(None, description="currency of --hourly, such as USD or KRW")
    open: bool = Field(False, description="open the batch to labelers at once")
    dry_run: bool = Field(False, description="only estimate the work; create nothing")

    def ineffective_options(self) -> Iterator[str]:
        if self.models:
            yield from super().ineffective_options()
        for name in ("n", *SamplingOptions.model_fields):
            if name in self.model_fields_set and not self.models:
                yield f"--{name.replace('_', '-')} has no effect without --models"
        if self.open and self.dry_run:
            yield "--open has no effect with --dry-run"


class SimulateConfig(CommandConfig):
    stage: ClassVar[str] = "label simulate"

    site: str = Field(description="URL of a running site")
    key: str | None = Field(None, description=f"API key with read, write and admin scopes; or set {API_KEY_VARIABLE}")
    labelers: int = Field(5, ge=1, le=500, description="number of concurrent labelers")
    cohort: Cohort = Field("training", description="cohort of the labelers; held-out labelers need no admission")
    tasks: int | None = Field(None, ge=1, description="maximum submissions per labeler")
    double_clicks: float = Field(0.1, ge=0, le=1, description="share of submissions sent twice")
    walk_aways: float = Field(0.05, ge=0, le=1, description="share of tasks abandoned and claimed again")
    noise: float = Field(LABELER_NOISE, ge=0, description="standard deviation of the labelers' noise, in utility units")
    seed: int = Field(0, ge=0, description="random seed of the labelers and their world")
    patience: float = Field(120.0, gt=0, description="seconds to retry while the server is unreachable")
    out: Path | None = Field(None, description="write the submissions to this .jsonl file")
