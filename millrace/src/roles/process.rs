//! A running process: its listener, its parts, and its orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use telemetry::{ComponentHealth, Health, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connections;
use crate::exit::{Exit, one_line};

/// How long the parts of a process may take to finish what they took. With [`crate::BLOCKING_END`] it stays below the
/// 10 s that are promised.
const DRAIN: Duration = Duration::from_secs(8);

/// What a caller is told who missed: every process with routes of its own has the document that lists them.
const NAMED_IN_OPENAPI: &str = "/openapi.json lists those of its API";
const WITHOUT_ROUTES: &str = "it has /healthz, /readyz and /metrics";

/// What the failure of a part means for the process that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The part is what the process is for: who watches processes starts it anew.
    EndProcess,
    /// The others do without it: its component is not ready, and says why, until the process is started anew.
    StayDown,
}

/// What every role has.
pub struct Process {
    pub health: Health,
    pub shutdown: CancellationToken,
    metrics: PrometheusHandle,
    listener: TcpListener,
    parts: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Process {
    /// Takes the address first: a process that cannot be reached should not start to work.
    pub async fn start(listen: &str) -> anyhow::Result<Self> {
        let listener = bind(listen).await?;
        Self::on(listener)
    }

    pub fn on(listener: TcpListener) -> anyhow::Result<Self> {
        let metrics = telemetry::install_metrics()?;
        describe_metrics();
        let shutdown = CancellationToken::new();
        telemetry::shutdown_on_signal(shutdown.clone()).context("signals cannot be listened to")?;
        Ok(Self { health: Health::default(), shutdown, metrics, listener, parts: JoinSet::new() })
    }

    /// The address that was taken: for port 0 the port is known only now.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Adds a part without which the process is nothing: when it ends with an error the whole process ends.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.parts.spawn(async move { (name, part.await) });
    }

    /// Adds a part that has a component in `/readyz`, and says what its failure (a panic, too) means.
    pub fn spawn_component(
        &mut self,
        name: &'static str,
        health: ComponentHealth,
        on_failure: OnFailure,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let shutdown = self.shutdown.clone();
        self.spawn(name, async move {
            let result = match AssertUnwindSafe(part).catch_unwind().await {
                Ok(result) => result,
                Err(_) => Err(anyhow::anyhow!("panicked")),
            };
            let Err(error) = result else { return Ok(()) };
            health.not_ready(one_line(&error));
            if on_failure == OnFailure::EndProcess || shutdown.is_cancelled() {
                return Err(error);
            }
            tracing::error!(part = name, error = one_line(&error), "a part failed, the others go on without it");
            Ok(())
        });
    }

    /// Serves until a signal comes or a part fails; then everything drains within a bound. What does not drain well is
    /// a failure as well: the exit code is all that many a supervisor looks at.
    pub async fn serve(mut self, routes: Router) -> anyhow::Result<Exit> {
        let lists = if routes.has_routes() { NAMED_IN_OPENAPI } else { WITHOUT_ROUTES };
        let router = routes
            .merge(telemetry::router(self.health.clone(), self.metrics))
            .fallback(move |uri| std::future::ready(not_found(&uri, lists)));
        let shutdown = self.shutdown.clone();
        let listener = self.listener;
        self.parts.spawn(async move {
            let served = connections::serve(listener, router, shutdown).await;
            ("http", served.context("HTTP server ended"))
        });
        let mut exit = Exit::Done;
        while let Some(joined) = tokio::select! {
            joined = self.parts.join_next() => joined,
            () = self.shutdown.cancelled() => None,
        } {
            if let Err(error) = ended(joined) {
                eprintln!("millrace: {}", one_line(&error));
                exit = Exit::Failed;
                self.shutdown.cancel();
            }
        }
        let (parts, ended_badly) = (&mut self.parts, &mut exit);
        let drained = telemetry::drain(
            async move {
                while let Some(joined) = parts.join_next().await {
                    if let Err(error) = ended(joined) {
                        eprintln!("millrace: {}", one_line(&error));
                        *ended_badly = Exit::Failed;
                    }
                }
            },
            DRAIN,
        )
        .await;
        if !drained {
            eprintln!("millrace: some parts did not end in time; what they held is taken up at the next start");
            exit = Exit::Failed;
        }
        Ok(exit)
    }
}

fn ended(joined: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Result<()> {
    let (name, result) = joined.context("a part of the process panicked")?;
    result.context(name)
}

pub async fn bind(listen: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; choose another address with --listen HOST:PORT"))
}

/// The metrics of every crate, whatever the process is: one that is not described says nothing to who meets it.
fn describe_metrics() {
    audit::describe_metrics();
    command_api::describe_metrics();
    event_log::metrics::describe_metrics();
    outbox_relay::describe_metrics();
    projectors::describe_metrics();
    query_api::describe_metrics();
    read_models::describe_metrics();
    replay::describe_metrics();
    resilience::describe_metrics();
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

fn not_found(uri: &Uri, lists: &str) -> Response {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": "Not found",
        "status": 404,
        "detail": format!("{} is no address of this process; {lists}", uri.path()),
    });
    (StatusCode::NOT_FOUND, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests;
