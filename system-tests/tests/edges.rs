//! What the program says at its edges: settings, addresses, directories, signals.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod system;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use system::{free_address, millrace, signal, wait};

/// Exit code, and the one line that it says.
fn refused(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code().unwrap(), said)
}

#[test]
fn an_unknown_setting_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("millrace.toml"), "listen = \"127.0.0.1:0\"\ngroup-comands = 7\n").unwrap();
    let output = millrace().current_dir(folder.path()).arg("up").output().unwrap();
    let (code, said) = refused(&output);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("group-comands") && said.contains("millrace.toml"), "{said}");
    let flag = millrace().current_dir("/").args(["up", "--group-comands", "7"]).output().unwrap();
    assert_eq!(refused(&flag).0, 2);
    assert!(refused(&flag).1.contains("--group-commands"), "{}", refused(&flag).1);
    let value = millrace().current_dir("/").env("MILLRACE_PARTITIONS", "many").args(["up"]).output().unwrap();
    assert_eq!(refused(&value).0, 2);
    assert!(refused(&value).1.contains("partitions"), "{}", refused(&value).1);
}

#[test]
fn an_unreachable_server_is_named_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let stores = [
        ("MILLRACE_EVENT_STORE", "postgres://user:secret@127.0.0.1:9/db"),
        ("MILLRACE_STOCK_STORE", "redis://:secret@127.0.0.1:9"),
    ];
    for (name, url) in stores {
        let output =
            millrace().current_dir(folder.path()).env(name, url).args(["up", "--listen", "127.0.0.1:0"]).output();
        let (code, said) = refused(&output.unwrap());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("127.0.0.1:9") && !said.contains("secret"), "{said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
    let output = millrace().args(["status", "--url", "http://127.0.0.1:9"]).output().unwrap();
    let (code, said) = refused(&output);
    assert!(code == 1 && said.contains("127.0.0.1:9"), "{said}");
}

#[test]
fn a_wrong_address_of_a_store_is_refused() {
    for (flag, url) in
        [("--event-store", "mysql://h/db"), ("--event-log", "kafka://h"), ("--stock-store", "memcache://h")]
    {
        let folder = tempfile::tempdir().unwrap();
        let output = millrace().current_dir(folder.path()).args(["up", "--listen", "127.0.0.1:0", flag, url]).output();
        let (code, said) = refused(&output.unwrap());
        assert!([1, 2].contains(&code) && said.contains(&flag[2..]), "{flag} {url}: {code} {said}");
    }
}

/// A running program whose first lines tell its address.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(arguments: &[&str], log: File) -> Self {
        let mut child = millrace().args(arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it ended before it told its address").unwrap();
            if let Some(at) = line.find("http://") {
                break line[at..].split(['/', '\'', ' ']).nth(2).unwrap().to_owned();
            }
        };
        // Kept read, so that the program never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_data_directory_is_used_by_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let log = File::create(folder.path().join("log")).unwrap();
    let _first = Running::start(&["up", "--data", data, "--listen", "127.0.0.1:0"], log);
    let second = millrace().args(["up", "--data", data, "--listen", "127.0.0.1:0"]).output().unwrap();
    let (code, said) = refused(&second);
    assert!(code == 1 && said.contains("in use") && said.contains(data), "{code} {said}");
    // Reading beside it is fine.
    let tail = millrace().args(["tail", "--data", data, "--from", "beginning", "--no-follow"]).output().unwrap();
    assert!(tail.status.success(), "{}", refused(&tail).1);
}

#[tokio::test]
async fn the_demo_shows_its_data_stops_on_ctrl_c_and_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let listen = free_address();
    let mut seen = Vec::new();
    for start in 0..2 {
        // A new one: a connection to the process before would be taken for one to this.
        let client = reqwest::Client::new();
        let log = File::create(folder.path().join("log")).unwrap();
        let begun = Instant::now();
        let mut demo = Running::start(&["demo", "--data", &data, "--listen", &listen, "--products", "200"], log);
        let get = async |path: &str| -> serde_json::Value {
            let url = format!("http://{}{path}", demo.address);
            client.get(url).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
        };
        let found = get("/v1/search?limit=3").await;
        assert_eq!(found["total"], 200, "{found}");
        let sku = found["hits"][0]["sku"].as_str().unwrap();
        let page = get(&format!("/v1/products/{sku}")).await;
        assert_eq!(page["missing"], serde_json::json!([]), "{page}");
        assert!(get(&format!("/v1/stock/{sku}")).await["total"]["on_hand"].is_i64());
        assert!(begun.elapsed() < Duration::from_secs(30));
        let head = get("/v1/status").await["head"].as_str().unwrap().to_owned();
        seen.push(head.split(',').filter_map(|part| part.rsplit('.').next()?.parse::<u64>().ok()).max().unwrap());
        signal(&demo.child, "INT");
        assert_eq!(wait(&mut demo.child, Duration::from_secs(30)), 0, "start {start}");
    }
    // The second start found the data: it went on after it, and gave the catalogue no second time.
    assert!(seen[1] >= seen[0] && seen[1] < seen[0] + 400, "{seen:?}");
}

/// What a connection is answered, to its end; nothing when it is closed without a word.
fn answered(address: &str, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A server that has refused may close before all is sent.
    let _ = stream.write_all(sent);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_hostile_caller_is_refused_and_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").display().to_string();
    let log = File::create(folder.path().join("log")).unwrap();
    let mut up = Running::start(&["up", "--data", &data, "--listen", "127.0.0.1:0"], log);
    let mut half = TcpStream::connect(&up.address).unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n").unwrap();

    let headers = (0..100_000).map(|at| format!("x-{at}: v\r\n")).collect::<String>();
    let many = answered(&up.address, format!("GET /healthz HTTP/1.1\r\nhost: h\r\n{headers}\r\n").as_bytes());
    assert!(many.is_empty() || many.starts_with("HTTP/1.1 431"), "{many}");
    assert!(answered(&up.address, b"\x16\x03\x01\x02\x00\r\n\r\n").starts_with("HTTP/1.1 400"));

    let length = 64 * 1024 + 1;
    let head = format!(
        "POST /v1/commands HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    let large = answered(&up.address, &[head.into_bytes(), vec![b' '; length]].concat());
    assert!(large.starts_with("HTTP/1.1 413") && large.contains("application/problem+json"), "{large}");
    assert!(large.contains("\"status\":413") && large.contains("65536 bytes"), "{large}");

    for path in ["/healthz", "/readyz", "/metrics"] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        let answer = answered(&up.address, request.as_bytes());
        // What is not ready yet says so.
        let statuses = if path == "/readyz" { ["HTTP/1.1 200", "HTTP/1.1 503"] } else { ["HTTP/1.1 200"; 2] };
        assert!(statuses.iter().any(|status| answer.starts_with(status)), "{path}: {answer}");
    }
    // The half head is still held, and does not make the end a failure.
    signal(&up.child, "TERM");
    assert_eq!(wait(&mut up.child, Duration::from_secs(30)), 0);
    drop(half);
}
