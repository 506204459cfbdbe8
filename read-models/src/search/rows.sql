-- Tells this file from another one that was made at its path: an index that names another store is not of these rows.
CREATE TABLE store (id TEXT NOT NULL);
INSERT INTO store (id) VALUES (lower(hex(randomblob(16))));

CREATE TABLE products (
    generation INTEGER NOT NULL,
    sku TEXT NOT NULL,
    product TEXT,
    version INTEGER NOT NULL,
    PRIMARY KEY (generation, sku)
) WITHOUT ROWID;

CREATE TABLE prices (
    generation INTEGER NOT NULL,
    sku TEXT NOT NULL,
    region TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount_minor INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (generation, sku, region)
) WITHOUT ROWID;

CREATE TABLE stock (
    generation INTEGER NOT NULL,
    sku TEXT NOT NULL,
    warehouse TEXT NOT NULL,
    region TEXT NOT NULL,
    available INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (generation, sku, warehouse)
) WITHOUT ROWID;

-- Row version of the last write that changed what a document shows.
CREATE TABLE row_versions (
    generation INTEGER PRIMARY KEY,
    row_version INTEGER NOT NULL
);

-- The row version at which a SKU's document last changed.
CREATE TABLE documents (
    generation INTEGER NOT NULL,
    sku TEXT NOT NULL,
    row_version INTEGER NOT NULL,
    PRIMARY KEY (generation, sku)
) WITHOUT ROWID;
CREATE INDEX documents_by_row_version ON documents (generation, row_version);

-- What the rows and the checkpoints add up to.
CREATE TABLE sums (
    generation INTEGER PRIMARY KEY,
    rows INTEGER NOT NULL,
    ledger INTEGER NOT NULL
);
