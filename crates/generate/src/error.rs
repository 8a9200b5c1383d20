//! What can go wrong while text is generated.

use crate::ParamError;
use secateur_engine::EngineError;
use secateur_tokenizer::TokenizerError;

/// Failure of a generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A setting is out of its range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// There is nothing to continue.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens, but the context holds {context_len} with at least one to generate"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Size of the context.
        context_len: usize,
    },
    /// The model's logits cannot be sampled from.
    #[error("the model's logits are not finite")]
    NotFinite,
    /// The model returned logits for another vocabulary.
    #[error("{got} logits for a vocabulary of {vocab_size}")]
    LogitCount {
        /// Logits received.
        got: usize,
        /// Vocabulary size.
        vocab_size: usize,
    },
    /// The forward pass failed.
    #[error(transparent)]
    Model(#[from] EngineError),
    /// Bias and grammar leave no token to choose.
    #[error("bias and grammar together forbid every token")]
    NothingAllowed,
    /// The answer cannot go on as its grammar wants.
    #[error("the grammar cannot be followed: {0}")]
    Grammar(crate::GrammarError),
    /// A token could not be turned into text.
    #[error("token {token} has no text")]
    Decode {
        /// The id.
        token: u32,
        /// What the tokenizer said.
        #[source]
        source: TokenizerError,
    },
}
