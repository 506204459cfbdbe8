//! What readers saw of a replay: each answer from one generation of each read model, the one that had to answer at that
//! time; no SKU's version ever lower than what was told before; no error but while something was down.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Violation;
use super::answers::Answer;
use super::fold::Expected;

/// Which generation answers what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routing {
    All(u32),
    /// A share of the requests, always the same ones.
    Share {
        serving: u32,
        candidate: u32,
    },
    /// Requests for a region.
    Region {
        region: String,
        serving: u32,
        candidate: u32,
    },
}

/// From when until when something was so, since the readers began.
#[derive(Debug, Clone)]
pub struct Span {
    pub from: Duration,
    pub to: Duration,
    pub routing: Routing,
}

/// A command that made another generation answer everything.
#[derive(Debug, Clone)]
pub struct Flip {
    pub what: String,
    pub from: u32,
    pub asked: Duration,
    pub answered: Duration,
}

/// What the scenario did, for the check of what readers saw.
#[derive(Debug, Default)]
pub struct Noted {
    /// `stock` or `search`: the one that is replayed; the other stays as it was.
    pub model: &'static str,
    /// By which fold each generation is built.
    pub folds: BTreeMap<u32, u32>,
    pub spans: Vec<Span>,
    pub flips: Vec<Flip>,
    /// While something was down, and errors are nobody's fault.
    pub down: Vec<(Duration, Duration)>,
    /// From a kill until all generations have caught up: who switches then gets what is not fed yet, and an answer waits
    /// for that a second at most.
    pub unfed: Vec<(Duration, Duration)>,
    /// How soon after a flip every answer is of the new generation.
    pub follow: Duration,
}

/// Shared by who gives the commands and who looks on.
#[derive(Debug)]
pub struct Notes {
    begun: Instant,
    noted: Mutex<Noted>,
    held: Mutex<Option<(Duration, Routing)>>,
}

/// What came of it.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub reads: usize,
    pub reads_per_second: f64,
    /// Status other than 200, no answer, or a page that lacked a part.
    pub errors: usize,
    /// The same while something was down.
    pub errors_while_down: usize,
    pub steps_back: usize,
    /// The same across a switch to a generation that was not fed just then.
    pub steps_back_while_unfed: usize,
    /// Answers of more than one generation, or of one that did not answer then.
    pub mixed: usize,
    pub flips: Vec<FlipSeen>,
}

/// How soon readers followed.
#[derive(Debug, Clone)]
pub struct FlipSeen {
    pub what: String,
    /// How long the command took.
    pub command_ms: f64,
    /// From its end to the last beginning of a read that still got the old generation; 0 where none did.
    pub old_after_ms: f64,
    /// The same from its beginning: the flip lies between.
    pub old_since_asked_ms: f64,
}

/// Of one kind of violation, so many are told.
const TOLD: usize = 5;

// === impl Notes ===

impl Notes {
    /// Of a replay of `model`, whose times count from `begun`.
    pub fn of(model: &'static str, begun: Instant, follow: Duration) -> Self {
        let folds = BTreeMap::from([(1, 1)]);
        Self { begun, noted: Mutex::new(Noted { model, folds, follow, ..Noted::default() }), held: Mutex::new(None) }
    }

