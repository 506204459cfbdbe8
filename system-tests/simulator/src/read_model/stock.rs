//! What the query API reads of a simulated stock store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use read_models::stock::{SharedStock, StockAnswer, StockKey, StockRead, StockReadModel, StockReader, StockRow};
use read_models::{PartitionRef, ReadChoice, ReadModelError};
use schemas::{Context, PositionToken, Sku, partition_of};
use tokio::time::Instant;

use super::SimulatedReadModel;
use crate::projection::Modelled;

#[async_trait]
impl<M: Modelled<Key = StockKey, Row = StockRow>> StockReader for SimulatedReadModel<M> {
    async fn stock(&self, skus: &[Sku], choice: &ReadChoice) -> Result<StockRead, ReadModelError> {
        self.at_once("stock", |state| {
            let generation = state.chosen(choice)?;
            let answer = |sku: &Sku| {
                let number = partition_of(sku.as_str().as_bytes(), generation.partitions);
                let partition = PartitionRef { context: Context::Inventory, partition: number };
                let part = state.live_part(generation.number, partition)?;
                let of_sku = part.rows.iter().filter(|(key, _)| key.sku == *sku);
                let mut warehouses: Vec<_> = of_sku.map(|(key, row)| (key.warehouse.clone(), row.clone())).collect();
                warehouses.sort_by(|a, b| a.0.cmp(&b.0));
                let parked = part.parked.values().any(|event| event.key == sku.as_str());
                let position = partition.token(part.checkpoint.position);
                Ok(StockAnswer { sku: sku.clone(), warehouses, position, parked })
            };
            let answers = skus.iter().map(answer).collect::<Result<_, _>>()?;
            Ok(StockRead { generation: generation.number, answers })
        })
        .await
    }

    async fn wait_for(
        &self,
        min: &PositionToken,
        choice: &ReadChoice,
        timeout: Duration,
    ) -> Result<bool, ReadModelError> {
        let deadline = Instant::now() + timeout;
        loop {
            let written = self.server.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            {
                let state = self.server.state();
                if let Ok(generation) = state.chosen(choice) {
                    let is_reached = min.iter().filter(|wanted| M::CONTEXTS.contains(&wanted.context)).all(|wanted| {
                        let at = PartitionRef { context: wanted.context, partition: wanted.partition };
                        let part = state.parts.get(&(generation.number, at));
                        part.is_some_and(|part| part.is_claimed && part.checkpoint.position >= wanted.position)
                    });
                    if is_reached {
                        return Ok(true);
                    }
                }
            }
            if tokio::time::timeout_at(deadline, written).await.is_err() {
                return Ok(false);
            }
        }
    }
}

impl<M: Modelled<Key = StockKey, Row = StockRow>> StockReadModel for SimulatedReadModel<M> {
    fn of_generation(&self, number: u32) -> SharedStock {
        Arc::new(Self { prepared: Arc::default(), bound: Some(number), ..self.clone() })
    }
}
