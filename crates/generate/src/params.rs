//! What a caller may ask of a generation, and the ranges of each setting.

use crate::stop::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS};
use std::hash::{BuildHasher, Hasher, RandomState};

/// Most alternatives reported beside each token.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// A setting out of its range.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("`{field}` must be {allowed}")]
pub struct ParamError {
    /// Name of the setting, as the OpenAI protocol spells it.
    pub field: &'static str,
    /// What is allowed, in words.
    pub allowed: &'static str,
}

/// How the next token is chosen.
///
/// Order: repetition penalty, presence and frequency penalty, bias, temperature, top-k, top-p, min-p, draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divisor of the logits, `0.0..=2.0`; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the likeliest k tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that together have this probability, `0.0..=1.0`; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this probable relative to the likeliest, `0.0..=1.0`; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer, `0.01..=10.0`; 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logit of every token already generated, `-2.0..=2.0`.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time it was generated, `-2.0..=2.0`.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens, `-100.0..=100.0`; -100 forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same request, same text.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// The likeliest token, always.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// A seed that differs from call to call, for requests that name none.
    #[must_use]
    pub fn random_seed() -> u64 {
        // The standard library draws the keys of its hash maps from the system's randomness.
        RandomState::new().build_hasher().finish()
    }

    /// Checks every range.
    /// # Errors
    /// The first [`ParamError`] found.
    pub fn validate(&self, vocab_size: usize) -> Result<(), ParamError> {
        in_range("temperature", self.temperature, 0.0, 2.0, "a number from 0 to 2")?;
        in_range("top_p", self.top_p, 0.0, 1.0, "a number from 0 to 1")?;
        in_range("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")?;
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0, "a number from 0.01 to 10")?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0, "a number from -2 to 2")?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "a number from -2 to 2")?;
        for &(token, bias) in &self.logit_bias {
            in_range("logit_bias", bias, -100.0, 100.0, "a map of token ids to numbers from -100 to 100")?;
            if vocab_size <= token as usize {
                return Err(ParamError {
                    field: "logit_bias",
                    allowed: "a map of token ids of this model's vocabulary",
                });
            }
        }
        Ok(())
    }
}

fn in_range(
    field: &'static str,
    value: f32,
    min: f32,
    max: f32,
    allowed: &'static str,
) -> Result<(), ParamError> {
    // NaN is in no range.
    if (min..=max).contains(&value) { Ok(()) } else { Err(ParamError { field, allowed }) }
}

/// One request: what to continue, how to choose, when to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Tokens to continue.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; the context may end earlier.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Text that ends the answer and is not part of it.
    pub stop_strings: Vec<String>,
    /// Tokens that end the answer and are not part of it: the model's end-of-text tokens.
    pub stop_tokens: Vec<u32>,
    /// Report the logprob of every token and of this many alternatives; `None` reports nothing.
    pub logprobs: Option<usize>,
}

impl GenerateRequest {
    /// Checks every setting.
    /// # Errors
    /// The first [`ParamError`] found.
    pub fn validate(&self, vocab_size: usize) -> Result<(), ParamError> {
        self.sampling.validate(vocab_size)?;
        if self.logprobs.is_some_and(|top| MAX_TOP_LOGPROBS < top) {
            return Err(ParamError { field: "top_logprobs", allowed: "a whole number from 0 to 20" });
        }
        let fits = |stop: &String| !stop.is_empty() && stop.len() <= MAX_STOP_STRING_BYTES;
        if MAX_STOP_STRINGS < self.stop_strings.len() || !self.stop_strings.iter().all(fits) {
            return Err(ParamError { field: "stop", allowed: "at most 16 strings of 1 to 1024 bytes" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_seeds_differ() {
        assert_ne!(SamplingParams::random_seed(), SamplingParams::random_seed());
    }

    #[test]
    fn requests_out_of_range_are_named() {
        let base = GenerateRequest::default;
        let cases = [
            ("top_logprobs", GenerateRequest { logprobs: Some(21), ..base() }),
            ("stop", GenerateRequest { stop_strings: vec![String::new()], ..base() }),
            ("stop", GenerateRequest { stop_strings: vec!["x".repeat(1025)], ..base() }),
            ("stop", GenerateRequest { stop_strings: vec!["x".to_owned(); 17], ..base() }),
        ];
        for (field, request) in cases {
            assert_eq!(request.validate(10).unwrap_err().field, field);
        }
        let full = GenerateRequest { logprobs: Some(20), stop_strings: vec!["x".repeat(1024); 16], ..base() };
        assert_eq!(full.validate(10), Ok(()));
    }
}
