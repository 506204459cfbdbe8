//! Faults 7, 8, 11, 16, 17 and 18: who folds, and what into.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use schemas::partition_of;
use serde_json::{Value, json};
use uuid::Uuid;

use super::relay::{insert, insert_body};
use crate::process::until;
use crate::proxy::Mode;
use crate::scenario::{On, Scenario};
use crate::system::{Deployment, Reach};
use crate::trial::Trial;

/// Past the session of a silent member of a group, 10 s.
const PAST_SESSION: Duration = Duration::from_secs(13);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(7, "rebalances in the middle of batches", rebalances),
        Scenario::new(8, "a stock projector frozen past its session, then woken", frozen_stock),
        Scenario::new(8, "the search projector frozen past its session, then woken", frozen_search).variant("search"),
        Scenario::new(9, "one node of the Redis Cluster after the other killed", cluster_node_killed)
            .variant("cluster")
            .on(On::Servers(Reach::Cluster, 1)),
        Scenario::new(11, "events that cannot be decoded or folded", poison),
        Scenario::new(16, "a slow read model", slow_read_model).on(On::Servers(Reach::Proxied, 1)),
        Scenario::new(17, "search killed in a commit, a segment damaged", index_damaged),
        Scenario::new(17, "the same, one process on files", index_damaged).variant("files").on(On::Files),
        Scenario::new(18, "the network to Redis cut, swallowing, slow", redis_unreachable)
            .variant("network")
            .on(On::Servers(Reach::Proxied, 1)),
        Scenario::new(18, "one read model fails, the other does not", one_read_model_fails),
    ]
}

/// Members come, leave in order, and are killed.
fn rebalances<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for round in 0..3 {
            trial.add("stock-2", "stock", &[]).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            trial.add("stock-3", "stock", &[]).await?;
            if round == 1 {
                trial.system.kill_and_start("stock").await?;
            } else {
                trial.system.program("stock")?.stop("TERM", Duration::from_secs(10)).await?;
                trial.system.start("stock").await?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            trial.system.remove("stock-2")?;
            trial.system.program("stock-3")?.stop("TERM", Duration::from_secs(10)).await?;
            trial.system.remove("stock-3")?;
        }
        Ok(())
    }
    .boxed_local()
}

fn frozen_stock<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.add("stock-2", "stock", &[]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        trial.system.program("stock")?.signal("STOP")?;
        tokio::time::sleep(PAST_SESSION).await;
        trial.probe().await.context("the other projector does not take over from the frozen one")?;
        trial.system.program("stock")?.signal("CONT")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // It comes back as a member, or nobody folds what it thinks is its own.
        trial.system.ready("stock").await
    }
    .boxed_local()
}

/// Another one waits for the directory: it takes over, with a build of its own, and the frozen one ends when it wakes.
fn frozen_search<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.system.add("search-2", "search", &["--search-frozen-after", "10s"])?;
        trial.counters.also(trial.system.url("search-2"));
        trial.system.logged("search-2", "search directory", Duration::from_secs(20)).await?;
        trial.system.program("search")?.signal("STOP")?;
        tokio::time::sleep(PAST_SESSION).await;
        let told = trial.system.readiness("serve").await;
        trial.expect(trial.system.is_ready("serve").await, format!("the query API is not ready: {told}"));
        trial.system.ready("search-2").await.context("the other search projector does not take over")?;
        trial.probe().await.context("with the first search projector frozen")?;

        trial.system.program("search")?.signal("CONT")?;
        trial.system.ends("search", "replaced by a newer build", Duration::from_secs(30)).await?;
        trial.probe().await.context("after the first one woke")
    }
    .boxed_local()
}

/// Redis frozen: search goes on. Then the search projector frozen: stock goes on.
fn one_read_model_fails<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.servers.redis.program.signal("STOP")?;
        let position = trial.acknowledged().await?;
        let url = trial.system.queries_url();
        let search = "/v1/search?limit=1&facets=false";
        let shown = crate::probe::shows(&url, search, &position, Duration::from_secs(15)).await;
        trial.servers.redis.program.signal("CONT")?;
        shown.context("Redis is frozen and the search stands still with it")?;
        trial.probe().await?;

        trial.system.program("search")?.signal("STOP")?;
        let position = trial.acknowledged().await?;
        let stock = format!("/v1/stock/{}", crate::commands::sku(0));
        let shown = crate::probe::shows(&url, &stock, &position, Duration::from_secs(15)).await;
        trial.system.program("search")?.signal("CONT")?;
        shown.context("the search projector is frozen and stock stands still with it")?;

        // And one that is gone.
        trial.system.program("search")?.kill()?;
        let position = trial.acknowledged().await?;
        crate::probe::shows(&url, &stock, &position, Duration::from_secs(15)).await?;
        trial.system.start("search").await
    }
    .boxed_local()
}

