//! The Confluent wire format: magic byte 0, schema id (4 bytes, big endian), Avro body.
//!
//! Source: Confluent documentation, "Wire format".

/// A value that is not framed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("value has {length} bytes, a frame begins with 5 (magic byte 0 and a schema id)")]
    Short { length: usize },
    #[error("value begins with byte {found}, a frame begins with 0")]
    Magic { found: u8 },
}

/// Puts the frame before a body.
pub fn frame(schema_id: u32, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(5 + body.len());
    value.push(0);
    value.extend_from_slice(&schema_id.to_be_bytes());
    value.extend_from_slice(body);
    value
}

/// Splits a value into schema id and body.
pub fn unframe(value: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    match value {
        [0, a, b, c, d, body @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        [0, ..] | [] => Err(FrameError::Short { length: value.len() }),
        [found, ..] => Err(FrameError::Magic { found: *found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_to_what_was_put_in() {
        assert_eq!(unframe(&frame(258, b"body")), Ok((258, &b"body"[..])));
        assert_eq!(frame(258, b""), [0, 0, 0, 1, 2]);
    }

    #[test]
    fn what_is_no_frame_is_named() {
        assert_eq!(unframe(b""), Err(FrameError::Short { length: 0 }));
        assert_eq!(unframe(&[0, 1]), Err(FrameError::Short { length: 2 }));
        assert_eq!(unframe(b"{\"a\":1}"), Err(FrameError::Magic { found: b'{' }));
    }
}
