//! A Confluent-compatible schema registry over HTTP.
//!
//! Ids never change their meaning, so what was looked up once is kept: in memory, and in a cache file where one is
//! set, so that a process can start and work on while the registry is away (fault row: registry down).
//!
//! Source: Confluent Schema Registry API reference; TopicRecordNameStrategy for subjects.

mod versions;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, Method, StatusCode};
use resilience::{Breaker, BreakerSettings, Policy, retry};
use schemas::{Contract, SchemaRef, WriterSchema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use url::Url;

use self::versions::Standing;
use super::SchemaRegistry;
use crate::error::EventLogError;

const CONNECT_WITHIN: Duration = Duration::from_secs(3);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long one question is asked again; its caller waits meanwhile.
const ASK_FOR: Duration = Duration::from_secs(3);
/// How often the lock of the cache file is tried, and how long after the last time.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);
const CONTENT_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A registry at `http(s)://[user:password@]host:port[/path]`.
pub struct HttpRegistry {
    client: Client,
    base: Url,
    /// The address without credentials, for messages.
    address: String,
    cache_file: Option<PathBuf>,
    known: Mutex<Known>,
    breaker: Breaker,
}

/// What was looked up before.
#[derive(Default)]
struct Known {
    /// By `<topic>` and contract.
    ids: HashMap<(String, SchemaRef), u32>,
    schemas: HashMap<u32, Arc<WriterSchema>>,
}

/// The cache file.
#[derive(Default, Serialize, Deserialize)]
struct CacheFile {
    /// Ids of one registry mean nothing at another.
    registry: String,
    ids: Vec<CachedId>,
    schemas: BTreeMap<u32, String>,
}

#[derive(Serialize, Deserialize)]
struct CachedId {
    topic: String,
    name: String,
    version: u32,
    id: u32,
}

/// What the registry answers when it refuses: Confluent's always, and Apicurio's (0 for what has no code there, and
/// then there may be no message).
#[derive(Deserialize)]
struct Refusal {
    error_code: i64,
    #[serde(default)]
    message: Option<String>,
}

/// An answer that is not an error of transport.
enum Answer {
    Found(Value),
    /// The registry itself knows no such subject, version or schema.
    NotFound(NotFound),
    Refused(String),
}

/// What is not there, by the registry's own error code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NotFound {
    Subject,
    Version,
    Schema,
    /// The subject has no compatibility level of its own.
    Level,
}

/// Numbers the parts of cache files: two lookups may write at once.
static CACHE_PARTS: AtomicU64 = AtomicU64::new(0);

// === impl NotFound ===

impl NotFound {
    fn of(error_code: i64) -> Option<Self> {
        match error_code {
            40401 => Some(NotFound::Subject),
            40402 => Some(NotFound::Version),
            40403 => Some(NotFound::Schema),
            40408 => Some(NotFound::Level),
            _ => None,
        }
    }
}

// === impl HttpRegistry ===

