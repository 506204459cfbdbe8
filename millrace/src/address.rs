//! Addresses of stores: they may hold a password, so nothing prints them whole.

use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret, SecretString};

/// Address of a store, such as `postgres://user:password@host/db` or `sqlite:PATH`.
#[derive(Clone)]
pub struct StoreUrl(SecretString);

impl StoreUrl {
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

impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match url::Url::parse(self.expose()) {
            Ok(mut url) if url.password().is_some() => {
                // A URL that has a password can take another one.
                let _ = url.set_password(Some("***"));
                write!(formatter, "{url}")
            }
            _ => formatter.write_str(self.expose()),
        }
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

    #[test]
    fn a_password_is_never_printed() {
        let url: StoreUrl = "postgres://millrace:hunter2@db:5432/events".parse().unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://millrace:***@db:5432/events postgres://millrace:***@db:5432/events"
        );
        assert_eq!(url.expose(), "postgres://millrace:hunter2@db:5432/events");
        assert!("nonsense".parse::<StoreUrl>().is_err());
    }
}
