//! Projectors: pure folds, and the engine that feeds them from the log into a read model.
//!
//! One worker per partition. The exact-sequence rule, the parking of poison and the resuming from the read model's
//! own checkpoint are here; the atomic, fenced write is the read model's.

mod bound;
mod claim;
pub mod dead_letters;
mod engine;
mod error;
mod event_table;
mod fold;
pub mod generations;
mod history;
mod metrics;
mod observer;
mod projection;
mod refold;
mod search;
mod settings;
mod stock;
mod throttle;
mod whole;
mod worker;
mod write;

pub use dead_letters::DeadLetterMirror;
pub use engine::run_projector;
pub use error::{FoldError, ProjectorError};
pub use generations::{FeedSettings, GenerationStores, OpenGeneration, run_generations};
pub use metrics::describe_metrics;
pub use projection::{Facts, Folded, Projection, contained, fold_event};
pub use search::SearchProjection;
pub use settings::{ProjectorSettings, Role};
pub use stock::StockProjection;
pub use throttle::{Pressure, Throttle, ThrottleSettings};
