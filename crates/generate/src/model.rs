//! What the loop needs of a model and of a tokenizer, so that tests can script both.

use crate::GenerateError;
use secateur_engine::{EngineError, Session};
use secateur_tokenizer::StreamDecoder;

/// A model with a KV cache that is fed token by token.
pub trait TokenModel {
    /// Reads `tokens` and returns the logits after the last one: `[vocab_size]`.
    /// # Errors
    /// [`EngineError::Cancelled`] soon after `cancelled` turns true; otherwise what the forward pass says. After an
    /// error [`Self::len`] still tells what the cache holds.
    fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError>;

    /// Tokens in the KV cache.
    fn len(&self) -> usize;

    /// True when the KV cache holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places in the KV cache.
    fn context_len(&self) -> usize;

    /// Forgets all tokens from position `len` on.
    fn truncate(&mut self, len: usize);

    /// Number of logits.
    fn vocab_size(&self) -> usize;
}

/// A model that can read some tokens at once and tell the logits after each.
pub trait BatchModel: TokenModel {
    /// Reads at most [`secateur_engine::MAX_EACH`] tokens and returns the logits after each: `[tokens.len(), vocab_size]`.
    /// # Errors
    /// As [`TokenModel::extend`].
    fn extend_each(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError>;

    /// What the last call returned.
    fn last_logits(&self) -> &[f32];
}

impl BatchModel for Session {
    fn extend_each(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        Session::extend_each(self, tokens, cancelled)
    }

    fn last_logits(&self) -> &[f32] {
        Session::last_logits(self)
    }
}

impl TokenModel for Session {
    fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        Session::extend(self, tokens, cancelled)
    }

    fn len(&self) -> usize {
        Session::len(self)
    }

    fn context_len(&self) -> usize {
        Session::context_len(self)
    }

    fn truncate(&mut self, len: usize) {
        Session::truncate(self, len);
    }

    fn vocab_size(&self) -> usize {
        self.engine().config().vocab_size
    }
}

/// Turns tokens into text without ever splitting a character.
pub trait TextDecoder {
    /// Appends the text that became whole with `token` to `out`.
    /// # Errors
    /// [`GenerateError::Decode`] when the token has no text.
    fn push(&mut self, token: u32, out: &mut String) -> Result<(), GenerateError>;

    /// Appends what is left at the end, broken characters replaced by U+FFFD.
    fn finish(&mut self, out: &mut String);
}

impl<D: TextDecoder + ?Sized> TextDecoder for &mut D {
    fn push(&mut self, token: u32, out: &mut String) -> Result<(), GenerateError> {
        (**self).push(token, out)
    }

    fn finish(&mut self, out: &mut String) {
        (**self).finish(out);
    }
}

impl TextDecoder for StreamDecoder {
    fn push(&mut self, token: u32, out: &mut String) -> Result<(), GenerateError> {
        StreamDecoder::push(self, token, out).map_err(|source| GenerateError::Decode { token, source })
    }

    fn finish(&mut self, out: &mut String) {
        StreamDecoder::finish(self, out);
    }
}
