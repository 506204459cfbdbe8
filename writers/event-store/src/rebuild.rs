//! From stored rows to the state of a stream: the newest usable snapshot, then the events after it. Stop 2 of an
//! event's path.

use domain::{STATE_VERSION, State, StreamId};
use schemas::{SchemaRef, StorePosition, WriterSchema, decode_event};

use crate::error::EventStoreError;
use crate::store::LoadedStream;

/// A stored snapshot of this build's state version.
pub struct Snapshot {
    pub version: u64,
    state: State,
}

/// A stored event, as far as its stream's state needs it.
pub struct PastEvent {
    pub version: u64,
    pub position: StorePosition,
    pub schema: SchemaRef,
    pub body: Vec<u8>,
}

/// Snapshots of another state version are passed over: adapters ask for this one only.
pub(crate) const SNAPSHOT_STATE_VERSION: u32 = STATE_VERSION;

// === impl Snapshot ===

impl Snapshot {
    /// A snapshot only spares folding: one that does not read is passed over, and the stream folded from version 1.
    pub fn read(stream: &str, version: u64, body: &[u8]) -> Option<Self> {
        match serde_json::from_slice(body) {
            Ok(state) => Some(Self { version, state }),
            Err(error) => {
                tracing::warn!(stream, version, %error, "snapshot does not read; the stream is folded from its start");
                None
            }
        }
    }
}

/// Folds a stream. `events` are in order and begin with the snapshot's own version, or with version 1 where there
/// is no snapshot: the event at the snapshot's version is not applied again, it tells the position.
pub fn rebuild(
    stream: &StreamId,
    snapshot: Option<Snapshot>,
    events: impl IntoIterator<Item = PastEvent>,
) -> Result<LoadedStream, EventStoreError> {
    let damaged = |problem: String| EventStoreError::Damaged { what: format!("stream {stream}"), problem };
    let context = stream.context().ok_or_else(|| damaged("it belongs to no aggregate".to_owned()))?;
    let (mut state, snapshot_version) = match snapshot {
        Some(snapshot) => (snapshot.state, snapshot.version),
        None => (State::initial(context), 0),
    };
    let mut version = snapshot_version.saturating_sub(1);
    let mut position = None;
    for event in events {
        if event.version != version + 1 {
            return Err(damaged(format!("version {} follows version {version}", event.version)));
        }
        version = event.version;
        position = Some(event.position);
        if version > snapshot_version {
            let at = |problem: String| damaged(format!("version {version}: {problem}"));
            let writer = WriterSchema::of(event.schema).ok_or_else(|| at(format!("{} is unknown", event.schema)))?;
            let event = decode_event(writer, &event.body).map_err(|error| at(error.to_string()))?;
            domain::apply(&mut state, &event);
        }
    }
    if version < snapshot_version {
        return Err(damaged(format!("its snapshot is of version {snapshot_version}, which has no event")));
    }
    Ok(LoadedStream { state, version, position, snapshot_version })
}

/// A stored schema name and version, as one of this build's contracts.
pub(crate) fn stored_schema(name: &str, version: u32) -> Result<SchemaRef, EventStoreError> {
    SchemaRef::find(name, version).ok_or_else(|| EventStoreError::Damaged {
        what: format!("schema {name} v{version}"),
        problem: "this build does not know it: a newer one wrote the event; run that one".to_owned(),
    })
}
