//! A new generation that is wrong in one field for one region: the comparison names exactly its rows, nothing lets it
//! serve, and a stage that is forced on it is rolled back by its trigger.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::Command;
use schemas::command::ReceiveStock;
use uuid::Uuid;

use super::walk::{PATIENCE, Stages, generation};
use super::{Pace, begin, end};
use crate::commands::{Given, WAREHOUSES, parsed};
use crate::load::give_all;
use crate::oracle::views::{self, StockView};
use crate::process::until;
use crate::system::Deployment;
use crate::trial::Trial;

/// SKUs that the load leaves alone: an event of theirs would mend what is wrong.
const SKUS: usize = 40;
const REGION: &str = "south";
/// A trigger rolls back within so long.
const ROLLED_BACK: Duration = Duration::from_secs(60);

pub async fn replay(trial: &mut Trial<'_>) -> anyhow::Result<()> {
    let pace = Pace::of(trial);
    let given = (0..SKUS).flat_map(|number| WAREHOUSES.map(|(warehouse, region)| delivery(number, warehouse, region)));
    give_all(&trial.system.commands_url(), given.collect(), &trial.journal).await?;
    let mut walk = begin(trial, "stock", Stages::Shipped)?;
    walk.start().await?;
    walk.build().await?;
    // Nobody is ever answered from it.
    walk.notes.noted().folds.remove(&2);
    let deployment = trial.system.deployment.clone();
    until("the new generation has the rows that are to be wrong", PATIENCE * walk.slack, async || {
        views::stock(&deployment, 2).await.is_ok_and(|view| untouched(&view).count() == SKUS * WAREHOUSES.len())
    })
    .await?;
    let altered = alter(&deployment).await.context("rows cannot be altered")?;
    ensure!(!altered.is_empty(), "no row was altered");

    let told = walk.give(&walk.verification()).await?;
    let report = &told.json["report"];
    let differences = report["differences"].as_array().cloned().unwrap_or_default();
    let named: BTreeSet<String> =
        differences.iter().filter_map(|difference| difference["key"].as_str()).map(str::to_owned).collect();
    let only = |difference: &serde_json::Value| {
        difference["fields"] == serde_json::json!(["reserved"]) && difference["live"]["region"] == REGION
    };
    let is_exact = told.code == Some(3)
        && named == altered
        && report["differing"] == altered.len()
        && differences.iter().all(only);
    walk.expect(is_exact, || {
        let (missed, surplus): (Vec<_>, Vec<_>) =
            (altered.difference(&named).take(5).collect(), named.difference(&altered).take(5).collect());
        format!("{} rows are wrong, missed {missed:?}, surplus {surplus:?}: {}", altered.len(), told.explain())
    });
    walk.refused("approve stock --as bob", "parity_differs").await?;
    walk.refused("cutover stock --as ann", "parity_differs").await?;
    walk.refused("cutover stock --as ann --stage tenth --force --reason try", "stage_skipped").await?;

    // Mirrored, nobody is answered from it, and it shows.
    walk.done("cutover stock --as ann --stage mirror --force --reason try").await?;
    let forced = Instant::now();
    let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let (url, mut random) = (trial.system.queries_url(), ChaCha8Rng::seed_from_u64(trial.settings.seed));
    let mut looked = Instant::now();
    loop {
        let name = name(random.random_range(0..SKUS));
        // What it answers is for the mirror to see.
        let _ = http.get(format!("{url}/v1/stock/{name}")).send().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if looked.elapsed() > Duration::from_millis(200) {
            looked = Instant::now();
            let role = walk.look().await.map(|view| generation(&view, 2)["role"].clone());
            if role.is_some_and(|role| role == "beside") {
                break;
            }
            ensure!(forced.elapsed() < PATIENCE, "no trigger rolls it back within {PATIENCE:?}");
        }
    }
    let seconds = forced.elapsed().as_secs_f64();
    walk.expect(forced.elapsed() < ROLLED_BACK, || format!("rolled back after {seconds:.1} s, not within 60 s"));
    walk.refused("cutover stock --as ann", "no_parity").await?;
    walk.done("abort stock@2 --as ann --reason wrong").await?;
    walk.removed(2).await?;
    let told = walk.give("history stock").await?;
    let decisions = told.json["read_models"][0]["decisions"].as_array().cloned().unwrap_or_default();
    let by_trigger =
        |decision: &&serde_json::Value| decision["action"] == "rolled_back" && decision["who"] == "trigger";
    let found = decisions.iter().filter(by_trigger).count();
    walk.expect(found == 1, || format!("the history has {found} rollbacks by a trigger: {decisions:?}"));
    walk.history(&[("started", 1), ("verified", 1), ("stage_entered", 1), ("rolled_back", 1), ("aborted", 1)]).await?;
    trial.violations.extend(walk.unexpected());
    let per_second = pace.per_second(trial);
    end(trial, &walk, StockView::default(), per_second, Some(seconds));
    Ok(())
}

fn name(number: usize) -> String {
    format!("WRONG-{number:03}")
}

fn delivery(number: usize, warehouse: &str, region: &str) -> Given {
    let command = Command::ReceiveStock(ReceiveStock {
        sku: parsed(name(number)),
        warehouse: parsed(warehouse),
        region: Some(parsed(region)),
        quantity: 100,
    });
    Given { id: Uuid::new_v4(), command }
}

/// Rows that the load leaves alone.
fn untouched(view: &StockView) -> impl Iterator<Item = &(String, String)> {
    view.rows.keys().filter(|(sku, _)| sku.starts_with("WRONG-"))
}

/// Makes one unit more reserved in every row of the region in the new generation, in the store itself; the keys as a
/// report names them.
async fn alter(deployment: &Deployment) -> anyhow::Result<BTreeSet<String>> {
    let mut altered = BTreeSet::new();
    match deployment {
        Deployment::Roles { redis, .. } => {
            for url in redis {
                let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
                for key in views::redis_keys(&mut connection, 2).await? {
                    let Some((_, sku)) = key.split_once(":sku:").filter(|(_, sku)| sku.starts_with("WRONG-")) else {
                        continue;
                    };
                    for (warehouse, _) in WAREHOUSES.into_iter().filter(|(_, region)| *region == REGION) {
                        let row: String =
                            redis::cmd("HGET").arg(&key).arg(warehouse).query_async(&mut connection).await?;
                        let mut fields: Vec<&str> = row.split(':').collect();
                        let reserved = (fields.get(2).context("no reserved")?.parse::<i64>()? + 1).to_string();
                        fields[2] = &reserved;
                        let row = fields.join(":");
                        redis::cmd("HSET").arg(&key).arg(warehouse).arg(row).query_async::<()>(&mut connection).await?;
                        altered.insert(format!("{sku} in {warehouse}"));
                    }
                }
            }
        }
        Deployment::Embedded { data } => {
            let file = rusqlite::Connection::open(data.join("stock.db"))?;
            file.busy_timeout(Duration::from_secs(20))?;
            let mut update = file.prepare(
                "UPDATE stock SET reserved = reserved + 1
                 WHERE generation = 2 AND region = ?1 AND sku LIKE 'WRONG-%' RETURNING sku, warehouse",
            )?;
            let mut rows = update.query([REGION])?;
            while let Some(row) = rows.next()? {
                altered.insert(format!("{} in {}", row.get::<_, String>(0)?, row.get::<_, String>(1)?));
            }
        }
    }
    Ok(altered)
}
