//! Names of the keys. All keys of a partition of a generation carry one hash tag, so that they live on one server of a
//! Cluster and one function call can change them together; so do their data, checkpoint and epoch get lost together.

use schemas::Sku;

use crate::checkpoint::PartitionRef;
use crate::stock::NAME;

/// The hash of all generations: number to how it is built, or to the mark of a retired one; `serving` to the number
/// that answers what no stage gives to another; `catalogue` to the catalogue, with `catalogue_id` and
/// `catalogue_version`.
pub(super) fn generations(prefix: &str) -> String {
    format!("{prefix}:{{{NAME}}}:generations")
}

/// List of the catalogue's decisions, from the first one on.
pub(super) fn decisions(prefix: &str) -> String {
    format!("{prefix}:{{{NAME}}}:decisions")
}

/// Number of the last decision that is published.
pub(super) fn published(prefix: &str) -> String {
    format!("{prefix}:{{{NAME}}}:published")
}

/// Hash: serving process to its last report.
pub(super) fn reads(prefix: &str) -> String {
    format!("{prefix}:{{{NAME}}}:reads")
}

/// What the keys of all partitions of a generation begin with.
pub(super) fn generation(prefix: &str, number: u32) -> String {
    format!("{prefix}:{{{NAME}@{number}:")
}

/// The keys of one partition of one generation.
pub(super) struct PartitionKeys {
    stem: String,
}

impl PartitionKeys {
    pub(super) fn new(prefix: &str, generation: u32, at: PartitionRef) -> Self {
        Self { stem: format!("{prefix}:{{{NAME}@{generation}:{}:{}}}", at.context.as_str(), at.partition) }
    }

    /// Hash: epoch, checkpoint, live, how the generation is built.
    pub(super) fn state(&self) -> String {
        format!("{}:state", self.stem)
    }

    /// Hash: the log's end as last seen.
    pub(super) fn head(&self) -> String {
        format!("{}:head", self.stem)
    }

    /// Sorted set of the places of parked events, all of score 0: sorted by their bytes.
    pub(super) fn parked_order(&self) -> String {
        format!("{}:parked-order", self.stem)
    }

    /// Hash: place to parked event.
    pub(super) fn parked_events(&self) -> String {
        format!("{}:parked-events", self.stem)
    }

    /// Hash: parked key to its number of events.
    pub(super) fn parked_keys(&self) -> String {
        format!("{}:parked-keys", self.stem)
    }

    /// Sorted set of `key NUL place` of parked events, all of score 0: each key's queue.
    pub(super) fn parked_by_key(&self) -> String {
        format!("{}:parked-by-key", self.stem)
    }

    /// Sorted set of the places of discarded events, all of score 0.
    pub(super) fn discarded_order(&self) -> String {
        format!("{}:discarded-order", self.stem)
    }

    /// Hash: place to discarded event, its note before it.
    pub(super) fn discarded_events(&self) -> String {
        format!("{}:discarded-events", self.stem)
    }

    /// Hash: id to request that waits.
    pub(super) fn requests(&self) -> String {
        format!("{}:requests", self.stem)
    }

    /// List of answers, the newest first.
    pub(super) fn answers(&self) -> String {
        format!("{}:answers", self.stem)
    }

    /// What the keys of all SKUs of the partition begin with.
    pub(super) fn skus(&self) -> String {
        format!("{}:sku:", self.stem)
    }

    /// Hash: warehouse to row.
    pub(super) fn sku(&self, sku: &Sku) -> String {
        format!("{}:sku:{}", self.stem, sku.as_str())
    }
}
