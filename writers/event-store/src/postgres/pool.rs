//! Sessions with the server: a bounded number, opened as needed, given back only when nothing is left open in them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use native_tls::TlsConnector;
use postgres_native_tls::MakeTlsConnector;
use resilience::{Admission, Breaker, BreakerSettings, Open};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config};

use super::failure::{Failure, unavailable};
use super::statements::Statements;
use crate::error::EventStoreError;
use crate::store::ServerRun;

/// Most sessions of one process, the relay's own not counted.
const SESSIONS: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the server's own limit below: that one gives the better error.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// Limits of a session. The server ends a transaction that sits idle, because it would hold the relay's horizon
/// (fault 4), and notices a dead peer soon, because that peer may hold the relay's lock. An acknowledged command must
/// be on the disk, whatever the server's default. Compiling a statement costs more than any of ours.
const SESSION_SETTINGS: &str = "
    SET statement_timeout = '15s';
    SET lock_timeout = '5s';
    SET idle_in_transaction_session_timeout = '20s';
    SET jit = off;
    SET tcp_keepalives_idle = 10;
    SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3;
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'";

/// When the server was started, in microseconds: another one after each failover, and after a backup of its files was
/// put back. As long as it is the same, nothing that was committed is gone but by hand: tables that are loaded from a
/// dump are not noticed.
const SERVER_RUN: &str = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint";

/// How to reach the server, and the sessions that are open.
pub(super) struct Pool {
    server: Server,
    slots: Semaphore,
    idle: Mutex<Vec<Session>>,
    /// For commands, whose senders wait. The relay and other loops do without: they wait and try again by themselves.
    breaker: Breaker,
}

/// A server as an address names it.
#[derive(Clone)]
pub(super) struct Server {
    config: Config,
    tls: MakeTlsConnector,
    /// `host:port`, for errors.
    address: Arc<str>,
    is_read_only: bool,
}

/// One connection with its prepared statements. Dropping it closes the connection at once: the server rolls back.
pub(super) struct Session {
    /// Of the server at the other end.
    pub(super) run: ServerRun,
    pub(super) connection: Connection,
    pub(super) statements: Statements,
}

/// One connection, and the task that moves its bytes.
pub(super) struct Connection {
    pub(super) client: Client,
    driver: AbortHandle,
}

/// A session in use.
pub(super) struct Held<'pool> {
    pool: &'pool Pool,
    session: Session,
    /// Of a command.
    admission: Option<Admission<'pool>>,
    _slot: SemaphorePermit<'pool>,
}

// === impl Server ===

impl Server {
    /// Reads `postgres://user:password@host:port/database?sslmode=…`. With `sslmode=require` (or `verify-full`) the
    /// server's certificate is verified; `prefer`, the default, encrypts where it can and promises nothing.
    pub(super) fn of(url: &str) -> Result<Self, EventStoreError> {
        let setting = |problem: String| EventStoreError::Setting { key: "event-store", problem };
        let mut config: Config = url
            .replace("sslmode=verify-full", "sslmode=require")
            .parse()
            // The parser's own words may hold a piece of the address.
            .map_err(|_| setting("not a Postgres address: use postgres://user@host:port/database".to_owned()))?;
        if config.get_hosts().is_empty() {
            return Err(setting("names no host: use postgres://user@host:port/database".to_owned()));
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("millrace");
        }
        config
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(OPERATION_TIMEOUT);
        let verifies = config.get_ssl_mode() == SslMode::Require;
        let tls = TlsConnector::builder()
            .danger_accept_invalid_certs(!verifies)
            .danger_accept_invalid_hostnames(!verifies)
            .build()
            .map_err(|error| setting(format!("TLS cannot be set up: {error}")))?;
        let address = address_of(&config);
        Ok(Self { config, tls: MakeTlsConnector::new(tls), address: address.into(), is_read_only: false })
    }

