//! What a group is made of: commands, and records that are none.

use event_store::{DecidedCommand, RecordIdentity, StreamId, Timer};
use schemas::{CommandEnvelope, Context, Outcome};
use uuid::Uuid;

use super::decide::is_reused;
use crate::handler::RecordCommand;

/// One thing to decide.
pub(crate) struct Work {
    pub(super) item: Item,
    /// The record that it came by.
    pub(super) record: Option<Origin>,
    /// Timer that gave the command.
    pub(super) timer: Option<Timer>,
}

/// A record of a command topic.
pub(super) struct Origin {
    /// On whose outcome topic the outcome goes out.
    pub(super) context: Context,
    pub(super) identity: RecordIdentity,
    /// Derived from its place.
    pub(super) place_id: Uuid,
}

pub(super) enum Item {
    Command { envelope: Box<CommandEnvelope>, digest: [u8; 32] },
    Unreadable { place_id: Uuid, command_id: Uuid, key: String, code: &'static str, problem: String, received_at: i64 },
}

// === impl Work ===

impl Work {
    pub(crate) fn from_http(envelope: CommandEnvelope) -> Self {
        Self { item: Item::command(envelope), record: None, timer: None }
    }

    pub(crate) fn from_timer(envelope: CommandEnvelope, timer: Timer) -> Self {
        Self { item: Item::command(envelope), record: None, timer: Some(timer) }
    }

    pub(crate) fn from_record(context: Context, identity: RecordIdentity, command: RecordCommand) -> Self {
        let (item, place_id) = match command {
            RecordCommand::Command { envelope, place_id } => (Item::command(*envelope), place_id),
            RecordCommand::Unreadable { place_id, command_id, key, code, problem, received_at } => {
                (Item::Unreadable { place_id, command_id, key, code, problem, received_at }, place_id)
            }
        };
        Self { item, record: Some(Origin { context, identity, place_id }), timer: None }
    }

    /// The refusal of a record whose command id stands for another command: stored under the record's place, so that
    /// its outcome goes out. `None` where nobody reads outcome topics.
    pub(super) fn reused(&self, outcome: &Outcome) -> Option<DecidedCommand> {
        let (Some(record), Item::Command { envelope, .. }) = (&self.record, &self.item) else { return None };
        is_reused(outcome).then(|| {
            let key = envelope.command.key();
            let mut command = unreadable(record.place_id, key, outcome.clone(), envelope.received_at);
            command.publish_outcome_on = Some(record.context);
            command.command_type = Some(envelope.command.command_type().to_owned());
            command
        })
    }

    pub(super) fn id(&self) -> Uuid {
        match &self.item {
            Item::Command { envelope, .. } => envelope.id,
            Item::Unreadable { place_id, .. } => *place_id,
        }
    }
}

impl Item {
    fn command(envelope: CommandEnvelope) -> Self {
        let digest = envelope.command.digest();
        Item::Command { envelope: Box::new(envelope), digest }
    }
}

pub(super) fn unreadable(id: Uuid, key: &str, outcome: Outcome, received_at: i64) -> DecidedCommand {
    DecidedCommand {
        id,
        digest: [0; 32],
        received_at,
        stream: StreamId::outcome(id),
        expected_version: 0,
        outcome,
        events: Vec::new(),
        claims: Vec::new(),
        timers: Vec::new(),
        snapshot: None,
        publish_outcome_on: None,
        outcome_key: key.to_owned(),
        command_type: None,
    }
}
