//! Faults 24 to 27: what comes in, and the end of a process.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::scenario::{On, Scenario};
use crate::trial::Trial;

/// The promised bound of an orderly end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(24, "commands delivered twice, out of order, late", delivered_twice).duplicates(3),
        Scenario::new(24, "the same, in one process on files", delivered_twice)
            .duplicates(3)
            .variant("files")
            .on(On::Files),
        Scenario::new(27, "SIGTERM under load, each process in turn", terminated),
        Scenario::new(27, "SIGTERM under load, in one process on files", terminated).variant("files").on(On::Files),
    ]
}

/// The load does it by itself; the process that takes commands is killed meanwhile, so that many more come again.
fn delivered_twice<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let intake = if trial.system.is_embedded() { "up" } else { "write" };
        for share in [0.4, 0.7] {
            trial.load.reached(share).await?;
            trial.system.kill_and_start(intake).await?;
        }
        let entries = trial.journal.entries();
        let repeated = entries.commands.values().filter(|entry| entry.acknowledged > 1).count();
        drop(entries);
        trial.expect(repeated > 0, "no command was answered twice");
        Ok(())
    }
    .boxed_local()
}

fn terminated<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for name in trial.system.names() {
            let begun = Instant::now();
            let code = trial.system.program(&name)?.stop("TERM", ENDS_WITHIN).await?;
            let took = begun.elapsed();
            trial.expect(code == 0, format!("{name} ended with exit code {code} after {took:?}"));
            trial.system.start(&name).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }
    .boxed_local()
}
