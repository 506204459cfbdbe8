//! Who decides, when and why.

use crate::error::ReplayError;

/// Who decides, when and why. Checked to be such that the decision can be published: what no command may say would
/// hold back all later decisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    who: String,
    reason: String,
    at: i64,
}

const MAX_WHO: usize = 500;
const MAX_REASON: usize = 10_000;

// === impl By ===

impl By {
    /// `at` in milliseconds since 1970. The reason may be empty.
    pub fn new(who: &str, reason: &str, at: i64) -> Result<Self, ReplayError> {
        let refused = |key, problem: String| Err(ReplayError::Setting { key, problem });
        let (who, reason) = (who.trim(), reason.trim());
        if who.is_empty() {
            return refused("who", "name the person who decides".to_owned());
        }
        for (key, text, most) in [("who", who, MAX_WHO), ("reason", reason, MAX_REASON)] {
            let length = text.chars().count();
            if length > most {
                return refused(key, format!("it has {length} characters; use {most} at most"));
            }
            if text.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\r' | '\t')) {
                return refused(key, "it has a control character; leave it out".to_owned());
            }
        }
        Ok(Self { who: who.to_owned(), reason: reason.to_owned(), at })
    }

    pub fn who(&self) -> &str {
        &self.who
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    pub fn at(&self) -> i64 {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_decides_anonymously_or_what_cannot_be_published() {
        let refusal = |who: &str, reason: &str| By::new(who, reason, 0).unwrap_err().to_string();
        assert!(refusal(" ", "r").contains("name the person"));
        assert!(refusal(&"a".repeat(501), "").contains("500 at most"));
        assert!(refusal("ann", &"a".repeat(10_001)).contains("10000 at most"));
        assert!(refusal("ann", "a\u{7}").contains("control character"));
        let by = By::new(" ann ", "two\nlines", 5).unwrap();
        assert_eq!((by.who(), by.reason(), by.at()), ("ann", "two\nlines", 5));
    }
}
