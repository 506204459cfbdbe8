//! How late a write is visible while a fault is there: one command after the other, each read until stock shows it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::commands::{Given, WAREHOUSES, parsed, sku};
use crate::journal::Journal;
use crate::load::give_all;
use crate::probe::shows;

const EVERY: Duration = Duration::from_millis(300);

pub struct Lateness {
    /// Milliseconds.
    most: Arc<AtomicU64>,
    over: CancellationToken,
    task: JoinHandle<()>,
}

// === impl Lateness ===

impl Lateness {
    pub fn start(commands: String, queries: String, journal: Arc<Journal>) -> Self {
        let (most, over) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let task = tokio::spawn(measure(commands, queries, journal, most.clone(), over.clone()));
        Self { most, over, task }
    }

    /// Ends between two commands; the longest time from an acknowledgement to an answer that shows it.
    pub async fn finish(self) -> Duration {
        self.over.cancel();
        // It ends by itself; its figure stands whatever became of it.
        let _ = self.task.await;
        Duration::from_millis(self.most.load(Ordering::Relaxed))
    }
}

async fn measure(
    commands: String,
    queries: String,
    journal: Arc<Journal>,
    most: Arc<AtomicU64>,
    over: CancellationToken,
) {
    while !over.is_cancelled() {
        tokio::time::sleep(EVERY).await;
        let command = schemas::Command::ReceiveStock(schemas::command::ReceiveStock {
            sku: sku(1),
            warehouse: parsed(WAREHOUSES[1].0),
            region: None,
            quantity: 1,
        });
        let given = Given { id: Uuid::new_v4(), command };
        let id = given.id;
        if give_all(&commands, vec![given], &journal).await.is_err() {
            continue;
        }
        let outcome = journal.entries().commands.get(&id).and_then(|entry| entry.outcome.clone());
        let Some(position) = outcome.and_then(|outcome| outcome.position) else { continue };
        let begun = Instant::now();
        // One that never shows is the oracle's to find.
        let _ = shows(&queries, &format!("/v1/stock/{}", sku(1)), &position, Duration::from_secs(60)).await;
        most.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}
