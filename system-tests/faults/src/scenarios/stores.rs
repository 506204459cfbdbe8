//! Faults 9, 10, 12 to 15 and 22: the stores, the registry, and the clock.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde_json::json;
use uuid::Uuid;

use crate::clock;
use crate::disk::Disk;
use crate::probe::shows;
use crate::process::until;
use crate::proxy::Mode;
use crate::scenario::{On, Scenario, Store};
use crate::servers::redis::copy;
use crate::system::Reach;
use crate::trial::Trial;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(9, "Redis killed, the last second of its log lost", redis_forgets),
        Scenario::new(10, "Redis emptied, then another instance answers", redis_emptied),
        Scenario::new(12, "an incompatible schema", incompatible_schema),
        Scenario::new(13, "the registry down", registry_down).on(On::Servers(Reach::Proxied, 1)),
        Scenario::new(14, "the disk of Postgres full", postgres_full).disk(Store::Postgres),
        Scenario::new(14, "the disk of Kafka full", kafka_full).variant("kafka").disk(Store::Kafka),
        Scenario::new(14, "the disk of Redis full", redis_full).variant("redis").disk(Store::Redis),
        Scenario::new(14, "the disk of the search full", search_full).variant("search").disk(Store::Search),
        Scenario::new(14, "the disk full, one process on files", files_full)
            .variant("files")
            .on(On::Files)
            .disk(Store::Files),
        Scenario::new(15, "the clock jumps by an hour either way", clock_jumps).clock(),
        Scenario::new(15, "the same, one process on files", clock_jumps).variant("files").on(On::Files).clock(),
        Scenario::new(22, "Postgres restored to an earlier point", postgres_restored)
            .duplicates(u32::MAX)
            .without_topic_commands(),
        Scenario::new(26, "the network to Postgres cut, swallowing, slow; Postgres killed", postgres_unreachable)
            .variant("network")
            .on(On::Servers(Reach::Proxied, 1)),
    ]
}

/// What is put back is the append-only file of a second and a half before the kill.
fn redis_forgets<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for round in 0..3 {
            let copy = trial.system.folder.join(format!("redis-{round}"));
            trial.servers.redis.copy_of_data(&copy)?;
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            trial.servers.redis.program.kill()?;
            trial.servers.redis.restore(&copy)?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            trial.servers.redis.start().await?;
            trial.probe().await?;
        }
        Ok(())
    }
    .boxed_local()
}

fn redis_emptied<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let before = trial.readers.len();
        trial.servers.redis.empty().await?;
        trial.probe().await?;
        let refused = trial.readers.since(before, 503);
        trial.expect(refused > 0, "Redis was emptied and no reader was told that it is being rebuilt");

        let before = trial.readers.len();
        trial.servers.redis.program.kill()?;
        std::fs::remove_dir_all(&trial.servers.redis.data)?;
        std::fs::create_dir(&trial.servers.redis.data)?;
        trial.servers.redis.start().await?;
        trial.probe().await?;
        let refused = trial.readers.since(before, 503);
        trial.expect(refused > 0, "an empty Redis answered and no reader was told that it is being rebuilt");
        Ok(())
    }
    .boxed_local()
}

/// The registry cannot be reached: what is known goes on, also in processes that start meanwhile; what is not known waits.
fn registry_down<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.servers.registry.proxy.set(Mode::Cut);
        trial.probe().await.context("with ids in memory")?;
        for name in ["relay", "stock", "search"] {
            trial.system.kill_and_start(name).await.with_context(|| format!("{name} starts from its cache"))?;
        }
        trial.probe().await.context("with ids from the cache")?;
        // One that never knew any.
        trial.system.program("stock")?.kill()?;
        std::fs::remove_file(trial.system.folder.join("registry-cache-stock.json"))?;
        trial.system.program("stock")?.start()?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let position = trial.acknowledged().await?;
        let path = format!("/v1/stock/{}", crate::commands::sku(0));
        let url = trial.system.queries_url();
        let shown = shows(&url, &path, &position, Duration::from_secs(3)).await.is_ok();
        trial.expect(!shown, "without ids and registry an event was folded all the same: nothing was tested");
        trial.servers.registry.proxy.pass();
        shows(&url, &path, &position, Duration::from_secs(40)).await?;
        let parked = trial.counters.total("millrace_events_parked_total");
        trial.expect(parked == 0, format!("{parked} events were parked because the registry was away"));
        Ok(())
    }
    .boxed_local()
}

