//! What an operator may find spoilt in the stores themselves, none of the 28 faults: rows and a checkpoint that somebody
//! removed or changed, an older copy of the event log, a byte of the search index. The audit or a process names each,
//! and what docs/operations.md says brings it back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use schemas::Command;
use schemas::command::ReceiveStock;
use uuid::Uuid;

use super::log::{NOTICED, reconcile};
use super::projectors::{flip_a_byte, index_in};
use crate::commands::{Given, WAREHOUSES, parsed};
use crate::load::give_all;
use crate::oracle::views;
use crate::scenario::{On, Scenario};
use crate::servers::redis::copy;
use crate::system::Deployment;
use crate::trial::Trial;

/// SKUs that the load leaves alone: an event of theirs would mend what is wrong.
const DELETED: &str = "DAMAGED-DELETED";
const ALTERED: &str = "DAMAGED-ALTERED";
/// The partition whose checkpoint goes.
const PARTITION: u32 = 0;
/// Tries until a damaged file of the index is one that is still read.
const FLIPS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(0, "rows, a checkpoint, the log, the index damaged by hand", damaged)
            .variant("damages-servers")
            .without_topic_commands()
            .within(420),
        Scenario::new(0, "the same, one process on files", damaged)
            .variant("damages-files")
            .on(On::Files)
            .without_topic_commands()
            .within(420),
    ]
}

fn damaged<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let older = older_log(trial).await.context("the log is not copied")?;
        for sku in [DELETED, ALTERED] {
            let given = WAREHOUSES.map(|(warehouse, region)| delivery(sku, warehouse, region));
            give_all(&trial.system.commands_url(), given.to_vec(), &trial.journal).await?;
        }
        trial.probe().await?;

        delete_rows(&trial.system.deployment).await.context("no row can be deleted")?;
        must_be_named(trial, "missing", "stock", DELETED).await?;
        fold_anew(trial, DELETED).await?;
        alter_a_row(&trial.system.deployment).await.context("no row can be altered")?;
        must_be_named(trial, "altered", "stock", ALTERED).await?;
        fold_anew(trial, ALTERED).await?;

        delete_checkpoint(&trial.system.deployment).await.context("no checkpoint can be deleted")?;
        trial.probe().await.context("without a checkpoint")?;

        put_back(trial, older).await.context("an older log")?;
        trial.probe().await.context("after an older log")?;

        let (name, folder) = match &trial.system.deployment {
            Deployment::Embedded { data } => ("up", data.join("search")),
            Deployment::Roles { .. } => ("search", trial.system.folder.join("search")),
        };
        let index = index_in(&folder);
        // While events come, a merge may take the file away before anybody reads it.
        let mut is_named = false;
        for _ in 0..FLIPS {
            flip_a_byte(&index)?;
            is_named = named(trial, "altered", "index", "").await?.0;
            if is_named {
                break;
            }
        }
        trial.expect(is_named, format!("{FLIPS} files of the index were damaged, and the audit names none"));
        trial.system.program(name)?.stop("TERM", Duration::from_secs(20)).await?;
        std::fs::remove_dir_all(&index)?;
        trial.system.start(name).await
    }
    .boxed_local()
}

fn delivery(sku: &str, warehouse: &str, region: &str) -> Given {
    let command = Command::ReceiveStock(ReceiveStock {
        sku: parsed(sku),
        warehouse: parsed(warehouse),
        region: Some(parsed(region)),
        quantity: 100,
    });
    Given { id: Uuid::new_v4(), command }
}

/// Whether the audit ends with 3, and says what of which key where.
async fn named(trial: &Trial<'_>, kind: &str, place: &str, what: &str) -> anyhow::Result<(bool, String)> {
    let told = trial.system.operator().run(&["audit", "--json", "--show", "1000"]).await?;
    let differences = told.json["differences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_named = differences.iter().any(|difference| {
        difference["kind"] == kind
            && difference["place"] == place
            && difference["what"].as_str().is_some_and(|named| named.contains(what))
    });
    Ok((told.code == Some(3) && is_named, told.explain()))
}

async fn must_be_named(trial: &mut Trial<'_>, kind: &str, place: &str, what: &str) -> anyhow::Result<()> {
    let (is_named, told) = named(trial, kind, place, what).await?;
    trial.expect(is_named, format!("no {kind} {what} in {place}: {told}"));
    Ok(())
}

/// The remedy for single keys: while they serve.
async fn fold_anew(trial: &mut Trial<'_>, sku: &str) -> anyhow::Result<()> {
    let operator = trial.system.operator();
    let start = ["replay", "start", "stock", "--as", "ann", "--reason", "damaged", "--into-live", "--sku", sku];
    let told = operator.run(&start).await?;
    ensure!(told.code == Some(0), "{}", told.explain());
    let told = operator.run(&["audit"]).await?;
    trial.expect(told.code == Some(0), format!("{sku} was folded anew: {}", told.explain()));
    Ok(())
}