    pub fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn since(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.begun)
    }

    /// From now on it is so.
    pub fn hold(&self, routing: Routing) {
        self.release();
        *self.held() = Some((self.begun.elapsed(), routing));
    }

    /// From now on it may be otherwise.
    pub fn release(&self) {
        if let Some((from, routing)) = self.held().take() {
            self.noted().spans.push(Span { from, to: self.begun.elapsed(), routing });
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<(Duration, Routing)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Noted ===

impl Noted {
    fn is_down(&self, answer: &Answer) -> bool {
        self.down.iter().any(|(from, to)| answer.begun <= *to && answer.at >= *from)
    }
}

/// Violations, and the figures of the scenario.
pub fn check(expected: &Expected, answers: &[Answer], noted: &Noted) -> (Vec<Violation>, Seen) {
    let mut seen = Seen { reads: answers.len(), ..Seen::default() };
    let last = answers.iter().map(|answer| answer.begun).max().unwrap_or_default();
    seen.reads_per_second = answers.len() as f64 / last.as_secs_f64().max(f64::EPSILON);
    let (mut errors, mut mixed) = (Vec::new(), Vec::new());
    for answer in answers {
        let place = format!("{} at {:.2} s", answer.asked, answer.begun.as_secs_f64());
        let is_down = noted.is_down(answer);
        if answer.status != 200 || !answer.lacks.is_empty() {
            if is_down {
                seen.errors_while_down += 1;
            } else {
                seen.errors += 1;
                errors
                    .push(format!("{place}: status {}, {:?}, lacks {:?}", answer.status, answer.failed, answer.lacks));
            }
        }
        if answer.status == 200
            && let Some(problem) = mixture(answer, noted)
        {
            mixed.push(format!("{place}: {problem}"));
        }
    }
    for (span, problem) in
        noted.spans.iter().flat_map(|span| elsewhere(span, answers, noted).map(move |told| (span, told)))
    {
        mixed.push(format!("{problem}, while {:?}", span.routing));
    }
    let steps = steps_back(expected, answers);
    let is_unfed = |step: &StepBack| {
        step.is_across && noted.unfed.iter().any(|(from, to)| step.begun >= *from && step.begun <= *to)
    };
    let (unfed, steps): (Vec<StepBack>, Vec<StepBack>) = steps.into_iter().partition(is_unfed);
    let steps_back: Vec<String> = steps.into_iter().map(|step| step.told).collect();
    seen.steps_back_while_unfed = unfed.len();
    (seen.mixed, seen.steps_back) = (mixed.len(), steps_back.len());
    seen.flips = noted.flips.iter().map(|flip| followed(flip, answers, noted)).collect();
    let mut violations = told("reader", errors);
    violations.extend(told("mixed", mixed));
    violations.extend(told("step back", steps_back));
    (violations, seen)
}

/// The first few, and how many more.
fn told(what: &'static str, problems: Vec<String>) -> Vec<Violation> {
    let more = problems.len().saturating_sub(TOLD);
    let mut violations: Vec<Violation> =
        problems.into_iter().take(TOLD).map(|problem| Violation::new(what, problem)).collect();
    if more > 0 {
        violations.push(Violation::new(what, format!("and {more} more of these")));
    }
    violations
}

/// Read models that an answer to a path is of.
fn models(path: &str) -> &'static [&'static str] {
    match path {
        path if path.starts_with("/v1/stock") => &["stock"],
        path if path.starts_with("/v1/search") => &["search"],
        _ => &["stock", "search"],
    }
}

/// The number that an answer names for a read model, where it names one and no other.
fn named(answer: &Answer, model: &str) -> Option<u32> {
    let mut numbers = answer.generations.iter().filter_map(|name| name.strip_prefix(model)?.strip_prefix('@'));
    let number = numbers.next()?.parse().ok()?;
    numbers.next().is_none().then_some(number)
}

/// What is not of one generation in an answer.
fn mixture(answer: &Answer, noted: &Noted) -> Option<String> {
    let models = models(&answer.asked);
    // The part that could not be read names none.
    let is_whole = answer.lacks.is_empty();
    for model in models {
        let Some(number) = named(answer, model) else {
            if is_whole {
                return Some(format!("names {:?}, not one generation of {model}", answer.generations));
            }
            continue;
        };
        let fold = if *model == noted.model { noted.folds.get(&number) } else { (number == 1).then_some(&1) };
        let Some(fold) = fold else { return Some(format!("names {model}@{number}, which never answered")) };
        let Some(shown) = answer.folds.iter().find(|shown| shown.model == *model) else { continue };
        let is_of_another = if *fold == 1 { shown.with_new_field } else { shown.without };
        if is_of_another > 0 {
            return Some(format!("{model}@{number} is built with fold {fold}, and shows {shown:?}"));
        }
    }
    (answer.generations.len() > models.len()).then(|| format!("names {:?}", answer.generations))
}

/// Answers that the routing of a span does not give.
fn elsewhere<'a>(span: &'a Span, answers: &'a [Answer], noted: &'a Noted) -> impl Iterator<Item = String> + 'a {
    let within =
        |answer: &&Answer| answer.status == 200 && answer.begun >= span.from + noted.follow && answer.at <= span.to;
    let mut shares: HashMap<(&str, &str), u32> = HashMap::new();
    answers.iter().filter(within).filter_map(move |answer| {
        let number = named(answer, noted.model)?;
        let is_right = match &span.routing {
            Routing::All(serving) => number == *serving,
            Routing::Region { region, serving, candidate } => {
                let is_of_it = answer.asked.ends_with(&format!("region={region}"));
                number == if is_of_it { *candidate } else { *serving }
            }
            Routing::Share { serving, candidate } => {
                let first = *shares.entry(key(&answer.asked)).or_insert(number);
                number == first && (number == *serving || number == *candidate)
            }
        };
        (!is_right).then(|| {
            format!("{} at {:.2} s is answered from {}@{number}", answer.asked, answer.begun.as_secs_f64(), noted.model)
        })
    })
}

/// What the stable hash is of: the SKU, the first of several, the words of a search. Pages and stock are of different
/// read models, and of one SKU each.
fn key(path: &str) -> (&str, &str) {
    let kind = path.get(..7).unwrap_or_default();
    if let Some(query) = path.split_once("sku=").or_else(|| path.split_once("?q=")) {
        return (kind, query.1.split([',', '&']).next().unwrap_or_default());
    }
    let kind_and_key = path.split('?').next().unwrap_or_default();
    match kind_and_key.rsplit_once('/') {
        Some((_, "search")) => (kind, ""),
        Some((_, key)) => (kind, key),
        None => (kind, ""),
    }
}

