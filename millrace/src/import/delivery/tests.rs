//! Against a server that follows a script, one connection after the other, as a dying and coming back one would look.

use std::sync::{Arc, Mutex};

use schemas::{Context, PositionToken};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::import::target::CommandApi;

/// What the server does with one request for commands.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// The connection ends without an answer.
    HangUp,
    Status(u16),
    /// Outcomes for so many commands, then the connection ends inside a line.
    Break(usize),
    /// Outcomes for all; those of the first so many are `failed`.
    Answer {
        failed: usize,
    },
    NotFound,
}

/// Ids given in each request.
type Given = Arc<Mutex<Vec<Vec<Uuid>>>>;

async fn serve(script: Vec<Act>, known: Vec<Uuid>, first_position: u64) -> (Target, Given) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let given = Given::default();
    let seen = Arc::clone(&given);
    tokio::spawn(async move {
        let mut script = script.into_iter();
        let mut decided = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (is_post, path, body) = request(&mut stream).await;
            if !is_post {
                let is_known = known.iter().any(|id| path.ends_with(&id.to_string()));
                let status = if is_known { "200 OK" } else { "404 Not Found" };
                respond(&mut stream, &format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
                    .await;
                continue;
            }
            let ids: Vec<Uuid> = body
                .lines()
                .map(|line| {
                    serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().parse().unwrap()
                })
                .collect();
            seen.lock().unwrap().push(ids.clone());
            let mut line = |id: &Uuid, kind| {
                let at = if known.contains(id) { 1 } else { first_position + decided };
                decided += 1;
                let position = PositionToken::of(Context::Catalogue, 0, StorePosition { xid: 0, position: at });
                let outcome = Outcome { position: Some(position), ..Outcome::refused(*id, kind, "x", "because") };
                serde_json::to_string(&outcome).unwrap() + "\n"
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n";
            let answer = match script.next().expect("more requests than the script has") {
                Act::HangUp => String::new(),
                Act::Status(status) => {
                    format!("HTTP/1.1 {status} No\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                }
                Act::NotFound => {
                    "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nconnection: close\r\n\r\noops".to_owned()
                }
                Act::Break(count) => {
                    let body: String = ids.iter().take(count).map(|id| line(id, OutcomeKind::Accepted)).collect();
                    format!("{head}content-length: 100000\r\n\r\n{body}{{\"id\":\"")
                }
                Act::Answer { failed } => {
                    let kind = |index| if index < failed { OutcomeKind::Failed } else { OutcomeKind::Accepted };
                    let body: String = ids.iter().enumerate().map(|(index, id)| line(id, kind(index))).collect();
                    format!("{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                }
            };
            respond(&mut stream, &answer).await;
        }
    });
    (Target::Http(CommandApi::new(&url).unwrap()), given)
}

async fn request(stream: &mut BufReader<TcpStream>) -> (bool, String, String) {
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).await.unwrap();
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    (first.starts_with("POST"), path, String::from_utf8(body).unwrap())
}

async fn respond(stream: &mut BufReader<TcpStream>, answer: &str) {
    stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
    stream.get_mut().shutdown().await.unwrap();
}

fn commands(count: u128) -> Vec<Prepared> {
    (1..=count)
        .map(|number| {
            let id = Uuid::from_u128(number);
            Prepared { id, kind: PreparedKind::Register, json: format!(r#"{{"id":"{id}"}}"#) }
        })
        .collect()
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_command_gets_its_outcome_and_answered_ones_are_not_given_again() {
    let script = vec![
        Act::HangUp,
        Act::Status(503),
        Act::Break(3),
        Act::Status(429),
        Act::Answer { failed: 2 },
        Act::Answer { failed: 0 },
    ];
    let (target, given) = serve(script, Vec::new(), 10).await;
    let delivered = Delivery::new(target, SOON).deliver(&commands(8)).await.unwrap();
    assert_eq!(delivered.outcomes.len(), 8);
    assert!(delivered.outcomes.values().all(|outcome| outcome.outcome == OutcomeKind::Accepted));
    let sizes: Vec<usize> = given.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [8, 8, 8, 5, 5, 2]);
}

#[tokio::test]
async fn what_was_there_before_is_told_from_what_is_made_now() {
    let all = commands(6);
    // 2 and 5 were imported before; their outcomes carry their old position.
    let known = vec![all[1].id, all[4].id];
    let (target, _) = serve(vec![Act::Answer { failed: 0 }; 2], known, 10).await;
    let delivery = Delivery::new(target, SOON);
    let first = delivery.deliver(&all[..3]).await.unwrap();
    assert!(delivery.knows_its_beginning());
    let second = delivery.deliver(&all[3..]).await.unwrap();
    let effects: Vec<bool> =
        all.iter().map(|command| first.has_effect(command) || second.has_effect(command)).collect();
    assert_eq!(effects, [true, false, true, true, false, true]);
}

#[tokio::test]
async fn a_wrong_address_is_no_reason_to_wait() {
    let (target, _) = serve(vec![Act::NotFound], Vec::new(), 10).await;
    let error = Delivery::new(target, SOON).deliver(&commands(1)).await.unwrap_err();
    assert!(matches!(&error, DeliveryError::Refused(TargetError::Refused { .. })), "{error}");
    assert!(error.to_string().contains("is it a Millrace command API?"), "{error}");
}

#[tokio::test]
async fn a_server_that_stays_away_is_given_up_on() {
    let url = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://user:hunter2@{}", listener.local_addr().unwrap())
    };
    let target = Target::Http(CommandApi::new(&url.parse().unwrap()).unwrap());
    let error = anyhow::Error::from(Delivery::new(target, Duration::from_millis(200)).contact().await.unwrap_err());
    let text = format!("{error:#}");
    assert!(text.contains("cannot be reached") && !text.contains("hunter2"), "{text}");
}
