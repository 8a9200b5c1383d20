//! Text from a prompt, once.

use super::run::{CacheNeed, RunOptions, engine_within};
use crate::ServiceError;
use crate::api::{ChatMessage, GenerationParams};
use crate::budget::resident_bytes;
use crate::convert::text_error;
use crate::opened::OpenModel;
use crate::served::{chat_tokens, generate_request};
use secateur_generate::{GenerateEvent, Sequence};
use secateur_model::{KvDType, WeightSource};
use secateur_tokenizer::AddSpecial;
use serde::Serialize;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

/// Tokens of an answer when the caller does not say.
pub const DEFAULT_MAX_TOKENS: usize = 256;

/// What a prompt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptKind {
    /// A text to continue.
    #[default]
    Text,
    /// A message of a chat, put through the model's template.
    Chat,
}

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The prompt.
    pub prompt: String,
    /// What it is.
    pub kind: PromptKind,
    /// How to generate.
    pub params: GenerationParams,
    /// Context; prompt and answer when absent.
    pub context_len: Option<usize>,
    /// How the model is run.
    pub run: RunOptions,
}

/// The answer and how long it took.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateReport {
    /// The answer.
    pub text: String,
    /// Its tokens, an end-of-text token not included.
    pub tokens: Vec<u32>,
    /// `stop`, `length` or `cancelled`.
    pub finish_reason: &'static str,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Milliseconds to the first token.
    pub ttft_ms: f64,
    /// Milliseconds for each token after it.
    pub tpot_ms: f64,
    /// Tokens in a second after the first.
    pub tokens_per_s: f64,
    /// Seed that was used.
    pub seed: u64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

/// Generates text; `on_text` gets it piece by piece.
/// # Errors
/// [`ServiceError::Invalid`], [`ServiceError::PromptTooLong`]; [`ServiceError::Refused`] when it does not fit the
/// budget.
pub fn generate(
    model: &OpenModel,
    options: &GenerateOptions,
    on_text: &mut dyn FnMut(&str),
    cancel: &AtomicBool,
) -> Result<GenerateReport, ServiceError> {
    let tokenizer = model.tokenizer();
    let prompt = match options.kind {
        PromptKind::Chat => {
            let message = ChatMessage { role: "user".into(), content: options.prompt.clone() };
            chat_tokens(tokenizer, &[message])?
        }
        PromptKind::Text => {
            let encoded = tokenizer.encode(&options.prompt, AddSpecial::Yes);
            encoded.map_err(|error| text_error("prompt", &error))?
        }
    };
    let config = model.file().config();
    let max_context = config.max_position_embeddings;
    let max_tokens = options.params.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let wanted = prompt.len().saturating_add(max_tokens).max(prompt.len() + 1);
    let context_len = options.context_len.unwrap_or(wanted).min(max_context);
    // Logprobs are asked for because they tell the tokens.
    let logprobs = Some(options.params.logprobs.unwrap_or(0));
    let params = GenerationParams { max_tokens: Some(max_tokens), logprobs, ..options.params.clone() };
    let request = generate_request(tokenizer, context_len, config.vocab_size, prompt, &params)?;
    let need = CacheNeed { context_len, kv_dtype: KvDType::F16, smaller_by: "--max-tokens or --context-len" };
    let engine = engine_within(model, &options.run, &need)?;
    let mut sequence = Sequence::new(engine.session(context_len, KvDType::F16)?);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut on_event = |event| {
        if let GenerateEvent::Delta { text: more, logprobs } = event {
            on_text(&more);
            text.push_str(&more);
            tokens.extend(logprobs.iter().map(|token| token.chosen.token));
        }
        ControlFlow::Continue(())
    };
    let cancelled = || cancel.load(Ordering::Relaxed);
    let mut decoder = tokenizer.stream_decoder();
    let finished = sequence.generate(&request, &mut decoder, &cancelled, &mut on_event)?;
    Ok(GenerateReport {
        text,
        tokens,
        finish_reason: finished.reason.name(),
        prompt_tokens: finished.usage.prompt_tokens,
        completion_tokens: finished.usage.completion_tokens,
        ttft_ms: finished.timings.ttft_ms,
        tpot_ms: finished.timings.tpot_ms,
        tokens_per_s: finished.timings.tokens_per_s,
        seed: request.sampling.seed,
        rss_peak_bytes: resident_bytes().1,
    })
}