/// No byte free where Postgres writes: nothing is half acknowledged, and intake comes back with the space.
fn postgres_full<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        disk(trial)?.fill()?;
        let url = format!("{}/v1/commands", trial.system.commands_url());
        refused_with_503(&url).await.context("Postgres has no space left")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        disk(trial)?.free()?;
        // It may have stopped itself.
        trial.servers.postgres.start().await
    }
    .boxed_local()
}

/// Commands until one is refused as one that was not decided.
async fn refused_with_503(url: &str) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(40) {
        // Refused by a rule when it is decided, so that it leaves no event.
        let given = json!({"id": Uuid::new_v4(), "type": "ReleaseReservation", "data":
            {"sku": "SKU-00000", "warehouse": "ham-1", "reservation_id": "none"}});
        if let Ok(answer) = client.post(url).json(&given).send().await {
            if answer.status().as_u16() == 503 {
                ensure!(answer.headers().contains_key("retry-after"), "503 comes without Retry-After");
                return Ok(());
            }
            ensure!(matches!(answer.status().as_u16(), 422 | 429), "status {}", answer.status());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("no command is answered 503 within 40 s")
}

fn disk<'d>(trial: &'d Trial<'_>) -> anyhow::Result<&'d Disk> {
    trial.disk.as_ref().context("there is no small disk")
}

/// The broker stops itself when it cannot write; whoever makes room starts it again.
fn kafka_full<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        disk(trial)?.fill()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        disk(trial)?.free()?;
        let broker = &mut trial.servers.kafka.brokers[0];
        if broker.program.is_running() {
            broker.program.kill()?;
        }
        trial.servers.kafka.start().await
    }
    .boxed_local()
}

fn redis_full<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        disk(trial)?.fill()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        disk(trial)?.free()?;
        trial.servers.redis.start().await
    }
    .boxed_local()
}

/// The old searcher serves while nothing can be written.
fn search_full<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        disk(trial)?.fill()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let url = format!("{}/v1/search?limit=1&facets=false", trial.system.queries_url());
        for _ in 0..20 {
            let status = client.get(&url).send().await?.status();
            trial.expect(status.is_success(), format!("the search answers {status} while its disk is full"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        disk(trial)?.free()
    }
    .boxed_local()
}

fn files_full<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        disk(trial)?.fill()?;
        let url = format!("{}/v1/commands", trial.system.commands_url());
        refused_with_503(&url).await.context("the files have no space left")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        disk(trial)?.free()
    }
    .boxed_local()
}

/// An hour forward, an hour back, and home.
fn clock_jumps<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for seconds in [3_600, -3_600, 0] {
            clock::shift(&trial.system.folder, seconds)?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            trial.probe().await.with_context(|| format!("with the clock off by {seconds} s"))?;
        }
        Ok(())
    }
    .boxed_local()
}

