-- Of which topic and which log progress and dead letters speak, who holds a partition, and why one stands still.

ALTER TABLE kbatchd.progress
    ADD COLUMN leader_epoch  integer,
    ADD COLUMN leader_epochs jsonb   NOT NULL DEFAULT '[]',
    ADD COLUMN records_end   bigint,
    ADD COLUMN host          text,
    ADD COLUMN pid           integer,
    ADD COLUMN halted        text    CHECK (halted IN ('gap', 'breaker')),
    ADD COLUMN partitions    integer;

COMMENT ON COLUMN kbatchd.progress.leader_epoch IS 'Of the last record read: reading begins with it, so that a truncated log is noticed. NULL: not known.';
COMMENT ON COLUMN kbatchd.progress.leader_epochs IS 'A list of [leader epoch, first offset read under it], ascending: the youngest few.';
COMMENT ON COLUMN kbatchd.progress.records_end IS 'The offset after the last record read, of leader_epoch: reading begins here. Between it and next_offset are only markers. NULL: it begins at next_offset.';
COMMENT ON COLUMN kbatchd.progress.host IS 'Where the process runs that claimed it last, and its pid.';
COMMENT ON COLUMN kbatchd.progress.halted IS 'Why the partition stands still until `kbatchd progress accept`; NULL: it does not.';
COMMENT ON COLUMN kbatchd.progress.partitions IS 'How many partitions were known when it was claimed: of these none may be missing here.';

ALTER TABLE kbatchd.progress
    ADD COLUMN start text,
    ALTER COLUMN next_offset DROP NOT NULL,
    ADD CONSTRAINT progress_begins CHECK (next_offset IS NOT NULL OR start IS NOT NULL);

COMMENT ON COLUMN kbatchd.progress.next_offset IS 'Every offset below is a row, a dead letter, a recorded gap or a marker. NULL: the partition''s broker was away, and has not said yet where it begins.';
COMMENT ON COLUMN kbatchd.progress.start IS 'Where it is to begin: the route''s `start` when the topic was read first, or that time. NULL: its broker said so at once.';

ALTER TABLE kbatchd.dead_letters
    ADD COLUMN topic_id     text,
    ADD COLUMN timestamp_ms bigint;

COMMENT ON COLUMN kbatchd.dead_letters.topic_id IS 'The topic that the offset is of; NULL in lines of former versions.';
COMMENT ON COLUMN kbatchd.dead_letters.timestamp_ms IS 'Kafka''s own, in milliseconds since 1970: any 64-bit number, also where "timestamp" is NULL.';

-- Offsets mean something under their topic's id only. In lines of former versions a recreated topic's line has the new
-- id, and nobody knows the former one.
ALTER TABLE kbatchd.gaps
    ADD COLUMN next_topic_id text,
    ALTER COLUMN topic_id DROP NOT NULL;
UPDATE kbatchd.gaps SET next_topic_id = topic_id, topic_id = NULL WHERE kind = 'recreated';

COMMENT ON COLUMN kbatchd.gaps.topic_id IS 'The topic whose offsets [first_offset, last_offset) are lost; of ''recreated'' the former one, read up to first_offset.';
COMMENT ON COLUMN kbatchd.gaps.next_topic_id IS 'Of ''recreated'': the id that the topic has had since.';

ALTER TABLE kbatchd.batches
    ADD COLUMN skipped integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN kbatchd.batches.skipped IS 'Rows that a BEFORE trigger of the table did not let in.';
