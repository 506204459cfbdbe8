//! Bulk: NDJSON in, one outcome line per command out, in the same order, streamed.
//!
//! A few chunks are under way at once; a client that does not read its outcomes stops the reading of its body.
//! A client that goes away leaves no half command: what was taken has its outcome, and the id finds it.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use schemas::{CommandEnvelope, Outcome, OutcomeKind};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::lines::{Line, LineSplitter};
use super::{BODY_PATIENCE, MAX_COMMAND_BYTES, readable_id};
use crate::handler::{CommandHandler, Enqueued, NOT_DECIDED};
use crate::intake_gate::OVERLOADED;
use crate::refusal::refused;

/// Commands handed to the handler at once.
const CHUNK_COMMANDS: usize = 500;
/// Chunks under way before the body waits.
const CHUNKS_UNDER_WAY: usize = 4;

/// A chunk on its way: which of its lines wait for the handler, and what the others already are.
struct Chunk {
    lines: Vec<ChunkLine>,
    enqueued: Option<Enqueued>,
}

enum ChunkLine {
    Waits,
    Refused(Box<Outcome>),
}

pub(super) fn respond(handler: CommandHandler, body: Body, traceparent: Option<String>, now: fn() -> i64) -> Response {
    let (chunks, under_way) = mpsc::channel(CHUNKS_UNDER_WAY);
    tokio::spawn(read_body(handler, body, traceparent, now, chunks));
    let outcomes = futures::stream::unfold(under_way, |mut under_way| async move {
        let chunk: Chunk = under_way.recv().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(finish(chunk).await), under_way))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(outcomes)).into_response()
}

/// Reads the body to its end, until nobody reads the outcomes, or until the process ends: its sender gives the lines
/// that have no outcome again.
async fn read_body(
    handler: CommandHandler,
    body: Body,
    traceparent: Option<String>,
    now: fn() -> i64,
    chunks: mpsc::Sender<Chunk>,
) {
    let mut splitter = LineSplitter::new(MAX_COMMAND_BYTES);
    let mut pieces = body.into_data_stream();
    loop {
        let read = tokio::select! {
            read = tokio::time::timeout(BODY_PATIENCE, pieces.next()) => read,
            () = handler.closed() => return,
        };
        let Ok(piece) = read else {
            tracing::debug!("bulk body stalled");
            return;
        };
        let (lines, is_last) = match piece {
            Some(Ok(piece)) => (splitter.push(&piece), false),
            // A body that breaks off may end inside a line: that line was not given.
            Some(Err(error)) => {
                tracing::debug!(%error, "bulk body broke off");
                return;
            }
            None => (splitter.finish(), true),
        };
        for piece in lines.chunks(CHUNK_COMMANDS) {
            let chunk = take(&handler, piece, traceparent.as_deref(), now()).await;
            if chunks.send(chunk).await.is_err() {
                return;
            }
        }
        if is_last {
            return;
        }
    }
}

async fn take(handler: &CommandHandler, lines: &[Line], traceparent: Option<&str>, received_at: i64) -> Chunk {
    let mut commands = Vec::with_capacity(lines.len());
    let lines = lines
        .iter()
        .map(|line| match read(line, traceparent, received_at) {
            Ok(command) => {
                commands.push(command);
                ChunkLine::Waits
            }
            Err(outcome) => ChunkLine::Refused(outcome),
        })
        .collect::<Vec<_>>();
    if !commands.is_empty() && !handler.gate().opened_in_time().await {
        let message = "the relay is too far behind; nothing was taken";
        return Chunk { lines: not_taken(lines, commands, OVERLOADED, message), enqueued: None };
    }
    if let Some(open) = handler.refusal().filter(|_| !commands.is_empty()) {
        return Chunk { lines: not_taken(lines, commands, NOT_DECIDED, &open.to_string()), enqueued: None };
    }
    // Enqueued here, one chunk after the other, so that commands are decided in the order of their lines.
    let enqueued = if commands.is_empty() { None } else { Some(handler.enqueue(commands).await) };
    Chunk { lines, enqueued }
}

/// Outcomes of commands that were not taken: given again under their ids, they have their first outcome then.
fn not_taken(lines: Vec<ChunkLine>, commands: Vec<CommandEnvelope>, code: &str, message: &str) -> Vec<ChunkLine> {
    let mut commands = commands.into_iter();
    let of = |line| match line {
        ChunkLine::Waits => commands.next().map_or(ChunkLine::Waits, |command| {
            ChunkLine::Refused(Box::new(refused(command.id, OutcomeKind::Failed, code, message)))
        }),
        refused => refused,
    };
    lines.into_iter().map(of).collect()
}

fn read(line: &Line, traceparent: Option<&str>, received_at: i64) -> Result<CommandEnvelope, Box<Outcome>> {
    match line {
        Line::Text { number, text } => CommandEnvelope::from_json(text, traceparent.map(str::to_owned), received_at)
            .map_err(|error| {
                let message = format!("line {number}: {error}");
                Box::new(refused(readable_id(text), OutcomeKind::Invalid, error.code(), &message))
            }),
        Line::TooLong { number } => {
            let message = format!("line {number} has more than {MAX_COMMAND_BYTES} bytes");
            Err(Box::new(refused(Uuid::nil(), OutcomeKind::Invalid, "command_too_large", &message)))
        }
    }
}

async fn finish(chunk: Chunk) -> Bytes {
    let decided = match chunk.enqueued {
        Some(enqueued) => enqueued.outcomes().await,
        None => Vec::new(),
    };
    let mut decided = decided.into_iter();
    let mut answer = BytesMut::new();
    for line in chunk.lines {
        let outcome = match line {
            ChunkLine::Refused(outcome) => Some(*outcome),
            ChunkLine::Waits => decided.next(),
        };
        if let Some(json) = outcome.and_then(|outcome| serde_json::to_vec(&outcome).ok()) {
            answer.put_slice(&json);
            answer.put_u8(b'\n');
        }
    }
    answer.freeze()
}
