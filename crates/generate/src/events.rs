//! What a generation reports while it runs and when it ends.

use crate::TokenLogprobs;
use std::time::Duration;

/// One report of a running generation: `Prefilled`, then any number of `Delta`.
#[derive(Clone, Debug, PartialEq)]
pub enum GenerateEvent {
    /// The prompt has been read; the first token follows.
    Prefilled {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// How many of them were still in the KV cache.
        cached_tokens: usize,
    },
    /// More text. Whole UTF-8 characters, never part of a stop string.
    Delta {
        /// The text; empty only when it carries logprobs.
        text: String,
        /// Logprobs of the tokens whose text this is; empty unless asked for.
        logprobs: Vec<TokenLogprobs>,
    },
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end-of-text token or a stop string.
    Stop,
    /// `max_tokens` reached, or the context is full.
    Length,
    /// The caller asked to stop.
    Cancelled,
}

impl FinishReason {
    /// Name as the OpenAI protocol writes it; `cancelled` is ours.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Tokens read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// How many of them were still in the KV cache.
    pub cached_tokens: usize,
    /// Tokens generated, an end-of-text token included.
    pub completion_tokens: usize,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Milliseconds to read the prompt.
    pub prefill_ms: f64,
    /// Milliseconds from the start to the first token.
    pub ttft_ms: f64,
    /// Milliseconds for each token after the first; 0 with fewer than two.
    pub tpot_ms: f64,
    /// Prompt tokens read in a second, cached ones not counted; 0 when nothing was read.
    pub prompt_tokens_per_s: f64,
    /// Tokens generated in a second after the first; 0 with fewer than two.
    pub tokens_per_s: f64,
}

impl Timings {
    /// Derives the figures from the moments measured.
    ///
    /// `prefilled`: tokens read in `prefill`; `ttft`: start to first token; `total`: start to last token;
    /// `generated`: tokens generated.
    #[must_use]
    pub fn measure(
        prefilled: usize,
        prefill: Duration,
        ttft: Duration,
        total: Duration,
        generated: usize,
    ) -> Self {
        let per_s = |count: usize, seconds: f64| if 0.0 < seconds { count as f64 / seconds } else { 0.0 };
        let decode_s = total.saturating_sub(ttft).as_secs_f64();
        let decoded = generated.saturating_sub(1);
        Self {
            prefill_ms: prefill.as_secs_f64() * 1e3,
            ttft_ms: ttft.as_secs_f64() * 1e3,
            tpot_ms: if decoded == 0 { 0.0 } else { decode_s * 1e3 / decoded as f64 },
            prompt_tokens_per_s: per_s(prefilled, prefill.as_secs_f64()),
            tokens_per_s: per_s(decoded, decode_s),
        }
    }
}

/// The end of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    /// Tokens read and written.
    pub usage: Usage,
    /// How long it took.
    pub timings: Timings,
}
