//! Places in the event table, and the tokens that callers hold to read their own writes.
//!
//! A token is a vector of (context, partition, store position). It names partitions because a read model
//! advances partition by partition: a command's token names the one partition that its SKU lives in, so a read with it
//! waits for no other. A read with a token that names more waits for all of them.
//! Text form: `inventory-7-812.4021`, several joined by commas; `-` is the empty token.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::context::Context;

/// Place of an event in the event table: the order in which the relay publishes.
///
/// On Postgres `xid` is the writing transaction's 64-bit id and `position` the identity column; on SQLite,
/// which has one writer, `xid` is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct StorePosition {
    pub xid: u64,
    pub position: u64,
}

/// One partition of one context's event topic, and a place in the event table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionPosition {
    pub context: Context,
    pub partition: u32,
    pub position: StorePosition,
}

/// A position vector: at most one position per (context, partition).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PositionToken(BTreeMap<(Context, u32), StorePosition>);

/// Most partitions that a token may name: bounds what a caller can make a read wait for.
pub const MAX_TOKEN_PARTITIONS: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("position {part:?} does not read <context>-<partition>-<xid>.<position>, as in inventory-7-812.4021")]
    Malformed { part: String },
    #[error("a position token names at most {MAX_TOKEN_PARTITIONS} partitions")]
    TooLong,
}

// === impl StorePosition ===

impl fmt::Display for StorePosition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.xid, self.position)
    }
}

impl FromStr for StorePosition {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let malformed = || TokenError::Malformed { part: text.chars().take(80).collect() };
        let (xid, position) = text.split_once('.').ok_or_else(malformed)?;
        Ok(Self { xid: decimal(xid).ok_or_else(malformed)?, position: decimal(position).ok_or_else(malformed)? })
    }
}

// === impl PositionToken ===

impl PositionToken {
    pub fn of(context: Context, partition: u32, position: StorePosition) -> Self {
        Self(BTreeMap::from([((context, partition), position)]))
    }

    /// Raises the position of one partition; a lower one changes nothing.
    pub fn advance(&mut self, context: Context, partition: u32, position: StorePosition) {
        let held = self.0.entry((context, partition)).or_default();
        *held = (*held).max(position);
    }

    pub fn merge(&mut self, other: &PositionToken) {
        for part in other.iter() {
            self.advance(part.context, part.partition, part.position);
        }
    }

    pub fn get(&self, context: Context, partition: u32) -> Option<StorePosition> {
        self.0.get(&(context, partition)).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = PartitionPosition> + '_ {
        self.0.iter().map(|(&(context, partition), &position)| PartitionPosition { context, partition, position })
    }

    /// Whether each partition that `min` names is here, at its position or later.
    pub fn covers(&self, min: &PositionToken) -> bool {
        min.iter().all(|wanted| self.get(wanted.context, wanted.partition) >= Some(wanted.position))
    }

    /// What it says of some contexts.
    #[must_use]
    pub fn of_contexts(&self, contexts: &[Context]) -> Self {
        let of_these = self.0.iter().filter(|((context, _), _)| contexts.contains(context));
        Self(of_these.map(|(place, position)| (*place, *position)).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for PositionToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("-");
        }
        for (index, part) in self.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            write!(formatter, "{}-{}-{}", part.context, part.partition, part.position)?;
        }
        Ok(())
    }
}

impl FromStr for PositionToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut token = PositionToken::default();
        if text.trim() == "-" {
            return Ok(token);
        }
        for (count, part) in text.split(',').enumerate() {
            if count >= MAX_TOKEN_PARTITIONS {
                return Err(TokenError::TooLong);
            }
            let part = part.trim();
            let malformed = || TokenError::Malformed { part: part.chars().take(80).collect() };
            let mut fields = part.splitn(3, '-');
            let context = fields.next().and_then(|name| name.parse().ok()).ok_or_else(malformed)?;
            let partition = fields.next().and_then(decimal).ok_or_else(malformed)?;
            let partition = u32::try_from(partition).map_err(|_| malformed())?;
            let position = fields.next().ok_or_else(malformed)?.parse().map_err(|_| malformed())?;
            token.advance(context, partition, position);
        }
        Ok(token)
    }
}

impl Serialize for PositionToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PositionToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Digits only: `u64::from_str` would also take a sign.
fn decimal(text: &str) -> Option<u64> {
    let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits_only.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_reads_back_what_it_wrote(parts in prop::collection::vec((0_usize..Context::ALL.len(), 0_u32..64, any::<u64>(), any::<u64>()), 0..8)) {
            let mut token = PositionToken::default();
            for (context, partition, xid, position) in parts {
                token.advance(Context::ALL[context], partition, StorePosition { xid, position });
            }
            prop_assert_eq!(token.to_string().parse::<PositionToken>().unwrap(), token);
        }

        #[test]
        fn any_text_is_a_token_or_a_clear_error(text in ".{0,200}") {
            let _ = text.parse::<PositionToken>();
        }
    }

    #[test]
    fn a_token_covers_what_names_no_later_place_and_no_other_partition() {
        let at = |position| PositionToken::of(Context::Inventory, 1, StorePosition { xid: 1, position });
        assert!(at(2).covers(&at(2)) && at(2).covers(&at(1)) && !at(1).covers(&at(2)));
        let other = PositionToken::of(Context::Pricing, 1, StorePosition { xid: 1, position: 1 });
        assert!(!at(2).covers(&other) && at(2).covers(&other.of_contexts(&[Context::Inventory])));
    }

    #[test]
    fn malformed_tokens_are_refused_by_name() {
        for bad in
            ["", "inventory", "inventory-1", "inventory-1-5", "stock-1-0.5", "inventory-+1-0.5", "inventory-1-0.-5"]
        {
            assert!(matches!(bad.parse::<PositionToken>(), Err(TokenError::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn a_token_keeps_the_highest_position_of_a_partition() {
        let token: PositionToken = "inventory-1-0.5,inventory-1-0.9,inventory-1-0.7".parse().unwrap();
        assert_eq!(token.get(Context::Inventory, 1), Some(StorePosition { xid: 0, position: 9 }));
    }
}