    /// With sessions in which the server refuses to write.
    pub(super) fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) async fn connect(&self) -> Result<Connection, EventStoreError> {
        let connecting = async {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            let driver = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "event store connection ended");
                }
            })
            .abort_handle();
            let connection = Connection { client, driver };
            connection.client.batch_execute(SESSION_SETTINGS).await?;
            if self.is_read_only {
                connection.client.batch_execute("SET default_transaction_read_only = on").await?;
            }
            Ok(connection)
        };
        within(connecting).await.map_err(|failure: Failure| failure.into_error(&self.address))
    }

    pub(super) async fn session(&self) -> Result<Session, EventStoreError> {
        let connection = self.connect().await?;
        let preparing = async {
            let (run, statements) =
                futures::join!(connection.client.query_one(SERVER_RUN, &[]), Statements::prepare(&connection.client));
            Ok((ServerRun(run?.try_get(0)?), statements?))
        };
        let (run, statements) =
            within(preparing).await.map_err(|failure: Failure| failure.into_error(&self.address))?;
        Ok(Session { run, connection, statements })
    }
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(server: Server) -> Self {
        let breaker = Breaker::new("postgres", BreakerSettings::default());
        Self { server, slots: Semaphore::new(SESSIONS), idle: Mutex::new(Vec::new()), breaker }
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// An open session: an idle one, or a new one. Waits while all are in use.
    pub(super) async fn session(&self) -> Result<Held<'_>, EventStoreError> {
        let slot = self.slot().await?;
        Ok(Held { pool: self, session: self.opened().await?, admission: None, _slot: slot })
    }

    /// As [`Self::session`], for a command: refused at once while the server does not answer commands.
    pub(super) async fn session_of_command(&self) -> Result<Held<'_>, EventStoreError> {
        let admission = self.breaker.admit().map_err(EventStoreError::BreakerOpen)?;
        // That all are in use is no verdict on the server.
        let slot = self.slot().await?;
        match self.opened().await {
            Ok(session) => Ok(Held { pool: self, session, admission: Some(admission), _slot: slot }),
            Err(error) => {
                learn(admission, &error);
                Err(error)
            }
        }
    }

    /// What a command would be refused with now.
    pub(super) fn refusal(&self) -> Option<Open> {
        self.breaker.refusal()
    }

    async fn slot(&self) -> Result<SemaphorePermit<'_>, EventStoreError> {
        let waiting = tokio::time::timeout(OPERATION_TIMEOUT, self.slots.acquire()).await;
        match waiting {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(unavailable(self.server.address(), format!("all {SESSIONS} sessions are in use"))),
        }
    }

    async fn opened(&self) -> Result<Session, EventStoreError> {
        let idle = loop {
            match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                Some(session) if session.connection.client.is_closed() => {}
                found => break found,
            }
        };
        match idle {
            Some(session) => Ok(session),
            None => self.server.session().await,
        }
    }
}

// === impl Held ===

impl Held<'_> {
    /// Ends the use of the session: it is given back where nothing can be open in it, and closed otherwise.
    pub(super) fn settle<T>(self, result: Result<T, Failure>) -> Result<T, EventStoreError> {
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Ok(_) | Err(Failure::Refused(_)) => idle.push(self.session),
            // The server went away or refuses to work: the idle sessions most likely ended with it.
            Err(Failure::Database(_) | Failure::TimedOut) => idle.clear(),
        }
        drop(idle);
        let has_timed_out = matches!(result, Err(Failure::TimedOut));
        let result = result.map_err(|failure| failure.into_error(self.pool.server.address()));
        match (self.admission, &result) {
            (Some(admission), _) if has_timed_out => admission.timed_out(),
            (Some(admission), Err(error)) => learn(admission, error),
            (Some(admission), Ok(_)) => admission.succeeded(),
            (None, _) => {}
        }
        result
    }
}

impl std::ops::Deref for Held<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

// === impl Session ===

impl Session {
    pub(super) fn client(&self) -> &Client {
        &self.connection.client
    }
}

// === impl Connection ===

impl Drop for Connection {
    fn drop(&mut self) {
        // Without its task the socket closes, also where the server is in the middle of a statement.
        self.driver.abort();
    }
}

/// A conflict or a refusal shows that the server is there.
fn learn(admission: Admission<'_>, error: &EventStoreError) {
    match error {
        EventStoreError::Unavailable { .. } => admission.failed(),
        _ => admission.succeeded(),
    }
}

/// Bounds what a server that neither answers nor closes can hold up.
pub(super) async fn within<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(OPERATION_TIMEOUT, work).await {
        Ok(result) => result,
        Err(_) => Err(Failure::TimedOut),
    }
}

fn address_of(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts = config.get_hosts().iter().enumerate().map(|(index, host)| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        match host {
            Host::Tcp(name) => format!("{name}:{port}"),
            #[cfg(unix)]
            Host::Unix(path) => format!("{}:{port}", path.display()),
        }
    });
    hosts.collect::<Vec<_>>().join(",")
}