/// A copy of the whole server from before is put back while everybody is quiet: what was acknowledged since is only on
/// the topics.
fn postgres_restored<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.refusals_lost = true;
        trial.servers.postgres.program.stop("INT", Duration::from_secs(60)).await?;
        let aside = trial.servers.postgres.data.with_extension("copy");
        copy(&trial.servers.postgres.data, &aside)?;
        trial.servers.postgres.start().await?;
        trial.load.reached(0.6).await?;

        // No command is under way when it happens, and what was acknowledged is published.
        trial.system.program("write")?.stop("TERM", Duration::from_secs(20)).await?;
        let client = trial.servers.postgres.connect().await?;
        until("the relay is level", Duration::from_secs(40), async || {
            let behind = "SELECT NOT EXISTS (SELECT 1 FROM events, relay
                          WHERE (events.xid, events.position) > (relay.xid, relay.position))";
            client.query_one(behind, &[]).await.is_ok_and(|row| row.get(0))
        })
        .await?;
        trial.servers.postgres.program.stop("INT", Duration::from_secs(60)).await?;
        std::fs::remove_dir_all(&trial.servers.postgres.data)?;
        std::fs::rename(&aside, &trial.servers.postgres.data)?;
        trial.servers.postgres.start().await?;

        trial.system.complains("relay", "restored", Duration::from_secs(40)).await.context("it is not noticed")?;
        trial.system.program("relay")?.kill()?;
        let (code, told) = trial.system.run(&["relay", "reconcile", "--dry-run"])?;
        trial.expect(code == 3, format!("the dry run ends with exit code {code}: {told}"));
        let (code, told) = trial.system.run(&["relay", "reconcile", "--restore-from-log"])?;
        ensure!(code == 0, "relay reconcile --restore-from-log: exit code {code}: {told}");
        trial.system.start("relay").await?;
        trial.system.start("write").await
    }
    .boxed_local()
}

/// The network to Postgres breaks under commands: their outcome is unknown to their senders, who give them again.
fn postgres_unreachable<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for mode in [Mode::Cut, Mode::Swallow, Mode::Delay(Duration::from_millis(50))] {
            trial.servers.postgres.proxy.set(mode);
            tokio::time::sleep(Duration::from_secs(3)).await;
            trial.servers.postgres.proxy.pass();
            trial.probe().await.with_context(|| format!("after {mode:?}"))?;
        }
        trial.servers.postgres.kill().await?;
        trial.servers.postgres.start().await
    }
    .boxed_local()
}

/// A schema that readers of the old events could not read, first where the right one is known, then in its place.
fn incompatible_schema<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let subject = "inventory.events-millrace.inventory.StockUpdated";
        let url = format!("{}/subjects/{subject}", trial.servers.registry.url());
        let wrong = r#"{"type":"record","name":"StockUpdated","namespace":"millrace.inventory","fields":[{"name":"sku","type":"long"}]}"#;
        let body = json!({ "schema": wrong });
        let answer = client.post(format!("{url}/versions")).json(&body).send().await?;
        trial.expect(!answer.status().is_success(), format!("the registry took an incompatible schema: {}", answer.status()));

        // Somebody registers it under the name before us.
        let before = trial.load.events();
        for permanent in ["false", "true"] {
            client.delete(format!("{url}?permanent={permanent}")).send().await?;
        }
        let answer = client.post(format!("{url}/versions")).json(&body).send().await?;
        ensure!(answer.status().is_success(), "the wrong schema cannot be put there: {}", answer.text().await?);
        let (code, told) = trial.system.run(&["contracts", "check"])?;
        trial.expect(code == 3, format!("contracts check ends with exit code {code}: {told}"));
        let (code, told) = trial.system.run(&["contracts", "register"])?;
        trial.expect(code != 0, format!("contracts register took it: {told}"));
        // A relay that knows no id must not publish under another schema's.
        trial.system.program("relay")?.kill()?;
        std::fs::remove_file(trial.system.folder.join("registry-cache-relay.json"))?;
        trial.system.program("relay")?.start()?;
        until("the load goes on", Duration::from_secs(30), async || trial.load.events() > before + 100).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        for permanent in ["false", "true"] {
            client.delete(format!("{url}?permanent={permanent}")).send().await?;
        }
        trial.system.register()?;
        // Ids that were deleted for good do not come back: only the audit says so, and what was published with them.
        trial.audit = (3, " undecodable in topic\n");
        trial.system.kill_and_start("relay").await
    }
    .boxed_local()
}
