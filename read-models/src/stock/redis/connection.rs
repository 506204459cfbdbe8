//! One Redis server or a Redis Cluster: connection, deadlines, calls of our functions, and which errors may pass.
//! pass.
//!
//! The functions are loaded at the start, on every master, and again whenever a server does not know them: after a
//! restart without its file, a flush, or a new master.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::ConnectionManagerConfig;
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::io::tcp::TcpSettings;
use redis::{
    Cmd, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, ServerErrorKind, Value, cmd, from_redis_value,
};

use resilience::{Guard, guard};

use crate::error::ReadModelError;
use crate::stock::NAME;

use super::address::{RedisAddress, setting};
use super::node::{Node, is_of_the_connection};

const FUNCTIONS: &str = include_str!("functions.lua");
/// Raised with every change of the functions.
const LIBRARY: &str = "millrace_stock_4";

const CONNECT: Duration = Duration::from_secs(2);
/// A call that takes longer has failed, though it may have done its work: a batch is then found to be there already.
const ANSWER: Duration = Duration::from_secs(5);
/// Waits between attempts to connect again while calls fail.
const RECONNECT: Duration = Duration::from_millis(500);

/// How often the functions are loaded for one call: another client may flush them in between.
const LOADS: usize = 3;

/// A connection that every caller shares. Cheap to clone; it comes back by itself after it was lost.
#[derive(Clone)]
pub(super) struct RedisServers {
    link: Link,
    shown: String,
}

#[derive(Clone)]
enum Link {
    Node(Arc<Node>),
    Cluster(ClusterConnection),
}

/// One function call. All keys carry the same hash tag.
pub(super) struct Call {
    command: Cmd,
}

// === impl RedisServers ===

impl RedisServers {
    /// Connects, refuses servers that cannot keep a read model, and loads the functions.
    pub(super) async fn connect(address: &RedisAddress) -> Result<Self, ReadModelError> {
        let shown = address.shown.clone();
        let opening = async {
            // Data that nobody acknowledges ends the connection: otherwise a vanished server would hold it for minutes.
            let tcp = TcpSettings::default().set_nodelay(true);
            #[cfg(target_os = "linux")]
            let tcp = tcp.set_user_timeout(ANSWER);
            if address.is_cluster {
                let client = ClusterClientBuilder::new(address.nodes.clone())
                    .connection_timeout(CONNECT)
                    .response_timeout(ANSWER)
                    .retries(3)
                    .max_retry_wait(200)
                    .tcp_settings(tcp)
                    .build()?;
                return Ok(Link::Cluster(client.get_async_connection().await?));
            }
            let info = address.nodes[0].as_str().into_connection_info()?.set_tcp_settings(tcp);
            let config = ConnectionManagerConfig::new()
                .set_connection_timeout(Some(CONNECT))
                .set_response_timeout(Some(ANSWER))
                .set_number_of_retries(1)
                .set_max_delay(RECONNECT);
            Ok(Link::Node(Arc::new(Node::connect(info, config).await?)))
        };
        let opened: RedisResult<Link> = match tokio::time::timeout(ANSWER, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(no_answer()),
        };
        let servers = Self { link: opened.map_err(|error| classify(&shown, error))?, shown: shown.clone() };
        servers.check().await?;
        servers.load_functions().await.map_err(|error| classify(&shown, error))?;
        Ok(servers)
    }

    /// Calls a function; loads the functions first where the server has none.
    pub(super) async fn call(&self, call: Call) -> Result<Value, ReadModelError> {
        for _ in 0..LOADS {
            match self.query(&call.command).await {
                Err(error) if is_function_missing(&error) => {}
                answer => return answer.map_err(|error| self.classify(error)),
            }
            // What matters is the call: a master elsewhere that does not answer must not stop it.
            if let Err(error) = self.load_functions().await {
                tracing::debug!(%error, "functions not loaded on every master");
            }
        }
        self.query(&call.command).await.map_err(|error| self.classify(error))
    }

