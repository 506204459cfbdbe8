//! What an audit found, for people, programs and alarms.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kind of difference it is: loss, duplication, alteration and drift are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// In the event table and not on its topic; in the event table itself: a version of a stream is not there; in a
    /// read model: it could not be folded and waits nowhere. Loss.
    Lost,
    /// On the topic and not in the event table, or shown by the index and not by the rows.
    Extra,
    /// There, with another content.
    Altered,
    /// The registry does not know the schema id of a record: it cannot be decoded by who starts now.
    Undecodable,
    /// All records are there, and no consumer can take them one after the other.
    OutOfOrder,
    /// The relay has counted another number of events than the table has. Drift.
    Miscounted,
    /// A row that should be there is not. Loss.
    Missing,
    /// A row that no event explains.
    Unexplained,
    /// A row older than the checkpoint says: the loss of an update.
    Stale,
    /// A row, or a checkpoint, above what it may be at. Drift.
    Ahead,
    /// The index has a document more than once. Duplication.
    Doubled,
}

/// Where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    EventTable,
    Topic,
    Stock,
    Search,
    Index,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Difference {
    pub place: Place,
    /// Topic and partition, such as `inventory.events/3`; empty for the index.
    pub partition: String,
    pub kind: Kind,
    /// Sequence on the topic, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sequence: Option<u64>,
    /// Offset on the topic, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub offset: Option<u64>,
    /// The event or the key.
    pub what: String,
    pub detail: String,
}

/// One topic partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicReport {
    pub topic: String,
    pub partition: u32,
    /// Events of the table, up to the relay's cursor.
    pub events: u64,
    /// Of those, how many the topic has.
    pub on_topic: u64,
    /// Of those, how many lie before what the topic keeps.
    pub expired: u64,
    /// Records that repeat an event: allowed, and dropped by consumers.
    pub duplicates: u64,
    pub differences: u64,
}

/// One partition of a read model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadModelReport {
    pub read_model: String,
    pub topic: String,
    pub partition: u32,
    /// Sequence of the checkpoint that was compared at.
    pub checkpoint: u64,
    /// Rows that the events explain.
    pub keys: u64,
    /// Rows that were read.
    pub rows: u64,
    /// Of the keys, versions and contents that the events give: the same for the same rows, in any order.
    pub digest: String,
    pub parked_keys: u64,
    pub differences: u64,
    /// Why nothing can be said of it this time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// The search index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexReport {
    pub documents: u64,
    pub shown: u64,
    /// Changed since the index's commit, not compared.
    pub newer: u64,
    pub differences: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// How many differences of one kind there are in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    pub kind: Kind,
    #[serde(rename = "where")]
    pub place: Place,
    pub count: u64,
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Place in the event table up to which events were compared with topics.
    pub position: String,
    /// Where the walk began, when it was not the beginning.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<String>,
    /// Events of the table that were walked in all.
    pub events: u64,
    pub topics: Vec<TopicReport>,
    pub read_models: Vec<ReadModelReport>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<IndexReport>,
    pub counts: Vec<KindCount>,
    /// The first of them: counts tell how many there are.
    pub differences: Vec<Difference>,
}

/// What an audit comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was compared, and nothing differs.
    Level,
    /// Nothing differs in what was compared, and not everything could be.
    NotCompared,
    Differs,
}

/// Differences of one place, all counted and the first ones kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    counts: BTreeMap<(Kind, Place), u64>,
    kept: Vec<Difference>,
}

/// Differences that one place keeps.
const KEPT: usize = 1_000;

// === impl Kind ===

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Lost,
        Kind::Extra,
        Kind::Altered,
        Kind::Undecodable,
        Kind::OutOfOrder,
        Kind::Miscounted,
        Kind::Missing,
        Kind::Unexplained,
        Kind::Stale,
        Kind::Ahead,
        Kind::Doubled,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Lost => "lost",
            Kind::Extra => "extra",
            Kind::Altered => "altered",
            Kind::Undecodable => "undecodable",
            Kind::OutOfOrder => "out_of_order",
            Kind::Miscounted => "miscounted",
            Kind::Missing => "missing",
            Kind::Unexplained => "unexplained",
            Kind::Stale => "stale",
            Kind::Ahead => "ahead",
            Kind::Doubled => "doubled",
        }
    }
}

