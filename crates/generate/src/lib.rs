//! Turns a model's logits into text: sampling, stop conditions and the generation loop.
//!
//! [`Sequence`] runs one request over a [`TokenModel`] and reports [`GenerateEvent`]s; it keeps what the model
//! already holds, so a request that repeats a prefix pays only for the rest. [`Sampler`] and [`StopMatcher`] are
//! pure and know neither the model nor the tokenizer.
//!
//! Not here: who may ask (the HTTP room), when requests run (the service), forward passes (the engine).
//!
//! Memory: `O(vocab_size)` for one sampler, reused for every token; `O(context_len)` token ids for one sequence.
#![forbid(unsafe_code)]

mod drafted;
mod error;
mod events;
mod generation;
mod grammar;
mod logprobs;
mod model;
mod params;
mod rng;
mod sampler;
mod sequence;
mod stop;

pub use drafted::{DraftCounts, Drafted};
pub use error::GenerateError;
pub use events::{FinishReason, Finished, GenerateEvent, Timings, Usage};
pub use generation::{Generation, PREFILL_STEP, Step};
pub use grammar::{Grammar, GrammarError, GrammarFactory, GrammarMatcher, TokenSet};
pub use logprobs::{TokenLogprob, TokenLogprobs, token_logprobs};
pub use model::{BatchModel, TextDecoder, TokenModel};
pub use params::{GenerateRequest, MAX_TOP_LOGPROBS, ParamError, SamplingParams};
pub use rng::Rng;
pub use sampler::Sampler;
pub use sequence::{OnEvent, Sequence};
pub use stop::{MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, StopMatch, StopMatcher};
