//! The outbox relay: every committed event goes to its topic, in order, with a gapless sequence.
//!
//! At least once: after a crash the same events go out again with the same ids and sequences (fault 1), and
//! consumers drop them. The cursor and the counters are saved only after every delivery report of a batch.

mod batch;
mod error;
mod history;
mod metrics;
mod published_rows;
mod reconcile;
mod relay;
mod schema_ids;
mod stamp;
mod topics;

pub use error::RelayError;
pub use metrics::describe_metrics;
pub use published_rows::{ConnectStore, PublishedRows};
pub use reconcile::{Finding, PartitionReport, PublishAgain, ReconcileOptions, ReconcileReport, Step, reconcile};
pub use relay::{Relay, RelaySettings};
pub use topics::{make_topics, stamped_topics, topic_specs};
