//! Faults 1 to 4, 23 and 28: between the event table and the topics.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use schemas::event::{StockChange, StockUpdated};
use schemas::{Event, StorePosition, encode_event};
use serde_json::json;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::commands::{WAREHOUSES, parsed};
use crate::load::{Load, LoadPlan};
use crate::process::until;
use crate::scenario::{On, Scenario};
use crate::trial::Trial;

/// Sessions of the scenario's database that wait for the cursor's row.
const SAVING: &str = "SELECT pid FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND query ILIKE '%relay%' AND datname = current_database()";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(1, "relay killed between publish and saving its cursor", killed_before_saving),
        Scenario::new(2, "a lower position commits later", lower_commits_later),
        Scenario::new(1, "kill -9 again and again, one process on files", killed_as_a_whole)
            .variant("files")
            .on(On::Files),
        Scenario::new(3, "a stream's versions reach the relay out of order", versions_out_of_order),
        Scenario::new(4, "a long transaction holds the horizon", long_transaction),
        Scenario::new(28, "the outbox grows while the relay stands", outbox_grows),
        Scenario::new(23, "two relays at once", two_relays),
    ]
}

/// The cursor's row is locked by another session: the relay has published and cannot save. There it is killed.
fn killed_before_saving<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for _ in 0..3 {
            let mut caught = false;
            for _ in 0..20 {
                let locker = trial.servers.postgres.connect().await?;
                locker.batch_execute("BEGIN; SELECT epoch FROM relay FOR UPDATE").await?;
                let watcher = trial.servers.postgres.connect().await?;
                let blocked = until("the relay waits to save its cursor", Duration::from_secs(1), async || {
                    watcher.query_opt(SAVING, &[]).await.is_ok_and(|row| row.is_some())
                });
                caught = blocked.await.is_ok();
                if caught {
                    trial.system.program("relay")?.kill()?;
                    // The server would finish the statement of a client that is gone, as soon as the lock is free.
                    watcher.query(&format!("SELECT pg_terminate_backend(pid) FROM ({SAVING}) AS saving"), &[]).await?;
                }
                locker.batch_execute("ROLLBACK").await?;
                if caught {
                    break;
                }
            }
            ensure!(caught, "the relay was never caught between publish and saving");
            trial.system.start("relay").await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let twins = trial.counters.total("millrace_events_duplicate_total");
        trial.expect(twins > 0, "the relay was killed after publishing and no consumer has dropped a twin");
        Ok(())
    }
    .boxed_local()
}

/// Writes an event past the command side, in an open transaction.
pub async fn insert(client: &Client, sku: &str, version: i64, on_hand: i64, reserved: i64) -> anyhow::Result<Uuid> {
    let (warehouse, region) = WAREHOUSES[0];
    let event = Event::StockUpdated(StockUpdated {
        sku: parsed(sku),
        warehouse: parsed(warehouse),
        region: parsed(region),
        change: StockChange::Counted,
        quantity: on_hand,
        on_hand,
        reserved,
        reservation_id: None,
        expires_at: None,
        reason: None,
    });
    let encoded = encode_event(&event)?;
    insert_body(client, sku, version, &encoded.body).await
}

