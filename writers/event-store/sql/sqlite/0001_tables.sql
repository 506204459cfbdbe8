-- The event table is the outbox: what is here goes out, in the order of `position`.
CREATE TABLE events (
    position       INTEGER PRIMARY KEY AUTOINCREMENT,
    stream         TEXT NOT NULL,
    version        INTEGER NOT NULL,
    id             BLOB NOT NULL,
    topic          TEXT NOT NULL,
    key            TEXT NOT NULL,
    schema         TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    body           BLOB NOT NULL,
    time           INTEGER NOT NULL,
    correlation_id TEXT,
    causation_id   TEXT,
    actor          TEXT,
    traceparent    TEXT
);
-- Optimistic concurrency: one event per version of a stream.
CREATE UNIQUE INDEX events_by_stream ON events (stream, version);

CREATE TABLE snapshots (
    stream        TEXT PRIMARY KEY,
    version       INTEGER NOT NULL,
    state_version INTEGER NOT NULL,
    body          BLOB NOT NULL
) WITHOUT ROWID;

-- The first outcome of each command id.
CREATE TABLE commands (
    id          BLOB PRIMARY KEY,
    digest      BLOB NOT NULL,
    outcome     TEXT NOT NULL,
    received_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX commands_by_age ON commands (received_at);

-- A warehouse lies in one region for good.
CREATE TABLE warehouses (
    warehouse TEXT PRIMARY KEY,
    region    TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE command_offsets (
    topic       TEXT NOT NULL,
    partition   INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;

CREATE TABLE timers (
    key     TEXT PRIMARY KEY,
    due_at  INTEGER NOT NULL,
    command TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX timers_by_time ON timers (due_at);

-- One row each.
CREATE TABLE topology (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    partitions INTEGER NOT NULL
);
CREATE TABLE relay (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    epoch    INTEGER NOT NULL,
    position INTEGER NOT NULL
);
INSERT INTO relay (one, epoch, position) VALUES (1, 0, 0);

-- The last sequence that the relay stamped on each partition.
CREATE TABLE relay_sequences (
    topic     TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sequence  INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
