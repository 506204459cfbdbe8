//! The words on the wire: ids, commands, events, outcomes, their Avro schemas and how they are encoded.
//!
//! No I/O. The `.avsc` files under `schemas/avro` are the source of truth; the Rust types here are held
//! against them by tests. Everything that crosses a process border in Millrace is defined in this crate.

pub mod asyncapi;
pub mod codec;
pub mod command;
pub mod compatibility;
pub mod context;
pub mod contract;
pub mod event;
pub mod id;
pub mod outcome;
pub mod partition;
pub mod position;
mod upcasters;

pub use codec::{CodecError, EncodedEvent, WriterSchema, decode_event, encode_event};
pub use command::{Command, CommandEnvelope, CommandError};
pub use context::Context;
pub use contract::{Contract, ContractKind, SchemaRef};
pub use event::Event;
pub use id::{IdError, ProjectionId, RegionId, ReservationId, Sku, WarehouseId};
pub use outcome::{Outcome, OutcomeKind, Reason};
pub use partition::partition_of;
pub use position::{PartitionPosition, PositionToken, StorePosition, TokenError};
