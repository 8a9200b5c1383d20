//! Builds a tokenizer from the vocabulary of a GGUF file.
//!
//! This crate reads no files: the caller lends the strings, from wherever it has them, and they are copied once
//! into tables that are an order of magnitude smaller than hash maps of strings.

use crate::bpe::Bpe;
use crate::encode::Encoder;
use crate::special::{SpecialToken, SpecialTokens};
use crate::spm::{self, Spm};
use crate::stop::{SpecialIds, find_stop_ids};
use crate::tokenizer::{Parts, Tokenizer};
use crate::vocab::{TokenKind, TokenTable};
use crate::{PreTokenizer, TokenizerError, byte_level};

/// A list of strings that can be walked from start to end, such as a vector or an array in a mapped file.
pub trait StringList {
    /// Walks the strings in order.
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}

impl<S: AsRef<str>> StringList for Vec<S> {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.iter().map(AsRef::as_ref))
    }
}

impl<S: AsRef<str>> StringList for &[S] {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.iter().map(AsRef::as_ref))
    }
}

impl<S: AsRef<str>, const N: usize> StringList for [S; N] {
    fn texts(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.iter().map(AsRef::as_ref))
    }
}

/// What a GGUF file says about its vocabulary; each field names its key below `tokenizer.ggml.`.
#[derive(Clone, Copy)]
pub struct GgufVocab<'a> {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece-style BPE).
    pub model: &'a str,
    /// `pre`: name of the pre-tokenizer, needed by `gpt2`.
    pub pre: Option<&'a str>,
    /// `tokens`
    pub tokens: &'a dyn StringList,
    /// `token_type`; when empty, all tokens are normal.
    pub token_types: &'a [i32],
    /// `scores`, needed by `llama`.
    pub scores: &'a [f32],
    /// `merges`, needed by `gpt2`.
    pub merges: &'a dyn StringList,
    /// `bos_token_id`, `eos_token_id`, `eot_token_id`, `eom_token_id`, `unknown_token_id`, `padding_token_id`
    pub special_ids: SpecialIds,
    /// `add_bos_token`
    pub add_bos: Option<bool>,
    /// `add_eos_token`
    pub add_eos: Option<bool>,
    /// `add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`
    pub chat_template: Option<&'a str>,
}

impl Default for GgufVocab<'_> {
    fn default() -> Self {
        Self {
            model: "",
            pre: None,
            tokens: &[""; 0],
            token_types: &[],
            scores: &[],
            merges: &[""; 0],
            special_ids: SpecialIds::default(),
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            chat_template: None,
        }
    }
}

/// How the texts of normal tokens are spelt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    SpaceMarks,
}

impl Tokenizer {
    /// Builds a tokenizer from a GGUF vocabulary.
    ///
    /// Memory: the tables of [`TokenKind`]s, bytes, merges and scores; nothing of `vocab` is kept. Time: linear.
    /// # Errors
    /// What is wrong with the vocabulary; see [`TokenizerError`].
    pub fn from_gguf(vocab: &GgufVocab<'_>) -> Result<Self, TokenizerError> {
        match vocab.model {
            "gpt2" => byte_level_bpe(vocab),
            "llama" => sentence_piece(vocab),
            other => Err(TokenizerError::UnsupportedModel { model: other.to_owned() }),
        }
    }
}

fn byte_level_bpe(vocab: &GgufVocab<'_>) -> Result<Tokenizer, TokenizerError> {
    let name = vocab.pre.filter(|name| !name.is_empty()).ok_or(TokenizerError::MissingPreTokenizer)?;
    let pre = PreTokenizer::from_name(name)
        .ok_or_else(|| TokenizerError::UnsupportedPreTokenizer { pre: name.to_owned() })?;
    let (mut table, unmergeable) = read_tokens(vocab, Spelling::ByteLevel)?;
    let mut special_ids = vocab.special_ids;
    let stop_ids = find_stop_ids(&mut table, &mut special_ids)?;
    let specials = special_tokens(&table);
    let is_mergeable = |id: u32| unmergeable.binary_search(&id).is_err();
    let bpe = Bpe::new(&table, is_mergeable, vocab.merges, pre.ignores_merges())?;
    let add_bos = vocab.add_bos.unwrap_or(pre.adds_bos_by_default());
    let (prefix, suffix) = affixes(add_bos, vocab.add_eos.unwrap_or(false), &special_ids)?;
    Ok(Tokenizer::from_parts(Parts {
        table,
        encoder: Encoder::Bpe { pre, bpe },
        specials,
        special_ids,
        stop_ids,
        prefix,
        suffix,
        strips_first_space: false,
        chat_template: vocab.chat_template.map(str::to_owned),
    }))
}

