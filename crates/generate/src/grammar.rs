//! Grammars that answers must follow: JSON, JSON Schema, Lark and regular expressions.
//!
//! A [`GrammarFactory`] is made once per vocabulary, a [`GrammarMatcher`] once per answer. Grammars come from clients:
//! their size, the automata built from them and the work per token are bounded.
//!
//! Memory: the factory holds a tree of the vocabulary, about 20 bytes for each byte of its tokens. A matcher grows
//! with the automaton states its answer visits, at most [`MAX_LEXER_STATES`] of one to two kilobytes.

use crate::GenerateError;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use secateur_tokenizer::{TokenKind, Tokenizer};
use serde_json::{Value, json};
use std::sync::Arc;

/// Most states of a lexer; each takes one or two kilobytes.
const MAX_LEXER_STATES: usize = 10_000;
/// Most symbols of a grammar.
const MAX_GRAMMAR_SIZE: usize = 50_000;
/// Work for building a lexer, a tenth of a second at most.
const INITIAL_LEXER_FUEL: u64 = 500_000;

/// What the text of an answer must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that satisfies a schema.
    JsonSchema(Value),
    /// Text of a grammar in llguidance's dialect of Lark.
    Lark(String),
    /// Text that matches a regular expression as a whole.
    Regex(String),
}

impl Grammar {
    fn compiled(&self) -> Result<TopLevelGrammar, GrammarError> {
        let json = |mut schema: Value| {
            if !schema.is_object() {
                return Err(GrammarError::new("a schema is an object"));
            }
            // Free white space lets a small model write line breaks without end.
            let options = JsonCompileOptions { whitespace_flexible: false, ..JsonCompileOptions::default() };
            options.apply_to(&mut schema);
            Ok(TopLevelGrammar::from_json_schema(schema))
        };
        match self {
            Self::JsonObject => json(json!({"type": "object"})),
            Self::JsonSchema(schema) => json(schema.clone()),
            Self::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
            Self::Regex(text) => Ok(TopLevelGrammar::from_regex(text)),
        }
    }
}

/// A grammar that cannot be followed.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("{message}")]
pub struct GrammarError {
    /// What is wrong with it, in the words of the compiler.
    pub message: String,
}

impl GrammarError {
    fn new(text: impl std::fmt::Display) -> Self {
        // Messages may repeat parts of the grammar.
        let message: String = text.to_string().lines().next().unwrap_or_default().chars().take(300).collect();
        Self { message }
    }
}

/// Makes matchers for one vocabulary.
pub struct GrammarFactory {
    factory: ParserFactory,
}

impl std::fmt::Debug for GrammarFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarFactory").finish_non_exhaustive()
    }
}

impl GrammarFactory {
    /// A factory for a model with `vocab_size` logits.
    /// # Errors
    /// [`GrammarError`] when the vocabulary has no token that ends a text.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Self, GrammarError> {
        let stops: Vec<u32> = tokenizer.stop_ids().iter().copied().collect();
        let Some(&first_stop) = stops.first() else {
            return Err(GrammarError::new("the vocabulary has no token that ends a text"));
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(|id| word(tokenizer, id)).collect();
        let info = TokRxInfo::new(vocab_size as u32, first_stop);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&stops);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&env, InferenceCapabilities::default(), &slices).map_err(GrammarError::new)?;
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: INITIAL_LEXER_FUEL,
            max_lexer_states: MAX_LEXER_STATES,
            max_grammar_size: MAX_GRAMMAR_SIZE,
            precompute_large_lexemes: false,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        factory.quiet();
        Ok(Self { factory })
    }

    /// A matcher at the start of a text.
    /// # Errors
    /// [`GrammarError`] when the grammar is none, asks for what is not supported, or is too large.
    pub fn matcher(&self, grammar: &Grammar) -> Result<GrammarMatcher, GrammarError> {
        let matcher = Matcher::new(self.factory.create_parser(grammar.compiled()?));
        match matcher.get_error() {
            Some(error) => Err(GrammarError::new(error)),
            None => Ok(GrammarMatcher { matcher }),
        }
    }
}

/// The bytes of a token as the tree wants them: control tokens never match text.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match tokenizer.token_kind(id) {
        Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte) => bytes.to_vec(),
        _ => {
            let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            word.extend_from_slice(format!("<{id}>").as_bytes());
            word
        }
    }
}

/// Where an answer stands in its grammar.
pub struct GrammarMatcher {
    matcher: Matcher,
}

impl std::fmt::Debug for GrammarMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarMatcher").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

impl Clone for GrammarMatcher {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
    }
}

impl GrammarMatcher {
    /// The tokens that may come next, those that end the text among them when it may end here.
    /// # Errors
    /// [`GenerateError::Grammar`] when a limit is reached.
    pub fn allowed(&mut self) -> Result<TokenSet, GenerateError> {
        let set = self.matcher.compute_mask_or_eos().map_err(|error| grammar_error(&error))?;
        Ok(TokenSet { set })
    }

    /// Moves on by a token of the text.
    /// # Errors
    /// [`GenerateError::Grammar`] when the token is not allowed or a limit is reached.
    pub fn accept(&mut self, token: u32) -> Result<(), GenerateError> {
        self.matcher.consume_token(token).map_err(|error| grammar_error(&error))
    }

    /// True when nothing can follow.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn grammar_error(error: &dyn std::fmt::Display) -> GenerateError {
    GenerateError::Grammar(GrammarError::new(error))
}

/// A set of tokens.
#[derive(Clone, Debug)]
pub struct TokenSet {
    set: SimpleVob,
}

impl TokenSet {
    /// True when the token is in the set.
    #[must_use]
    pub fn contains(&self, token: u32) -> bool {
        (token as usize) < self.set.len() && self.set.is_allowed(token)
    }

    /// True when it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.set.is_zero()
    }
}

#[cfg(test)]
#[path = "grammar_tests.rs"]
mod tests;
