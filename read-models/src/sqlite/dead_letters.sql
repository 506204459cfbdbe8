CREATE TABLE discarded_events (
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
    note TEXT NOT NULL,
    PRIMARY KEY (generation, context, partition, sequence, offset)
) WITHOUT ROWID;

CREATE TABLE dead_letter_requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    id TEXT NOT NULL,
    request TEXT NOT NULL,
    UNIQUE (generation, context, partition, id)
);

CREATE TABLE dead_letter_answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    answer TEXT NOT NULL
);
CREATE INDEX answers_of_partition ON dead_letter_answers (generation, context, partition, number);

CREATE TABLE mirrored (
    generation INTEGER NOT NULL,
    context TEXT NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (generation, context, partition)
) WITHOUT ROWID;
