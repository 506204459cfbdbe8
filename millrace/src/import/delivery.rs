//! Delivery: every command gets its outcome, through lost connections and restarted servers.
//!
//! A command without an outcome is given again under its id until it has one; the id has one effect, however often
//! it is given. Giving up is the only error, and even then the next import of the file goes on where this one ended.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use resilience::{Backoff, Policy};
use schemas::{Outcome, OutcomeKind, StorePosition};
use uuid::Uuid;

use super::product_row::{Prepared, PreparedKind};
use super::target::{Target, TargetError};

/// Look-ups under way at once.
const LOOKUPS: usize = 32;

pub struct Delivery {
    target: Target,
    retry_for: Duration,
    /// Position of the first event that this import made. What lies before it was there already.
    first_made: OnceLock<StorePosition>,
}

/// The outcomes of some commands, and which of the commands had no effect this time.
#[derive(Debug, Default)]
pub struct Delivered {
    pub outcomes: HashMap<Uuid, Outcome>,
    known: HashSet<Uuid>,
}

/// Nothing has come back for too long, or never will.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error("given up after {seconds} s; the same import again goes on where this one ended")]
    GivenUp {
        seconds: u64,
        #[source]
        last: TargetError,
    },
    #[error(
        "{undecided} commands were not decided for {seconds} s ({reason}); the same import again goes on where this one ended"
    )]
    Undecided { undecided: usize, seconds: u64, reason: String },
    #[error(transparent)]
    Refused(TargetError),
}

// === impl DeliveryError ===

impl DeliveryError {
    /// Before the first contact nothing can have been left half done.
    fn without_contact(self) -> Self {
        match self {
            DeliveryError::GivenUp { last, .. } => DeliveryError::Refused(last),
            other => other,
        }
    }
}

// === impl Delivery ===

impl Delivery {
    pub fn new(target: Target, retry_for: Duration) -> Self {
        Self { target, retry_for, first_made: OnceLock::new() }
    }

    /// Whether outcomes of this import can be told from earlier ones by their position. Until then commands are
    /// looked up before they are given, so batches should be few at a time.
    pub fn knows_its_beginning(&self) -> bool {
        self.first_made.get().is_some()
    }

    /// Asks for an outcome that nobody has: an answer of any kind shows that the other side is there.
    pub async fn contact(&self) -> Result<(), DeliveryError> {
        let mut patience = Patience::new(self.retry_for);
        loop {
            match self.target.is_known(Uuid::nil()).await {
                Ok(_) => return Ok(()),
                Err(error) => patience.wait(error).await.map_err(DeliveryError::without_contact)?,
            }
        }
    }

    /// Gives commands until each has an outcome.
    pub async fn deliver(&self, commands: &[Prepared]) -> Result<Delivered, DeliveryError> {
        let mut delivered = Delivered::default();
        let is_first = !self.knows_its_beginning();
        if is_first {
            delivered.known = self.look_up(commands).await?;
        }
        self.give(commands, &mut delivered.outcomes).await?;
        if is_first {
            self.note_beginning(commands, &delivered);
        } else if let Some(first_made) = self.first_made.get() {
            let before =
                delivered.outcomes.values().filter(|outcome| position(outcome).is_some_and(|at| at < *first_made));
            delivered.known.extend(before.map(|outcome| outcome.id));
        }
        Ok(delivered)
    }

    async fn give(&self, commands: &[Prepared], outcomes: &mut HashMap<Uuid, Outcome>) -> Result<(), DeliveryError> {
        let mut pending: Vec<&Prepared> = commands.iter().collect();
        let mut patience = Patience::new(self.retry_for);
        while !pending.is_empty() {
            let mut answered = HashMap::with_capacity(pending.len());
            let given = self.target.give(&pending, &mut answered).await;
            let undecided = answered.values().find(|outcome| outcome.outcome == OutcomeKind::Failed).cloned();
            answered.retain(|_, outcome| outcome.outcome != OutcomeKind::Failed);
            let before = pending.len();
            pending.retain(|command| !answered.contains_key(&command.id));
            outcomes.extend(answered);
            if pending.len() < before {
                patience = Patience::new(self.retry_for);
            }
            if pending.is_empty() {
                break;
            }
            match given {
                Err(error) => patience.wait(error).await?,
                Ok(()) => {
                    let reason = undecided.and_then(|outcome| outcome.reason).map(|reason| reason.message);
                    let reason = reason.unwrap_or_else(|| "the answer ended early".to_owned());
                    patience.wait_for_decision(pending.len(), reason).await?;
                }
            }
        }
        Ok(())
    }

