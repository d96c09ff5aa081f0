"""The manual, as `kbatchd --help` prints it; the help of each command takes its examples from here.

Nothing but text, for the command line.
"""

from __future__ import annotations

DESCRIPTION = """\
Moves records from Kafka into PostgreSQL tables in large batches, exactly once.
Without a command it runs as a daemon until SIGTERM or Ctrl-C.
"""

MANUAL = """\
examples:
  kbatchd check-config --config kbatchd.toml        all faults of the file at once
  kbatchd check --config kbatchd.toml               all faults of servers, tables, topics and records, with remedies
  kbatchd migrate --config kbatchd.toml             make the schema kbatchd, or bring it up to date
  kbatchd migrate --print | less                    read the SQL first
  kbatchd create-topic --config kbatchd.toml        make the topics of all routes
  kbatchd --config kbatchd.toml                     run
  kbatchd status --config kbatchd.toml --watch      rate, lag and owners, from any host
  kbatchd status --config kbatchd.toml --exit-code  ... and 1 unless every route is ok, for probes
  kbatchd progress show --config kbatchd.toml       where each partition stands
  kbatchd progress set --config kbatchd.toml requests 0 12000
                                                    read partition 0 of route requests again from offset 12000
  kbatchd progress accept --config kbatchd.toml requests
                                                    let the halted partitions of a route go on: behind their gaps, or
                                                    where the breaker has halted them
  kbatchd progress rename --config kbatchd.toml api --from-route requests
                                                    take over what route api has read as requests; also --from-pipeline
  kbatchd route pause --config kbatchd.toml requests
                                                    read and write nothing for the route, on any host
  kbatchd route resume --config kbatchd.toml requests
                                                    let it go on
  kbatchd verify --config kbatchd.toml              compare Kafka, progress, ledger, dead letters and tables
  kbatchd verify --config kbatchd.toml --since 2026-01-31T08:00:00Z requests
                                                    ... of one route, and of what was written since then
  kbatchd replay-range --config kbatchd.toml --route requests --partition 0 --from 1200 --to 1300
                                                    replace the rows of offsets 1200 to 1299: read them again
  kbatchd produce --config kbatchd.toml requests requests.ndjson.gz
                                                    send a file's records; after a crash again with --resume
  kbatchd infer --config kbatchd.toml requests | psql app
  kbatchd infer --config kbatchd.toml requests --route >> kbatchd.toml
                                                    a table for the records that are there, and its route
  kbatchd dead-letters list --config kbatchd.toml --route requests
                                                    what was refused, and why
  kbatchd dead-letters replay --config kbatchd.toml --route requests --code 23514
                                                    try these again, once the cause is fixed
  kbatchd dead-letters show --config kbatchd.toml 17
                                                    all about one, with its bytes
  kbatchd dead-letters discard --config kbatchd.toml --route requests --until 2026-01-31T08:00:00Z
                                                    let these go
  kbatchd demo                                      all of it, on a Kafka and a PostgreSQL of its own

environment:
  DATABASE_URL             the connection string, where postgres.dsn is not in the file
  CREDENTIALS_DIRECTORY    set by systemd: the file postgres_password in it holds the password

signals, to the daemon:
  TERM, INT    stop: flush what has been read, answer what is in flight
  HUP          read the file and the tokens again; with faults in them all stays as it was
  USR1         write the state of every worker into the log

exit codes:
  0    done, or stopped as asked
  1    with status --exit-code: something is not as it should be
  2    the command line is wrong
  3    with verify: a record is missing, or is there twice
  65   some records were refused: they are in the failed file, or dead letters still; all others are through
  69   Kafka or PostgreSQL cannot be reached; trying again later may help
  70   an internal error, or a flush that failed for good
  74   standard output could not be written: a full disk
  78   the file, the tables or the topics are not as they must be, or what was named is not there; trying again
       does not help
  130  interrupted with Ctrl-C
"""
