CREATE TABLE journal (
    seq BIGINT NOT NULL,
    at BIGINT NOT NULL,
    "by" VARCHAR NOT NULL,
    action VARCHAR NOT NULL,
    object VARCHAR NOT NULL,
    detail JSON NOT NULL,
    previous VARCHAR NOT NULL,
    hash VARCHAR NOT NULL,
    CONSTRAINT pk_journal PRIMARY KEY (seq),
    CONSTRAINT uq_journal_hash UNIQUE (hash)
);

CREATE INDEX ix_journal_object ON journal (object);

CREATE TABLE person (
    id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    email VARCHAR,
    password_hash VARCHAR,
    role VARCHAR(10) NOT NULL,
    status VARCHAR(9) NOT NULL,
    cohort VARCHAR(8),
    fold BIGINT,
    pseudonym VARCHAR NOT NULL,
    language VARCHAR NOT NULL,
    theme VARCHAR NOT NULL,
    sees_sensitive BOOLEAN NOT NULL,
    invite_id VARCHAR,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_person PRIMARY KEY (id),
    CONSTRAINT ck_person_role CHECK (role IN ('labeler', 'researcher', 'owner')),
    CONSTRAINT ck_person_status CHECK (status IN ('screening', 'active', 'paused', 'declined', 'withdrawn', 'erased')),
    CONSTRAINT ck_person_cohort CHECK (cohort IN ('training', 'heldout')),
    CONSTRAINT ck_person_fold CHECK (fold BETWEEN 0 AND 4),
    CONSTRAINT uq_person_name UNIQUE (name),
    CONSTRAINT uq_person_pseudonym UNIQUE (pseudonym)
);

CREATE TABLE rate_bucket (
    "key" VARCHAR NOT NULL,
    tokens DOUBLE NOT NULL,
    updated_at BIGINT NOT NULL,
    CONSTRAINT pk_rate_bucket PRIMARY KEY ("key")
);

CREATE TABLE survey_reply (
    id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    month VARCHAR NOT NULL,
    answers JSON NOT NULL,
    CONSTRAINT pk_survey_reply PRIMARY KEY (id)
)
 WITHOUT ROWID;

