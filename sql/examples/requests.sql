-- The demo's table: one row an API request.
CREATE TABLE public.requests (
    id          bigint           NOT NULL,
    request_id  uuid             NOT NULL,
    user_id     integer          NOT NULL,
    method      text             NOT NULL,
    path        text             NOT NULL,
    status      smallint         NOT NULL,
    latency_ms  double precision NOT NULL,
    created_at  timestamptz      NOT NULL,
    payload     jsonb            NOT NULL
);
