//! Where commands go: a command API over HTTP, or a command handler of our own on the event store.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use command_api::CommandHandler;
use futures::TryStreamExt;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use schemas::{CommandEnvelope, Outcome};
use tokio::io::AsyncBufReadExt;
use tokio_util::io::StreamReader;
use url::Url;
use uuid::Uuid;

use super::product_row::Prepared;
use crate::roles::now;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest silence of the API within an answer: longer than its own retries on an unavailable store.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub enum Target {
    Http(CommandApi),
    Direct(CommandHandler),
}

/// A command API somewhere.
#[derive(Clone)]
pub struct CommandApi {
    client: reqwest::Client,
    commands: Url,
}

/// Why commands, or some of them, have no outcome yet.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error(
        "command API {url} cannot be reached ({problem}); start `millrace up` or `millrace write`, or correct --to"
    )]
    Unreachable { url: String, problem: String },
    #[error("command API {url} answers {status}")]
    Busy { url: String, status: StatusCode, retry_after: Option<Duration> },
    #[error("{url} answers {status}: {detail}; is it a Millrace command API?")]
    Refused { url: String, status: StatusCode, detail: String },
    #[error("{url} answers something else than outcomes ({line:?}); is it a Millrace command API?")]
    NotOutcomes { url: String, line: String },
    #[error("{0}")]
    Store(String),
}

// === impl TargetError ===

impl TargetError {
    /// Whether the same commands may be taken a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            TargetError::Unreachable { .. } | TargetError::Busy { .. } | TargetError::Store(_) => true,
            TargetError::Refused { .. } | TargetError::NotOutcomes { .. } => false,
        }
    }

    /// How long the other side asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            TargetError::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

// === impl Target ===

impl Target {
    /// Gives commands and puts each outcome that comes into `outcomes`, also when the rest is lost to an error.
    pub async fn give(&self, commands: &[&Prepared], outcomes: &mut HashMap<Uuid, Outcome>) -> Result<(), TargetError> {
        match self {
            Target::Http(api) => api.give(commands, outcomes).await,
            Target::Direct(handler) => {
                let envelopes: Result<Vec<_>, _> = commands
                    .iter()
                    .map(|command| CommandEnvelope::from_json(command.json.as_bytes(), None, now()))
                    .collect();
                let envelopes = envelopes.map_err(|error| TargetError::Store(error.to_string()))?;
                let decided = handler.handle_all(envelopes).await;
                outcomes.extend(decided.into_iter().map(|outcome| (outcome.id, outcome)));
                Ok(())
            }
        }
    }

    /// Whether a command of this id was decided before.
    pub async fn is_known(&self, id: Uuid) -> Result<bool, TargetError> {
        match self {
            Target::Http(api) => api.is_known(id).await,
            Target::Direct(handler) => {
                let stored = handler.outcome(id).await.map_err(|error| TargetError::Store(error.to_string()))?;
                Ok(stored.is_some())
            }
        }
    }
}

// === impl CommandApi ===

impl CommandApi {
    /// `url` is the address of the API, with or without `/v1/commands`.
    pub fn new(url: &Url) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .context("the HTTP client cannot be set up")?;
        let mut commands = url.clone();
        let path = commands.path().trim_end_matches('/').trim_end_matches("/v1/commands").to_owned();
        commands.set_path(&format!("{path}/v1/commands"));
        Ok(Self { client, commands })
    }

    /// The address without a password in it.
    fn shown(&self) -> String {
        let mut shown = self.commands.clone();
        // An http address can be without user and password.
        let _ = shown.set_password(None);
        let _ = shown.set_username("");
        shown.to_string()
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> TargetError {
        let mut problem = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            problem = error.to_string();
            cause = error.source();
        }
        TargetError::Unreachable { url: self.shown(), problem }
    }

    async fn sent(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, TargetError> {
        let response = request.send().await.map_err(|error| self.unreachable(&error.without_url()))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(response);
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        if matches!(status.as_u16(), 408 | 429 | 502 | 503 | 504) {
            return Err(TargetError::Busy {
                url: self.shown(),
                status,
                retry_after: retry_after.map(Duration::from_secs),
            });
        }
        Err(self.refused(response).await)
    }

    async fn refused(&self, response: reqwest::Response) -> TargetError {
        let status = response.status();
        let detail = response.text().await.unwrap_or_default();
        TargetError::Refused { url: self.shown(), status, detail: cut(&detail) }
    }

    async fn give(&self, commands: &[&Prepared], outcomes: &mut HashMap<Uuid, Outcome>) -> Result<(), TargetError> {
        let body: String = commands.iter().flat_map(|command| [command.json.as_str(), "\n"]).collect();
        let request = self.client.post(self.commands.clone()).header(CONTENT_TYPE, "application/x-ndjson").body(body);
        let response = self.sent(request).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.refused(response).await);
        }
        let answer = response.bytes_stream().map_err(|error| std::io::Error::other(error.without_url()));
        let mut lines = StreamReader::new(answer).lines();
        while let Some(line) = lines.next_line().await.map_err(|error| self.unreachable(&error))? {
            match serde_json::from_str::<Outcome>(&line) {
                Ok(outcome) => outcomes.insert(outcome.id, outcome),
                // A connection that ends inside a line leaves half an outcome: that command has none yet.
                Err(error) if error.is_eof() => break,
                Err(_) => return Err(TargetError::NotOutcomes { url: self.shown(), line: cut(&line) }),
            };
        }
        Ok(())
    }

    async fn is_known(&self, id: Uuid) -> Result<bool, TargetError> {
        let mut url = self.commands.clone();
        url.set_path(&format!("{}/{id}", self.commands.path()));
        Ok(self.sent(self.client.get(url)).await?.status() != StatusCode::NOT_FOUND)
    }
}

fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}
