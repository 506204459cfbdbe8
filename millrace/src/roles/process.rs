//! A running process: its listener, its parts, and its orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use telemetry::{Health, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, one_line};

/// How long the parts of a process may take to finish what they took.
const DRAIN: Duration = Duration::from_secs(4);

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
        let shutdown = CancellationToken::new();
        telemetry::shutdown_on_signal(shutdown.clone()).context("signals cannot be listened to")?;
        Ok(Self { health: Health::default(), shutdown, metrics, listener, parts: JoinSet::new() })
    }

    /// The address that was taken: for port 0 the port is known only now.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Adds a part. When one ends with an error the whole process ends: a half-dead process helps nobody.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.parts.spawn(async move { (name, part.await) });
    }

    /// Serves until a signal comes or a part fails; then everything drains within a bound.
    pub async fn serve(mut self, routes: Router) -> anyhow::Result<Exit> {
        let router = routes.merge(telemetry::router(self.health.clone(), self.metrics)).fallback(not_found);
        let shutdown = self.shutdown.clone();
        let listener = self.listener;
        self.parts.spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
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
        let parts = &mut self.parts;
        let drained = telemetry::drain(
            async move {
                while let Some(joined) = parts.join_next().await {
                    if let Err(error) = ended(joined) {
                        tracing::warn!(%error, "a part ended badly");
                    }
                }
            },
            DRAIN,
        )
        .await;
        if !drained {
            tracing::warn!("some parts did not end in time; what they held is taken up at the next start");
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

/// Milliseconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

async fn not_found(uri: axum::http::Uri) -> impl IntoResponse {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": "Not found",
        "status": 404,
        "detail": format!("{} is no address of this API; /openapi.json lists them", uri.path()),
    });
    (StatusCode::NOT_FOUND, [(axum::http::header::CONTENT_TYPE, "application/problem+json")], body.to_string())
}
