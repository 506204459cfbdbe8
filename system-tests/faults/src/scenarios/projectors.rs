//! Faults 7, 8, 11, 16, 17 and 18: who folds, and what into.

use std::time::Duration;

use anyhow::Context;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::scenario::Scenario;
use crate::trial::Trial;

/// Past the session of a silent member of a group, 10 s.
const PAST_SESSION: Duration = Duration::from_secs(13);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(7, "rebalances in the middle of batches", rebalances),
        Scenario::new(8, "a stock projector frozen past its session, then woken", frozen_stock),
        Scenario::new(8, "the search projector frozen past its session, then woken", frozen_search).variant("search"),
        Scenario::new(18, "one read model fails, the other does not", one_read_model_fails),
    ]
}

/// Members come, leave in order, and are killed.
fn rebalances<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        for round in 0..3 {
            trial.add("stock-2", "stock", &[]).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            trial.add("stock-3", "stock", &[]).await?;
            if round == 1 {
                trial.system.kill_and_start("stock").await?;
            } else {
                trial.system.program("stock")?.stop("TERM", Duration::from_secs(10)).await?;
                trial.system.start("stock").await?;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            trial.system.remove("stock-2")?;
            trial.system.program("stock-3")?.stop("TERM", Duration::from_secs(10)).await?;
            trial.system.remove("stock-3")?;
        }
        Ok(())
    }
    .boxed_local()
}

fn frozen_stock<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.add("stock-2", "stock", &[]).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        trial.system.program("stock")?.signal("STOP")?;
        tokio::time::sleep(PAST_SESSION).await;
        trial.probe().await.context("the other projector does not take over from the frozen one")?;
        trial.system.program("stock")?.signal("CONT")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // It comes back as a member, or nobody folds what it thinks is its own.
        trial.system.ready("stock").await
    }
    .boxed_local()
}

fn frozen_search<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.system.program("search")?.signal("STOP")?;
        tokio::time::sleep(PAST_SESSION).await;
        let told = trial.system.readiness("serve").await;
        trial.expect(trial.system.is_ready("serve").await, format!("the query API is not ready: {told}"));
        trial.system.program("search")?.signal("CONT")?;
        trial.system.ready("search").await
    }
    .boxed_local()
}

/// Redis frozen: search goes on. Then the search projector frozen: stock goes on.
fn one_read_model_fails<'t>(trial: &'t mut Trial<'_>) -> LocalBoxFuture<'t, anyhow::Result<()>> {
    async move {
        trial.servers.redis.program.signal("STOP")?;
        let position = trial.acknowledged().await?;
        let url = trial.system.queries_url();
        let search = "/v1/search?limit=1&facets=false";
        let shown = crate::trial::shows(&url, search, &position, Duration::from_secs(15)).await;
        trial.servers.redis.program.signal("CONT")?;
        shown.context("Redis is frozen and the search stands still with it")?;
        trial.probe().await?;

        trial.system.program("search")?.signal("STOP")?;
        let position = trial.acknowledged().await?;
        let stock = format!("/v1/stock/{}", crate::commands::sku(0));
        let shown = crate::trial::shows(&url, &stock, &position, Duration::from_secs(15)).await;
        trial.system.program("search")?.signal("CONT")?;
        shown.context("the search projector is frozen and stock stands still with it")?;

        // And one that is gone.
        trial.system.program("search")?.kill()?;
        let position = trial.acknowledged().await?;
        crate::trial::shows(&url, &stock, &position, Duration::from_secs(15)).await?;
        trial.system.start("search").await
    }
    .boxed_local()
}
