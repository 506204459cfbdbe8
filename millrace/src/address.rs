//! Addresses of stores: they may hold a password, so nothing prints them whole.

use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// What the name of an option with a secret has in it.
const SECRETS: [&str; 4] = ["pass", "secret", "key", "token"];

/// Address of an HTTP API, from the command line.
pub fn http_url(text: &str) -> Result<Url, String> {
    let url: Url =
        text.parse().map_err(|error| format!("{error}; an address such as http://127.0.0.1:8080 is wanted"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        other => Err(format!("{other}: is not http: or https:")),
    }
}

/// What an address is for, and with it the kinds that are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressOf {
    EventStore,
    EventLog,
    StockStore,
    SchemaRegistry,
}

/// Address of a store, such as `postgres://user:password@host/db` or `sqlite:PATH`.
#[derive(Clone)]
pub struct StoreUrl(SecretString);

// === impl AddressOf ===

impl AddressOf {
    pub fn setting(self) -> &'static str {
        match self {
            AddressOf::EventStore => "event-store",
            AddressOf::EventLog => "event-log",
            AddressOf::StockStore => "stock-store",
            AddressOf::SchemaRegistry => "schema-registry",
        }
    }

    /// For the message.
    pub fn wanted(self) -> &'static str {
        match self {
            AddressOf::EventStore => "use sqlite:PATH or postgres://user:password@host:port/database",
            AddressOf::EventLog => "use sqlite:PATH or kafka://host:port,host:port",
            AddressOf::StockStore => "use sqlite:PATH, redis://host:port or redis+cluster://host:port,host:port",
            AddressOf::SchemaRegistry => "use http://host:port/… or https://host:port/…",
        }
    }

    pub fn takes(self, url: &StoreUrl) -> bool {
        let beginnings: &[&str] = match self {
            AddressOf::EventStore => &["sqlite:", "postgres://", "postgresql://"],
            AddressOf::EventLog => &["sqlite:", "kafka://"],
            AddressOf::StockStore => &["sqlite:", "redis://", "rediss://", "redis+cluster://", "rediss+cluster://"],
            AddressOf::SchemaRegistry => &["http://", "https://"],
        };
        beginnings.iter().any(|beginning| url.expose().starts_with(beginning))
    }
}

// === impl StoreUrl ===

impl StoreUrl {
    /// What stands before the colon. Cut: a text that is no address may begin with anything.
    fn kind(&self) -> String {
        self.expose().chars().take_while(|character| *character != ':').take(20).collect()
    }

    /// The kind as a message shows it.
    pub fn shown_kind(&self) -> String {
        let slashes = if self.expose()[self.kind().len()..].starts_with("://") { "://" } else { ":" };
        format!("{}{slashes}", self.kind())
    }

    /// For the adapter that connects, and nobody else.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((scheme, rest)) if !scheme.is_empty() && !rest.is_empty() => Ok(Self(text.into())),
            _ => Err("an address begins with its kind, as in sqlite:PATH or kafka://host:port".to_owned()),
        }
    }
}

/// Masked as text, since an address of several hosts or of a wrong form is no URL to a parser and has its password all
/// the same. Rather too much is masked than too little.
impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.expose();
        if text.starts_with("sqlite:") {
            return formatter.write_str(text);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return write!(formatter, "{}:***", self.kind());
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        // A password may hold a / of its own; then the authority seems to end before its @.
        let (before, behind) = match authority.rfind('@').or_else(|| rest.rfind('@')) {
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
            None => (None, rest),
        };
        write!(formatter, "{scheme}://")?;
        match before.map(|before| before.split_once(':').map_or((before, false), |(user, _)| (user, true))) {
            Some((user, true)) => write!(formatter, "{user}:***@")?,
            Some((user, false)) => write!(formatter, "{user}@")?,
            None => {}
        }
        let Some((place, options)) = behind.split_once('?') else { return formatter.write_str(behind) };
        let options: Vec<String> = options.split('&').map(masked_option).collect();
        write!(formatter, "{place}?{}", options.join("&"))
    }
}

/// An option whose name sounds like a secret loses its value.
fn masked_option(option: &str) -> String {
    match option.split_once('=') {
        Some((name, _)) if SECRETS.iter().any(|secret| name.to_ascii_lowercase().contains(secret)) => {
            format!("{name}=***")
        }
        _ => option.to_owned(),
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let url: StoreUrl = text.parse().unwrap();
        assert_eq!(format!("{url}"), format!("{url:?}"));
        assert_eq!(url.expose(), text);
        url.to_string()
    }

    #[test]
    fn a_password_is_never_printed() {
        for (text, wanted) in [
            ("postgres://millrace:hunter2@db:5432/events", "postgres://millrace:***@db:5432/events"),
            ("postgres://u:hunter2@a:1,b:2/events", "postgres://u:***@a:1,b:2/events"),
            ("postgres://u:hunter2@a:1,v:hunter2@b:2/events", "postgres://u:***@b:2/events"),
            ("redis+cluster://:hunter2@a:1,b:2", "redis+cluster://:***@a:1,b:2"),
            ("postgres://u:hun@ter2@db/x?a=b", "postgres://u:***@db/x?a=b"),
            ("postgres://u:hunter/2@db/x", "postgres://u:***@db/x"),
            ("postgres://u@db/x?user=u&password=hunter2", "postgres://u@db/x?user=u&password=***"),
            (
                "kafka://a:1,b:2?sasl.username=u&sasl.password=hunter2",
                "kafka://a:1,b:2?sasl.username=u&sasl.password=***",
            ),
            ("u:hunter2", "u:***"),
            ("sqlite:a@b.db", "sqlite:a@b.db"),
            ("http://registry:8080/apis/ccompat/v7", "http://registry:8080/apis/ccompat/v7"),
        ] {
            assert_eq!(shown(text), wanted);
        }
        assert!("nonsense".parse::<StoreUrl>().is_err());
    }

    #[test]
    fn a_kind_that_is_no_address_is_cut() {
        let url: StoreUrl = format!("{}:x", "é".repeat(100)).parse().unwrap();
        assert_eq!(url.shown_kind(), format!("{}:", "é".repeat(20)));
    }
}
