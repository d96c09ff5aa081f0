-- What is said of the pipeline from any host, for all of them.

CREATE TABLE kbatchd.pauses (
    pipeline   text        NOT NULL,
    route      text        NOT NULL,
    paused_by  text        NOT NULL,
    paused_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, route)
);

COMMENT ON TABLE kbatchd.pauses IS 'Routes that an operator has paused: no host reads or writes anything for them.';
COMMENT ON COLUMN kbatchd.pauses.paused_by IS 'Who, at which host: as the system there calls them.';
