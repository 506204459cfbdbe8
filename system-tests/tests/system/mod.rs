//! A whole Millrace, as its users run it: the program, in one process on files, or one process per role on real servers.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before the test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Roles of a system in several processes, in the order in which they are started and killed.
pub const ROLES: [&str; 5] = ["relay", "write", "stock", "search", "serve"];

pub struct System {
    folder: TempDir,
    servers: Option<Servers>,
    processes: BTreeMap<&'static str, Process>,
    /// The process that queries go to.
    asked: &'static str,
    client: reqwest::Client,
}

struct Process {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    address: String,
    child: Option<Child>,
}

/// A set of real servers of its own: topics have fixed names.
struct Servers {
    env_file: PathBuf,
}

// === impl System ===

impl System {
    /// One process on files.
    pub async fn embedded() -> Self {
        Self::embedded_with(&[]).await
    }

    /// The same, with more arguments.
    pub async fn embedded_with(arguments: &[&str]) -> Self {
        let mut system = Self::new(None);
        let data = system.folder.path().join("data");
        system.add("up", &[&["up", "--data", data.to_str().unwrap()], arguments].concat(), &[]);
        system.ready().await;
        system
    }

    /// One process per role, on servers that this starts.
    pub async fn separate() -> Self {
        let (servers, address) = Servers::start();
        let mut system = Self::new(Some(servers));
        let search = system.folder.path().join("search");
        let environment = [
            ("MILLRACE_EVENT_STORE", address("POSTGRES")),
            ("MILLRACE_EVENT_LOG", format!("kafka://{}", address("KAFKA"))),
            ("MILLRACE_SCHEMA_REGISTRY", address("REGISTRY")),
            ("MILLRACE_STOCK_STORE", address("REDIS")),
            ("MILLRACE_SEARCH_DIR", search.display().to_string()),
        ];
        let registered = millrace()
            .args(["contracts", "register", "--schema-registry", &address("REGISTRY")])
            .stdout(Stdio::null())
            .status();
        assert!(registered.unwrap().success());
        for role in ROLES {
            match role {
                "stock" | "search" => system.add(role, &["project", role], &environment),
                _ => system.add(role, &[role], &environment),
            }
        }
        system.ready().await;
        system
    }

    fn new(servers: Option<Servers>) -> Self {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        let asked = if servers.is_some() { "serve" } else { "up" };
        Self { folder: tempfile::tempdir().unwrap(), servers, processes: BTreeMap::new(), asked, client }
    }

    /// A second search projector on a directory of its own, and a query API on that.
    pub async fn add_search_node(&mut self) -> [&'static str; 2] {
        let mut environment = self.processes["search"].environment.clone();
        let directory = environment.iter_mut().find(|(name, _)| name == "MILLRACE_SEARCH_DIR").unwrap();
        directory.1 = self.folder.path().join("search-2").display().to_string();
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        self.add("search-2", &["project", "search"], &environment);
        self.add("serve-2", &["serve"], &environment);
        self.ready_all(&["search-2", "serve-2"]).await;
        ["search-2", "serve-2"]
    }

    /// Sends queries to another process from now on.
    pub fn ask(&mut self, name: &'static str) {
        self.asked = name;
    }

    fn add(&mut self, name: &'static str, arguments: &[&str], environment: &[(&str, String)]) {
        let address = free_address();
        let mut arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        arguments.extend(["--listen".to_owned(), address.clone()]);
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        self.processes.insert(name, Process { arguments, environment, address, child: None });
        self.start(name);
    }

