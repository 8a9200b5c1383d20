//! Names of entries: digests, and nothing that could be a path.

use crate::StoreError;
use std::fmt;
use std::str::FromStr;

/// The BLAKE3 digest of an entry's model file: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(String);

impl ModelId {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(is_digit) {
            return Ok(Self(text.to_owned()));
        }
        // The text may be anything a client sent: never echo more than a line of it.
        let text = text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
        Err(StoreError::BadId { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_ids() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<ModelId>().unwrap().as_str(), good);
        let bad = [
            String::new(),
            "..".into(),
            "../".repeat(21) + "x",
            good.to_uppercase(),
            good[1..].to_owned(),
            good.clone() + "0",
            format!("{}/", &good[1..]),
            "é".repeat(32),
        ];
        for text in bad {
            assert!(text.parse::<ModelId>().is_err(), "{text}");
        }
    }
}
