//! What a parity run showed, as far as gates and decisions need it.
//!
//! The report itself is a file of its own; its hash ties it to the decision that rests on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The sums of one comparison of two generations at one position vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ParityEvidence {
    /// The generation that was checked.
    pub generation: u32,
    /// The one that it was compared with.
    pub against: u32,
    /// When the comparison ended, milliseconds since 1970.
    pub at: i64,
    /// The position token at which both were compared.
    pub vector: String,
    pub compared_keys: u64,
    /// Keys with a difference that no rule covers; the next but one and those behind it are among them.
    pub differing_keys: u64,
    /// Keys whose differences are all covered by rules.
    pub excused_keys: u64,
    /// Keys that only the generation compared with has.
    pub missing_keys: u64,
    /// Keys that only the checked generation has.
    pub extra_keys: u64,
    /// Keys that one of the two has parked and the other has not.
    pub parked_keys_differing: u64,
    /// How a set of search queries was answered; none were asked of a stock read model.
    pub queries: Option<QueryEvidence>,
    /// Names the report, in hex.
    pub report_sha256: String,
    /// Names the rules that it was made with, in hex; of none as of any others.
    #[serde(default)]
    pub rules_sha256: String,
}

/// How much the answers of both generations to the same queries have in common.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QueryEvidence {
    pub queries: u64,
    /// Of the query whose answers have least in common: 0 nothing, 1 the same hits at the same ranks.
    pub worst_overlap: f64,
    /// Queries whose overlap is below what the rules demand.
    pub below_bound: u64,
}

// === impl ParityEvidence ===

impl ParityEvidence {
    /// Whether nothing differs but what rules cover. A comparison of nothing at all shows nothing, but of two empty
    /// read models it is true.
    pub fn is_clean(&self) -> bool {
        let kinds = [self.missing_keys, self.extra_keys, self.parked_keys_differing];
        self.differing_keys == 0
            && kinds.iter().all(|keys| *keys == 0)
            && self.queries.as_ref().is_none_or(|queries| queries.below_bound == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean() -> ParityEvidence {
        ParityEvidence {
            generation: 2,
            against: 1,
            at: 0,
            vector: String::new(),
            compared_keys: 10,
            differing_keys: 0,
            excused_keys: 3,
            missing_keys: 0,
            extra_keys: 0,
            parked_keys_differing: 0,
            queries: Some(QueryEvidence { queries: 5, worst_overlap: 0.9, below_bound: 0 }),
            report_sha256: String::new(),
            rules_sha256: String::new(),
        }
    }

    #[test]
    fn what_rules_cover_is_clean_and_nothing_else() {
        assert!(clean().is_clean());
        assert!(!ParityEvidence { differing_keys: 1, ..clean() }.is_clean());
        assert!(!ParityEvidence { missing_keys: 1, ..clean() }.is_clean());
        assert!(!ParityEvidence { extra_keys: 1, ..clean() }.is_clean());
        assert!(!ParityEvidence { parked_keys_differing: 1, ..clean() }.is_clean());
        let queries = Some(QueryEvidence { queries: 5, worst_overlap: 0.1, below_bound: 1 });
        assert!(!ParityEvidence { queries, ..clean() }.is_clean());
    }

    #[test]
    fn it_reads_back_from_json() {
        let json = serde_json::to_string(&clean()).unwrap();
        assert_eq!(serde_json::from_str::<ParityEvidence>(&json).unwrap(), clean());
    }
}