fn sentence_piece(vocab: &GgufVocab<'_>) -> Result<Tokenizer, TokenizerError> {
    let (mut table, unmergeable) = read_tokens(vocab, Spelling::SpaceMarks)?;
    let mut special_ids = vocab.special_ids;
    apply_llama_defaults(&mut special_ids, &table);
    let stop_ids = find_stop_ids(&mut table, &mut special_ids)?;
    let specials = special_tokens(&table);
    let is_mergeable = |id: u32| unmergeable.binary_search(&id).is_err();
    let spm = Spm::new(&table, is_mergeable, vocab.scores, special_ids.unk)?;
    let add_space_prefix = vocab.add_space_prefix.unwrap_or(true);
    let (prefix, suffix) =
        affixes(vocab.add_bos.unwrap_or(true), vocab.add_eos.unwrap_or(false), &special_ids)?;
    Ok(Tokenizer::from_parts(Parts {
        table,
        encoder: Encoder::Spm { spm, add_space_prefix },
        specials,
        special_ids,
        stop_ids,
        prefix,
        suffix,
        strips_first_space: add_space_prefix,
        chat_template: vocab.chat_template.map(str::to_owned),
    }))
}

/// The ids that files of this kind mean when they name none, where the vocabulary agrees.
fn apply_llama_defaults(special_ids: &mut SpecialIds, table: &TokenTable) {
    let is = |id: u32, kind: TokenKind| (table.kind_of(id) == Some(kind)).then_some(id);
    special_ids.unk = special_ids.unk.or(is(0, TokenKind::Unknown));
    special_ids.bos = special_ids.bos.or(is(1, TokenKind::Control));
    special_ids.eos = special_ids.eos.or(is(2, TokenKind::Control));
}

/// Reads the tokens, and which of them no text can be merged into, in rising order: those that are spelt with plain
/// spaces although the vocabulary marks its spaces, or with characters outside the alphabet of bytes.
fn read_tokens(vocab: &GgufVocab<'_>, spelling: Spelling) -> Result<(TokenTable, Vec<u32>), TokenizerError> {
    let texts = vocab.tokens.texts();
    let mut table = TokenTable::with_capacity(texts.size_hint().0);
    let mut unmergeable = Vec::new();
    for (idx, text) in texts.enumerate() {
        let id = u32::try_from(idx).unwrap_or(u32::MAX);
        let kind = match vocab.token_types.get(idx) {
            None => TokenKind::Normal,
            Some(&value) => TokenKind::from_gguf(value).ok_or(TokenizerError::TokenType { id, value })?,
        };
        match (spelling, kind) {
            (Spelling::ByteLevel, TokenKind::Normal) => {
                if !push_byte_level(&mut table, text)? {
                    unmergeable.push(id);
                }
            }
            (Spelling::SpaceMarks, TokenKind::Normal | TokenKind::Unused) => {
                table.push(kind, |out| out.extend(text.replace(spm::SPACE_MARK, " ").as_bytes()))?;
            }
            (_, TokenKind::Byte) => {
                let byte = spm::parse_byte_token(text)
                    .ok_or_else(|| TokenizerError::ByteToken { id, text: text.chars().take(80).collect() })?;
                table.push(kind, |out| out.push(byte))?;
            }
            _ => table.push(kind, |out| out.extend(text.as_bytes()))?,
        }
        if spelling == Spelling::SpaceMarks && text.contains(' ') {
            unmergeable.push(id);
        }
    }
    table.shrink();
    let (want, got) = (table.len(), vocab.token_types.len());
    if want == 0 {
        return Err(TokenizerError::EmptyVocabulary);
    }
    if got != 0 && got != want {
        return Err(TokenizerError::ArrayLength { array: "tokenizer.ggml.token_type", want, got });
    }
    Ok((table, unmergeable))
}

/// Adds a token with the bytes that it stands for. A text outside the alphabet of bytes stands for itself: then
/// the result is false.
fn push_byte_level(table: &mut TokenTable, text: &str) -> Result<bool, TokenizerError> {
    let mut is_known_alphabet = true;
    table.push(TokenKind::Normal, |out| {
        is_known_alphabet = byte_level::decode_into(text, out);
        if !is_known_alphabet {
            out.extend(text.as_bytes());
        }
    })?;
    Ok(is_known_alphabet)
}

/// The tokens that are cut out of raw text.
fn special_tokens(table: &TokenTable) -> SpecialTokens {
    SpecialTokens::new(table.ids().filter_map(|id| {
        let is_control = match table.kind_of(id)? {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => false,
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
        };
        let text = std::str::from_utf8(table.bytes_of(id)?).ok()?.into();
        Some(SpecialToken { text, id, is_control, eats_left: false, eats_right: false })
    }))
}

/// What is put before and after a text.
fn affixes(add_bos: bool, add_eos: bool, ids: &SpecialIds) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let affix = |wanted: bool, id: Option<u32>, flag, name| match (wanted, id) {
        (false, _) => Ok(Vec::new()),
        (true, Some(id)) => Ok(vec![id]),
        (true, None) => Err(TokenizerError::MissingSpecialToken { flag, name }),
    };
    let prefix = affix(add_bos, ids.bos, "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id")?;
    let suffix = affix(add_eos, ids.eos, "tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id")?;
    Ok((prefix, suffix))
}
