//! What only a server can show: open transactions, killed sessions, lost answers, restored tables.

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_store::{
    AppendBatch, Claim, EventStore, EventStoreError, LoadRequest, PostgresEventStore, RelayCursor, RestoredOutcome,
    RestoredRows, ServerRun, StoredOffset, Timer, TimerChange,
};
use schemas::{Outcome, OutcomeKind, RegionId, StorePosition, WarehouseId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::{
    DEADLINE, Fixture, NOW, PARTITIONS, batch, committed, committed_when, conflict_of, connect_raw, load_stream,
    price_stream, set_prices,
};

/// Fault 2: the lower place commits later.
pub async fn rows_of_an_older_open_transaction_are_not_skipped(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("before", 0, &[1])])).await.unwrap();
    committed_when(&*store, 1).await;
    let open = fixture.raw().await;
    let insert = "INSERT INTO events (stream, version, topic, key, id, schema, schema_version, body, time)
                  VALUES ('price-late@north', 1, 'pricing.events', 'late', gen_random_uuid(),
                          'millrace.pricing.PriceSet', 1, '', 0)";
    open.batch_execute("BEGIN").await.unwrap();
    open.batch_execute(insert).await.unwrap();

    let appended = store.append(&batch(vec![set_prices("after", 0, &[2])])).await.unwrap();

    let held: Vec<String> = committed(&*store).await.into_iter().map(|row| row.key).collect();
    assert_eq!(held, ["before"], "nothing beyond the open transaction");
    assert_eq!(load_stream(&*store, &price_stream("after")).await.position, appended.positions[0]);
    assert_eq!(store.relay_lag(0).await.unwrap().0, 2, "what the horizon holds is lag");
    open.batch_execute("COMMIT").await.unwrap();
    let order: Vec<String> = committed_when(&*store, 3).await.into_iter().map(|row| row.key).collect();
    assert_eq!(order, ["before", "late", "after"]);
}

/// Transaction ids are numbers: 99 is before 100, and the end of the table is at the highest number.
pub async fn transaction_ids_are_ordered_as_numbers(fixture: &Fixture) {
    let store = fixture.started().await;
    let raw = fixture.raw().await;
    // All far below the horizon, and in no order of their positions.
    for (xid, version) in [(100, 3), (9, 1), (99, 2), (101, 4)] {
        let insert = format!(
            "INSERT INTO events (xid, stream, version, topic, key, id, schema, schema_version, body, time)
             VALUES ('{xid}', 'price-a@north', {version}, 'pricing.events', 'a', gen_random_uuid(),
                     'millrace.pricing.PriceSet', 1, '', 0)"
        );
        raw.batch_execute(&insert).await.unwrap();
    }
    let (mut cursor, mut xids) = (StorePosition::default(), Vec::new());
    while let [row] = store.read_committed(cursor, 1).await.unwrap().as_slice() {
        cursor = row.position;
        xids.push(cursor.xid);
    }
    assert_eq!(xids, [9, 99, 100, 101]);
}

async fn kill_sessions(fixture: &Fixture) -> i64 {
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    fixture.raw().await.query_one(kill, &[]).await.unwrap().get(0)
}

pub async fn killed_sessions_are_a_transient_error_that_mends_itself(fixture: &Fixture) {
    let store = fixture.started().await;
    let (mut version, mut failures) = (0, 0);
    let deadline = Instant::now() + DEADLINE;
    while version < 100 || failures < 3 {
        assert!(Instant::now() < deadline, "{failures} failures until version {version}");
        let command = set_prices("a", version, &[1]);
        let mut appended = store.append(&batch(vec![command.clone()])).await;
        if appended.is_ok() && version % 10 == 0 {
            // The next one meets the kill before, within or after its transaction.
            version += 1;
            let next = batch(vec![set_prices("a", version, &[1])]);
            (appended, _) = tokio::join!(store.append(&next), kill_sessions(fixture));
        }
        match appended {
            Ok(_) => version += 1,
            Err(error) => {
                assert!(matches!(error, EventStoreError::Unavailable { .. }), "{error}");
                failures += 1;
                // Only the answer may have been lost: as the handler does, load again.
                version = version_when_mended(&*store).await;
            }
        }
    }
    let rows = store.read_stream(&price_stream("a"), 1, 100_000).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.version).collect::<Vec<u64>>(), (1..=version).collect::<Vec<u64>>());
}

