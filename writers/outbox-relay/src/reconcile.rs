//! Brings event table, topics and cursor level again after one of them lost a part of its past.
//!
//! Sequences follow from the stored order alone, so a walk over the event table says which event belongs at each
//! sequence of each partition, and a walk over the topics which of them are there. From that:
//! - the cursor belongs before the first event that is not on its topic; the relay then publishes from there, with the
//!   same ids and sequences, and consumers drop what they have (faults 1, 6, 21, and 19 when asked to);
//! - events that only the topic has are facts that consumers have seen: they go back into the event table, at their
//!   places, if nothing new was appended since (fault 22);
//! - a sequence that stands for two events means two histories: nothing is changed, and the report says where.
//!
//! Memory: nine bytes for each event of the table, and the records that only the topics have.

mod log_walk;
mod report;
mod restore;
mod table_walk;

use std::time::Duration;

use event_log::{EventLog, SchemaRegistry};
use event_store::{EventStore, RelayCursor, RestoredRows, StoredEvent, Topology};

use self::log_walk::LogWalk;
pub use self::report::{Finding, PartitionReport, ReconcileReport};
use self::table_walk::TableFingerprints;
use crate::error::RelayError;

/// How long to wait for the lead.
const LEAD_WITHIN: Duration = Duration::from_secs(10);

/// What to publish again of that which retention removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishAgain {
    /// Nothing: that it is gone from the topics is as it should be.
    NotWhatRetentionRemoved,
    /// All from this sequence of each partition on, for a read model that needs it (fault 19).
    From(u64),
}

#[derive(Debug, Clone, Copy)]
pub struct ReconcileOptions {
    pub again: PublishAgain,
    /// Put events back that only the topics have.
    pub restore: bool,
    /// Change nothing.
    pub dry_run: bool,
}

/// What is being worked on, for whoever waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Rows of the event table.
    Table,
    /// Records of the topics.
    Log,
}

/// Compares, and repairs unless it is a dry run. `also` gives what restored events stand for beside their rows.
/// `progress` hears how many rows or records were taken.
pub async fn reconcile(
    store: &dyn EventStore,
    log: &dyn EventLog,
    registry: &dyn SchemaRegistry,
    topology: Topology,
    options: ReconcileOptions,
    also: impl Fn(Vec<StoredEvent>) -> Result<RestoredRows, String>,
    mut progress: impl FnMut(Step, u64),
) -> Result<ReconcileReport, RelayError> {
    let lease = match tokio::time::timeout(LEAD_WITHIN, store.lease_relay()).await {
        Ok(lease) => lease?,
        Err(_) => return Err(RelayError::AnotherLeads),
    };
    let mut restored = 0;
    let mut compared = compare(store, log, topology, &lease.cursor, options, &mut progress).await?;
    if compared.report.finding == Finding::TableIsBehind && options.restore && !options.dry_run {
        let rows = restore::rows(registry, &compared.table, &compared.log).await?;
        restored = rows.len() as u64;
        let rows = restore::with_events(store, also(rows).map_err(|problem| RelayError::NotRead { problem })?).await?;
        // Reading the topics took its time: what a writer appended meanwhile stands where the rows belong.
        store.restore(&RestoredRows { behind: Some(compared.table.end), ..rows }).await?;
        compared = compare(store, log, topology, &lease.cursor, options, &mut progress).await?;
    }
    let Compared { mut report, cursor, .. } = compared;
    let is_repairable = matches!(report.finding, Finding::Level | Finding::LogIsBehind);
    if is_repairable && !options.dry_run && cursor != lease.cursor {
        store.reset_cursor(lease.epoch, &cursor).await?;
    }
    report.restored_events = restored;
    report.repaired = !options.dry_run && is_repairable && (restored > 0 || report.finding == Finding::LogIsBehind);
    store.release_relay().await?;
    Ok(report)
}

struct Compared {
    table: TableFingerprints,
    log: LogWalk,
    report: ReconcileReport,
    /// Where the relay should go on.
    cursor: RelayCursor,
}

async fn compare(
    store: &dyn EventStore,
    log: &dyn EventLog,
    topology: Topology,
    saved: &RelayCursor,
    options: ReconcileOptions,
    progress: &mut impl FnMut(Step, u64),
) -> Result<Compared, RelayError> {
    let table = TableFingerprints::walk(store, topology, |rows| progress(Step::Table, rows)).await?;
    let log = LogWalk::walk(log, topology, &table, |records| progress(Step::Log, records)).await?;
    let cursor = table_walk::cursor_before_first(store, topology, |partition, sequence| {
        !log.has(partition, sequence, saved, options.again)
    })
    .await?;
    let report = report::report(&table, &log, saved, &cursor, options.again);
    Ok(Compared { table, log, report, cursor })
}
