//! The SQL of the adapter, prepared once per session.
//!
//! Ids of transactions travel as text: the client library knows no `xid8`. A bare `ORDER BY xid` would then mean that
//! text, which sorts 99 after 100: order by `events.xid`. All sets are passed as arrays, so a
//! group of commands costs the same number of statements whatever its size.

use tokio_postgres::{Client, Error, Statement};

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        pub(super) struct Statements {
            $($(#[$doc])* pub(super) $name: Statement,)*
        }

        impl Statements {
            /// All at once, in one round trip or two.
            pub(super) async fn prepare(client: &Client) -> Result<Self, Error> {
                let ($($name,)*) = futures::try_join!($(client.prepare($sql),)*)?;
                Ok(Self { $($name,)* })
            }
        }
    };
}

/// The columns of a stored event, in the order in which rows are read.
macro_rules! select_events {
    ($rest:literal) => {
        concat!(
            "SELECT xid::text, position, topic, stream, version, key, id, schema, schema_version, body, time,
                    correlation_id, causation_id, actor, traceparent
             FROM events ",
            $rest
        )
    };
}

pub(super) const READ_COMMITTED: &str = select_events!(
    "WHERE (xid, position) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
     ORDER BY events.xid, events.position LIMIT $3"
);

pub(super) const SAVE_CURSOR: &str = "
    WITH held AS (
        UPDATE relay SET
            xid = CASE WHEN ($2::text::xid8, $3) > (xid, position) THEN $2::text::xid8 ELSE xid END,
            position = CASE WHEN ($2::text::xid8, $3) > (xid, position) THEN $3 ELSE position END
        WHERE epoch = $1
        RETURNING epoch
    ), raised AS (
        INSERT INTO relay_sequences (topic, partition, sequence)
        SELECT asked.topic, asked.partition, asked.sequence
        FROM held, unnest($4::text[], $5::integer[], $6::bigint[]) AS asked (topic, partition, sequence)
        ON CONFLICT (topic, partition) DO UPDATE SET sequence = excluded.sequence
        WHERE relay_sequences.sequence < excluded.sequence
    )
    SELECT epoch FROM held";

