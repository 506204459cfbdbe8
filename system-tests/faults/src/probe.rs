//! Commands that a scenario gives itself, to see whether all is well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rand::RngExt;
use schemas::command::{ReceiveStock, SetPrice};
use schemas::{Command, PositionToken, Sku, partition_of};
use uuid::Uuid;

use crate::commands::{Given, REGIONS, WAREHOUSES, parsed, sku};
use crate::load::give_all;
use crate::trial::Trial;

// === impl Trial ===

impl Trial<'_> {
    /// Gives one command and reads until both read models show it.
    pub async fn probe(&mut self) -> anyhow::Result<()> {
        let position = self.acknowledged().await?;
        let (url, within) = (self.system.queries_url(), self.settings.settle());
        shows(&url, &format!("/v1/stock/{}", sku(0)), &position, within).await?;
        shows(&url, "/v1/search?limit=1&facets=false", &position, within).await
    }

    /// Gives one command, of the first SKU, and where its event stands.
    pub async fn acknowledged(&mut self) -> anyhow::Result<PositionToken> {
        self.accepted(vec![received(sku(0))]).await
    }

    /// The same in every partition of each event topic: who shows them all is behind nowhere.
    pub async fn acknowledged_everywhere(&mut self) -> anyhow::Result<PositionToken> {
        let partitions = self.plan().partitions;
        let mut first = BTreeMap::new();
        for sku in (0..self.plan().skus).map(sku) {
            first.entry(partition_of(sku.as_str().as_bytes(), partitions)).or_insert(sku);
        }
        ensure!(first.len() == partitions as usize, "{} SKUs leave a partition empty", self.plan().skus);
        let priced = |sku| {
            Command::SetPrice(SetPrice {
                sku,
                region: parsed(REGIONS[0]),
                currency: "EUR".to_owned(),
                // No price of the load, so it changes something.
                amount_minor: 5_000 + rand::rng().random_range(0..1_000_000),
            })
        };
        self.accepted(first.into_values().flat_map(|sku| [received(sku.clone()), priced(sku)]).collect()).await
    }

    /// Gives commands that nobody refuses, and where their events stand.
    async fn accepted(&mut self, commands: Vec<Command>) -> anyhow::Result<PositionToken> {
        let given: Vec<Given> = commands.into_iter().map(|command| Given { id: Uuid::new_v4(), command }).collect();
        give_all(&self.system.commands_url(), given.clone(), &self.journal).await?;
        let (mut position, entries) = (PositionToken::default(), self.journal.entries());
        for Given { id, .. } in given {
            let outcome = entries.commands.get(&id).and_then(|entry| entry.outcome.as_ref());
            position.merge(outcome.and_then(|outcome| outcome.position.as_ref()).context("a probe was not accepted")?);
        }
        Ok(position)
    }
}

/// Reads until an answer is true at a position.
pub async fn shows(url: &str, path: &str, position: &PositionToken, within: Duration) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(8)).build()?;
    let begun = Instant::now();
    loop {
        let request = client.get(format!("{url}{path}")).header("Millrace-Min-Position", position.to_string());
        let told = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > within {
            bail!("{path} does not show {position} within {within:?}: {told}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn received(sku: Sku) -> Command {
    let warehouse = parsed(WAREHOUSES[0].0);
    Command::ReceiveStock(ReceiveStock { sku, warehouse, region: None, quantity: 1 })
}
