//! Where an audit begins that does not begin at the beginning.

use event_store::EventStore;
use schemas::StorePosition;

use crate::error::AuditError;

/// Where the walk begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Behind this place of the event table.
    Position(StorePosition),
    /// At the first event of this time or later, in milliseconds since 1970.
    Time(i64),
}

// === impl Since ===

impl Since {
    /// The place that the walk begins behind.
    pub(crate) async fn place(
        self,
        store: &dyn EventStore,
        relayed: StorePosition,
    ) -> Result<StorePosition, AuditError> {
        let time = match self {
            Since::Position(position) => return Ok(position),
            Since::Time(time) => time,
        };
        // Halves first the transactions, which are all 0 in a file, then the places in the one that is found.
        let xid = self.lowest(store, time, relayed.xid, |xid| StorePosition { xid, position: 0 }).await?;
        let of = |position| StorePosition { xid, position };
        let end = if xid == relayed.xid { relayed.position } else { 0 };
        Ok(of(self.lowest(store, time, end, of).await?))
    }

    /// The highest of 0 to `end` whose next event is older than the time; times rise with places but for clocks.
    async fn lowest(
        self,
        store: &dyn EventStore,
        time: i64,
        end: u64,
        of: impl Fn(u64) -> StorePosition,
    ) -> Result<u64, AuditError> {
        let (mut low, mut high) = (0, end);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let next = store.read_committed(of(middle), 1).await?;
            if next.first().is_some_and(|event| event.time < time) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        Ok(low)
    }
}
