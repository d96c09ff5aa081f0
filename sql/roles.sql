-- The role of the daemon, with just what it needs. Run it after `kbatchd migrate`, as the owner of the schema and of the
-- tables (or as a superuser), in the database of the tables: psql -f sql/roles.sql app. Change the lines marked "yours"
-- before; run it again when a route gets another table, and after a migration. It takes nothing away.
--
-- The password comes afterwards, from psql's \password kbatchd, which sends it hashed. Where a table's own triggers,
-- defaults or policies touch other things, the role needs those rights as well: USAGE on the sequence of a serial column
-- (not of an identity one), EXECUTE on a function.

DO $$
DECLARE
    role          pg_catalog.text   := 'kbatchd';                 -- yours: as in postgres.dsn
    append_tables pg_catalog.text[] := ARRAY['public.requests'];  -- yours: the tables of routes with mode = "append"
    upsert_tables pg_catalog.text[] := ARRAY[]::text[];           -- yours: the tables of routes with mode = "upsert"
    relation      pg_catalog.text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname OPERATOR(pg_catalog.=) role) THEN
        EXECUTE pg_catalog.format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION', role);
    END IF;
    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO %I', pg_catalog.current_database(), role);

    -- kbatchd's own schema. It is migrated by its owner, never by the daemon.
    EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA kbatchd TO %I', role);
    EXECUTE pg_catalog.format('GRANT SELECT ON kbatchd.migrations TO %I', role);
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE ON kbatchd.progress TO %I', role);
    -- Gaps are written and read; DELETE on the others is for ledger_keep_days and dead_letters_keep_days.
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT ON kbatchd.gaps TO %I', role);
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT, DELETE ON kbatchd.batches TO %I', role);
    -- INSERT and DELETE are for `kbatchd route pause` and `resume`.
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT, DELETE ON kbatchd.pauses TO %I', role);
    -- UPDATE is for `kbatchd dead-letters`, which notes what became of one.
    EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON kbatchd.dead_letters TO %I', role);

    FOR relation IN
        SELECT DISTINCT relnamespace::pg_catalog.regnamespace::pg_catalog.text FROM pg_catalog.pg_class
        WHERE oid OPERATOR(pg_catalog.=) ANY (
            SELECT name::pg_catalog.regclass
            FROM pg_catalog.unnest(append_tables OPERATOR(pg_catalog.||) upsert_tables) AS given(name))
    LOOP
        EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %s TO %I', relation, role);
    END LOOP;

    -- COPY needs INSERT. The daemon need not be able to read what it has written.
    FOREACH relation IN ARRAY append_tables LOOP
        EXECUTE pg_catalog.format('GRANT INSERT ON TABLE %s TO %I', relation::pg_catalog.regclass, role);
    END LOOP;

    -- An upsert copies into a temporary table, and merges from there.
    FOREACH relation IN ARRAY upsert_tables LOOP
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE %s TO %I', relation::pg_catalog.regclass, role);
        EXECUTE pg_catalog.format('GRANT TEMPORARY ON DATABASE %I TO %I', pg_catalog.current_database(), role);
    END LOOP;
END $$;
