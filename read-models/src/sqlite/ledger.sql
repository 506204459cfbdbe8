CREATE TABLE generations (
    number INTEGER PRIMARY KEY,
    fold_version INTEGER NOT NULL,
    partitions INTEGER NOT NULL,
    serving INTEGER NOT NULL
);
CREATE UNIQUE INDEX one_generation_serves ON generations (serving) WHERE serving;

CREATE TABLE checkpoints (
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    xid INTEGER NOT NULL,
    position INTEGER NOT NULL,
    event_time INTEGER NOT NULL,
    live INTEGER NOT NULL,
    PRIMARY KEY (generation, context, partition)
) WITHOUT ROWID;

CREATE TABLE heads (
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    next_offset INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    PRIMARY KEY (generation, context, partition)
) WITHOUT ROWID;

CREATE TABLE parked_events (
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    key TEXT NOT NULL,
    offset INTEGER NOT NULL,
    xid INTEGER NOT NULL,
    position INTEGER NOT NULL,
    headers TEXT NOT NULL,
    value BLOB NOT NULL,
    reason TEXT NOT NULL,
    parked_at INTEGER NOT NULL,
    -- A record that is no event of ours shares its sequence with the event before it: only the offset is its own.
    PRIMARY KEY (generation, context, partition, sequence, offset)
) WITHOUT ROWID;
CREATE INDEX parked_keys ON parked_events (generation, context, partition, key);
