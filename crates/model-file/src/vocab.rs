//! The vocabulary of a model file as plain data, for whoever builds a tokenizer from it.

use crate::{Metadata, ModelFileError, StringArray};

/// Vocabulary and its settings. Strings share the bytes of the mapped file.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// `tokenizer.ggml.pre`: name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Tokens in the order of their ids.
    pub tokens: StringArray,
    /// Type of each token (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte); may be empty.
    pub token_types: Vec<i32>,
    /// Score of each token; may be empty.
    pub scores: Vec<f32>,
    /// Merge rules, best first; may be empty.
    pub merges: StringArray,
    /// Beginning of a sequence.
    pub bos_id: Option<u32>,
    /// End of a sequence.
    pub eos_id: Option<u32>,
    /// End of a turn.
    pub eot_id: Option<u32>,
    /// End of a message.
    pub eom_id: Option<u32>,
    /// Unknown token.
    pub unknown_id: Option<u32>,
    /// Padding.
    pub padding_id: Option<u32>,
    /// Put the beginning token first.
    pub add_bos: Option<bool>,
    /// Put the end token last.
    pub add_eos: Option<bool>,
    /// Put a space before the text.
    pub add_space_prefix: Option<bool>,
    /// Chat template in Jinja.
    pub chat_template: Option<String>,
}

impl Vocab {
    /// Reads the vocabulary out of `metadata`.
    /// # Errors
    /// [`ModelFileError`] naming the key that is missing, of a wrong type, or of a wrong length.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, ModelFileError> {
        let text = |key: &str| Ok::<_, ModelFileError>(metadata.text(key)?.map(str::to_owned));
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens_key = key("tokens");
        let tokens = Metadata::require(&tokens_key, metadata.strings(&tokens_key)?)?.clone();
        let merges = metadata.strings(&key("merges"))?.cloned().unwrap_or_else(StringArray::empty);
        let id = |name: &str| read_id(metadata, &key(name), tokens.len());
        Ok(Self {
            model: Metadata::require(&key("model"), text(&key("model"))?)?,
            pre: text(&key("pre"))?,
            token_types: read_types(metadata, &key("token_type"), tokens.len())?,
            scores: read_scores(metadata, &key("scores"), tokens.len())?,
            merges,
            bos_id: id("bos_token_id")?,
            eos_id: id("eos_token_id")?,
            eot_id: id("eot_token_id")?,
            eom_id: id("eom_token_id")?,
            unknown_id: id("unknown_token_id")?,
            padding_id: id("padding_token_id")?,
            add_bos: metadata.flag(&key("add_bos_token"))?,
            add_eos: metadata.flag(&key("add_eos_token"))?,
            add_space_prefix: metadata.flag(&key("add_space_prefix"))?,
            chat_template: text("tokenizer.chat_template")?,
            tokens,
        })
    }
}

fn read_id(metadata: &Metadata, key: &str, n_tokens: usize) -> Result<Option<u32>, ModelFileError> {
    let Some(id) = metadata.uint(key)? else { return Ok(None) };
    let known = u32::try_from(id).ok().filter(|&id| (id as usize) < n_tokens);
    match known {
        Some(id) => Ok(Some(id)),
        // Files without such a token write -1.
        None if id == u64::from(u32::MAX) => Ok(None),
        None => Err(ModelFileError::KeyType { key: key.to_owned(), want: "the id of a token" }),
    }
}

fn check_len(key: &str, got: usize, tokens: usize) -> Result<(), ModelFileError> {
    if got == tokens { Ok(()) } else { Err(ModelFileError::VocabLen { key: key.to_owned(), got, tokens }) }
}

fn read_types(metadata: &Metadata, key: &str, n_tokens: usize) -> Result<Vec<i32>, ModelFileError> {
    let Some(numbers) = metadata.numbers(key)? else { return Ok(Vec::new()) };
    check_len(key, numbers.len(), n_tokens)?;
    let wrong = || ModelFileError::KeyType { key: key.to_owned(), want: "an array of whole numbers" };
    numbers
        .iter()
        .map(|number| number.as_int().and_then(|kind| i32::try_from(kind).ok()).ok_or_else(wrong))
        .collect()
}

fn read_scores(metadata: &Metadata, key: &str, n_tokens: usize) -> Result<Vec<f32>, ModelFileError> {
    let Some(numbers) = metadata.numbers(key)? else { return Ok(Vec::new()) };
    check_len(key, numbers.len(), n_tokens)?;
    let wrong = || ModelFileError::KeyType { key: key.to_owned(), want: "an array of floats" };
    numbers.iter().map(|number| number.as_float().map(|score| score as f32).ok_or_else(wrong)).collect()
}
