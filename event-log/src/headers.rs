//! Record headers, in one piece of memory.
//!
//! An event has more than a dozen headers, and a rebuild reads millions of events: a string for each name and each
//! value costs more than all the rest of reading. The bytes are also how a log that stores headers itself keeps them.

use std::fmt;

use bytes::Bytes;

/// Record headers in their order. Values are text in all of ours; a foreign one that is not UTF-8 is read lossily.
///
/// For each header: the length of its name (2 bytes, big endian), the name, the length of its value (4 bytes) and the
/// value; names and values are UTF-8.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Headers {
    bytes: Bytes,
}

/// Headers as they are put together.
#[derive(Default)]
pub(crate) struct HeadersBuilder {
    bytes: Vec<u8>,
}

// === impl Headers ===

impl Headers {
    /// The first value of a name, in whatever case it was written.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut rest = &self.bytes[..];
        while let Some((found, value, behind)) = split(rest) {
            if found.eq_ignore_ascii_case(name.as_bytes()) {
                return std::str::from_utf8(value).ok();
            }
            rest = behind;
        }
        None
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (name, value, behind) = split(rest)?;
            rest = behind;
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Names and values apart, for whoever keeps them in another form.
    pub fn to_pairs(&self) -> Vec<(String, String)> {
        self.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The form that is described above.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes bytes in that form. `None` when they are damaged.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (name, value, behind) = split(rest)?;
            std::str::from_utf8(name).ok()?;
            std::str::from_utf8(value).ok()?;
            rest = behind;
        }
        Some(Self { bytes })
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut headers = HeadersBuilder::default();
        for (name, value) in pairs {
            headers.put(name.as_ref(), value.as_ref());
        }
        headers.build()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

/// The first header, and what is behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((name, value, rest))
}

// === impl HeadersBuilder ===

impl HeadersBuilder {
    /// With room for the headers of an event.
    pub(crate) fn of_an_event() -> Self {
        Self { bytes: Vec::with_capacity(640) }
    }

    pub(crate) fn put(&mut self, name: &str, value: &str) {
        // A longer one is cut at a length that no header comes near to: Kafka's own bound is 32,767 bytes.
        let name = name.get(..name.len().min(usize::from(u16::MAX))).unwrap_or_default();
        self.bytes.extend_from_slice(&(name.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
    }

    pub(crate) fn build(self) -> Headers {
        Headers { bytes: self.bytes.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_headers_read_back_and_damaged_ones_are_refused() {
        let headers: Headers = [("ce_id", "7"), ("A", ""), ("a", "second")].into_iter().collect();
        let bytes = Bytes::copy_from_slice(headers.as_bytes());
        assert_eq!(Headers::from_bytes(bytes.clone()), Some(headers.clone()));
        assert_eq!(Headers::from_bytes(Bytes::new()), Some(Headers::default()));
        for length in [1, 3, bytes.len() - 1] {
            assert_eq!(Headers::from_bytes(bytes.slice(..length)), None);
        }
        assert_eq!(Headers::from_bytes(Bytes::from_static(&[0, 1, 0xff, 0, 0, 0, 0])), None);
        assert_eq!(Headers::from_bytes(Bytes::from_static(&[0, 1, b'a', 0, 0, 0, 1, 0xff])), None);
        assert_eq!(
            (headers.len(), headers.get("CE_ID"), headers.get("a"), headers.get("b")),
            (3, Some("7"), Some(""), None)
        );
        assert_eq!(headers.to_pairs()[2], ("a".to_owned(), "second".to_owned()));
    }
}