/// One sight of something that only grows: when it was asked for and there, and what it was at least and at most.
#[derive(Clone, Copy)]
struct Sight<'a> {
    answer: &'a Answer,
    generation: Option<u32>,
    least: u64,
    most: u64,
}

/// A version lower than one that was told before the read began.
struct StepBack {
    /// From one generation to another.
    is_across: bool,
    begun: Duration,
    told: String,
}

fn steps_back(expected: &Expected, answers: &[Answer]) -> Vec<StepBack> {
    // Pages show rows, searches the index that is made of them: each is a sequence of its own.
    let mut sights: BTreeMap<(&str, &str, &str), Vec<Sight<'_>>> = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer.status == 200) {
        for stock in &answer.stock {
            let sight = Sight { answer, generation: named(answer, "stock"), least: stock.version, most: stock.version };
            sights.entry(("stock", &stock.sku, &stock.warehouse)).or_default().push(sight);
        }
        let kind = if answer.asked.starts_with("/v1/products") { "page" } else { "search" };
        for (sku, name) in &answer.names {
            let versions = expected.versions.get(sku).map_or(&[][..], Vec::as_slice);
            let mut places = versions.iter().enumerate().filter(|(_, other)| *other == name).map(|(place, _)| place);
            // One that was never so is found elsewhere.
            let Some(least) = places.next() else { continue };
            let most = places.next_back().unwrap_or(least);
            let generation = named(answer, "search");
            let sight = Sight { answer, generation, least: least as u64, most: most as u64 };
            sights.entry((kind, sku, "")).or_default().push(sight);
        }
    }
    let mut steps = Vec::new();
    for ((kind, sku, warehouse), mut sights) in sights {
        sights.sort_by_key(|sight| sight.answer.at);
        let what = format!("{kind} of {sku} {warehouse}");
        // Across generations, and within each: what one told must not hide that another went back.
        let mut by_generation: BTreeMap<Option<u32>, Vec<Sight<'_>>> = BTreeMap::new();
        for sight in &sights {
            by_generation.entry(sight.generation).or_default().push(*sight);
        }
        steps.extend(backwards(&what, &sights).into_iter().filter(|step| step.is_across));
        steps.extend(by_generation.values().flat_map(|sights| backwards(&what, sights)));
    }
    steps
}

/// In the order in which they were there.
fn backwards(what: &str, sights: &[Sight<'_>]) -> Vec<StepBack> {
    // The most that was told up to each.
    let mut highest: Vec<(Duration, usize)> = Vec::with_capacity(sights.len());
    for (index, sight) in sights.iter().enumerate() {
        let before = highest.last().map_or(index, |(_, before)| *before);
        let top = if sights[before].least >= sight.least { before } else { index };
        highest.push((sight.answer.at, top));
    }
    let mut steps = Vec::new();
    for sight in sights {
        let until = highest.partition_point(|(at, _)| *at < sight.answer.begun);
        let Some((_, top)) = until.checked_sub(1).map(|last| highest[last]) else { continue };
        let before = &sights[top];
        if sight.most < before.least {
            let told = format!(
                "{what}: {} at {:.3} s by {:?} shows {}, after {} by {:?} showed {} at {:.3} s",
                sight.answer.asked,
                sight.answer.begun.as_secs_f64(),
                sight.answer.generations,
                sight.most,
                before.answer.asked,
                before.answer.generations,
                before.least,
                before.answer.at.as_secs_f64(),
            );
            let is_across = sight.generation != before.generation;
            steps.push(StepBack { is_across, begun: sight.answer.begun, told });
        }
    }
    steps
}

fn followed(flip: &Flip, answers: &[Answer], noted: &Noted) -> FlipSeen {
    // Until it may be otherwise again.
    let after = noted.spans.iter().find(|span| span.from >= flip.answered);
    let end = after.map_or(Duration::MAX, |span| span.to);
    let of_old =
        |answer: &&Answer| answer.status == 200 && answer.at < end && named(answer, noted.model) == Some(flip.from);
    let last = answers.iter().filter(of_old).map(|answer| answer.begun).max().unwrap_or_default();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1_000.0;
    FlipSeen {
        what: flip.what.clone(),
        command_ms: milliseconds(flip.answered.saturating_sub(flip.asked)),
        old_after_ms: milliseconds(last.saturating_sub(flip.answered)),
        old_since_asked_ms: milliseconds(last.saturating_sub(flip.asked)),
    }
}

#[cfg(test)]
mod tests;
