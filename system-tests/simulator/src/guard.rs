//! The guards that can be switched off, one at a time, to see that the checker would notice.

use std::fmt;

use clap::ValueEnum;

/// What keeps an invariant, and lives in a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Guard {
    /// The relay reads below the oldest open transaction only. Off: it reads all that is committed.
    SnapshotHorizon,
    /// The relay's cursor is the pair of transaction id and position. Off: the position alone.
    PairCursor,
    /// The relay's cursor is saved by the newest leader only, and never lowered. Off: whoever saves, saves.
    RelayEpoch,
    /// A write of a superseded owner is refused. Off: the checkpoint alone is compared.
    StoreEpoch,
    /// Effect and checkpoint are one write. Off: the checkpoint first, the rows after it.
    CheckpointInCommit,
    /// A command id is decided once. Off: again each time that it comes.
    CommandId,
    /// The offset of a command topic moves with the events. Off: in a transaction of its own, before them.
    OffsetInTransaction,
    /// A read model is fed by the fold that it was made for. Off: by any.
    GenerationMarker,
}

impl Guard {
    /// All of them, as `--guard-off` names them.
    pub const ALL: [Guard; 8] = [
        Guard::SnapshotHorizon,
        Guard::PairCursor,
        Guard::RelayEpoch,
        Guard::StoreEpoch,
        Guard::CheckpointInCommit,
        Guard::CommandId,
        Guard::OffsetInTransaction,
        Guard::GenerationMarker,
    ];
}

impl fmt::Display for Guard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => formatter.write_str(value.get_name()),
            None => write!(formatter, "{self:?}"),
        }
    }
}
