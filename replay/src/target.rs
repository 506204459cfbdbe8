//! What an operation is meant for: `stock@2`, or `stock` where it is clear which replay that is.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use read_models::generations::{Catalogue, Until};
use read_models::{search, stock};
use schemas::PositionToken;

use crate::error::ReplayError;
use crate::record::{current_replays, was_taken_back};

/// A read model, and a generation of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `stock` or `search`.
    pub name: &'static str,
    /// `None`: the one replay that is under way.
    pub number: Option<u32>,
}

/// The read models that are replayed.
pub(crate) const NAMES: [&str; 2] = [stock::NAME, search::NAME];

/// Milliseconds since 1970, of a text such as `2026-11-20T14:05:00Z`.
pub fn time_of(text: &str) -> Result<i64, String> {
    let time = text.parse::<DateTime<Utc>>();
    time.map(|time| time.timestamp_millis()).map_err(|_| "use a time as in 2026-11-20T14:05:00Z".to_owned())
}

/// A time, or a position token.
pub fn until_of(text: &str) -> Result<Until, String> {
    if let Ok(token) = text.parse::<PositionToken>() {
        return Ok(Until::Position(token));
    }
    time_of(text).map(Until::Time).map_err(|_| "use a time as in 2026-11-20T14:05:00Z, or a position token".to_owned())
}

// === impl Target ===

impl Target {
    /// The generation that is meant. One that was rolled back is meant without a number only where it is the only one.
    pub fn resolve(&self, catalogue: &Catalogue) -> Result<u32, ReplayError> {
        if let Some(number) = self.number {
            return Ok(number);
        }
        let replays = current_replays(catalogue);
        let is_on_its_way = |number: &&u32| !was_taken_back(catalogue, **number);
        let on_their_way: Vec<&u32> = replays.iter().filter(is_on_its_way).collect();
        match (&replays[..], &on_their_way[..]) {
            ([], _) => Err(ReplayError::NoReplay { name: self.name }),
            ([number], _) => Ok(*number),
            (_, [number]) => Ok(**number),
            ([newest, ..], _) => Err(ReplayError::SeveralReplays { name: self.name, newest: *newest }),
        }
    }

    /// The generation to retire: without a number, what served before. Never a replay that is under way: who says
    /// `retire` twice means the same one.
    pub fn to_retire(&self, catalogue: &Catalogue) -> Result<u32, ReplayError> {
        self.number.or(catalogue.previous).ok_or(ReplayError::NothingBefore { name: self.name })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once('@') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let name = NAMES.into_iter().find(|known| *known == name);
        let name = name.ok_or("use stock or search, or a generation such as stock@2")?;
        let number = number.map(|number| match number.parse::<u32>() {
            Ok(number @ 1..) => Ok(number),
            _ => Err(format!("{number:?} is no generation; use a number from 1 on, as in {name}@2")),
        });
        Ok(Self { name, number: number.transpose()? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            Some(number) => write!(formatter, "{}@{number}", self.name),
            None => formatter.write_str(self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_read_model_or_a_generation_of_it() {
        let parsed = |text: &str| text.parse::<Target>();
        assert_eq!(parsed("stock@2"), Ok(Target { name: "stock", number: Some(2) }));
        assert_eq!(parsed("search"), Ok(Target { name: "search", number: None }));
        assert_eq!(parsed("search@7").unwrap().to_string(), "search@7");
        for wrong in ["", "stocks", "stock@", "stock@0", "stock@x", "stock@2@3", "@2", "stock@99999999999"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn until_is_a_time_or_a_position() {
        assert_eq!(until_of("2026-11-20T14:05:00Z"), Ok(Until::Time(1_795_183_500_000)));
        assert_eq!(until_of("2026-11-20T15:05:00+01:00"), Ok(Until::Time(1_795_183_500_000)));
        assert_eq!(until_of("inventory-1-3.9"), Ok(Until::Position("inventory-1-3.9".parse().unwrap())));
        assert!(until_of("yesterday").unwrap_err().contains("position token"));
        assert!(time_of("inventory-1-3.9").is_err());
    }

    #[test]
    fn without_a_number_there_must_be_a_replay() {
        let error = parsed_and_resolved("stock").unwrap_err().to_string();
        assert!(error.contains("millrace replay start stock"), "{error}");
        assert_eq!(parsed_and_resolved("stock@4").unwrap(), 4);
    }

    #[test]
    fn without_a_number_what_served_before_is_retired() {
        let (stock, third) = ("stock".parse::<Target>().unwrap(), "stock@3".parse::<Target>().unwrap());
        let mut catalogue = Catalogue::of_built(None);
        assert!(stock.to_retire(&catalogue).is_err());
        catalogue.previous = Some(1);
        assert_eq!((stock.to_retire(&catalogue).unwrap(), third.to_retire(&catalogue).unwrap()), (1, 3));
    }

    fn parsed_and_resolved(text: &str) -> Result<u32, ReplayError> {
        text.parse::<Target>().unwrap().resolve(&Catalogue::of_built(None))
    }
}
