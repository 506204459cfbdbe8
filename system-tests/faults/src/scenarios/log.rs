//! Faults 5, 6, 19, 20, 21: the log itself.

use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::scenario::{On, Scenario};
use crate::system::Reach;
use crate::trial::Trial;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(5, "the broker killed, and restarted", broker_killed),
        Scenario::new(5, "one broker after the other killed, of three", broker_killed)
            .variant("three")
            .on(On::Servers(Reach::Direct, 3)),
    ]
}

fn broker_killed<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        let brokers = trial.servers.kafka.brokers.len();
        for number in 0..brokers.max(2) {
            let broker = &mut trial.servers.kafka.brokers[number % brokers];
            if number == 1 && brokers == 1 {
                // In order, as for an upgrade.
                broker.program.stop("TERM", Duration::from_secs(60)).await?;
            } else {
                broker.program.kill()?;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            broker.program.start()?;
            broker.answers(Duration::from_secs(60)).await?;
            trial.servers.kafka.start().await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        Ok(())
    }
    .boxed_local()
}
