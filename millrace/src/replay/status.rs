//! `millrace replay status`: how far generations are built, how fast, and what is next.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use replay::{GenerationView, ProgressView, Replayed, ReplaysView};
use serde::Serialize;

use super::args::StatusArgs;
use super::{connect, decide};
use crate::exit::{Exit, one_line};
use crate::output;
use crate::roles::process::now;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// One generation, and how fast it comes along.
#[derive(Serialize)]
struct Seen {
    #[serde(flatten)]
    view: GenerationView,
    /// Since the look before.
    events_per_second: Option<f64>,
    /// Until it has caught up, at the pace at which it came nearer to the end of the log since the look before; `None`
    /// where it came no nearer.
    eta_seconds: Option<f64>,
    /// More events came since the look before than it has taken.
    falls_behind: bool,
}

/// All that was looked for, at one look.
struct Look {
    at: Instant,
    views: Vec<ReplaysView>,
    away: Vec<Away>,
}

/// A read model that gave no answer.
struct Away {
    name: &'static str,
    error: anyhow::Error,
    is_transient: bool,
}

/// Where a watch has come to.
#[derive(Debug, PartialEq, Eq)]
enum Watch {
    GoesOn,
    CaughtUp,
    /// It never will: why.
    GivenUp(String),
}

pub async fn run(args: StatusArgs) -> anyhow::Result<Exit> {
    let replayed = connect::read_models(&args.at, args.target.as_ref().map(|target| target.name)).await?;
    let bars = Bars::new(args.at.json || !args.watch);
    let mut told = BTreeSet::new();
    let mut before = Look::of(&replayed).await;
    loop {
        tokio::time::sleep(EVERY).await;
        let look = Look::of(&replayed).await;
        // Once for as long as it is away: a watch would fill the screen with it.
        told.retain(|name| look.away.iter().any(|away| away.name == *name));
        for away in &look.away {
            if told.insert(away.name) {
                bars.tell(&format!("{}: {}", away.name, one_line(&away.error)));
            }
        }
        let seen = look.seen(&before, &args)?;
        let watch = Watch::of(&seen, look.is_incomplete());
        let is_over = !args.watch || watch != Watch::GoesOn;
        if args.at.json {
            output::json(&serde_json::json!({ "generations": seen }))?;
        } else if is_over {
            bars.clear();
            print(&look, &seen)?;
        } else {
            bars.show(&seen);
        }
        if is_over {
            return match watch {
                Watch::GivenUp(why) if args.watch => Err(anyhow::Error::msg(why)),
                _ if look.away.is_empty() => Ok(Exit::Done),
                _ => Ok(Exit::Failed),
            };
        }
        before = look;
    }
}

fn print(look: &Look, seen: &[Seen]) -> anyhow::Result<()> {
    for seen in seen {
        output::line(seen.line())?;
        if let Some(replay) = &seen.view.replay {
            let at = replay.parity_at.as_deref().unwrap_or_default();
            let report: String = replay.report_sha256.iter().flat_map(|digest| digest.chars().take(12)).collect();
            let parity = match replay.parity_clean {
                None => "not compared yet".to_owned(),
                Some(true) => format!("parity clean at {at}, report {report}"),
                Some(false) => format!("parity differs at {at}, report {report}"),
            };
            let approved = match replay.approved_by.as_slice() {
                [] => format!("not approved ({} needed)", replay.approvals_needed),
                by => format!("approved by {}", by.join(", ")),
            };
            let stage = replay.stage.as_deref().unwrap_or("no stage yet");
            output::line(format!(
                "  started by {} at {}; {stage}; {parity}; {approved}",
                replay.started_by, replay.started_at
            ))?;
        }
        if let Some(throttle) = &seen.view.throttle {
            output::line(format!("  {}", throttle.text()))?;
        }
        if let Some(mirror) = &seen.view.mirror {
            output::line(format!("  {}", mirror.text()))?;
        }
    }
    for view in &look.views {
        decide::tell_next(&view.next)?;
    }
    Ok(())
}

// === impl Look ===

impl Look {
    /// One read model that gives no answer does not hide the other.
    async fn of(replayed: &[Replayed]) -> Self {
        let at = Instant::now();
        let (mut views, mut away) = (Vec::new(), Vec::new());
        for replayed in replayed {
            match ReplaysView::of(replayed, now()).await {
                Ok(view) => views.push(view),
                Err(error) => {
                    let is_transient = error.is_transient();
                    away.push(Away { name: replayed.name(), error: error.into(), is_transient });
                }
            }
        }
        Self { at, views, away }
    }

