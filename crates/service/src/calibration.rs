//! The calibration text: the built-in one, a file, or what a client sent.
//!
//! Only as much of a file is read as the tokens need, so a text of any size costs `O(tokens)` bytes.

use crate::ServiceError;
use crate::convert::{data_error, invalid, io_error};
use secateur_prune::calibration::{
    DEFAULT_CALIBRATION_TOKENS, DOCUMENT_END, default_documents, default_text, tokens_needed,
};
use secateur_store::digest_file;
use secateur_tokenizer::{AddSpecial, Tokenizer};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes that a token has at least on average; the first guess at how much to read.
const BYTES_PER_TOKEN: usize = 8;
/// Most bytes of a calibration file that are read.
const MAX_TEXT_BYTES: usize = 64 << 20;
/// Tokens at the end of a part of a text that may differ from those of the whole text.
const UNSURE_TOKENS: usize = 64;
/// Prose whose tokens have less than this share of the usual bytes is in a language that the tokenizer was not made for.
const FOREIGN_TOKEN_BYTES: f64 = 0.8;
/// Most calibration tokens that may be asked for.
pub(crate) const MAX_CALIBRATION_TOKENS: usize = 1 << 20;

/// Where the calibration text comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CalibrationText {
    /// The text that comes with the program.
    #[default]
    Default,
    /// A text file.
    File(PathBuf),
    /// A text.
    Text(String),
}

/// The text and how much of it to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calibration {
    /// The text.
    pub text: CalibrationText,
    /// Tokens to fit on; the pruner's default when absent.
    pub tokens: Option<usize>,
}

impl Calibration {
    /// Tokens to fit on.
    /// # Errors
    /// [`ServiceError::Invalid`] for none or too many.
    pub fn fit_tokens(&self) -> Result<usize, ServiceError> {
        match self.tokens {
            None => Ok(DEFAULT_CALIBRATION_TOKENS),
            Some(tokens) if (1..=MAX_CALIBRATION_TOKENS).contains(&tokens) => Ok(tokens),
            Some(tokens) => {
                let message = format!("{tokens} is not in 1..={MAX_CALIBRATION_TOKENS}");
                Err(invalid("calibration_tokens", message))
            }
        }
    }

    /// Digest of the text: part of a pruned model's identity.
    /// # Errors
    /// [`ServiceError::Io`].
    pub fn digest(&self) -> Result<String, ServiceError> {
        Ok(match &self.text {
            CalibrationText::Default => blake3::hash(default_text().as_bytes()).to_hex().to_string(),
            CalibrationText::Text(text) => blake3::hash(text.as_bytes()).to_hex().to_string(),
            CalibrationText::File(path) => digest_file(path)?.1,
        })
    }