/// Poison of two kinds, each followed by good events of its key: the keys stay at their last good state and say so. Then
/// so much of it that it must be a mistake.
fn poison<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let client = trial.servers.postgres.connect().await?;
        for sku in ["POISON-A", "POISON-B"] {
            trial.made.insert(insert(&client, sku, 1, 10, 2).await?);
        }
        let unreadable = insert_body(&client, "POISON-A", 2, &[0xff; 7]).await?;
        trial.made.insert(unreadable);
        trial.made.insert(insert(&client, "POISON-B", 2, 3, 5).await?);
        for sku in ["POISON-A", "POISON-B"] {
            trial.made.insert(insert(&client, sku, 3, 30, 3).await?);
        }
        let url = trial.system.queries_url();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        for sku in ["POISON-A", "POISON-B"] {
            let address = format!("{url}/v1/stock/{sku}");
            until(&format!("{sku} says that it is parked"), Duration::from_secs(30), async || {
                let Ok(answer) = http.get(&address).send().await else { return false };
                let stock: Value = answer.json().await.unwrap_or_default();
                stock["parked"] == true && stock["total"] == json!({"on_hand": 10, "reserved": 2, "available": 8})
            })
            .await?;
        }
        trial.probe().await.context("others do not go on")?;
        let status: Value = http.get(format!("{url}/v1/status")).send().await?.json().await?;
        let parked: Vec<u64> = status["projections"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|projection| projection["parked_keys"].as_u64())
            .collect();
        trial.expect(parked == [2, 2], format!("two keys are poisoned, the status speaks of {parked:?}"));
        remedy(trial, unreadable).await?;

        // More keys of one partition than a projector may park.
        trial.system.remove("stock")?;
        trial.system.add_at_same_address("stock", &["--parked-keys-limit", "3"])?;
        trial.system.ready("stock").await?;
        let partitions = trial.plan().partitions;
        let home = partition_of(b"MASS-0", partitions);
        let mass =
            (0..).map(|number| format!("MASS-{number}")).filter(|sku| partition_of(sku.as_bytes(), partitions) == home);
        for sku in mass.take(6) {
            trial.made.insert(insert_body(&client, &sku, 1, &[0xff; 7]).await?);
        }
        trial.system.complains("stock", "park", Duration::from_secs(30)).await.context("mass parking does not halt")?;
        trial.system.remove("stock")?;
        trial.system.add_at_same_address("stock", &[])?;
        trial.system.ready("stock").await
    }
    .boxed_local()
}

/// What the runbook says: nothing is mended, so a redrive leaves everything where it is; then the one event that is
/// wrong for good is discarded, and what waited behind it is folded.
async fn remedy(trial: &mut Trial<'_>, unreadable: Uuid) -> anyhow::Result<()> {
    let url = trial.system.queries_url();
    let (code, told) = trial.system.run(&["dead-letters", "redrive", "--all", "--url", &url])?;
    trial.expect(code == 3, format!("a redrive of events that nothing can read ends with exit code {code}: {told}"));
    let discard = ["dead-letters", "discard", "POISON-A", "--first", "--reason", "seven bytes", "--url", &url];
    let (code, told) = trial.system.run(&discard)?;
    ensure!(matches!(code, 0 | 3), "dead-letters discard ends with exit code {code}: {told}");
    trial.discarded.insert(unreadable);
    let (code, told) = trial.system.run(&["dead-letters", "redrive", "POISON-A", "--url", &url])?;
    ensure!(code == 0, "dead-letters redrive ends with exit code {code}: {told}");
    let address = format!("{url}/v1/stock/POISON-A");
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    until("POISON-A is level after the redrive", Duration::from_secs(30), async || {
        let Ok(answer) = http.get(&address).send().await else { return false };
        let stock: Value = answer.json().await.unwrap_or_default();
        stock["parked"] != true && stock["total"] == json!({"on_hand": 30, "reserved": 3, "available": 27})
    })
    .await
}

