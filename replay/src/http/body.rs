//! What callers say.

use read_models::generations::Source;
use read_models::search;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::by::By;
use crate::decide::StartRequest;
use crate::plan::Plan;
use crate::rules::Rules;
use crate::target::until_of;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecideBody {
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartBody {
    /// `stock` or `search`.
    pub(super) read_model: String,
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// Version of the fold; the newest of this program unless said.
    #[serde(default)]
    fold: Option<u32>,
    /// `log`, or `event_table` where retention has removed the beginning of the topics; the log unless said.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    from: Source,
    /// A time (RFC 3339) or a position token at which it stands still.
    #[serde(default)]
    until: Option<String>,
    /// The stages file, as JSON; all at once unless said.
    #[serde(default)]
    plan: Option<Value>,
    /// Enter the stages as soon as their gates let it.
    #[serde(default)]
    auto: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ApproveBody {
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// Only if the newest comparison is this one: its `report_sha256`, or the first 8 digits or more of it.
    #[serde(default)]
    pub(super) report: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyBody {
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// The file of rules, as JSON: `{"difference": [{"projection": "stock", "field": …}]}`; no difference is meant
    /// unless said.
    #[serde(default)]
    rules: Option<Value>,
    /// Searches to ask of both generations; of search only.
    #[serde(default)]
    queries: Vec<String>,
    /// Only compare: nothing is noted in the catalogue.
    #[serde(default)]
    dry: bool,
}

/// What a comparison is made with.
pub(super) struct Comparing {
    pub(super) rules: Rules,
    pub(super) queries: Vec<String>,
    /// Who notes it; `None` where nothing is noted.
    pub(super) by: Option<By>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CutoverBody {
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// The next one unless said.
    #[serde(default)]
    pub(super) stage: Option<String>,
    /// Only into a stage that answers nobody, with a reason.
    #[serde(default)]
    pub(super) force: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetireBody {
    /// Who decides: a name that ownership.toml knows.
    #[serde(default)]
    by: String,
    /// Why.
    #[serde(default)]
    reason: String,
    /// An approver who lets it go before the rollback window is over.
    #[serde(default)]
    pub(super) early: Option<String>,
}

/// Gives a body its `by`: serde cannot refuse unknown fields where the two are a struct of their own.
macro_rules! says_who {
    ($($body:ident),*) => {$(
        impl $body {
            pub(super) fn by(&self, now: fn() -> i64) -> Result<By, Problem> {
                By::new(&self.by, &self.reason, now()).map_err(|error| Problem::unprocessable(error.to_string()))
            }
        }
    )*};
}

says_who!(DecideBody, StartBody, ApproveBody, VerifyBody, CutoverBody, RetireBody);

// === impl VerifyBody ===

impl VerifyBody {
    pub(super) fn comparing(&self, name: &str, now: fn() -> i64) -> Result<Comparing, Problem> {
        let rules = match &self.rules {
            None => Rules::default(),
            Some(rules) => {
                let wrong = |problem: String| Problem::unprocessable(format!("rules: {problem}"));
                let text = toml::to_string(rules).map_err(|error| wrong(error.to_string()))?;
                Rules::parse(&text, name).map_err(wrong)?
            }
        };
        if !self.queries.is_empty() && name != search::NAME {
            return Err(Problem::unprocessable(format!("queries: these are for search; {name} answers none")));
        }
        let by = if self.dry { None } else { Some(self.by(now)?) };
        Ok(Comparing { rules, queries: self.queries.clone(), by })
    }
}

// === impl StartBody ===

impl StartBody {
    pub(super) fn request(&self, folds: &[u32]) -> Result<StartRequest, Problem> {
        let plan = match &self.plan {
            None => Plan::default(),
            Some(plan) => {
                let text = toml::to_string(plan).map_err(|error| Problem::unprocessable(format!("plan: {error}")))?;
                Plan::parse("plan", &text).map_err(|error| Problem::unprocessable(error.to_string()))?
            }
        };
        let until = self.until.as_deref().map(until_of).transpose();
        Ok(StartRequest {
            fold_version: self.fold.or(folds.last().copied()).unwrap_or_default(),
            known_folds: folds.to_vec(),
            until: until.map_err(|problem| Problem::unprocessable(format!("until: {problem}")))?,
            source: self.from,
            plan,
            automatic: self.auto,
            throttle: None,
        })
    }
}