    /// The tokens the pruner needs, from the start of the text; fewer when the text is short.
    /// # Errors
    /// [`ServiceError::Io`]; [`ServiceError::Data`] when a file is not text.
    pub(crate) fn load(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, ServiceError> {
        let n_needed = tokens_needed(self.fit_tokens()?);
        let mut tokens = match &self.text {
            CalibrationText::Default => default_tokens(tokenizer)?,
            CalibrationText::Text(text) => encode(tokenizer, text)?,
            CalibrationText::File(path) => load_file(path, tokenizer, n_needed)?,
        };
        tokens.truncate(n_needed);
        tokens.shrink_to_fit();
        Ok(tokens)
    }
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, ServiceError> {
    encode_part(tokenizer, text, AddSpecial::Yes)
}

fn encode_part(tokenizer: &Tokenizer, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
    tokenizer.encode(text, special).map_err(|error| crate::convert::text_error("calibration", &error))
}

/// Tokens of the default text, without the documents in languages that the tokenizer has few words for: the model has
/// hardly seen them, and they would take the place of what it is good at.
fn default_tokens(tokenizer: &Tokenizer) -> Result<Vec<u32>, ServiceError> {
    let mut documents = Vec::new();
    for document in default_documents() {
        let text = format!("{document}{DOCUMENT_END}");
        documents.push((document, encode_part(tokenizer, &text, AddSpecial::No)?));
    }
    let measured: Vec<(bool, f64)> = documents
        .iter()
        .map(|(text, tokens)| (is_prose(text), text.len() as f64 / tokens.len().max(1) as f64))
        .collect();
    let mut all = encode(tokenizer, "")?;
    let known = documents.into_iter().zip(in_known_language(&measured)).filter(|(_, is_known)| *is_known);
    known.for_each(|((_, tokens), _)| all.extend(tokens));
    Ok(all)
}

/// For documents, whether each is prose and its bytes per token: whether it is in a language that the tokenizer knows, or
/// in none.
fn in_known_language(documents: &[(bool, f64)]) -> Vec<bool> {
    let mut token_bytes: Vec<f64> = documents.iter().map(|(_, token_bytes)| *token_bytes).collect();
    token_bytes.sort_by(f64::total_cmp);
    let usual = token_bytes.get(token_bytes.len() / 2).copied().unwrap_or(0.0);
    documents
        .iter()
        .map(|(is_prose, token_bytes)| !is_prose || FOREIGN_TOKEN_BYTES * usual <= *token_bytes)
        .collect()
}

/// Whether a text is neither code nor figures: digits and the signs of ASCII are few.
fn is_prose(text: &str) -> bool {
    let is_sign = |c: &char| c.is_ascii_digit() || c.is_ascii_punctuation();
    text.chars().filter(is_sign).count() * 10 < text.chars().count()
}

fn load_file(path: &Path, tokenizer: &Tokenizer, n_needed: usize) -> Result<Vec<u32>, ServiceError> {
    let mut n_bytes = n_needed.saturating_mul(BYTES_PER_TOKEN).min(MAX_TEXT_BYTES);
    loop {
        let part = read_text(path, n_bytes)?;
        let tokens = encode(tokenizer, &part.text)?;
        if part.is_whole || MAX_TEXT_BYTES <= n_bytes || n_needed + UNSURE_TOKENS <= tokens.len() {
            return Ok(tokens);
        }
        n_bytes = (2 * n_bytes).min(MAX_TEXT_BYTES);
    }
}

/// The beginning of a text file.
pub(crate) struct TextPart {
    pub(crate) text: String,
    /// Nothing follows.
    pub(crate) is_whole: bool,
}

/// Reads at most `max_bytes` of a text file, whole characters only.
/// # Errors
/// [`ServiceError::Io`]; [`ServiceError::Data`] when it is not UTF-8.
pub(crate) fn read_text(path: &Path, max_bytes: usize) -> Result<TextPart, ServiceError> {
    let file = File::open(path).map_err(|error| io_error(path, error))?;
    let mut bytes = Vec::new();
    let limit = max_bytes as u64;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| io_error(path, error))?;
    let is_whole = bytes.len() <= max_bytes;
    bytes.truncate(max_bytes);
    match String::from_utf8(bytes) {
        Ok(text) => Ok(TextPart { text, is_whole }),
        Err(error) if !is_whole && error.utf8_error().error_len().is_none() => {
            // Only the character at the cut is broken.
            let end = error.utf8_error().valid_up_to();
            let mut bytes = error.into_bytes();
            bytes.truncate(end);
            let text = String::from_utf8(bytes).map_err(|error| data_error(path, &error))?;
            Ok(TextPart { text, is_whole })
        }
        Err(error) => Err(data_error(path, &error.utf8_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_text_end_at_whole_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        std::fs::write(&path, "aé€😀").unwrap();
        let cases =
            [(1, "a"), (2, "a"), (3, "aé"), (5, "aé"), (6, "aé€"), (9, "aé€"), (10, "aé€😀"), (99, "aé€😀")];
        for (max_bytes, want) in cases {
            let part = read_text(&path, max_bytes).unwrap();
            assert_eq!((part.text.as_str(), part.is_whole), (want, 10 <= max_bytes), "{max_bytes}");
        }
        std::fs::write(&path, b"abc\xff\xfedef").unwrap();
        assert!(matches!(read_text(&path, 99), Err(ServiceError::Data { .. })));
        assert!(matches!(read_text(&path, 5), Err(ServiceError::Data { .. })));
    }

    #[test]
    fn prose_in_unknown_languages_is_left_out_and_code_is_not() {
        let documents = [(true, 4.0), (true, 4.2), (true, 2.5), (false, 2.5), (true, 3.3), (true, 3.1)];
        assert_eq!(in_known_language(&documents), [true, true, false, true, true, true]);
        // A tokenizer of bytes knows no language better than another.
        assert_eq!(in_known_language(&[(true, 1.0); 3]), [true; 3]);
        assert!(in_known_language(&[]).is_empty());
        assert!(is_prose("Tides: why the sea comes and goes\n\nStand on almost any ocean beach, and wait."));
        assert!(is_prose("花园里的猫头鹰。外婆家的后院有一棵很老的樟树，树干上有个洞。"));
        assert!(!is_prose("def lapse_rate(samples: list[Reading]) -> float:"));
        assert!(!is_prose("0512  Wind SW 4, vis. good, 1009 hPa falling"));
    }

    #[test]
    fn absurd_token_counts_are_refused() {
        for (tokens, fine) in [(None, true), (Some(1), true), (Some(0), false), (Some(usize::MAX), false)] {
            let calibration = Calibration { tokens, ..Calibration::default() };
            assert_eq!(calibration.fit_tokens().is_ok(), fine, "{tokens:?}");
        }
    }
}
