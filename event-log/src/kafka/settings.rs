//! Where a Kafka cluster is and how it is spoken to: `kafka://host:port,host:port[?option=value&…]`.
//!
//! Options are librdkafka's own, by its names, of which only those are taken that say who we are and how the
//! connection is secured: what the guarantees of the log rest on (acks, idempotence, offset handling) is not for
//! settings. Values may be secrets: they are never printed.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::error::EventLogError;

/// Options that are taken, beside those that begin with one of [`OPTION_PREFIXES`].
const OPTIONS: [&str; 6] = [
    "broker.address.family",
    "client.id",
    "client.rack",
    "debug",
    "enable.ssl.certificate.verification",
    "session.timeout.ms",
];
const OPTION_PREFIXES: [&str; 3] = ["sasl.", "security.", "ssl."];
/// The only one of them that a producer does not know.
const SESSION_TIMEOUT: &str = "session.timeout.ms";

/// Settings of a [`super::KafkaEventLog`].
#[derive(Clone)]
pub struct KafkaSettings {
    /// `host:port,host:port`
    brokers: String,
    /// By librdkafka's names.
    options: BTreeMap<String, String>,
}

// === impl KafkaSettings ===

impl KafkaSettings {
    /// Parses `kafka://host:port,host:port[?option=value&…]`.
    pub fn parse(url: &str) -> Result<Self, EventLogError> {
        let setting = |problem: String| EventLogError::Setting { key: "event-log", problem };
        let rest = url.strip_prefix("kafka://").ok_or_else(|| {
            let scheme: String = url.chars().take_while(|character| *character != ':').take(20).collect();
            setting(format!("{scheme:?} is no Kafka address: use kafka://host:port,host:port[?option=value]"))
        })?;
        let (brokers, query) = rest.split_once('?').unwrap_or((rest, ""));
        let brokers = brokers.trim_end_matches('/');
        if brokers.contains('@') {
            // Not repeated in the message: what stands before the @ may be a password.
            let problem = "credentials do not go before the host: use ?sasl.username=…&sasl.password=…";
            return Err(setting(problem.to_owned()));
        }
        for broker in brokers.split(',') {
            let is_address =
                broker.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
            if !is_address {
                return Err(setting(format!("{broker:?} is not host:port, as in kafka://127.0.0.1:9092")));
            }
        }
        let mut options = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if !is_taken(&name) {
                let problem = format!(
                    "unknown option {name:?}: {}, and what begins with {} can be set",
                    OPTIONS.join(", "),
                    OPTION_PREFIXES.join(", ")
                );
                return Err(setting(problem));
            }
            // librdkafka itself checks the value; its message is left out where the value may be a secret.
            if let Err(error) = ClientConfig::new().set(&*name, &*value).create_native_config() {
                let problem = match error {
                    KafkaError::ClientConfig(_, problem, _, _) if !is_secret(&name) => problem,
                    _ => "its value is not taken".to_owned(),
                };
                return Err(setting(format!("option {name}: {problem}")));
            }
            options.insert(name.into_owned(), value.into_owned());
        }
        Ok(Self { brokers: brokers.to_owned(), options })
    }

    /// The address without options, for messages.
    pub fn address(&self) -> String {
        format!("kafka://{}", self.brokers)
    }

    /// What every client is made with.
    pub(super) fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "millrace")
            .set("allow.auto.create.topics", "false")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "10000")
            // A restarted broker is found again within a second, not within the ten of the default.
            .set("reconnect.backoff.max.ms", "1000");
        for (name, value) in self.options.iter().filter(|(name, _)| name.as_str() != SESSION_TIMEOUT) {
            config.set(name, value);
        }
        let is_debugging = self.options.contains_key("debug");
        config.set_log_level(if is_debugging { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
        config
    }

    /// How long a silent member stays in its group, in milliseconds.
    pub(super) fn session_timeout(&self) -> &str {
        // librdkafka sends the heartbeats on a thread of its own, so 10 s is ample for a living process, and the
        // partitions of a killed one are not idle for the 45 s of the default.
        self.options.get(SESSION_TIMEOUT).map_or("10000", String::as_str)
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.options.keys().collect();
        formatter.debug_struct("KafkaSettings").field("address", &self.address()).field("options", &names).finish()
    }
}

fn is_taken(name: &str) -> bool {
    OPTIONS.contains(&name) || OPTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_secret(name: &str) -> bool {
    ["password", "secret", "pem", "passphrase", "config"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_options_are_taken() {
        let url = "kafka://a:9092,[::1]:9093?security.protocol=sasl_ssl&sasl.mechanism=PLAIN&sasl.password=p%26q";
        let settings = KafkaSettings::parse(url).unwrap();
        assert_eq!(settings.address(), "kafka://a:9092,[::1]:9093");
        let config = settings.client_config();
        assert_eq!(config.get("bootstrap.servers"), Some("a:9092,[::1]:9093"));
        assert_eq!(config.get("sasl.password"), Some("p&q"));
        assert!(!format!("{settings:?}").contains("p&q"));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_would_do() {
        for (url, wanted) in [
            ("http://a:1", "kafka://host:port"),
            ("kafka://", "host:port"),
            ("kafka://a", "\"a\" is not host:port"),
            ("kafka://a:9092,b:x", "\"b:x\" is not host:port"),
            ("kafka://user:secret@a:9092", "sasl.username"),
            ("kafka://a:9092?acks=0", "unknown option \"acks\""),
            ("kafka://a:9092?sasl.nonsense=1", "option sasl.nonsense"),
            ("kafka://a:9092?security.protocol=tls", "option security.protocol"),
        ] {
            let problem = KafkaSettings::parse(url).unwrap_err().to_string();
            assert!(problem.contains(wanted), "{url}: {problem}");
            assert!(problem.contains("event-log") && !problem.contains("secret"), "{url}: {problem}");
        }
    }
}