    async fn look_up(&self, commands: &[Prepared]) -> Result<HashSet<Uuid>, DeliveryError> {
        let ids: Vec<Uuid> = commands.iter().map(|command| command.id).collect();
        let known: Vec<Option<Uuid>> = futures::stream::iter(ids)
            .map(|id| async move {
                let mut patience = Patience::new(self.retry_for);
                loop {
                    match self.target.is_known(id).await {
                        Ok(is_known) => return Ok::<_, DeliveryError>(is_known.then_some(id)),
                        Err(error) => patience.wait(error).await?,
                    }
                }
            })
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(known.into_iter().flatten().collect())
    }

    /// A registration or a count that is accepted always makes an event; the first one not known before is where
    /// this import begins.
    fn note_beginning(&self, commands: &[Prepared], delivered: &Delivered) {
        let made = commands
            .iter()
            .filter(|command| matches!(command.kind, PreparedKind::Register | PreparedKind::Count))
            .filter(|command| !delivered.known.contains(&command.id))
            .filter_map(|command| delivered.outcomes.get(&command.id))
            .filter(|outcome| outcome.outcome == OutcomeKind::Accepted)
            .filter_map(position)
            .min();
        if let Some(made) = made {
            // Another batch may have been first; its position serves as well.
            let _ = self.first_made.set(made);
        }
    }
}

// === impl Delivered ===

impl Delivered {
    pub fn outcome(&self, command: &Prepared) -> Option<&Outcome> {
        self.outcomes.get(&command.id)
    }

    /// Whether the command changed something now: not in an earlier import, and not a change to what is so already.
    pub fn has_effect(&self, command: &Prepared) -> bool {
        let is_accepted = self.outcome(command).is_some_and(|outcome| outcome.outcome == OutcomeKind::Accepted);
        is_accepted && !self.known.contains(&command.id)
    }
}

fn position(outcome: &Outcome) -> Option<StorePosition> {
    outcome.position.as_ref()?.iter().map(|part| part.position).max()
}

/// Waits between attempts, longer each time, until the time is over.
struct Patience {
    since: Instant,
    retry_for: Duration,
    delays: Backoff,
}

// === impl Patience ===

impl Patience {
    fn new(retry_for: Duration) -> Self {
        Self { since: Instant::now(), retry_for, delays: Policy::HTTP.backoff() }
    }

    async fn wait(&mut self, error: TargetError) -> Result<(), DeliveryError> {
        if !error.is_transient() {
            return Err(DeliveryError::Refused(error));
        }
        let least = error.retry_after().unwrap_or_default();
        if self.pause(least).await {
            return Ok(());
        }
        Err(DeliveryError::GivenUp { seconds: self.since.elapsed().as_secs(), last: error })
    }

    async fn wait_for_decision(&mut self, undecided: usize, reason: String) -> Result<(), DeliveryError> {
        if self.pause(Duration::ZERO).await {
            return Ok(());
        }
        Err(DeliveryError::Undecided { undecided, seconds: self.since.elapsed().as_secs(), reason })
    }

    /// False when the time is over.
    async fn pause(&mut self, least: Duration) -> bool {
        let delay = self.delays.next_delay().max(least);
        if self.since.elapsed() + delay > self.retry_for {
            return false;
        }
        tokio::time::sleep(delay).await;
        true
    }
}

#[cfg(test)]
mod tests;