// === impl Place ===

impl Place {
    pub const ALL: [Place; 5] = [Place::EventTable, Place::Topic, Place::Stock, Place::Search, Place::Index];

    pub const fn as_str(self) -> &'static str {
        match self {
            Place::EventTable => "event_table",
            Place::Topic => "topic",
            Place::Stock => read_models::stock::NAME,
            Place::Search => read_models::search::NAME,
            Place::Index => "index",
        }
    }

    /// What brings it back.
    pub const fn remedy(self) -> &'static str {
        match self {
            Place::EventTable => "restore the event store from a backup: nothing else holds what it held",
            Place::Topic => {
                "`millrace relay reconcile` publishes what is lost; undecodable records need the registry back; a topic with other differences is made anew before"
            }
            Place::Stock => {
                "`millrace replay start stock --as NAME --into-live --sku …` folds named SKUs anew, `--since 1970-01-01T00:00:00Z` in place of `--sku` all that the topics have; where that does not help: docs/operations.md, Audit"
            }
            Place::Search => {
                "`millrace replay start search --as NAME --into-live --sku …` folds named SKUs anew, `--since 1970-01-01T00:00:00Z` in place of `--sku` all that the topics have; where that does not help: docs/operations.md, Audit"
            }
            Place::Index => {
                "delete `index` of the build N that `CURRENT` names (`builds/N/index`; `generations/G/builds/N/index` where generation G from 2 on serves): it is made again from the rows"
            }
        }
    }
}

// === impl Report ===

impl Report {
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// What differs outweighs what could not be compared.
    pub fn verdict(&self) -> Verdict {
        match (self.is_clean(), self.not_compared().is_empty()) {
            (false, _) => Verdict::Differs,
            (true, false) => Verdict::NotCompared,
            (true, true) => Verdict::Level,
        }
    }

    /// What could not be compared, and why, in words.
    pub fn not_compared(&self) -> Vec<String> {
        let mut found: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for model in &self.read_models {
            if let Some(why) = &model.skipped {
                let place = format!("{}/{}", model.topic, model.partition);
                found.entry((&model.read_model, why)).or_default().push(place);
            }
        }
        let in_words = |((model, why), places): ((&str, &str), Vec<String>)| match places.as_slice() {
            [place] => format!("{model} {place}: {why}"),
            places => format!("{model}, {} partitions: {why}", places.len()),
        };
        let mut told: Vec<String> = found.into_iter().map(in_words).collect();
        let index = self.index.as_ref().and_then(|index| index.skipped.as_ref());
        told.extend(index.map(|why| format!("search index: {why}")));
        told
    }

    /// Partitions of read models, and the search index, that could not be compared.
    pub fn left_out(&self) -> usize {
        let models = self.read_models.iter().filter(|model| model.skipped.is_some()).count();
        models + usize::from(self.index.as_ref().is_some_and(|index| index.skipped.is_some()))
    }

    pub fn count(&self, kind: Kind, place: Place) -> u64 {
        let is_it = |count: &&KindCount| (count.kind, count.place) == (kind, place);
        self.counts.iter().find(is_it).map_or(0, |count| count.count)
    }
}

// === impl Findings ===

impl Findings {
    pub(crate) fn push(&mut self, difference: Difference) {
        self.count(difference.kind, difference.place, 1);
        if self.kept.len() < KEPT {
            self.kept.push(difference);
        }
    }

    /// Differences that are known by their number alone.
    pub(crate) fn count(&mut self, kind: Kind, place: Place, count: u64) {
        if count > 0 {
            *self.counts.entry((kind, place)).or_default() += count;
        }
    }

    pub(crate) fn merge(&mut self, other: &Findings) {
        for ((kind, place), count) in &other.counts {
            self.count(*kind, *place, *count);
        }
        let room = KEPT.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.iter().take(room).cloned());
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn kept(&self) -> &[Difference] {
        &self.kept
    }

    pub(crate) fn into_parts(self) -> (Vec<KindCount>, Vec<Difference>) {
        let counts = self.counts.into_iter().map(|((kind, place), count)| KindCount { kind, place, count }).collect();
        let mut kept = self.kept;
        kept.sort();
        (counts, kept)
    }
}

#[cfg(test)]
mod tests;