    /// Whether a later look may show more: what is damaged is not waited for.
    fn is_incomplete(&self) -> bool {
        self.away.iter().any(|away| away.is_transient)
    }

    /// The generations that are asked for, with their pace since the look before.
    fn seen(&self, before: &Look, args: &StatusArgs) -> anyhow::Result<Vec<Seen>> {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        let number = args.target.as_ref().and_then(|target| target.number);
        let mut seen = Vec::new();
        for view in &self.views {
            let was = before.views.iter().find(|was| was.projection == view.projection);
            for generation in &view.generations {
                let is_wanted = match (number, &args.target) {
                    (Some(number), _) => generation.number == number,
                    (None, Some(_)) => generation.replay.is_some() && generation.is_fed(),
                    (None, None) => generation.is_fed(),
                };
                if is_wanted {
                    let was = was.and_then(|was| was.generation(generation.number));
                    seen.push(Seen::new(generation.clone(), was, seconds));
                }
            }
        }
        let is_none_there = seen.is_empty() && self.away.is_empty();
        if let (true, Some(target)) = (is_none_there, &args.target) {
            bail!("there is no {target} under way; `millrace replay list` tells what there is");
        }
        Ok(seen)
    }
}

// === impl Watch ===

impl Watch {
    /// Only who names a generation sees one that is not fed. `is_incomplete`: more may be seen later.
    fn of(seen: &[Seen], is_incomplete: bool) -> Self {
        if let Some(ended) = seen.iter().find(|seen| !seen.view.is_fed()) {
            let (generation, role) = (&ended.view.generation, ended.view.role.as_str());
            return Watch::GivenUp(format!(
                "{generation} is {role}: it is fed no more and never catches up; see `millrace replay history`"
            ));
        }
        if is_incomplete || !seen.iter().all(Seen::is_caught_up) { Watch::GoesOn } else { Watch::CaughtUp }
    }
}

// === impl Seen ===

impl Seen {
    fn new(view: GenerationView, before: Option<&GenerationView>, seconds: f64) -> Self {
        let was = before.and_then(|before| before.progress.as_ref());
        let events_per_second = view.progress.as_ref().zip(was).map(|(is, was)| pace(is, was, seconds));
        let closing = view.progress.as_ref().zip(was).and_then(|(is, was)| closing(is, was, seconds));
        let eta_seconds = view.progress.as_ref().and_then(|progress| eta(progress.lag_events?, closing?));
        let falls_behind = closing.is_some_and(|closing| closing < 0.0);
        Self { view, events_per_second, eta_seconds, falls_behind }
    }

    fn is_caught_up(&self) -> bool {
        self.view.progress.as_ref().is_some_and(ProgressView::is_caught_up)
    }

    fn line(&self) -> String {
        let Some(progress) = &self.view.progress else {
            let problem = match &self.view.problem {
                Some(problem) => problem.as_str(),
                None if self.view.is_fed() => "no projector has begun to build it",
                None => "it is not fed any more",
            };
            return format!("{} ({}): {problem}", self.view.generation, self.view.role.as_str());
        };
        let lag = progress.lag_events.map_or_else(|| "lag unknown".to_owned(), |lag| format!("{lag} events behind"));
        let pace = self.events_per_second.map(|pace| format!(", {pace:.0} events/s")).unwrap_or_default();
        let eta = match self.eta_seconds {
            Some(eta) if eta >= 1.0 => {
                format!(", {} to go", humantime::format_duration(Duration::from_secs(eta as u64)))
            }
            None if self.falls_behind => ", more come than are taken".to_owned(),
            _ => String::new(),
        };
        let parked = match progress.parked_keys {
            0 => String::new(),
            keys => format!(", {keys} keys parked"),
        };
        let until = self.view.until.as_ref().map(|until| format!(", stands still at {until}")).unwrap_or_default();
        let from = if self.view.source == "log" { "" } else { ", from the event table" };
        format!(
            "{} ({}, fold {}{from}): {lag}{pace}{eta}, {} of {} partitions live{parked}{until}",
            self.view.generation,
            self.view.role.as_str(),
            self.view.fold,
            progress.live,
            progress.partitions
        )
    }
}

fn pace(is: &ProgressView, was: &ProgressView, seconds: f64) -> f64 {
    is.records.saturating_sub(was.records) as f64 / seconds.max(f64::EPSILON)
}

/// Events a second by which it comes nearer to the end of the log, which moves away meanwhile.
fn closing(is: &ProgressView, was: &ProgressView, seconds: f64) -> Option<f64> {
    let (is, was) = (is.lag_events? as f64, was.lag_events? as f64);
    Some((was - is) / seconds.max(f64::EPSILON))
}

