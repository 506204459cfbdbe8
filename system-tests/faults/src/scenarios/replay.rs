//! Replays under load: the walk of docs/replay.md by the program's own command line, a wrong generation that must not
//! come to serve, and everything killed in the middle. Meanwhile commands and readers come at a steady rate.

mod killed;
mod walk;
mod wrong;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::oracle::generations::{Notes, Routing};
use crate::oracle::views::StockView;
use crate::report::ReplayFigures;
use crate::scenario::{On, Scenario};
use crate::trial::{Replay, Trial};
use walk::{Stages, Walk};

pub fn scenarios() -> Vec<Scenario> {
    let of = |variant, fault, inject| Scenario::new(0, fault, inject).variant(variant);
    vec![
        of("replay-stock", "stock replayed as the guide says", stock_at_once).replayed("stock"),
        of("replay-stock-files", "the same in stages, one process on files", stock_in_stages)
            .replayed("stock")
            .on(On::Files),
        of("replay-search", "search replayed as the guide says, in stages", search_in_stages).replayed("search"),
        of("replay-search-files", "the same at once, one process on files", search_at_once)
            .replayed("search")
            .on(On::Files),
        of("replay-wrong", "a new generation with a wrong field in one region", wrong).replayed("stock"),
        of("replay-wrong-files", "the same, one process on files", wrong).replayed("stock").on(On::Files),
        of("replay-killed", "projector, Redis, broker and the command killed while stock is replayed", stock_killed)
            .replayed("stock")
            .rate_divisor(2)
            .within(1_500),
        of("replay-killed-search", "the same while search is replayed", search_killed)
            .replayed("search")
            .rate_divisor(2)
            .within(1_500),
        of("replay-killed-files", "the same while stock is replayed, one process on files", stock_killed)
            .replayed("stock")
            .rate_divisor(2)
            .within(1_500)
            .on(On::Files),
    ]
}

fn stock_at_once<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    walked(trial, "stock", Stages::AtOnce).boxed_local()
}

fn stock_in_stages<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    walked(trial, "stock", Stages::Shipped).boxed_local()
}

fn search_at_once<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    walked(trial, "search", Stages::AtOnce).boxed_local()
}

fn search_in_stages<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    walked(trial, "search", Stages::Shipped).boxed_local()
}

fn wrong<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    wrong::replay(trial).boxed_local()
}

fn stock_killed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    killed::replay(trial, "stock").boxed_local()
}

fn search_killed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    killed::replay(trial, "search").boxed_local()
}

/// Readers follow a flip within so long.
const FOLLOW: Duration = Duration::from_millis(100);

/// The guide from start to retirement.
async fn walked(trial: &mut Trial<'_>, model: &'static str, stages: Stages) -> anyhow::Result<()> {
    let pace = Pace::of(trial);
    let mut walk = begin(trial, model, stages)?;
    let kept = walk.through().await?;
    trial.violations.extend(walk.unexpected());
    end(trial, &walk, kept, pace.per_second(trial), None);
    Ok(())
}

fn begin(trial: &Trial<'_>, model: &'static str, stages: Stages) -> anyhow::Result<Walk> {
    let follow = FOLLOW * trial.settings.slack;
    let notes = Arc::new(Notes::of(model, trial.readers.begun, follow));
    notes.hold(Routing::All(1));
    Walk::new(&trial.system, notes, stages, trial.settings.slack).context("before the replay")
}

/// Leaves what the oracle needs.
fn end(trial: &mut Trial<'_>, walk: &Walk, kept: StockView, commands_per_second: f64, rolled_back: Option<f64>) {
    walk.notes.release();
    let figures = ReplayFigures {
        commands_per_second,
        built_records: walk.built.records,
        built_per_second: walk.built.records as f64 / walk.built.seconds.max(f64::EPSILON),
        rolled_back_seconds: rolled_back,
        ..ReplayFigures::default()
    };
    trial.replay = Some(Replay { notes: walk.notes.clone(), figures, kept });
}

/// Commands that are given, other than again.
struct Pace {
    begun: Instant,
    before: usize,
}

// === impl Pace ===

impl Pace {
    fn of(trial: &Trial<'_>) -> Self {
        Self { begun: Instant::now(), before: trial.journal.entries().commands.len() }
    }

    fn per_second(&self, trial: &Trial<'_>) -> f64 {
        let given = trial.journal.entries().commands.len() - self.before;
        given as f64 / self.begun.elapsed().as_secs_f64()
    }
}