    pub fn names(&self) -> Vec<&'static str> {
        if self.servers.is_some() { ROLES.to_vec() } else { vec!["up"] }
    }

    pub fn start(&mut self, name: &'static str) {
        let log = self.folder.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).unwrap();
        let process = self.processes.get_mut(name).unwrap();
        let child = millrace()
            .current_dir(self.folder.path())
            .args(&process.arguments)
            .envs(process.environment.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        process.child = Some(child.unwrap());
    }

    /// kill -9
    pub fn kill(&mut self, name: &'static str) {
        let mut child = self.processes.get_mut(name).unwrap().child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; gives the exit code of a process that ends within `patience`.
    pub fn terminate(&mut self, name: &'static str, patience: Duration) -> i32 {
        let mut child = self.processes.get_mut(name).unwrap().child.take().unwrap();
        signal(&child, "TERM");
        wait(&mut child, patience)
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits until every process is ready.
    pub async fn ready(&mut self) {
        self.ready_all(&self.names()).await;
    }

    async fn ready_all(&mut self, names: &[&'static str]) {
        for name in names {
            let url = format!("http://{}/readyz", self.processes[name].address);
            let begun = Instant::now();
            loop {
                let is_ready = self.client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success());
                // Looked at in both cases: what answers there may be somebody else.
                let ended = self.processes.get_mut(name).unwrap().child.as_mut().unwrap().try_wait().unwrap();
                assert!(ended.is_none(), "{name} ended: {}", self.log(name));
                if is_ready {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{name} is not ready: {}", self.log(name));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// What a process says of its health; nothing while it does not answer.
    pub async fn told(&self, name: &str) -> String {
        match self.client.get(format!("http://{}/readyz", self.processes[name].address)).send().await {
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    pub fn commands_url(&self) -> String {
        let name = if self.servers.is_some() { "write" } else { "up" };
        format!("http://{}", self.processes[name].address)
    }

    pub fn queries_url(&self) -> String {
        format!("http://{}", self.processes[self.asked].address)
    }

    pub async fn command(&self, command: &Value) -> Value {
        let url = format!("{}/v1/commands", self.commands_url());
        self.client.post(url).json(command).send().await.unwrap().json().await.unwrap()
    }

    /// Status and body.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.queries_url())).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// Reads what must be true at a position.
    pub async fn get_at(&self, path: &str, position: &str) -> Value {
        let begun = Instant::now();
        loop {
            let request = self.client.get(format!("{}{path}", self.queries_url()));
            let answer = request.header("Millrace-Min-Position", position).send().await.unwrap();
            if answer.status().is_success() {
                return answer.json().await.unwrap();
            }
            assert!(begun.elapsed() < PATIENCE, "{path} at {position}: {}", answer.text().await.unwrap());
        }
    }

    pub async fn status(&self) -> Value {
        let (status, body) = self.get("/v1/status").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Waits until every projection has all that the log has, and the search shows `products`. The log's ends are noted twice a
    /// second: so it has to stay like that for longer.
    pub async fn settled(&self, products: u64) {
        let begun = Instant::now();
        let mut level_since: Option<(Instant, Vec<String>)> = None;
        loop {
            let (code, status) = self.get("/v1/status").await;
            let is_level = code == 200
                && status["projections"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|projection| projection["state"] == "live" && projection["lag_events"] == 0);
            let (_, found) = self.get("/v1/search?limit=1&facets=false").await;
            let positions: Vec<String> = match status["projections"].as_array() {
                Some(projections) => projections.iter().map(|told| told["position"].to_string()).collect(),
                None => Vec::new(),
            };
            level_since = match level_since.take() {
                _ if !is_level || found["total"] != products => None,
                Some((since, at)) if at == positions => Some((since, at)),
                _ => Some((Instant::now(), positions)),
            };
            if level_since.as_ref().is_some_and(|(since, _)| since.elapsed() > Duration::from_millis(1_500)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{products} products are not all there: {found} {status}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every SKU that the search finds, page by page.
    pub async fn skus(&self) -> Vec<String> {
        let mut skus = Vec::new();
        let mut cursor = String::new();
        loop {
            let (status, page) = self.get(&format!("/v1/search?limit=100&facets=false{cursor}")).await;
            assert_eq!(status, 200, "{page}");
            let hits = page["hits"].as_array().unwrap();
            skus.extend(hits.iter().map(|hit| hit["sku"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        skus.sort();
        skus
    }

    pub fn redis_url(&self) -> &str {
        let environment = &self.processes["stock"].environment;
        environment.iter().find(|(name, _)| name == "MILLRACE_STOCK_STORE").map(|(_, url)| url.as_str()).unwrap()
    }

    /// Those of a projector's settings that are asked for.
    pub fn settings(&self, names: &[&str]) -> Vec<(String, String)> {
        let environment = &self.processes["stock"].environment;
        environment.iter().filter(|(name, _)| names.contains(&name.as_str())).cloned().collect()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.processes.keys() {
                eprintln!("--- log of {name}\n{}", self.log(name));
            }
        }
        for process in self.processes.values_mut() {
            if let Some(mut child) = process.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

// === impl Servers ===

impl Servers {
    /// The servers, and the address of each by the last part of its variable.
    fn start() -> (Self, impl Fn(&str) -> String) {
        let name = format!("millrace-{}.env", uuid::Uuid::new_v4());
        let env_file = std::env::temp_dir().join(name);
        let started = script("start").arg(&env_file).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(started.success(), "the servers do not start; system-tests/servers/start says why");
        let text = std::fs::read_to_string(&env_file).unwrap();
        let address = move |server: &str| {
            let begin = format!("export MILLRACE_TEST_{server}='");
            let found = text.lines().find_map(|line| line.strip_prefix(&begin)?.strip_suffix('\''));
            found.unwrap_or_else(|| panic!("no {server} in {text}")).to_owned()
        };
        (Self { env_file }, address)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = script("stop").arg(&self.env_file).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("servers").join(name))
}

/// The program that was built with these tests, without the settings of whoever runs them.
pub fn millrace() -> Command {
    let folder = std::env::current_exe().unwrap();
    let program = folder.ancestors().nth(2).unwrap().join("millrace");
    assert!(program.exists(), "{} is missing: cargo build -p millrace", program.display());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if name.starts_with("MILLRACE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// An address that is given once. A port that the kernel chose could be handed out again before the program that it is meant for
/// listens; these are below its range, and below that of the servers.
pub fn free_address() -> String {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id().wrapping_mul(31).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", 10_000 + next % 10_000);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// Sends a signal such as `INT`.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// Runs a child to its end, or fails.
pub fn wait(child: &mut Child, patience: Duration) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(begun.elapsed() < patience, "it does not end within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