/// `None` where it comes no nearer.
fn eta(lag: u64, closing: f64) -> Option<f64> {
    match lag {
        0 => Some(0.0),
        _ => (closing > 0.0).then(|| lag as f64 / closing),
    }
}

/// A bar for each generation, on standard error.
struct Bars {
    all: MultiProgress,
    by_generation: std::cell::RefCell<Vec<(String, ProgressBar)>>,
    is_silent: bool,
}

// === impl Bars ===

impl Bars {
    fn new(is_silent: bool) -> Self {
        Self { all: MultiProgress::new(), by_generation: Default::default(), is_silent }
    }

    fn show(&self, seen: &[Seen]) {
        if self.is_silent {
            return;
        }
        let mut bars = self.by_generation.borrow_mut();
        for seen in seen {
            let name = &seen.view.generation;
            let index = bars.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                let bar = self.all.add(ProgressBar::new(0));
                if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} % {msg}") {
                    bar.set_style(style);
                }
                bars.push((name.clone(), bar));
                bars.len() - 1
            });
            let (_, bar) = &bars[index];
            if let Some(progress) = &seen.view.progress {
                bar.set_length(progress.records + progress.lag_events.unwrap_or(0));
                bar.set_position(progress.records);
            }
            let held = seen.view.throttle.as_ref().filter(|throttle| throttle.is_held_back);
            let held = held.map(|throttle| format!("; {}", throttle.text())).unwrap_or_default();
            bar.set_message(format!("{}{held}", seen.line()));
        }
    }

    /// An error, on a line of its own above the bars.
    fn tell(&self, error: &str) {
        self.all.suspend(|| eprintln!("millrace: {error}"));
    }

    fn clear(&self) {
        self.by_generation.borrow().iter().for_each(|(_, bar)| bar.finish_and_clear());
    }
}

#[cfg(test)]
mod tests {
    use replay::Role;

    use super::*;

    fn progress(records: u64, lag: u64) -> ProgressView {
        ProgressView { records, lag_events: Some(lag), partitions: 2, live: 2, parked_keys: 0, newest_event: 0 }
    }

    fn seen(role: Role, progress: Option<ProgressView>) -> Seen {
        let view = GenerationView {
            generation: "stock@2".to_owned(),
            number: 2,
            role,
            fold: 2,
            source: "log",
            until: None,
            answers: "nothing".to_owned(),
            mirror_percent: 0,
            replay: None,
            progress,
            problem: None,
            throttle: None,
            mirror: None,
        };
        Seen::new(view, None, 1.0)
    }

    #[test]
    fn a_watch_ends_with_what_is_caught_up_and_with_what_never_will_be() {
        let built = seen(Role::Beside, Some(progress(3_000, 0)));
        let behind = seen(Role::Beside, Some(progress(3_000, 1)));
        let unbegun = seen(Role::Beside, None);
        assert_eq!(Watch::of(&[built], false), Watch::CaughtUp);
        assert_eq!(Watch::of(&[behind], false), Watch::GoesOn);
        assert_eq!(Watch::of(&[unbegun], false), Watch::GoesOn);
        for role in [Role::Retired, Role::Removed] {
            let Watch::GivenUp(why) = Watch::of(&[seen(role, None)], false) else { panic!("{role:?} is waited for") };
            assert!(why.starts_with(&format!("stock@2 is {}: ", role.as_str())), "{why}");
        }
    }

    #[test]
    fn a_watch_waits_for_a_read_model_that_is_away() {
        assert_eq!(Watch::of(&[seen(Role::Serving, Some(progress(3_000, 0)))], true), Watch::GoesOn);
        assert_eq!(Watch::of(&[], true), Watch::GoesOn);
    }

    #[test]
    fn pace_and_time_to_go_are_of_the_last_look() {
        let pace = pace(&progress(3_000, 500), &progress(1_000, 2_500), 2.0);
        assert_eq!(pace, 1_000.0);
        // 500 a second came meanwhile.
        let closing = |was| closing(&progress(3_000, 500), &progress(1_000, was), 2.0);
        assert_eq!(closing(1_500).and_then(|closing| eta(500, closing)), Some(1.0));
        assert_eq!(closing(400).and_then(|closing| eta(500, closing)), None);
        assert_eq!(eta(0, 0.0), Some(0.0));
        // A store that was wiped goes back.
        assert_eq!(super::pace(&progress(10, 0), &progress(20, 0), 1.0), 0.0);
    }
}
