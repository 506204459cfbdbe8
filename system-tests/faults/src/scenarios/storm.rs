//! Everything at once: for some minutes a random process, of ours or a server, is killed every few seconds.

use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scenario::{On, Scenario};
use crate::trial::Trial;

pub fn scenario(minutes: u64, on_files: bool) -> Scenario {
    let mut storm = Scenario::new(0, "a random process killed every few seconds", storm).variant("storm");
    if on_files {
        storm = storm.on(On::Files);
    }
    storm.bound = Duration::from_secs(minutes * 60 + 300);
    storm
}

fn storm<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let mut random = ChaCha8Rng::seed_from_u64(trial.settings.seed);
        let begun = Instant::now();
        let mut kills = 0;
        let mut victims = trial.system.names();
        if !trial.system.is_embedded() {
            victims.extend(["kafka", "postgres", "redis"].map(str::to_owned));
        }
        while begun.elapsed() < trial.settings.storm {
            let victim = victims[random.random_range(0..victims.len())].clone();
            let down = Duration::from_millis(random.random_range(0..1_500));
            match victim.as_str() {
                "kafka" => {
                    let broker = &mut trial.servers.kafka.brokers[0].program;
                    broker.kill()?;
                    tokio::time::sleep(down).await;
                    broker.start()?;
                }
                "postgres" => {
                    trial.servers.postgres.kill().await?;
                    tokio::time::sleep(down).await;
                    trial.servers.postgres.start().await?;
                }
                "redis" => {
                    trial.servers.redis.program.kill()?;
                    tokio::time::sleep(down).await;
                    trial.servers.redis.program.start()?;
                }
                role => {
                    let program = trial.system.program(role)?;
                    program.kill()?;
                    tokio::time::sleep(down).await;
                    program.start()?;
                }
            }
            kills += 1;
            if kills % 20 == 0 {
                eprintln!("  {kills} kills, {} events, {:.0} s", trial.load.events(), begun.elapsed().as_secs_f64());
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(1_000..4_000))).await;
            // A role that gave up because a server was away is started again, as its supervisor would.
            for name in trial.system.names() {
                trial.system.program(&name)?.start()?;
            }
        }
        if !trial.system.is_embedded() {
            trial.servers.kafka.start().await?;
            trial.servers.redis.start().await?;
        }
        for name in trial.system.names() {
            trial.system.start(&name).await?;
        }
        eprintln!("  {kills} kills");
        Ok(())
    }
    .boxed_local()
}
