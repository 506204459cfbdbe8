//! The address of one Redis server or of a Redis Cluster, as the settings give it. What is shown of it holds no
//! credentials.

use redis::IntoConnectionInfo;

use crate::error::ReadModelError;

/// Where the servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RedisAddress {
    /// URLs that the client library reads; one, or one per node of a Cluster.
    pub(super) nodes: Vec<String>,
    pub(super) is_cluster: bool,
    /// Before every key.
    prefix: String,
    /// For errors.
    pub(super) shown: String,
}

// === impl RedisAddress ===

impl RedisAddress {
    /// Reads `redis://`, `rediss://`, `redis+cluster://` and `rediss+cluster://`, the latter two with hosts separated
    /// by commas. `?prefix=` sets what keys begin with, so that several Millraces can share servers.
    pub(super) fn parse(url: &str) -> Result<Self, ReadModelError> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| setting("is no URL"))?;
        let (node_scheme, is_cluster) = match scheme.strip_suffix("+cluster") {
            Some(node_scheme) => (node_scheme, true),
            None => (scheme, false),
        };
        if !matches!(node_scheme, "redis" | "rediss") {
            return Err(setting(format!(
                "{scheme}:// is none of redis://, rediss://, redis+cluster://, rediss+cluster://"
            )));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        let (credentials, hosts) = match authority.rsplit_once('@') {
            Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
            None => (String::new(), authority),
        };
        let hosts: Vec<&str> = if is_cluster { hosts.split(',').collect() } else { vec![hosts] };
        let mut prefix = "millrace".to_owned();
        let mut nodes = Vec::new();
        for host in &hosts {
            let node = format!("{node_scheme}://{credentials}{host}{tail}");
            let mut node = redis::parse_redis_url(&node).ok_or_else(|| setting(format!("{host:?} is no host:port")))?;
            let others: Vec<(String, String)> = node
                .query_pairs()
                .filter_map(|(name, value)| {
                    if name == "prefix" {
                        prefix = value.into_owned();
                        return None;
                    }
                    Some((name.into_owned(), value.into_owned()))
                })
                .collect();
            node.set_query(None);
            if !others.is_empty() {
                node.query_pairs_mut().extend_pairs(others);
            }
            node.as_str().into_connection_info().map_err(|error| setting(error.to_string()))?;
            nodes.push(node.to_string());
        }
        // A brace would move the hash tag.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(is_plain) {
            return Err(setting(format!("prefix {prefix:?} has another form than [A-Za-z0-9._-], 1 to 64 of them")));
        }
        Ok(Self { nodes, is_cluster, prefix, shown: format!("{scheme}://{}", hosts.join(",")) })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }
}

pub(super) fn setting(problem: impl Into<String>) -> ReadModelError {
    ReadModelError::Setting { key: "stock-store", problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_without_their_password() {
        let node = RedisAddress::parse("redis://me:secret@stock:6379/2?prefix=shop").unwrap();
        assert_eq!(node.nodes, ["redis://me:secret@stock:6379/2"]);
        assert_eq!((node.prefix(), node.is_cluster), ("shop", false));
        assert_eq!(node.shown, "redis://stock:6379");

        let cluster = RedisAddress::parse("rediss+cluster://:secret@a:1,b:2,c:3").unwrap();
        assert_eq!(cluster.nodes, ["rediss://:secret@a:1", "rediss://:secret@b:2", "rediss://:secret@c:3"]);
        assert_eq!((cluster.prefix(), cluster.is_cluster), ("millrace", true));
        assert_eq!(cluster.shown, "rediss+cluster://a:1,b:2,c:3");
    }

    #[test]
    fn a_wrong_address_is_refused_without_showing_its_password() {
        for wrong in [
            "stock:6379",
            "http://x:1",
            "redis://u:secret@host:port",
            "redis://host:1/not-a-number",
            "redis://u:secret@h:1?prefix=a{b}",
            "redis+cluster://u:secret@h:1,,h:2",
        ] {
            let error = RedisAddress::parse(wrong).unwrap_err();
            assert!(matches!(error, ReadModelError::Setting { key: "stock-store", .. }), "{wrong}: {error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
