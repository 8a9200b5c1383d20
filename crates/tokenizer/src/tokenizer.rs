//! The tokenizer: an immutable set of tables behind a cheap handle.

use crate::encode::Encoder;
use crate::special::SpecialTokens;
use crate::stop::SpecialIds;
use crate::vocab::{TokenKind, TokenTable};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Turns text into tokens and back. Clones share their tables.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    parts: Arc<Parts>,
}

/// What a tokenizer is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) table: TokenTable,
    pub(crate) encoder: Encoder,
    pub(crate) specials: SpecialTokens,
    pub(crate) special_ids: SpecialIds,
    pub(crate) stop_ids: BTreeSet<u32>,
    /// Put before a text.
    pub(crate) prefix: Vec<u32>,
    /// Put after a text.
    pub(crate) suffix: Vec<u32>,
    /// True when encoding puts a space before a text that decoding must take away.
    pub(crate) strips_first_space: bool,
    pub(crate) chat_template: Option<String>,
}

impl Tokenizer {
    pub(crate) fn from_parts(parts: Parts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Number of tokens.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.parts.table.len()
    }

    /// The tokens with a purpose. Where the file did not name the end of a turn, it was found by its text.
    #[must_use]
    pub fn special_ids(&self) -> SpecialIds {
        self.parts.special_ids
    }

    /// The token that starts a text.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.parts.special_ids.bos
    }

    /// The token that ends a text.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.parts.special_ids.eos
    }

    /// All tokens that end a reply: those that the file names and those known by their texts.
    #[must_use]
    pub fn stop_ids(&self) -> &BTreeSet<u32> {
        &self.parts.stop_ids
    }

    /// True when the token ends a reply.
    #[must_use]
    pub fn is_stop(&self, id: u32) -> bool {
        self.parts.stop_ids.contains(&id)
    }

    /// True when encoding with [`crate::AddSpecial::Yes`] starts a text with [`Self::bos_id`].
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.bos_id().is_some_and(|bos| self.parts.prefix.first() == Some(&bos))
    }

    /// What the token is for.
    #[must_use]
    pub fn token_kind(&self, id: u32) -> Option<TokenKind> {
        self.parts.table.kind_of(id)
    }

    /// The bytes that the token stands for; of a control token, its spelling. Not always whole characters.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.parts.table.bytes_of(id)
    }

    /// The control token, or token cut out of raw text, with this spelling.
    #[must_use]
    pub fn special_token_id(&self, text: &str) -> Option<u32> {
        self.parts.specials.iter().find(|token| &*token.text == text).map(|token| token.id)
    }

    /// The chat template that came with the vocabulary.
    #[must_use]
    pub fn chat_template(&self) -> Option<&str> {
        self.parts.chat_template.as_deref()
    }
}