statements! {
    topology = "SELECT partitions FROM topology";
    fix_topology = "INSERT INTO topology (partitions) VALUES ($1) ON CONFLICT DO NOTHING";

    load_snapshots = "SELECT stream, version, body FROM snapshots WHERE stream = ANY($1::text[]) AND state_version = $2";
    /// From the snapshot's own event on: it tells the position. The ordered subquery keeps the planner to one index
    /// scan per stream, whatever it believes about the size of the table.
    load_events = "
        SELECT asked.stream, event.version, event.xid, event.position, event.schema, event.schema_version, event.body
        FROM unnest($1::text[]) AS asked (stream)
        CROSS JOIN LATERAL (
            SELECT version, xid::text AS xid, position, schema, schema_version, body FROM events
            WHERE events.stream = asked.stream AND events.version >= coalesce(
                (SELECT version FROM snapshots WHERE snapshots.stream = asked.stream AND state_version = $2), 1)
            ORDER BY events.version
        ) AS event";
    outcomes = "SELECT id, digest, outcome::text FROM commands WHERE id = ANY($1::uuid[])";
    regions = "SELECT warehouse, region FROM warehouses WHERE warehouse = ANY($1::text[])";

    /// The newest version of each stream, 0 before the first.
    heads = "
        SELECT asked.stream, coalesce((SELECT max(version) FROM events WHERE events.stream = asked.stream), 0)
        FROM unnest($1::text[]) AS asked (stream)";
    /// The append's first write: assigns the transaction its xid, and draws the positions.
    draw_positions = "
        SELECT pg_current_xact_id()::text, nextval(pg_get_serial_sequence('events', 'position'))
        FROM generate_series(1, $1::bigint)";
    insert_events = "
        INSERT INTO events (position, stream, version, topic, key, id, schema, schema_version, body, time,
                            correlation_id, causation_id, actor, traceparent)
        SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::uuid[], $7::text[],
                             $8::integer[], $9::bytea[], $10::bigint[], $11::text[], $12::text[], $13::text[],
                             $14::text[])
        ON CONFLICT (stream, version) DO NOTHING
        RETURNING position";
    insert_commands = "
        INSERT INTO commands (id, digest, outcome, received_at)
        SELECT id, digest, outcome::json, received_at
        FROM unnest($1::uuid[], $2::bytea[], $3::text[], $4::bigint[]) AS decided (id, digest, outcome, received_at)
        ON CONFLICT (id) DO NOTHING
        RETURNING id";
    insert_claims = "
        INSERT INTO warehouses (warehouse, region) SELECT * FROM unnest($1::text[], $2::text[])
        ON CONFLICT (warehouse) DO NOTHING";
    advance_offsets = "
        UPDATE command_offsets AS stored
        SET next_offset = asked.next_offset, last_offset = asked.last_offset, last_digest = asked.last_digest
        FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
             AS asked (topic, partition, expected, next_offset, last_offset, last_digest)
        WHERE stored.topic = asked.topic AND stored.partition = asked.partition
              AND stored.next_offset = asked.expected
        RETURNING stored.topic, stored.partition";
    /// After [`Self::advance_offsets`]: a partition without a row takes any offset.
    begin_offsets = "
        INSERT INTO command_offsets (topic, partition, next_offset, last_offset, last_digest)
        SELECT topic, partition, next_offset, last_offset, last_digest
        FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bytea[])
             AS asked (topic, partition, expected, next_offset, last_offset, last_digest)
        ON CONFLICT (topic, partition) DO NOTHING
        RETURNING topic, partition";
    set_timers = "
        INSERT INTO timers (key, due_at, command) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
        ON CONFLICT (key) DO UPDATE SET due_at = excluded.due_at, command = excluded.command";
    clear_timers = "DELETE FROM timers WHERE key = ANY($1::text[])";
    clear_given_timers = "
        DELETE FROM timers USING unnest($1::text[], $2::text[]) AS given (key, command)
        WHERE timers.key = given.key AND timers.command = given.command";
    save_snapshots = "
        INSERT INTO snapshots (stream, version, state_version, body)
        SELECT stream, version, $4, body
        FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS taken (stream, version, body)
        ON CONFLICT (stream) DO UPDATE
        SET version = excluded.version, state_version = excluded.state_version, body = excluded.body
        WHERE (excluded.state_version, excluded.version) > (snapshots.state_version, snapshots.version)";

    command_offsets =
        "SELECT partition, next_offset, last_offset, last_digest FROM command_offsets WHERE topic = $1";
    due_timers = "SELECT key, due_at, command FROM timers WHERE due_at <= $1 ORDER BY due_at, key LIMIT $2";
    /// Two that forget at once take different rows.
    forget_outcomes = "
        DELETE FROM commands WHERE id IN (
            SELECT id FROM commands WHERE received_at < $1 ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)";

    /// Nothing at or above the horizon: a transaction that still runs may commit there (fault 2).
    read_committed = READ_COMMITTED;
    read_stream = select_events!("WHERE stream = $1 AND version >= $2 ORDER BY version LIMIT $3");
    table_end = "SELECT xid::text, position FROM events ORDER BY events.xid DESC, events.position DESC LIMIT 1";
    restore_events = "
        INSERT INTO events (xid, position, stream, version, topic, key, id, schema, schema_version, body, time,
                            correlation_id, causation_id, actor, traceparent)
        SELECT xid::xid8, position, stream, version, topic, key, id, schema, schema_version, body, time,
               correlation_id, causation_id, actor, traceparent
        FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::uuid[], $8::text[],
                    $9::integer[], $10::bytea[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::text[])
             AS restored (xid, position, stream, version, topic, key, id, schema, schema_version, body, time,
                          correlation_id, causation_id, actor, traceparent)";
    /// No restored position is drawn again.
    raise_positions = "
        SELECT setval(pg_get_serial_sequence('events', 'position'),
                      greatest($1::bigint, nextval(pg_get_serial_sequence('events', 'position'))))";
    /// The row lock on `relay` is the fence: a lease that raises the epoch waits for it, or is seen.
    save_cursor = SAVE_CURSOR;
    relay_epoch = "SELECT epoch FROM relay";
    raise_epoch = "UPDATE relay SET epoch = epoch + 1 RETURNING epoch, xid::text, position";
    /// One statement, hence of one moment; a row without a topic where nothing was published yet.
    relay_cursor = "
        SELECT relay.xid::text, relay.position, relay_sequences.topic, relay_sequences.partition,
               relay_sequences.sequence
        FROM relay LEFT JOIN relay_sequences ON true";
    relay_sequences = "SELECT topic, partition, sequence FROM relay_sequences";
    /// Rows after the cursor, at most $1 of them (ordered, so that the planner keeps to the index), time of the first
    /// of them, and time of the first committed row that the horizon holds.
    lag = "
        SELECT (SELECT count(*) FROM (
                    SELECT 1 FROM events WHERE (events.xid, events.position) > (relay.xid, relay.position)
                    ORDER BY events.xid, events.position LIMIT $1) AS waiting),
               (SELECT time FROM events WHERE (events.xid, events.position) > (relay.xid, relay.position)
                ORDER BY events.xid, events.position LIMIT 1),
               (SELECT time FROM events WHERE events.xid >= pg_snapshot_xmin(pg_current_snapshot())
                ORDER BY events.xid, events.position LIMIT 1)
        FROM relay";
    /// Rows after the highest place that was ever published, at most $1. A table that ends before it lost rows: what is
    /// appended then may never come to count.
    unpublished = "
        WITH reached AS MATERIALIZED (
            SELECT CASE WHEN is_there THEN published_xid ELSE xid END AS xid,
                   CASE WHEN is_there THEN published_position ELSE position END AS position
            FROM relay CROSS JOIN LATERAL (
                SELECT (published_xid, published_position) > (relay.xid, relay.position) AND EXISTS (
                    SELECT 1 FROM events
                    WHERE (events.xid, events.position) >= (published_xid, published_position)) AS is_there) AS table_end
        )
        SELECT (SELECT count(*) FROM (
                    SELECT 1 FROM events WHERE (events.xid, events.position) > (reached.xid, reached.position)
                    ORDER BY events.xid, events.position LIMIT $1) AS waiting)
        FROM reached";
    /// Whether the cursor is behind a place that it was at before, and that the table still reaches.
    is_published_again = "
        SELECT (published_xid, published_position) > (relay.xid, relay.position) AND EXISTS (
            SELECT 1 FROM events WHERE (events.xid, events.position) >= (published_xid, published_position))
        FROM relay";
    /// Who holds the horizon, in any database of the cluster: the oldest session or prepared transaction with an xid.
    horizon_holder = "
        SELECT holder, seconds FROM (
            SELECT format('pid %s, user %s, database %s, application %s', pid, usename, datname, application_name)
                       AS holder,
                   extract(epoch FROM clock_timestamp() - xact_start)::float8 AS seconds, age(backend_xid) AS age
            FROM pg_stat_activity WHERE backend_xid IS NOT NULL
            UNION ALL
            SELECT format('prepared transaction %s of %s in %s', gid, owner, database),
                   extract(epoch FROM clock_timestamp() - prepared)::float8, age(transaction)
            FROM pg_prepared_xacts
        ) AS running ORDER BY age DESC LIMIT 1";
}