impl HttpRegistry {
    /// Reads the cache file, when there is one; contacts nobody yet.
    pub fn new(url: &str, cache_file: Option<PathBuf>) -> Result<Self, EventLogError> {
        let setting = |problem: String| EventLogError::Setting { key: "schema-registry", problem };
        let mut base = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| setting("use http(s)://host:port[/path], as in http://127.0.0.1:8081".to_owned()))?;
        // Relative paths are joined below the base only when it ends with a slash.
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let mut shown = base.clone();
        // Both fail only for addresses without a host.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        let client = Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .build()
            .map_err(|error| setting(error.to_string()))?;
        let address = shown.as_str().trim_end_matches('/').to_owned();
        let breaker = Breaker::new("schema registry", BreakerSettings::default());
        let registry = Self { client, base, address, cache_file, known: Mutex::default(), breaker };
        registry.read_cache();
        Ok(registry)
    }

    fn read_cache(&self) {
        let Some(path) = &self.cache_file else { return };
        let Ok(text) = std::fs::read(path) else { return };
        let cached = match serde_json::from_slice::<CacheFile>(&text) {
            Ok(cached) if cached.registry == self.address => cached,
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "schema cache is not readable; the registry is asked");
                return;
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for one in cached.ids {
            if let Some(schema) = SchemaRef::find(&one.name, one.version) {
                known.ids.entry((one.topic, schema)).or_insert(one.id);
            }
        }
        for (id, text) in cached.schemas {
            if let Ok(schema) = WriterSchema::parse(&text) {
                known.schemas.entry(id).or_insert_with(|| Arc::new(schema));
            }
        }
    }

    /// Writes the cache file whole and puts it in place: a reader never sees half of one. What other processes put
    /// there since it was read stays: each looks up what its role needs, and the file may be that of them all.
    fn write_cache(&self) {
        let Some(path) = &self.cache_file else { return };
        // Two that write at once may lose what one added. Who holds the lock may be frozen, and is not waited for.
        let lock = File::create(path.with_added_extension("lock"));
        let _held = lock.inspect(|lock| {
            for _ in 0..LOCK_TRIES {
                if lock.try_lock().is_ok() {
                    break;
                }
                std::thread::sleep(LOCK_PAUSE);
            }
        });
        self.read_cache();
        let cached = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let ids = known.ids.iter().map(|((topic, schema), id)| CachedId {
                topic: topic.clone(),
                name: schema.name.to_owned(),
                version: schema.version,
                id: *id,
            });
            let schemas = known.schemas.iter().map(|(id, schema)| (*id, schema.avsc().to_owned()));
            CacheFile { registry: self.address.clone(), ids: ids.collect(), schemas: schemas.collect() }
        };
        let number = CACHE_PARTS.fetch_add(1, Ordering::Relaxed);
        let part = path.with_added_extension(format!("part-{}-{number}", std::process::id()));
        let written = serde_json::to_vec_pretty(&cached)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&part, text))
            .and_then(|()| std::fs::rename(&part, path));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "schema cache cannot be written");
        }
    }

    /// Asks, and asks again for some seconds while the registry is away; at once no more when it was found away before.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, EventLogError> {
        let is_away = |error: &EventLogError| matches!(error, EventLogError::RegistryUnavailable { .. });
        let may_be_back = |error: &EventLogError| is_away(error) && self.breaker.refusal().is_none();
        let ask = || async {
            match self.breaker.call(is_away, self.ask_once(method.clone(), path, body.as_ref())).await {
                Ok(answer) => answer,
                Err(open) => {
                    Err(EventLogError::RegistryUnavailable { address: self.address.clone(), problem: open.to_string() })
                }
            }
        };
        retry(Policy::HTTP, Some(Instant::now() + ASK_FOR), may_be_back, ask).await
    }

    /// A question that the registry did not get, or did not answer itself, says nothing about a schema: a record must
    /// not be set aside because a proxy stands in the way or a password has changed.
    async fn ask_once(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, EventLogError> {
        let unavailable =
            |problem: String| EventLogError::RegistryUnavailable { address: self.address.clone(), problem };
        let url = self.base.join(path).map_err(|error| EventLogError::Permanent { problem: error.to_string() })?;
        let mut request = self.client.request(method, url).header("accept", CONTENT_TYPE);
        if let Some(body) = body {
            request = request.header("content-type", CONTENT_TYPE).body(body.to_string());
        }
        let response = request.send().await.map_err(|error| unavailable(cause_of(&error)))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| unavailable(cause_of(&error)))?;
        let is_overloaded = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if status.is_server_error() || is_overloaded {
            return Err(unavailable(format!("it answers {status}")));
        }
        if status.is_success() {
            let value = serde_json::from_str(&text)
                .map_err(|error| unavailable(format!("its answer to {path} is no JSON, is it a registry? {error}")))?;
            return Ok(Answer::Found(value));
        }
        let refusal = serde_json::from_str::<Refusal>(&text).ok();
        let not_found = refusal.as_ref().and_then(|refusal| NotFound::of(refusal.error_code));
        let is_of_registry = refusal.is_some();
        let problem = match refusal {
            Some(Refusal { error_code, message: Some(message) }) => format!("{message} (error {error_code})"),
            Some(Refusal { error_code, message: None }) => format!("it answers {status} (error {error_code})"),
            None => format!("it answers {status}"),
        };
        match (status, not_found) {
            (StatusCode::NOT_FOUND, Some(what)) => Ok(Answer::NotFound(what)),
            (StatusCode::NOT_FOUND, None) => {
                Err(unavailable(format!("{problem} to {path}, not as a registry does: is the address complete?")))
            }
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED, _) => {
                Err(unavailable(format!("{problem}: are user and password right?")))
            }
            _ if is_of_registry => Ok(Answer::Refused(problem)),
            // A proxy that takes the request for malformed, too large or not for it.
            _ => Err(unavailable(format!("{problem} to {path}, not as a registry does"))),
        }
    }

    /// An answer to something else than was asked.
    fn beside_the_point(&self, asked: String) -> EventLogError {
        let problem = format!("its answer about {asked} is not one of a registry");
        EventLogError::RegistryUnavailable { address: self.address.clone(), problem }
    }

    fn incompatible(&self, subject: String, problem: String) -> EventLogError {
        EventLogError::Incompatible { subject, address: self.address.clone(), problem }
    }

    fn refused(&self, subject: String, problem: String) -> EventLogError {
        EventLogError::Refused { subject, address: self.address.clone(), problem }
    }
}

