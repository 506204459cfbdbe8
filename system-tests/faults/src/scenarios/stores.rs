//! Faults 9, 10, 13, 14 and 22: the stores, and the registry.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::scenario::Scenario;
use crate::trial::Trial;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(9, "Redis killed, the last second of its log lost", redis_forgets),
        Scenario::new(10, "Redis emptied, then another instance answers", redis_emptied),
    ]
}

/// What is put back is the append-only file of a second and a half before the kill.
fn redis_forgets<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for round in 0..3 {
            let copy = trial.system.folder.join(format!("redis-{round}"));
            trial.servers.redis.copy_of_data(&copy)?;
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            trial.servers.redis.program.kill()?;
            trial.servers.redis.restore(&copy)?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            trial.servers.redis.start().await?;
            trial.probe().await?;
        }
        Ok(())
    }
    .boxed_local()
}

fn redis_emptied<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let before = trial.readers.len();
        trial.servers.redis.empty().await?;
        trial.probe().await?;
        let refused = trial.readers.since(before, 503);
        trial.expect(refused > 0, "Redis was emptied and no reader was told that it is being rebuilt");

        let before = trial.readers.len();
        trial.servers.redis.program.kill()?;
        std::fs::remove_dir_all(&trial.servers.redis.data)?;
        std::fs::create_dir(&trial.servers.redis.data)?;
        trial.servers.redis.start().await?;
        trial.probe().await?;
        let refused = trial.readers.since(before, 503);
        trial.expect(refused > 0, "an empty Redis answered and no reader was told that it is being rebuilt");
        Ok(())
    }
    .boxed_local()
}