pub async fn insert_body(client: &Client, sku: &str, version: i64, body: &[u8]) -> anyhow::Result<Uuid> {
    let id = Uuid::new_v4();
    let stream = format!("stock-{sku}@{}", WAREHOUSES[0].0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis() as i64;
    let insert = "INSERT INTO events (stream, version, topic, key, id, schema, schema_version, body, time)
                  VALUES ($1, $2, 'inventory.events', $3, $4, 'millrace.inventory.StockUpdated', 1, $5, $6)";
    client.execute(insert, &[&stream, &version, &sku, &id, &body, &now]).await?;
    Ok(id)
}

/// How far the relay has saved.
pub async fn cursor(client: &Client) -> anyhow::Result<StorePosition> {
    let row = client.query_one("SELECT xid::text, position FROM relay", &[]).await?;
    Ok(StorePosition { xid: row.get::<_, String>(0).parse()?, position: row.get::<_, i64>(1) as u64 })
}

async fn transaction_id(client: &Client) -> anyhow::Result<u64> {
    let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await?;
    Ok(row.get::<_, String>(0).parse()?)
}

/// Two transactions stay open while the load commits above them: one with a low position, one that takes its position
/// late and so has a low transaction id with a high position.
fn lower_commits_later<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let watcher = trial.servers.postgres.connect().await?;
        for round in 0..3 {
            let (early, late) = (trial.servers.postgres.connect().await?, trial.servers.postgres.connect().await?);
            early.batch_execute("BEGIN").await?;
            late.batch_execute("BEGIN").await?;
            let held = transaction_id(&early).await?;
            transaction_id(&late).await?;
            let sku = format!("HELD-{round}");
            trial.made.insert(insert(&early, &sku, 1, 10, 0).await?);
            let before = trial.load.events();
            until("the load commits above", Duration::from_secs(20), async || trial.load.events() > before + 200)
                .await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let reached = cursor(&watcher).await?;
            trial.expect(
                reached.xid < held,
                format!("the relay stands at {reached}, above the open transaction {held}"),
            );
            trial.made.insert(insert(&late, &format!("LATE-{round}"), 1, 7, 0).await?);
            early.batch_execute("COMMIT").await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            late.batch_execute("COMMIT").await?;
            let passes = until("the relay goes on", Duration::from_secs(20), async || {
                cursor(&watcher).await.is_ok_and(|reached| reached.xid > held + 1)
            });
            passes.await?;
        }
        Ok(())
    }
    .boxed_local()
}

/// The leader is frozen and its lock taken from it; another leads; then the first one wakes, in the belief that it leads.
fn two_relays<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.system.add("relay-2", "relay", &[])?;
        trial.counters.also(trial.system.url("relay-2"));
        let client = trial.servers.postgres.connect().await?;
        for (leader, other) in [("relay", "relay-2"), ("relay-2", "relay")] {
            trial.system.program(leader)?.signal("STOP")?;
            // As a server that gives a silent session up.
            let ended = client
                .query(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks
                     WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                    &[],
                )
                .await?;
            if ended.is_empty() {
                bail!("no session holds the relay's lock");
            }
            trial.system.ready_within(other, Duration::from_secs(30)).await.context("the other relay does not lead")?;
            let before = cursor(&client).await?;
            until("the other relay goes on", Duration::from_secs(20), async || {
                cursor(&client).await.is_ok_and(|reached| reached > before)
            })
            .await?;
            trial.system.program(leader)?.signal("CONT")?;
            until("the old leader sees that it leads no more", Duration::from_secs(30), async || {
                trial.system.metric(leader, "millrace_relay_leader").await == 0.0
            })
            .await?;
            let leads = trial.system.metric(other, "millrace_relay_leader").await;
            trial.expect(leads >= 1.0, format!("{other} does not lead any more after the old leader woke"));
        }
        Ok(())
    }
    .boxed_local()
}

/// Two processes that take commands for the same few SKUs keep their versions in order. Then rows that do not, as a job
/// of somebody's own may write them: the relay must halt before it publishes them.
fn versions_out_of_order<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.add("write-2", "write", &[]).await?;
        let urls = vec![trial.system.url("write"), trial.system.url("write-2")];
        let events = trial.plan().events / 4;
        let hot = LoadPlan { seed: trial.plan().seed + 7_000, skus: 3, events, urls, ..trial.plan().clone() };
        let mut load = Load::start(hot, trial.journal.clone())?;
        load.finish(Duration::from_secs(60)).await?;
        trial.system.remove("write-2")?;

        let client = trial.servers.postgres.connect().await?;
        trial.made.insert(insert(&client, "ORDER-1", 1, 10, 0).await?);
        let row = client.query_one("SELECT max(xid::text::bigint) FROM events WHERE stream LIKE 'stock-ORDER-1%'", &[]);
        let xid = row.await?.get::<_, i64>(0) as u64;
        until("the relay is past it", Duration::from_secs(30), async || {
            cursor(&client).await.is_ok_and(|reached| reached.xid >= xid)
        })
        .await?;
        client.batch_execute("BEGIN").await?;
        insert(&client, "ORDER-1", 3, 30, 0).await?;
        insert(&client, "ORDER-1", 2, 20, 0).await?;
        client.batch_execute("COMMIT").await?;
        trial.system.complains("relay", "ORDER-1", Duration::from_secs(30)).await?;
        let reached = cursor(&client).await?;
        // What whoever wrote them would do.
        client.execute("DELETE FROM events WHERE stream LIKE 'stock-ORDER-1%' AND version > 1", &[]).await?;
        trial.expect(reached > StorePosition::default(), "the relay never got anywhere");
        trial.system.kill_and_start("relay").await
    }
    .boxed_local()
}

