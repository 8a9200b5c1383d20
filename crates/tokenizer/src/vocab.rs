//! The table of tokens: what each one stands for, and which one stands for some bytes.
//!
//! All bytes lie in one buffer, so that a vocabulary of 49,152 tokens takes about 0.9 MiB instead of the 8 MiB of
//! two hash maps of strings. Memory: bytes of all tokens + 5 bytes a token + 4 bytes for each slot of the index
//! (at most 3 slots a token).

use crate::TokenizerError;
use std::hash::{BuildHasher, RandomState};

/// Most tokens a vocabulary may have.
pub const MAX_TOKENS: usize = 1 << 20;
/// Most bytes a single token may have.
pub const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Most bytes all tokens together may have.
pub const MAX_VOCABULARY_BYTES: usize = 128 << 20;

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text, found by merging.
    Normal,
    /// Stands for whatever has no token of its own.
    Unknown,
    /// Steers the model: turn markers, start and end of text. Not part of decoded text.
    Control,
    /// Text that is cut out before anything else is merged.
    UserDefined,
    /// A place in the table that no text uses.
    Unused,
    /// A single byte, for text without tokens.
    Byte,
}

impl TokenKind {
    /// Reads the number of `tokenizer.ggml.token_type`.
    pub(crate) fn from_gguf(value: i32) -> Option<Self> {
        Some(match value {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            0 | 5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// True when the token is text that a reader should see.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Byte)
    }
}

/// Tokens by id.
#[derive(Debug)]
pub(crate) struct TokenTable {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
}

impl TokenTable {
    pub(crate) fn with_capacity(n_tokens: usize) -> Self {
        let n_tokens = n_tokens.min(MAX_TOKENS);
        Self { bytes: Vec::new(), ends: Vec::with_capacity(n_tokens), kinds: Vec::with_capacity(n_tokens) }
    }

    /// Adds the next token; `fill` appends its bytes.
    /// # Errors
    /// [`TokenizerError::TooLarge`] when a limit is passed.
    pub(crate) fn push(
        &mut self,
        kind: TokenKind,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TokenizerError> {
        check_limit("tokens", self.ends.len() + 1, MAX_TOKENS)?;
        let start = self.bytes.len();
        fill(&mut self.bytes);
        check_limit("bytes of one token", self.bytes.len() - start, MAX_TOKEN_BYTES)?;
        check_limit("bytes of all tokens", self.bytes.len(), MAX_VOCABULARY_BYTES)?;
        self.ends.push(u32::try_from(self.bytes.len()).expect("the limit on all bytes is below 4 GiB"));
        self.kinds.push(kind);
        Ok(())
    }

    /// Gives back memory that was reserved for growing.
    pub(crate) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.kinds.shrink_to_fit();
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        let idx = usize::try_from(id).ok()?;
        let end = *self.ends.get(idx)?;
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] };
        Some(&self.bytes[start as usize..end as usize])
    }

    pub(crate) fn kind_of(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(usize::try_from(id).ok()?).copied()
    }

    /// Turns a token into one that steers the model or one that is text.
    pub(crate) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        let n_tokens = u32::try_from(self.len()).expect("the limit on tokens is below 2^32");
        0..n_tokens
    }
}

/// Finds tokens by their bytes. The hash is keyed anew in each process, so that no file can be made to collide.
#[derive(Debug)]
pub(crate) struct TokenIndex {
    /// `id + 1`, or 0 for a free slot; the number of slots is a power of two.
    slots: Vec<u32>,
    hasher: RandomState,
}

impl TokenIndex {
    /// Makes room for `n_tokens` tokens.
    pub(crate) fn with_capacity(n_tokens: usize) -> Self {
        Self { slots: vec![0; n_slots(n_tokens)], hasher: RandomState::new() }
    }

    /// Adds a token; returns the token that already stands for the same bytes, if there is one.
    pub(crate) fn insert(&mut self, table: &TokenTable, id: u32) -> Option<u32> {
        let bytes = table.bytes_of(id)?;
        match self.probe(table, bytes) {
            Ok(other) => Some(other),
            Err(free) => {
                self.slots[free] = id + 1;
                None
            }
        }
    }

    pub(crate) fn get(&self, table: &TokenTable, bytes: &[u8]) -> Option<u32> {
        self.probe(table, bytes).ok()
    }

    /// The id of a token with these bytes, or the slot where it would go.
    fn probe(&self, table: &TokenTable, bytes: &[u8]) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(bytes) as usize & mask;
        loop {
            match self.slots[slot].checked_sub(1) {
                None => return Err(slot),
                Some(id) if table.bytes_of(id) == Some(bytes) => return Ok(id),
                Some(_) => slot = (slot + 1) & mask,
            }
        }
    }
}

/// Number of slots of a hash table for `n` entries: a power of two, at least a quarter of it free.
pub(crate) fn n_slots(n: usize) -> usize {
    (n + n / 3 + 2).next_power_of_two()
}

/// # Errors
/// [`TokenizerError::TooLarge`] when `got` is beyond `limit`.
pub(crate) fn check_limit(what: &'static str, got: usize, limit: usize) -> Result<(), TokenizerError> {
    if got <= limit {
        return Ok(());
    }
    Err(TokenizerError::TooLarge { what, got: got as u64, limit: limit as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_finds_what_the_table_holds() {
        let words = ["", "a", "ab", "abc", "b", "ba"];
        let mut table = TokenTable::with_capacity(words.len());
        for word in words {
            table.push(TokenKind::Normal, |out| out.extend(word.as_bytes())).unwrap();
        }
        let mut index = TokenIndex::with_capacity(words.len());
        for id in table.ids() {
            assert_eq!(index.insert(&table, id), None);
        }
        for (id, word) in words.iter().enumerate() {
            assert_eq!(index.get(&table, word.as_bytes()), Some(id as u32));
        }
        assert_eq!(index.get(&table, b"c"), None);
        assert_eq!(index.insert(&table, 2), Some(2));
        assert_eq!(table.bytes_of(6), None);
    }

    #[test]
    fn a_token_beyond_the_limit_is_refused() {
        let mut table = TokenTable::with_capacity(1);
        let too_long = vec![b'x'; MAX_TOKEN_BYTES + 1];
        let result = table.push(TokenKind::Normal, |out| out.extend(&too_long));
        assert!(matches!(result, Err(TokenizerError::TooLarge { what: "bytes of one token", .. })));
    }
}