    pub(super) async fn command(&self, command: &Cmd) -> Result<Value, ReadModelError> {
        self.query(command).await.map_err(|error| self.classify(error))
    }

    /// Runs a command without a key on the server that holds `key`.
    pub(super) async fn beside(&self, key: &str, command: &Cmd) -> Result<Value, ReadModelError> {
        let Link::Cluster(connection) = &self.link else { return self.command(command).await };
        let mut connection = connection.clone();
        let route = SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master));
        let asked = connection.route_command(command.clone(), RoutingInfo::SingleNode(route));
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|error| self.classify(error)),
            Err(_) => Err(self.classify(no_answer())),
        }
    }

    /// Whether keys lie on several servers.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.link, Link::Cluster(_))
    }

    /// An answer that is not what our functions give.
    pub(super) fn damaged(&self, problem: impl std::fmt::Display) -> ReadModelError {
        ReadModelError::Damaged {
            name: NAME.to_owned(),
            problem: format!(
                "{}: {problem}; delete the keys of this generation: it is rebuilt from the event log",
                self.shown
            ),
        }
    }

    /// Servers that let a read wait for all of its time.
    pub(super) fn late(&self, waited: Duration) -> ReadModelError {
        unavailable(&self.shown, &format_args!("no answer within {} ms", waited.as_millis()))
    }

    /// Of a server that was right when it was connected to: what it refuses to everybody by now may pass, too.
    fn classify(&self, error: RedisError) -> ReadModelError {
        if is_of_the_connection(&error) || matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) {
            return unavailable(&self.shown, &error);
        }
        classify(&self.shown, error)
    }

    async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let asked = async {
            match &self.link {
                Link::Node(node) => node.query(command).await,
                Link::Cluster(connection) => command.query_async(&mut connection.clone()).await,
            }
        };
        match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer()),
        }
    }

    /// On a Cluster, the client sends this to every master.
    async fn load_functions(&self) -> RedisResult<()> {
        self.query(cmd("FUNCTION").arg("LOAD").arg("REPLACE").arg(functions(guard::holds).as_ref())).await.map(|_| ())
    }

    /// A server that may drop single keys would answer zero where there is stock.
    async fn check(&self) -> Result<(), ReadModelError> {
        let info = self.query(&cmd("INFO")).await.map_err(|error| classify(&self.shown, error))?;
        for text in texts(info) {
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim().to_owned()))
            };
            let policy = field("maxmemory_policy").unwrap_or_default();
            if policy.starts_with("allkeys") && field("maxmemory").is_some_and(|limit| limit != "0") {
                return Err(setting(format!(
                    "{} evicts keys (maxmemory-policy {policy}) and would lose stock; set maxmemory-policy noeviction",
                    self.shown
                )));
            }
            let version = field("redis_version").unwrap_or_default();
            let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
            if major.is_some_and(|major| major < 7) {
                return Err(setting(format!("{} is Redis {version}; functions need Redis 7 or newer", self.shown)));
            }
        }
        Ok(())
    }
}

/// The functions, without the guards that do not hold.
fn functions(holds: impl Fn(Guard) -> bool) -> Cow<'static, str> {
    let mut functions = Cow::Borrowed(FUNCTIONS);
    if !holds(Guard::RedisEpoch) {
        functions = functions.replace("if is_below(args[1], epoch) then", "if false then").into();
    }
    if !holds(Guard::GenerationMarker) {
        // A store that lost everything is written and read as if it had always been empty.
        functions = functions
            .replace("    return { 'missing' }\n", "    epoch = '0'\n")
            .replace("if is_below(epoch, args[1]) then", "if false then")
            .replace("if found[index] ~= args[1 + index] then", "if found[1] and found[index] ~= args[1 + index] then")
            .replace("if held[1] ~= '1' or held[2] ~= args[1] then", "if false then")
            .replace("'live', held[3], held[4],", "'live', held[3] or '0', held[4] or '0',")
            .into();
    }
    functions
}

