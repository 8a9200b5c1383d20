//! A model's KV cache and the tokens that are in it.
//!
//! A request that starts with the same tokens as the last one (the next turn of a chat) reads only what differs.
//! Invariant: `tokens` are exactly those the model holds, also after an error.
//!
//! A cached prompt was read in other batches than a fresh one, so logits may differ in the last bits of their floats.

use crate::{
    Finished, GenerateError, GenerateEvent, GenerateRequest, Generation, Step, TextDecoder, TokenModel,
};
use std::ops::ControlFlow;

/// A model, and the tokens in its KV cache.
#[derive(Debug)]
pub struct Sequence<M> {
    model: M,
    tokens: Vec<u32>,
}

/// Takes the reports of a generation; `Break` ends it as cancelled.
pub type OnEvent<'a> = &'a mut dyn FnMut(GenerateEvent) -> ControlFlow<()>;

impl<M: TokenModel> Sequence<M> {
    /// A sequence over a model with an empty KV cache; what the cache holds is forgotten.
    #[must_use]
    pub fn new(mut model: M) -> Self {
        model.truncate(0);
        Self { model, tokens: Vec::new() }
    }

    /// A sequence over a model whose KV cache holds exactly `tokens`, as a fork of another one does.
    /// # Panics
    /// When it holds another number of tokens.
    #[must_use]
    pub fn holding(model: M, tokens: Vec<u32>) -> Self {
        assert_eq!(model.len(), tokens.len(), "the cache holds these tokens");
        Self { model, tokens }
    }

    /// Tokens in the KV cache.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &M {
        &self.model
    }

    /// The model, to give its cache another size. Tokens must not be added to it or taken from it.
    pub fn model_mut(&mut self) -> &mut M {
        &mut self.model
    }

    /// Forgets everything in the KV cache.
    pub fn clear(&mut self) {
        self.model.truncate(0);
        self.tokens.clear();
    }

    /// Runs one request to its end.
    ///
    /// `cancelled` is asked at least once a token; `on_event` gets text as soon as it is certain.
    /// # Errors
    /// [`GenerateError::Param`], [`GenerateError::EmptyPrompt`] and [`GenerateError::PromptTooLong`] before anything
    /// runs; otherwise what the model or the decoder says. Text reported before an error stands.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        decoder: &mut dyn TextDecoder,
        cancelled: &dyn Fn() -> bool,
        on_event: OnEvent<'_>,
    ) -> Result<Finished, GenerateError> {
        let (vocab_size, context_len) = (self.model.vocab_size(), self.model.context_len());
        let mut generation = Generation::new(request.clone(), decoder, None, vocab_size, context_len)?;
        loop {
            if let Step::Finished(finished) = generation.step(self, cancelled, on_event)? {
                return Ok(finished);
            }
        }
    }

    /// Forgets what differs from `wanted` and returns how many of its tokens need not be read again.
    pub(crate) fn keep_common_prefix(&mut self, wanted: &[u32]) -> usize {
        // The last token must be read for its logits.
        let kept = self.common_prefix(wanted).min(wanted.len() - 1);
        self.model.truncate(kept);
        self.tokens.truncate(kept);
        kept
    }

    /// How many tokens in front of `wanted` are in the KV cache.
    #[must_use]
    pub fn common_prefix(&self, wanted: &[u32]) -> usize {
        self.tokens.iter().zip(wanted).take_while(|(have, want)| have == want).count()
    }

    /// Reads tokens and returns the logits after the last one.
    pub(crate) fn extend(
        &mut self,
        tokens: &[u32],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<&[f32], GenerateError> {
        self.tokens.extend_from_slice(tokens);
        Ok(self.model.extend(tokens, cancelled)?)
    }

    /// The model may have stopped in the middle of a batch.
    pub(crate) fn settle(&mut self) {
        self.tokens.truncate(self.model.len());
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