/// A report that somebody left open.
fn long_transaction<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let client = trial.servers.postgres.connect().await?;
        client.batch_execute("SET application_name = 'forgotten-report'; BEGIN").await?;
        let held = transaction_id(&client).await?;
        let named = trial.system.logged("relay", "forgotten-report", Duration::from_secs(30)).await;
        let watcher = trial.servers.postgres.connect().await?;
        let reached = cursor(&watcher).await?;
        let blocked = trial.system.metric("relay", "millrace_event_store_horizon_blocked_seconds").await;
        client.batch_execute("ROLLBACK").await?;
        named.context("nothing names the session that holds the horizon")?;
        trial.expect(reached.xid < held, format!("the relay stands at {reached}, above the open transaction {held}"));
        trial.expect(blocked > 1.0, format!("the metric of the blocked horizon says {blocked} s"));

        // A process of ours that freezes inside a transaction is put out by the server.
        for _ in 0..200 {
            trial.system.program("write")?.signal("STOP")?;
            let open = "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'
                        AND application_name = 'millrace' AND datname = current_database()";
            if let Some(row) = watcher.query_opt(open, &[]).await? {
                let pid: i32 = row.get(0);
                let gone = until("the frozen session is ended", Duration::from_secs(25), async || {
                    let still = watcher.query_opt("SELECT 1 FROM pg_stat_activity WHERE pid = $1", &[&pid]).await;
                    still.is_ok_and(|row| row.is_none())
                })
                .await;
                trial.system.program("write")?.signal("CONT")?;
                return gone;
            }
            trial.system.program("write")?.signal("CONT")?;
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
        bail!("the command handler was never caught inside a transaction")
    }
    .boxed_local()
}

/// The relay stands while commands come as fast as they are taken.
fn outbox_grows<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        // A bound that this load reaches.
        let bound = (trial.plan().events / 5).max(1).to_string();
        trial.system.remove("write")?;
        trial.system.add_at_same_address("write", &["--max-relay-lag-events", &bound])?;
        trial.system.ready("write").await?;
        trial.system.program("relay")?.kill()?;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let url = format!("{}/v1/commands", trial.system.commands_url());
        let mut refused = None;
        let begun = std::time::Instant::now();
        while refused.is_none() && begun.elapsed() < Duration::from_secs(60) {
            let given = json!({"id": Uuid::new_v4(), "type": "ReleaseReservation", "data":
                {"sku": "SKU-00000", "warehouse": WAREHOUSES[0].0, "reservation_id": "none"}});
            let answer = client.post(&url).json(&given).send().await?;
            if answer.status().as_u16() == 429 {
                refused = Some(answer.headers().contains_key("retry-after"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        trial.expect(refused.is_some(), "the relay stands and nobody is told 429");
        trial.expect(refused != Some(false), "429 comes without Retry-After");
        let waiting = events_behind(&trial.servers.postgres.connect().await?).await?;
        let most = 2 * bound.parse::<i64>()? + 10_000;
        trial.expect(waiting < most, format!("{waiting} events wait, the bound is {bound}"));
        trial.system.start("relay").await
    }
    .boxed_local()
}

async fn events_behind(client: &Client) -> anyhow::Result<i64> {
    let behind = "SELECT count(*) FROM events, relay
                  WHERE (events.xid, events.position) > (relay.xid, relay.position)";
    Ok(client.query_one(behind, &[]).await?.get(0))
}

/// kill -9 of everything at once, again and again.
fn killed_as_a_whole<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            trial.system.kill_and_start("up").await?;
        }
        Ok(())
    }
    .boxed_local()
}