/// One text from a server, one per node from a Cluster.
fn texts(info: Value) -> Vec<String> {
    match info {
        Value::Map(nodes) => nodes.into_iter().flat_map(|(_, text)| texts(text)).collect(),
        Value::Array(nodes) => nodes.into_iter().flat_map(texts).collect(),
        other => from_redis_value(other).into_iter().collect(),
    }
}

fn is_function_missing(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("Function not found"))
        || error.to_string().contains("Function not found")
}

fn no_answer() -> RedisError {
    let late = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} s", ANSWER.as_secs()));
    RedisError::from(late)
}

/// A lost server, a failover, a full disk or memory may pass; a refused command does not.
fn classify(shown: &str, error: RedisError) -> ReadModelError {
    let may_pass = error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || error.is_cluster_error()
        || matches!(
            error.kind(),
            ErrorKind::Io
                | ErrorKind::ClusterConnectionNotFound
                | ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                        | ServerErrorKind::TryAgain
                        | ServerErrorKind::ClusterDown
                        | ServerErrorKind::MasterDown
                        | ServerErrorKind::ReadOnly
                        | ServerErrorKind::Moved
                        | ServerErrorKind::Ask
                )
        )
        || matches!(error.code(), Some("OOM" | "MISCONF" | "BUSY" | "NOREPLICAS" | "UNBLOCKED"))
        // Loaded, and gone again: a flush between the two.
        || is_function_missing(&error);
    if may_pass {
        return unavailable(shown, &error);
    }
    ReadModelError::Permanent { name: NAME.to_owned(), problem: format!("{shown}: {error}") }
}

fn unavailable(shown: &str, problem: &dyn std::fmt::Display) -> ReadModelError {
    ReadModelError::Unavailable { name: NAME.to_owned(), address: shown.to_owned(), problem: problem.to_string() }
}

// === impl Call ===

impl Call {
    pub(super) fn new(function: &str, keys: &[String]) -> Self {
        Self::with("FCALL", function, keys)
    }

    /// Of a function that writes nothing.
    pub(super) fn reading(function: &str, keys: &[String]) -> Self {
        Self::with("FCALL_RO", function, keys)
    }

    fn with(command: &str, function: &str, keys: &[String]) -> Self {
        let mut command = cmd(command);
        command.arg(format!("{LIBRARY}_{function}")).arg(keys.len()).arg(keys);
        Self { command }
    }

    pub(super) fn arg(mut self, value: impl redis::ToRedisArgs) -> Self {
        self.command.arg(value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_that_is_off_is_gone_from_the_functions_alone() {
        assert_eq!(functions(|_| true), FUNCTIONS);
        let epoch = "if is_below(args[1], epoch) then";
        let marks = [
            "return { 'missing' }",
            "if is_below(epoch, args[1]) then",
            "if held[1] ~= '1' or",
            "if found[index]",
            "'live', held[3], held[4],",
        ];
        let without_epoch = functions(|guard| guard != Guard::RedisEpoch);
        assert!(!without_epoch.contains(epoch) && marks.iter().all(|mark| without_epoch.contains(mark)));
        let without_marker = functions(|guard| guard != Guard::GenerationMarker);
        assert!(without_marker.contains(epoch) && !marks.iter().any(|mark| without_marker.contains(mark)));
    }

    #[test]
    fn the_library_and_its_functions_carry_the_version() {
        assert!(FUNCTIONS.starts_with(&format!("#!lua name={LIBRARY}\n")));
        let functions = [
            "prepare",
            "claim",
            "apply",
            "load",
            "read",
            "observe",
            "status",
            "parked",
            "parked_of",
            "parked_keys",
            "request",
            "mirror",
            "change",
            "note_published",
            "retire",
        ];
        for function in functions {
            assert!(FUNCTIONS.contains(&format!("'{LIBRARY}_{function}'")), "{function}");
        }
    }
}