/// One failure empties the pool of sessions that were killed with it.
async fn version_when_mended(store: &dyn EventStore) -> u64 {
    let request = LoadRequest { streams: vec![price_stream("a")], ..LoadRequest::default() };
    let mut loaded = store.load(&request).await;
    if let Err(error) = loaded {
        assert!(error.is_transient(), "{error}");
        loaded = store.load(&request).await;
    }
    loaded.unwrap().streams[&price_stream("a")].version
}

pub async fn a_killed_leader_gives_up_the_lock(fixture: &Fixture) {
    let (leader, standby) = (fixture.started().await, fixture.open().await);
    let lease = leader.lease_relay().await.unwrap();
    assert!(kill_sessions(fixture).await > 0);
    let taken = tokio::time::timeout(DEADLINE, standby.lease_relay()).await.unwrap().unwrap();
    assert!(taken.epoch > lease.epoch);
    let superseded = loop {
        match leader.save_cursor(lease.epoch, &RelayCursor::default()).await {
            // The killed sessions of the pool.
            Err(EventStoreError::Unavailable { .. }) => {}
            other => break other,
        }
    };
    assert!(matches!(superseded, Err(EventStoreError::RelaySuperseded { .. })), "{superseded:?}");
}

/// A failover ends the session that has the lock: another server may know neither the cursor nor the events behind it.
pub async fn a_leader_without_its_lock_saves_nothing(fixture: &Fixture) {
    let store = fixture.started().await;
    let lease = store.lease_relay().await.unwrap();
    store.save_cursor(lease.epoch, &lease.cursor).await.unwrap();
    assert!(kill_sessions(fixture).await > 0);
    for _ in 0..3 {
        let saved = store.save_cursor(lease.epoch, &lease.cursor).await;
        assert!(matches!(saved, Err(EventStoreError::Unavailable { .. })), "{saved:?}");
    }
    let again = store.lease_relay().await.unwrap();
    store.save_cursor(again.epoch, &again.cursor).await.unwrap();
}

pub async fn what_was_decided_in_another_run_of_the_server_is_not_appended(fixture: &Fixture) {
    let store = fixture.started().await;
    let run = store.load(&LoadRequest::default()).await.unwrap().run;
    assert_ne!(run, ServerRun::default(), "the server tells when it was started");
    let other = AppendBatch { run: Some(ServerRun(run.0 + 1)), ..batch(vec![set_prices("a", 0, &[1])]) };
    let refused = store.append(&other).await;
    assert!(matches!(refused, Err(EventStoreError::Conflict { .. })), "{refused:?}");
    store.append(&AppendBatch { run: Some(run), ..other }).await.unwrap();
}