CREATE TABLE api_key (
    id VARCHAR NOT NULL,
    secret_hash VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    scopes JSON NOT NULL,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    revoked_at BIGINT,
    CONSTRAINT pk_api_key PRIMARY KEY (id),
    CONSTRAINT fk_api_key_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE batch (
    id VARCHAR NOT NULL,
    name VARCHAR NOT NULL,
    kind VARCHAR(11) NOT NULL,
    purpose VARCHAR NOT NULL,
    screening VARCHAR,
    cohort VARCHAR(8),
    state VARCHAR NOT NULL,
    priority BIGINT NOT NULL,
    policy JSON NOT NULL,
    intake JSON NOT NULL,
    baseline VARCHAR,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    closed_at BIGINT,
    unblinded_at BIGINT,
    CONSTRAINT pk_batch PRIMARY KEY (id),
    CONSTRAINT ck_batch_kind CHECK (kind IN ('rank', 'demonstrate', 'write', 'review')),
    CONSTRAINT ck_batch_purpose CHECK (purpose IN ('training', 'evaluation')),
    CONSTRAINT ck_batch_state CHECK (state IN ('draft', 'open', 'closed')),
    CONSTRAINT uq_batch_name UNIQUE (name),
    CONSTRAINT fk_batch_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE consent (
    id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    version VARCHAR NOT NULL,
    at BIGINT NOT NULL,
    withdrawn_at BIGINT,
    CONSTRAINT pk_consent PRIMARY KEY (id),
    CONSTRAINT fk_consent_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);

CREATE INDEX ix_consent_person_id ON consent (person_id);

CREATE TABLE consent_text (
    version BIGINT NOT NULL,
    bodies JSON NOT NULL,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_consent_text PRIMARY KEY (version),
    CONSTRAINT fk_consent_text_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE decision (
    id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    by_id VARCHAR NOT NULL,
    verdict VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    measured JSON NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_decision PRIMARY KEY (id),
    CONSTRAINT fk_decision_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_decision_by_id_person FOREIGN KEY(by_id) REFERENCES person (id)
);

CREATE INDEX ix_decision_person_id ON decision (person_id);

CREATE TABLE instructions (
    id VARCHAR NOT NULL,
    purpose VARCHAR NOT NULL,
    version BIGINT NOT NULL,
    body VARCHAR NOT NULL,
    quiz JSON NOT NULL,
    language VARCHAR NOT NULL,
    translations JSON NOT NULL,
    changes VARCHAR NOT NULL,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_instructions PRIMARY KEY (id),
    CONSTRAINT uq_instructions_purpose_version UNIQUE (purpose, version),
    CONSTRAINT ck_instructions_purpose CHECK (purpose IN ('training', 'evaluation')),
    CONSTRAINT fk_instructions_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE invite (
    id VARCHAR NOT NULL,
    token_hash VARCHAR NOT NULL,
    role VARCHAR(10) NOT NULL,
    cohort VARCHAR(8),
    note VARCHAR NOT NULL,
    person_id VARCHAR,
    max_uses BIGINT NOT NULL,
    uses BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    CONSTRAINT pk_invite PRIMARY KEY (id),
    CONSTRAINT ck_invite_role CHECK (role IN ('labeler', 'researcher', 'owner')),
    CONSTRAINT ck_invite_cohort CHECK (cohort IN ('training', 'heldout')),
    CONSTRAINT uq_invite_token_hash UNIQUE (token_hash),
    CONSTRAINT fk_invite_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_invite_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE login (
    id VARCHAR NOT NULL,
    token_hash VARCHAR NOT NULL,
    csrf VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    agent VARCHAR NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    revoked_at BIGINT,
    CONSTRAINT pk_login PRIMARY KEY (id),
    CONSTRAINT uq_login_token_hash UNIQUE (token_hash),
    CONSTRAINT fk_login_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);

CREATE INDEX ix_login_person_id ON login (person_id);

CREATE TABLE prompt (
    id VARCHAR NOT NULL,
    external_id VARCHAR,
    text VARCHAR NOT NULL,
    messages JSON,
    text_hash VARCHAR NOT NULL,
    source VARCHAR,
    user VARCHAR,
    use_case VARCHAR,
    split VARCHAR,
    sensitive BOOLEAN NOT NULL,
    author_id VARCHAR,
    submission_id VARCHAR,
    written JSON,
    created_at BIGINT NOT NULL,
    withdrawn_at BIGINT,
    CONSTRAINT pk_prompt PRIMARY KEY (id),
    CONSTRAINT uq_prompt_external_id UNIQUE (external_id),
    CONSTRAINT fk_prompt_author_id_person FOREIGN KEY(author_id) REFERENCES person (id)
);

CREATE INDEX ix_prompt_text_hash ON prompt (text_hash);

CREATE TABLE survey_done (
    person_id VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    CONSTRAINT pk_survey_done PRIMARY KEY (person_id, kind),
    CONSTRAINT fk_survey_done_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
)
 WITHOUT ROWID;

CREATE TABLE completion (
    id VARCHAR NOT NULL,
    prompt_id VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    text_hash VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    finish VARCHAR NOT NULL,
    sampling JSON NOT NULL,
    score DOUBLE,
    names_itself BOOLEAN NOT NULL,
    author_id VARCHAR,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_completion PRIMARY KEY (id),
    CONSTRAINT uq_completion_prompt_id_model_text_hash UNIQUE (prompt_id, model, text_hash),
    CONSTRAINT fk_completion_prompt_id_prompt FOREIGN KEY(prompt_id) REFERENCES prompt (id),
    CONSTRAINT fk_completion_author_id_person FOREIGN KEY(author_id) REFERENCES person (id)
);

CREATE INDEX ix_completion_prompt_id ON completion (prompt_id);

CREATE TABLE reading (
    id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    instructions_id VARCHAR NOT NULL,
    attempts BIGINT NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_reading PRIMARY KEY (id),
    CONSTRAINT uq_reading_person_id_instructions_id UNIQUE (person_id, instructions_id),
    CONSTRAINT fk_reading_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_reading_instructions_id_instructions FOREIGN KEY(instructions_id) REFERENCES instructions (id)
);

CREATE TABLE task (
    id VARCHAR NOT NULL,
    batch_id VARCHAR NOT NULL,
    kind VARCHAR(11) NOT NULL,
    prompt_id VARCHAR,
    brief JSON,
    overlap BIGINT NOT NULL,
    n_open BIGINT NOT NULL,
    n_done BIGINT NOT NULL,
    n_skipped BIGINT NOT NULL,
    state VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    gold BOOLEAN NOT NULL,
    repeat BOOLEAN NOT NULL,
    CONSTRAINT pk_task PRIMARY KEY (id),
    CONSTRAINT ck_task_kind CHECK (kind IN ('rank', 'demonstrate', 'write', 'review')),
    CONSTRAINT ck_task_state CHECK (state IN ('open', 'done', 'review', 'withdrawn')),
    CONSTRAINT ck_task_overlap CHECK (n_open >= 0 AND n_done >= 0 AND n_open + n_done <= overlap),
    CONSTRAINT fk_task_batch_id_batch FOREIGN KEY(batch_id) REFERENCES batch (id),
    CONSTRAINT fk_task_prompt_id_prompt FOREIGN KEY(prompt_id) REFERENCES prompt (id)
);

CREATE INDEX ix_task_prompt_id ON task (prompt_id);

CREATE INDEX ix_task_queue ON task (batch_id, state, gold, position);

CREATE TABLE adjudication (
    id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL,
    by_id VARCHAR NOT NULL,
    ranks JSON NOT NULL,
    errors JSON NOT NULL,
    reason VARCHAR NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_adjudication PRIMARY KEY (id),
    CONSTRAINT fk_adjudication_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_adjudication_by_id_person FOREIGN KEY(by_id) REFERENCES person (id)
);

CREATE INDEX ix_adjudication_task_id ON adjudication (task_id);

CREATE TABLE assignment (
    id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    round BIGINT NOT NULL,
    state VARCHAR NOT NULL,
    lease_until BIGINT NOT NULL,
    shown JSON NOT NULL,
    instructions_id VARCHAR,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT,
    CONSTRAINT pk_assignment PRIMARY KEY (id),
    CONSTRAINT uq_assignment_task_id_person_id_round UNIQUE (task_id, person_id, round),
    CONSTRAINT ck_assignment_state CHECK (state IN ('open', 'submitted', 'skipped', 'expired', 'returned')),
    CONSTRAINT fk_assignment_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_assignment_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_assignment_instructions_id_instructions FOREIGN KEY(instructions_id) REFERENCES instructions (id)
);

CREATE INDEX ix_assignment_lease ON assignment (state, lease_until);

CREATE INDEX ix_assignment_person ON assignment (person_id, state);

CREATE TABLE gold (
    task_id VARCHAR NOT NULL,
    answer JSON NOT NULL,
    source VARCHAR NOT NULL,
    created_by VARCHAR,
    created_at BIGINT NOT NULL,
    CONSTRAINT pk_gold PRIMARY KEY (task_id),
    CONSTRAINT fk_gold_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_gold_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE TABLE message (
    id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL,
    about_id VARCHAR NOT NULL,
    author_id VARCHAR NOT NULL,
    body VARCHAR NOT NULL,
    reported BOOLEAN NOT NULL,
    at BIGINT NOT NULL,
    settled_at BIGINT,
    CONSTRAINT pk_message PRIMARY KEY (id),
    CONSTRAINT fk_message_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_message_about_id_person FOREIGN KEY(about_id) REFERENCES person (id),
    CONSTRAINT fk_message_author_id_person FOREIGN KEY(author_id) REFERENCES person (id)
);

CREATE INDEX ix_message_task_id ON message (task_id);

CREATE TABLE room (
    id VARCHAR NOT NULL,
    task_id VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    stage VARCHAR NOT NULL,
    created_by VARCHAR NOT NULL,
    created_at BIGINT NOT NULL,
    closed_at BIGINT,
    CONSTRAINT pk_room PRIMARY KEY (id),
    CONSTRAINT ck_room_stage CHECK (stage IN ('vote', 'talk', 'again', 'closed')),
    CONSTRAINT fk_room_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_room_created_by_person FOREIGN KEY(created_by) REFERENCES person (id)
);

CREATE INDEX ix_room_task_id ON room (task_id);

CREATE TABLE task_completion (
    task_id VARCHAR NOT NULL,
    completion_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    models JSON NOT NULL,
    CONSTRAINT pk_task_completion PRIMARY KEY (task_id, completion_id),
    CONSTRAINT fk_task_completion_task_id_task FOREIGN KEY(task_id) REFERENCES task (id),
    CONSTRAINT fk_task_completion_completion_id_completion FOREIGN KEY(completion_id) REFERENCES completion (id)
);

CREATE TABLE draft (
    assignment_id VARCHAR NOT NULL,
    rev BIGINT NOT NULL,
    payload JSON NOT NULL,
    updated_at BIGINT NOT NULL,
    CONSTRAINT pk_draft PRIMARY KEY (assignment_id),
    CONSTRAINT fk_draft_assignment_id_assignment FOREIGN KEY(assignment_id) REFERENCES assignment (id)
);

CREATE TABLE remark (
    id VARCHAR NOT NULL,
    room_id VARCHAR NOT NULL,
    author_id VARCHAR NOT NULL,
    body VARCHAR NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_remark PRIMARY KEY (id),
    CONSTRAINT fk_remark_room_id_room FOREIGN KEY(room_id) REFERENCES room (id),
    CONSTRAINT fk_remark_author_id_person FOREIGN KEY(author_id) REFERENCES person (id)
);

CREATE INDEX ix_remark_room_id ON remark (room_id);

CREATE TABLE skip (
    id VARCHAR NOT NULL,
    assignment_id VARCHAR NOT NULL,
    reason VARCHAR NOT NULL,
    note VARCHAR NOT NULL,
    at BIGINT NOT NULL,
    undone_at BIGINT,
    CONSTRAINT pk_skip PRIMARY KEY (id),
    CONSTRAINT ck_skip_reason CHECK (reason IN ('unclear', 'other_language', 'too_specialised', 'personal_data', 'sensitive', 'broken', 'other')),
    CONSTRAINT fk_skip_assignment_id_assignment FOREIGN KEY(assignment_id) REFERENCES assignment (id)
);

CREATE INDEX ix_skip_assignment_id ON skip (assignment_id);

CREATE TABLE submission (
    id VARCHAR NOT NULL,
    assignment_id VARCHAR NOT NULL,
    version BIGINT NOT NULL,
    "key" VARCHAR NOT NULL,
    kind VARCHAR(11) NOT NULL,
    note VARCHAR NOT NULL,
    active_ms BIGINT NOT NULL,
    wall_ms BIGINT NOT NULL,
    pasted DOUBLE,
    surplus BOOLEAN NOT NULL,
    invalid_reason VARCHAR,
    created_at BIGINT NOT NULL,
    replaced_at BIGINT,
    CONSTRAINT pk_submission PRIMARY KEY (id),
    CONSTRAINT uq_submission_assignment_id_version UNIQUE (assignment_id, version),
    CONSTRAINT uq_submission_assignment_id_key UNIQUE (assignment_id, "key"),
    CONSTRAINT ck_submission_kind CHECK (kind IN ('rank', 'demonstrate', 'write', 'review')),
    CONSTRAINT fk_submission_assignment_id_assignment FOREIGN KEY(assignment_id) REFERENCES assignment (id)
);

CREATE INDEX ix_submission_created ON submission (created_at);

CREATE TABLE vote (
    room_id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    round BIGINT NOT NULL,
    ranks JSON NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_vote PRIMARY KEY (room_id, person_id, round),
    CONSTRAINT ck_vote_round CHECK (round IN (0, 1)),
    CONSTRAINT fk_vote_room_id_room FOREIGN KEY(room_id) REFERENCES room (id),
    CONSTRAINT fk_vote_person_id_person FOREIGN KEY(person_id) REFERENCES person (id)
);

CREATE TABLE demonstration (
    submission_id VARCHAR NOT NULL,
    person_id VARCHAR NOT NULL,
    prompt_id VARCHAR NOT NULL,
    text VARCHAR NOT NULL,
    text_hash VARCHAR NOT NULL,
    CONSTRAINT pk_demonstration PRIMARY KEY (submission_id),
    CONSTRAINT fk_demonstration_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id),
    CONSTRAINT fk_demonstration_person_id_person FOREIGN KEY(person_id) REFERENCES person (id),
    CONSTRAINT fk_demonstration_prompt_id_prompt FOREIGN KEY(prompt_id) REFERENCES prompt (id)
);

CREATE INDEX ix_demonstration_person ON demonstration (person_id, prompt_id);

CREATE TABLE grade (
    submission_id VARCHAR NOT NULL,
    grader_id VARCHAR NOT NULL,
    score BIGINT NOT NULL,
    at BIGINT NOT NULL,
    CONSTRAINT pk_grade PRIMARY KEY (submission_id, grader_id),
    CONSTRAINT ck_grade_score CHECK (score BETWEEN 1 AND 7),
    CONSTRAINT fk_grade_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id),
    CONSTRAINT fk_grade_grader_id_person FOREIGN KEY(grader_id) REFERENCES person (id)
);

CREATE TABLE prompt_review (
    submission_id VARCHAR NOT NULL,
    use_case VARCHAR,
    personal_data BOOLEAN,
    sensitive BOOLEAN,
    labels JSON NOT NULL,
    rejected VARCHAR,
    CONSTRAINT pk_prompt_review PRIMARY KEY (submission_id),
    CONSTRAINT fk_prompt_review_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id)
);

CREATE TABLE ranking (
    submission_id VARCHAR NOT NULL,
    none_acceptable BOOLEAN NOT NULL,
    confidence BIGINT,
    CONSTRAINT pk_ranking PRIMARY KEY (submission_id),
    CONSTRAINT ck_ranking_confidence CHECK (confidence BETWEEN 1 AND 9),
    CONSTRAINT fk_ranking_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id)
);

CREATE TABLE ranking_item (
    submission_id VARCHAR NOT NULL,
    completion_id VARCHAR NOT NULL,
    tier BIGINT NOT NULL,
    rank BIGINT NOT NULL,
    shown BIGINT NOT NULL,
    CONSTRAINT pk_ranking_item PRIMARY KEY (submission_id, completion_id),
    CONSTRAINT ck_ranking_item_rank CHECK (rank >= 1 AND rank <= tier),
    CONSTRAINT fk_ranking_item_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id),
    CONSTRAINT fk_ranking_item_completion_id_completion FOREIGN KEY(completion_id) REFERENCES completion (id)
);

CREATE INDEX ix_ranking_item_completion_id ON ranking_item (completion_id);

CREATE TABLE rating (
    submission_id VARCHAR NOT NULL,
    completion_id VARCHAR NOT NULL,
    rating BIGINT,
    labels JSON NOT NULL,
    note VARCHAR NOT NULL,
    CONSTRAINT pk_rating PRIMARY KEY (submission_id, completion_id),
    CONSTRAINT ck_rating_rating CHECK (rating BETWEEN 1 AND 7),
    CONSTRAINT fk_rating_submission_id_submission FOREIGN KEY(submission_id) REFERENCES submission (id),
    CONSTRAINT fk_rating_completion_id_completion FOREIGN KEY(completion_id) REFERENCES completion (id)
);

CREATE INDEX ix_rating_completion_id ON rating (completion_id);