/// Each round trip to Redis takes long.
fn slow_read_model<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        // A bound that this load reaches.
        let bound = (trial.plan().events / 20).max(1).to_string();
        trial.system.remove("stock")?;
        trial.system.add_at_same_address("stock", &["--not-ready-behind", &bound])?;
        trial.system.ready("stock").await?;
        // The session of the killed one has ended then, and this one folds.
        trial.probe().await?;
        trial.servers.redis.proxy.set(Mode::Delay(Duration::from_millis(1_500)));
        let mut most = 0;
        let (mut seen_lag, mut told) = (false, false);
        let url = trial.system.queries_url();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_secs(12) {
            let pid = trial.system.program("stock")?.pid().unwrap_or(0);
            most = most.max(resident_megabytes(pid));
            told |= !trial.system.is_ready("stock").await;
            seen_lag |= trial.system.metric("stock", "millrace_projection_lag_events").await > 0.0;
            if let Ok(answer) = http.get(format!("{url}/v1/status")).send().await {
                let status: Value = answer.json().await.unwrap_or_default();
                seen_lag |= status["projections"][0]["lag_events"].as_u64().unwrap_or(0) > 0;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        trial.servers.redis.proxy.pass();
        trial.expect(most < 400, format!("the projector of a slow store grew to {most} MB"));
        trial.expect(seen_lag, "the store is slow and no lag shows");
        trial.expect(
            told,
            format!("the stock is more than {bound} events behind and the projector says that it is ready"),
        );
        Ok(())
    }
    .boxed_local()
}

fn resident_megabytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Killed right when a commit appears, again and again; then a byte of a segment is flipped.
fn index_damaged<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let (name, folder) = match &trial.system.deployment {
            Deployment::Embedded { data } => ("up", data.join("search")),
            Deployment::Roles { .. } => ("search", trial.system.folder.join("search")),
        };
        let index = index_in(&folder);
        for _ in 0..6 {
            let before = newest(&index);
            // The group of the topics waits 10 s for each member that was killed, one after the other where a process was
            // killed while it waited to join.
            until("a commit is under way", Duration::from_secs(60), async || newest(&index) != before).await?;
            trial.system.kill_and_start(name).await?;
        }
        trial.probe().await?;
        for name in [name, "serve"] {
            if trial.system.names().iter().any(|known| known == name) {
                trial.system.program(name)?.kill()?;
            }
        }
        flip_a_byte(&index)?;
        trial.system.start(name).await?;
        if name != "up" {
            trial.system.start("serve").await?;
        }
        Ok(())
    }
    .boxed_local()
}

/// Of the build that is read.
pub(super) fn index_in(folder: &Path) -> PathBuf {
    let build = std::fs::read_to_string(folder.join("CURRENT")).unwrap_or_default();
    folder.join("builds").join(build.trim_end()).join("index")
}

fn newest(folder: &Path) -> Option<std::time::SystemTime> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(Result::ok);
    files.filter_map(|file| file.metadata().ok()?.modified().ok()).max()
}

/// In the middle of the largest segment file.
pub(super) fn flip_a_byte(folder: &Path) -> anyhow::Result<()> {
    let files = std::fs::read_dir(folder)?.filter_map(Result::ok).map(|file| file.path());
    let segments = files.filter(|path| path.extension().is_some_and(|kind| kind != "json" && kind != "lock"));
    let largest = segments.max_by_key(|path| path.metadata().map_or(0, |file| file.len()));
    let largest = largest.context("the index has no segment")?;
    let mut bytes = std::fs::read(&largest)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    Ok(std::fs::write(largest, bytes)?)
}

/// Redis cannot be reached, then swallows everything, then is slow.
fn redis_unreachable<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for mode in [Mode::Cut, Mode::Swallow, Mode::Delay(Duration::from_millis(100))] {
            trial.servers.redis.proxy.set(mode);
            tokio::time::sleep(Duration::from_secs(4)).await;
            trial.servers.redis.proxy.pass();
            trial.probe().await.with_context(|| format!("after {mode:?}"))?;
        }
        Ok(())
    }
    .boxed_local()
}

/// One node of the Cluster after the other.
fn cluster_node_killed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for number in 0..3 {
            let cluster = trial.servers.cluster.as_mut().context("there is no Redis Cluster")?;
            cluster.nodes[number].program.kill()?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            cluster.start().await?;
            trial.probe().await?;
        }
        Ok(())
    }
    .boxed_local()
}