#[async_trait]
impl SchemaRegistry for HttpRegistry {
    async fn id_of(&self, topic: &str, schema: SchemaRef) -> Result<u32, EventLogError> {
        let place = (topic.to_owned(), schema);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).ids.get(&place).copied();
        if let Some(id) = known {
            return Ok(id);
        }
        let contract = schema.contract();
        let subject = contract.subject(topic);
        let path = format!("subjects/{subject}");
        match self.ask(Method::POST, &path, Some(json!({ "schema": contract.avsc }))).await? {
            Answer::Found(found) => {
                let id = id_in(&found).ok_or_else(|| self.refused(subject, "the answer has no id".to_owned()))?;
                self.known.lock().unwrap_or_else(PoisonError::into_inner).ids.insert(place, id);
                self.write_cache();
                Ok(id)
            }
            Answer::NotFound(_) => {
                Err(EventLogError::NotRegistered { topic: place.0, schema, address: self.address.clone() })
            }
            Answer::Refused(problem) => Err(self.refused(subject, problem)),
        }
    }

    async fn schema(&self, id: u32) -> Result<Arc<WriterSchema>, EventLogError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).schemas.get(&id).cloned();
        if let Some(schema) = known {
            return Ok(schema);
        }
        let found = match self.ask(Method::GET, &format!("schemas/ids/{id}"), None).await? {
            Answer::Found(found) => found,
            Answer::NotFound(NotFound::Schema) => {
                return Err(EventLogError::UnknownSchemaId { id, address: self.address.clone() });
            }
            Answer::NotFound(_) => return Err(self.beside_the_point(format!("schema id {id}"))),
            Answer::Refused(problem) => return Err(self.refused(format!("schema id {id}"), problem)),
        };
        let text = found.get("schema").and_then(Value::as_str);
        let text = text.ok_or_else(|| self.beside_the_point(format!("schema id {id}")))?;
        let schema = WriterSchema::parse(text).map_err(|source| EventLogError::Schema { id, source })?;
        let schema = Arc::new(schema);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).schemas.insert(id, schema.clone());
        self.write_cache();
        Ok(schema)
    }

    async fn register(&self, topic: &str, contract: &Contract) -> Result<u32, EventLogError> {
        let subject = contract.subject(topic);
        match self.standing(&subject, contract).await? {
            Standing::New => {}
            // First, so that the registry compares as well, with what others register meanwhile.
            Standing::Readable => self.set_level(&subject).await?,
            Standing::Unreadable(problem) => return Err(self.incompatible(subject, problem)),
        }
        let path = format!("subjects/{subject}/versions");
        let id = match self.ask(Method::POST, &path, Some(json!({ "schema": contract.avsc }))).await? {
            Answer::Found(found) => id_in(&found),
            Answer::NotFound(_) => None,
            Answer::Refused(problem) => return Err(self.refused(subject, problem)),
        };
        let id = id.ok_or_else(|| self.refused(subject.clone(), "the answer has no id".to_owned()))?;
        self.set_level(&subject).await?;
        match self.level_problem(&subject).await? {
            None => Ok(id),
            Some(problem) => Err(self.refused(subject, problem)),
        }
    }

    async fn check(&self, topic: &str, contract: &Contract) -> Result<Result<(), String>, EventLogError> {
        let subject = contract.subject(topic);
        match self.standing(&subject, contract).await? {
            Standing::New => return Ok(Ok(())),
            Standing::Readable => {}
            Standing::Unreadable(problem) => return Ok(Err(problem)),
        }
        let path = format!("compatibility/subjects/{subject}/versions?verbose=true");
        match self.ask(Method::POST, &path, Some(json!({ "schema": contract.avsc }))).await? {
            // A subject that is not there yet takes anything.
            Answer::NotFound(_) => Ok(Ok(())),
            Answer::Refused(problem) => Ok(Err(problem)),
            Answer::Found(found) if found.get("is_compatible").and_then(Value::as_bool) == Some(true) => {
                let problem = self.level_problem(&subject).await?;
                Ok(problem.map_or(Ok(()), |problem| Err(format!("{problem}; run `millrace contracts register`"))))
            }
            Answer::Found(found) => {
                let messages = found.get("messages").and_then(Value::as_array);
                let told: Vec<&str> = messages.into_iter().flatten().filter_map(Value::as_str).collect();
                let told = told.join("; ");
                Ok(Err(if told.is_empty() { "it is not compatible with what is registered".to_owned() } else { told }))
            }
        }
    }

    async fn ping(&self) -> Result<(), EventLogError> {
        self.ask_once(Method::GET, "schemas/types", None).await.map(|_| ())
    }
}

fn id_in(found: &Value) -> Option<u32> {
    found.get("id")?.as_u64()?.try_into().ok()
}

/// The innermost cause: reqwest's own text repeats the address, with what may be a password in it.
fn cause_of(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.is_timeout() { "it takes too long".to_owned() } else { cause.to_string() }
}