/// All of one SKU.
async fn delete_rows(deployment: &Deployment) -> anyhow::Result<()> {
    match deployment {
        Deployment::Roles { redis, .. } => {
            let (mut connection, key) = redis_key(redis, &format!(":sku:{DELETED}")).await?;
            redis::cmd("DEL").arg(key).query_async::<()>(&mut connection).await?;
        }
        Deployment::Embedded { data } => {
            change(data, "DELETE FROM stock WHERE generation = 1 AND sku = ?1", [DELETED], WAREHOUSES.len())?;
        }
    }
    Ok(())
}

/// One more on hand.
async fn alter_a_row(deployment: &Deployment) -> anyhow::Result<()> {
    let (warehouse, _) = WAREHOUSES[0];
    match deployment {
        Deployment::Roles { redis, .. } => {
            let (mut connection, key) = redis_key(redis, &format!(":sku:{ALTERED}")).await?;
            let row: String = redis::cmd("HGET").arg(&key).arg(warehouse).query_async(&mut connection).await?;
            let mut fields: Vec<String> = row.split(':').map(str::to_owned).collect();
            let on_hand = fields.get_mut(1).context("no quantity")?;
            *on_hand = (on_hand.parse::<i64>()? + 1).to_string();
            let row = fields.join(":");
            redis::cmd("HSET").arg(&key).arg(warehouse).arg(row).query_async::<()>(&mut connection).await?;
        }
        Deployment::Embedded { data } => {
            let update = "UPDATE stock SET on_hand = on_hand + 1 WHERE generation = 1 AND sku = ?1 AND warehouse = ?2";
            change(data, update, [ALTERED, warehouse], 1)?;
        }
    }
    Ok(())
}

async fn delete_checkpoint(deployment: &Deployment) -> anyhow::Result<()> {
    match deployment {
        Deployment::Roles { redis, .. } => {
            let (mut connection, key) = redis_key(redis, &format!(":{PARTITION}}}:state")).await?;
            redis::cmd("DEL").arg(key).query_async::<()>(&mut connection).await?;
        }
        Deployment::Embedded { data } => {
            let delete = "DELETE FROM checkpoints WHERE generation = 1 AND context = 'inventory' AND partition = ?1";
            change(data, delete, [PARTITION], 1)?;
        }
    }
    Ok(())
}

/// The only key that ends so, and a connection to who has it.
async fn redis_key(urls: &[String], end: &str) -> anyhow::Result<(redis::aio::MultiplexedConnection, String)> {
    for url in urls {
        let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
        let keys = views::redis_keys(&mut connection, 1).await?;
        if let Some(key) = keys.into_iter().find(|key| key.ends_with(end)) {
            return Ok((connection, key));
        }
    }
    bail!("no key ends with {end:?}")
}

/// Just so many rows.
fn change(data: &Path, sql: &str, of: impl rusqlite::Params, rows: usize) -> anyhow::Result<()> {
    let file = rusqlite::Connection::open(data.join("stock.db"))?;
    file.busy_timeout(Duration::from_secs(20))?;
    let changed = file.execute(sql, of)?;
    ensure!(changed == rows, "{changed} rows changed, not {rows}");
    Ok(())
}

/// The event log as it is now, aside.
async fn older_log(trial: &mut Trial<'_>) -> anyhow::Result<PathBuf> {
    let aside = trial.system.folder.join("older-log");
    match trial.system.deployment.clone() {
        Deployment::Roles { .. } => {
            let broker = &mut trial.servers.kafka.brokers[0];
            broker.program.stop("TERM", PATIENCE).await?;
            copy(&broker.data, &aside)?;
            trial.servers.kafka.start().await?;
        }
        Deployment::Embedded { data } => {
            trial.system.program("up")?.stop("TERM", Duration::from_secs(20)).await?;
            std::fs::copy(data.join("log.db"), &aside)?;
            trial.system.start("up").await?;
        }
    }
    Ok(aside)
}

/// A backup of the log that is older than what was published: it is noticed, and what is missing is published again.
async fn put_back(trial: &mut Trial<'_>, older: PathBuf) -> anyhow::Result<()> {
    match trial.system.deployment.clone() {
        Deployment::Roles { .. } => {
            let broker = &mut trial.servers.kafka.brokers[0];
            broker.program.kill()?;
            std::fs::remove_dir_all(&broker.data)?;
            copy(&older, &broker.data)?;
            trial.servers.kafka.start().await?;
            trial.system.complains("relay", "reconcile", NOTICED).await.context("it is not noticed")?;
            reconcile(trial, &[]).await
        }
        Deployment::Embedded { data } => {
            trial.system.program("up")?.kill()?;
            for file in ["log.db-wal", "log.db-shm"] {
                // There is none after an orderly end.
                let _ = std::fs::remove_file(data.join(file));
            }
            std::fs::copy(&older, data.join("log.db"))?;
            trial.system.program("up")?.start()?;
            trial.system.complains("up", "reconcile", NOTICED).await.context("it is not noticed")?;
            trial.system.program("up")?.kill()?;
            let (code, told) = trial.system.run(&["relay", "reconcile"])?;
            ensure!(code == 0, "relay reconcile: exit code {code}: {told}");
            trial.system.start("up").await
        }
    }
}
