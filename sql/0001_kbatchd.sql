-- kbatchd's own schema: where each partition stands, what was refused, what was lost, and what was flushed.

CREATE TABLE kbatchd.progress (
    pipeline     text        NOT NULL,
    route        text        NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    topic_id     text        NOT NULL,
    target       text        NOT NULL,
    next_offset  bigint      NOT NULL CHECK (next_offset >= 0),
    epoch        bigint      NOT NULL DEFAULT 0,
    owner        text,
    backend_pid  integer,
    claimed_at   timestamptz,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, route, topic, partition)
) WITH (fillfactor = 50);

COMMENT ON TABLE kbatchd.progress IS 'The truth about what is in the tables: moves in the same transaction as the rows.';
COMMENT ON COLUMN kbatchd.progress.target IS 'The table the rows went to. Progress made for another table is refused.';
COMMENT ON COLUMN kbatchd.progress.next_offset IS 'Every offset below is a row, a dead letter, a recorded gap or a marker.';
COMMENT ON COLUMN kbatchd.progress.epoch IS 'Goes up with each claim. A flush under another epoch changes nothing.';

CREATE TABLE kbatchd.dead_letters (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text        NOT NULL,
    route        text        NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    "offset"     bigint      NOT NULL,
    "timestamp"  timestamptz,
    key          bytea,
    value        bytea,
    headers      jsonb,
    code         text        NOT NULL,
    message      text        NOT NULL,
    "column"     text,
    refused_at   timestamptz NOT NULL DEFAULT now()
);

COMMENT ON COLUMN kbatchd.dead_letters.headers IS 'A list of [name, value], each value in base64 or null: as they came.';
COMMENT ON COLUMN kbatchd.dead_letters.code IS 'PostgreSQL''s SQLSTATE, or a word of kbatchd''s own encoder.';

CREATE INDEX dead_letters_route ON kbatchd.dead_letters (pipeline, route, topic, partition, "offset");

CREATE TABLE kbatchd.gaps (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text        NOT NULL,
    route        text        NOT NULL,
    topic        text        NOT NULL,
    partition    integer     NOT NULL,
    topic_id     text        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('retention', 'truncation', 'recreated')),
    first_offset bigint      NOT NULL,
    last_offset  bigint      NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);

COMMENT ON COLUMN kbatchd.gaps.last_offset IS 'Exclusive.';

CREATE TABLE kbatchd.batches (
    id            bigint           GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline      text             NOT NULL,
    route         text             NOT NULL,
    worker        text             NOT NULL,
    reason        text             NOT NULL,
    "rows"        integer          NOT NULL,
    dead_letters  integer          NOT NULL,
    bytes         bigint           NOT NULL,
    spans         jsonb            NOT NULL,
    fill_seconds  double precision NOT NULL,
    started_at    timestamptz      NOT NULL DEFAULT now(),
    committed_at  timestamptz      NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE kbatchd.batches IS 'The ledger: one line for each transaction that moved progress.';
COMMENT ON COLUMN kbatchd.batches.spans IS 'Topic to partition to [from, to): where progress stood and where it stands.';

CREATE INDEX batches_committed_at ON kbatchd.batches (committed_at);
