-- What became of a dead letter: replayed into its table, or discarded, by somebody at `kbatchd dead-letters`.

ALTER TABLE kbatchd.dead_letters
    ADD COLUMN state      text        NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'discarded')),
    ADD COLUMN settled_at timestamptz,
    ADD COLUMN corrected  bytea;

COMMENT ON COLUMN kbatchd.dead_letters.state IS 'Moves in the same transaction as the row it became.';
COMMENT ON COLUMN kbatchd.dead_letters.corrected IS 'The value that was replayed instead of the one that came.';
