CREATE TABLE stock (
    generation INTEGER NOT NULL,
    sku TEXT NOT NULL,
    warehouse TEXT NOT NULL,
    region TEXT NOT NULL,
    on_hand INTEGER NOT NULL,
    reserved INTEGER NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (generation, sku, warehouse)
) WITHOUT ROWID;