pub async fn groups_with_the_same_streams_do_not_deadlock(fixture: &Fixture) {
    const ROUNDS: usize = 10;
    let stores = [fixture.started().await, fixture.open().await, fixture.open().await, fixture.open().await];
    let skus: Vec<String> = (0..200).map(|number| format!("sku-{number}")).collect();
    let writers = stores.iter().enumerate().map(|(writer, store)| {
        let (store, mut skus) = (store.clone(), skus.clone());
        if writer % 2 == 1 {
            skus.reverse();
        }
        tokio::spawn(async move {
            let mut done = 0;
            while done < ROUNDS {
                let mut commands = Vec::new();
                let streams: Vec<_> = skus.iter().map(|sku| price_stream(sku)).collect();
                let request = LoadRequest { streams, ..LoadRequest::default() };
                let loaded = store.load(&request).await.unwrap().streams;
                for sku in &skus {
                    commands.push(set_prices(sku, loaded[&price_stream(sku)].version, &[1]));
                }
                match store.append(&batch(commands)).await {
                    Ok(_) => done += 1,
                    Err(EventStoreError::Conflict { what }) => assert!(!what.contains("40P01"), "{what}"),
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    tokio::time::timeout(DEADLINE, futures::future::try_join_all(writers)).await.unwrap().unwrap();
    assert_eq!(load_stream(&*stores[0], &price_stream("sku-7")).await.version, (stores.len() * ROUNDS) as u64);
}

/// Passes bytes both ways, and cuts a connection that has passed on a `COMMIT` before its answer comes back. Connecting
/// to tables that are up to date commits nothing, so the append's is the first.
async fn cutting_proxy(server: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(async move {
                let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
                loop {
                    tokio::select! {
                        read = client.read(&mut up) => {
                            let Ok(read @ 1..) = read else { return };
                            server.write_all(&up[..read]).await.unwrap();
                            if up[..read].windows(7).any(|bytes| bytes == b"COMMIT\0") {
                                // The server's answer is waited for, so that the commit is done, and then kept back.
                                let _ = server.read(&mut down).await;
                                return;
                            }
                        }
                        read = server.read(&mut down) => {
                            let Ok(read @ 1..) = read else { return };
                            client.write_all(&down[..read]).await.unwrap();
                        }
                    }
                }
            });
        }
    });
    port
}

pub async fn a_lost_answer_to_a_commit_is_unavailable_and_the_command_is_there(fixture: &Fixture) {
    let direct = fixture.started().await;
    let (credentials, rest) = fixture.url().split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let port = cutting_proxy(server.to_owned()).await;
    let store = PostgresEventStore::connect(&format!("{credentials}@127.0.0.1:{port}/{database}")).await.unwrap();
    let command = set_prices("a", 0, &[1]);

    let lost = store.append(&batch(vec![command.clone()])).await;

    assert!(matches!(lost, Err(EventStoreError::Unavailable { .. })), "{lost:?}");
    assert!(direct.outcome(command.id).await.unwrap().is_some(), "it was committed");
    assert!(store.outcome(command.id).await.unwrap().is_some(), "a new session finds it");
    let again = conflict_of(&*direct, &batch(vec![command])).await;
    assert!(again.contains("price-a@north"), "{again}");
}

/// A way to the server that is closed by ending its task: then its port refuses.
async fn way(server: &str, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
    let server = server.to_owned();
    let begun = Instant::now();
    // A port that was given up before may be somebody else's for a moment.
    let listener = loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => break listener,
            Err(error) => assert!(begun.elapsed() < DEADLINE, "port {port}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let port = listener.local_addr().unwrap().port();
    let open = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(&server).await.unwrap();
            connections.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, open)
}

pub async fn commands_are_refused_at_once_while_the_server_is_away(fixture: &Fixture) {
    fixture.started().await;
    let (credentials, rest) = fixture.url().split_once('@').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let (port, open) = way(server, 0).await;
    let store = PostgresEventStore::connect(&format!("{credentials}@127.0.0.1:{port}/{database}")).await.unwrap();
    let request = LoadRequest { streams: vec![price_stream("a")], ..LoadRequest::default() };
    store.append(&batch(vec![set_prices("a", 0, &[1])])).await.unwrap();
    for _ in 0..10 {
        conflict_of(&store, &batch(vec![set_prices("a", 0, &[1])])).await;
    }
    assert_eq!(store.refusal(), None, "who is in the way of another is there");

    open.abort();
    let _ = open.await;
    let begun = Instant::now();
    loop {
        match store.load(&request).await {
            Err(EventStoreError::BreakerOpen(_)) => break,
            Err(EventStoreError::Unavailable { .. }) => assert!(begun.elapsed() < DEADLINE),
            other => panic!("{other:?}"),
        }
    }
    // Twenty in a row fit into the time until one looks again only when nobody waits.
    let (begun, mut refused) = (Instant::now(), 0);
    while refused < 20 {
        assert!(begun.elapsed() < DEADLINE, "commands wait for a server that is away");
        match store.append(&batch(vec![set_prices("a", 1, &[1])])).await {
            Err(EventStoreError::BreakerOpen(_)) if store.refusal().is_some() => refused += 1,
            Err(EventStoreError::BreakerOpen(_) | EventStoreError::Unavailable { .. }) => refused = 0,
            other => panic!("{other:?}"),
        }
    }
    // The relay asks by itself.
    let read = store.read_committed(StorePosition::default(), 1).await;
    assert!(matches!(read, Err(EventStoreError::Unavailable { .. })), "{read:?}");

    let (_, _open) = way(server, port).await;
    let begun = Instant::now();
    while let Err(error) = store.load(&request).await {
        assert!(error.is_transient() && begun.elapsed() < DEADLINE, "{error}");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.refusal(), None);
    store.append(&batch(vec![set_prices("a", 1, &[1])])).await.unwrap();
}

/// A part of fault 22: what can be seen without a look at the topics.
pub async fn a_table_that_lost_rows_is_refused(fixture: &Fixture) {
    let store = fixture.started().await;
    for version in 0..3 {
        store.append(&batch(vec![set_prices("a", version, &[1])])).await.unwrap();
    }
    let cursor = committed_when(&*store, 3).await[2].position;
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.save_cursor(epoch, &RelayCursor { position: cursor, ..RelayCursor::default() }).await.unwrap();
    assert_eq!(store.read_committed(cursor, 10).await.unwrap(), []);

    fixture.raw().await.batch_execute("DELETE FROM events WHERE version > 1").await.unwrap();

    let read = store.read_committed(cursor, 10).await;
    assert!(
        matches!(&read, Err(EventStoreError::TableEndsBefore { cursor: asked, .. }) if *asked == cursor),
        "{read:?}"
    );
    let leased = store.lease_relay().await;
    assert!(matches!(leased, Err(EventStoreError::TableEndsBefore { .. })), "{leased:?}");

    // A dump restored into a cluster whose transaction ids are lower.
    let raise = "UPDATE events SET xid = (pg_current_xact_id()::text::bigint + 1000000)::text::xid8";
    fixture.raw().await.batch_execute(raise).await.unwrap();
    let refused = PostgresEventStore::connect(fixture.url()).await.err();
    assert!(matches!(refused, Some(EventStoreError::Permanent { .. })), "{refused:?}");
}

/// A server that was restored as a whole hands out the transaction ids of the lost events again.
pub async fn what_is_restored_lies_below_the_server_s_next_transaction(fixture: &Fixture) {
    let (store, lost) = (fixture.started().await, fixture.started().await);
    lost.append(&batch(vec![set_prices("lost", 0, &[1])])).await.unwrap();
    let mut event = committed_when(&*lost, 1).await.remove(0);
    fixture.raw().await.batch_execute("DELETE FROM events; DELETE FROM commands").await.unwrap();
    event.position.xid += 5_000;
    let rows = RestoredRows { events: vec![event.clone()], ..RestoredRows::default() };
    store.restore(&rows).await.unwrap();
    assert_eq!(committed_when(&*store, 1).await[0].position, event.position);
    // It is opened again, and what is appended now comes behind.
    let again = fixture.open().await;
    again.append(&batch(vec![set_prices("new", 0, &[1])])).await.unwrap();
    let order: Vec<String> = committed_when(&*again, 2).await.into_iter().map(|row| row.key).collect();
    assert_eq!(order, ["lost", "new"]);

    event.position.xid += 1_000_000_000;
    let beyond = store.restore(&RestoredRows { events: vec![event], ..RestoredRows::default() }).await;
    assert!(
        matches!(&beyond, Err(EventStoreError::Permanent { problem }) if problem.contains("pg_resetwal")),
        "{beyond:?}"
    );
}

/// By hand, say: nothing may hide what is appended then.
pub async fn a_published_place_that_the_table_lost_hides_nothing(fixture: &Fixture) {
    let store = fixture.started().await;
    store.append(&batch(vec![set_prices("a", 0, &[1, 2, 3, 4])])).await.unwrap();
    let rows = committed_when(&*store, 4).await;
    let epoch = store.lease_relay().await.unwrap().epoch;
    store.save_cursor(epoch, &RelayCursor { position: rows[3].position, ..RelayCursor::default() }).await.unwrap();
    store.reset_cursor(epoch, &RelayCursor { position: rows[0].position, ..RelayCursor::default() }).await.unwrap();
    assert_eq!((store.unpublished().await.unwrap(), store.is_published_again().await.unwrap()), (0, true));
    fixture.raw().await.batch_execute("DELETE FROM events WHERE version = 4").await.unwrap();
    assert_eq!((store.unpublished().await.unwrap(), store.is_published_again().await.unwrap()), (2, false));
}

/// The time limit is that of a statement, whatever is lost.
pub async fn many_lost_rows_come_back_in_one_transaction_of_many_statements(fixture: &Fixture) {
    const LOST: usize = 12_001;
    let store = fixture.started().await;
    let amounts: Vec<i64> = (1..=LOST as i64).collect();
    store.append(&batch(vec![set_prices("a", 0, &amounts)])).await.unwrap();
    let events = committed_when(&*store, LOST).await;
    let raw = fixture.raw().await;
    raw.batch_execute("DELETE FROM events; DELETE FROM commands").await.unwrap();
    let refuse_large = "
        CREATE FUNCTION refuse_large() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF (SELECT count(*) FROM added) > 5000 THEN RAISE 'a statement of too many rows'; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER few AFTER INSERT ON events REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_large();
        CREATE TRIGGER few AFTER INSERT ON commands REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_large();
        CREATE TRIGGER few AFTER INSERT ON timers REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_large();
        CREATE TRIGGER few AFTER INSERT ON warehouses REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION refuse_large();";
    raw.batch_execute(refuse_large).await.unwrap();
    let timer = |number: usize| Timer { key: format!("t/{number}"), due_at: NOW, command: "{}".to_owned() };
    let region = |number: usize| Claim {
        warehouse: WarehouseId::new(format!("w-{number}")).unwrap(),
        region: RegionId::new("north").unwrap(),
    };
    let outcomes = (0..LOST).map(|_| {
        let id = Uuid::new_v4();
        RestoredOutcome { id, received_at: NOW, outcome: Outcome::refused(id, OutcomeKind::Rejected, "none", "none") }
    });
    let rows = RestoredRows {
        events,
        claims: (0..LOST).map(region).collect(),
        timers: (0..LOST).map(|number| TimerChange::Set(timer(number))).collect(),
        outcomes: outcomes.collect(),
        behind: None,
    };
    store.restore(&rows).await.unwrap();

    for table in ["events", "commands", "timers", "warehouses"] {
        let counted = format!("SELECT count(*), count(DISTINCT xmin::text) FROM {table}");
        let row = raw.query_one(&counted, &[]).await.unwrap();
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (LOST as i64, 1), "{table}");
    }
    // All or none, also where the first statements have succeeded.
    raw.batch_execute("DELETE FROM events WHERE version < 12001").await.unwrap();
    let taken = store.restore(&rows).await;
    assert!(matches!(taken, Err(EventStoreError::Conflict { .. })), "{taken:?}");
    assert_eq!(raw.query_one("SELECT count(*) FROM events", &[]).await.unwrap().get::<_, i64>(0), 1);
}

/// As the first release made them.
async fn make_first_tables(raw: &tokio_postgres::Client) {
    raw.batch_execute(include_str!("../../sql/postgres/0001_tables.sql")).await.unwrap();
    let migrations =
        "CREATE TABLE migrations (version integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO migrations (version) VALUES (1)";
    raw.batch_execute(migrations).await.unwrap();
}

pub async fn tables_of_the_first_version_are_brought_up_to_date(fixture: &Fixture) {
    let raw = fixture.raw().await;
    make_first_tables(&raw).await;
    raw.batch_execute("UPDATE relay SET epoch = 3").await.unwrap();
    raw.batch_execute("INSERT INTO command_offsets VALUES ('pricing.commands', 3, 8)").await.unwrap();
    let store = fixture.started().await;
    let kept = StoredOffset { next: 8, last: None };
    assert_eq!(store.command_offsets("pricing.commands").await.unwrap(), [(3, kept)].into());
    assert_eq!(store.lease_relay().await.unwrap().epoch, 4);
    assert_eq!(store.unpublished().await.unwrap(), 0);
}

pub async fn a_reader_changes_no_tables(fixture: &Fixture) {
    let raw = fixture.raw().await;
    let refused = async || match PostgresEventStore::connect_read_only(fixture.url()).await.err() {
        Some(error @ EventStoreError::Unavailable { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(refused().await.contains("no tables yet"));
    make_first_tables(&raw).await;
    let problem = refused().await;
    assert!(problem.contains("version 1") && problem.contains("`relay` of this build"), "{problem}");
    let applied = raw.query_one("SELECT max(version) FROM migrations", &[]).await.unwrap();
    assert_eq!(applied.get::<_, i32>(0), 1);
    drop(fixture.started().await);
    let reading = PostgresEventStore::connect_read_only(fixture.url()).await.unwrap();
    assert_eq!(reading.topology().await.unwrap().unwrap().partitions, PARTITIONS);
}

pub async fn tables_of_a_newer_build_are_refused(fixture: &Fixture) {
    drop(fixture.started().await);
    fixture.raw().await.batch_execute("INSERT INTO migrations (version) VALUES (999)").await.unwrap();
    let refused = PostgresEventStore::connect(fixture.url()).await.err();
    assert!(matches!(&refused, Some(EventStoreError::Permanent { problem }) if problem.contains("999")), "{refused:?}");
}

pub async fn four_that_start_at_once_make_the_tables_once(fixture: &Fixture) {
    let starts = (0..4).map(|_| PostgresEventStore::connect(fixture.url()));
    let stores = futures::future::try_join_all(starts).await.unwrap();
    for store in stores {
        let store: Arc<dyn EventStore> = Arc::new(store);
        assert_eq!(store.topology().await.unwrap(), None);
    }
    let applied = connect_raw(fixture.url()).await.query_one("SELECT count(*) FROM migrations", &[]).await.unwrap();
    assert_eq!(applied.get::<_, i64>(0), 3);
}

pub async fn errors_name_the_server_and_hide_the_password(fixture: &Fixture) {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let down = PostgresEventStore::connect(&format!("postgres://me:hush@127.0.0.1:{port}/x")).await.err().unwrap();
    assert!(matches!(down, EventStoreError::Unavailable { .. }), "{down}");
    assert!(down.to_string().contains(&format!("127.0.0.1:{port}")), "{down}");
    assert!(!down.to_string().contains("hush"), "{down}");

    let missing = fixture.url().replace("event_store_", "not_there_");
    let missing = PostgresEventStore::connect(&missing).await.err().unwrap();
    assert!(matches!(missing, EventStoreError::Permanent { .. }), "{missing}");
    for bad in ["postgres://me:hush@host:port/x", "postgres://me:hush@host/x?sslmode=hush"] {
        let bad = PostgresEventStore::connect(bad).await.err().unwrap();
        assert!(matches!(bad, EventStoreError::Setting { key: "event-store", .. }), "{bad}");
        assert!(!bad.to_string().contains("hush"), "{bad}");
    }
}
