CREATE TABLE catalogue (
    the_only INTEGER PRIMARY KEY CHECK (the_only = 1),
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    document TEXT NOT NULL
);

CREATE TABLE decisions (
    number INTEGER PRIMARY KEY,
    decision TEXT NOT NULL
);

CREATE TABLE published_decisions (
    the_only INTEGER PRIMARY KEY CHECK (the_only = 1),
    number INTEGER NOT NULL
);

CREATE TABLE read_reports (
    process TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    report TEXT NOT NULL
) WITHOUT ROWID;
