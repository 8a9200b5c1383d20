//! Text from a prompt, once.

use super::run::{CacheNeed, RunOptions, engine_within};
use crate::ServiceError;
use crate::api::{ChatMessage, GenerationParams};
use crate::budget::resident_bytes;
use crate::convert::text_error;
use crate::drafting::{Draft, draft_bytes};
use crate::opened::OpenModel;
use crate::served::{chat_tokens, generate_request};
use secateur_engine::Precision;
use secateur_generate::{DraftCounts, Drafted, GenerateEvent, Sequence};
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
    /// A smaller model of the same vocabulary that guesses ahead; the answer stays the same.
    pub draft: Option<OpenModel>,
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
    /// What became of the guesses of the draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<DraftReport>,
    /// Seed that was used.
    pub seed: u64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

/// What became of the guesses of a draft.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DraftReport {
    /// Guesses that the base model has read.
    pub guessed: u64,
    /// Guesses that became part of the answer.
    pub accepted: u64,
    /// Their share; 0 without guesses.
    pub acceptance: f64,
    /// Tokens of the answer for each pass of the base model.
    pub tokens_per_pass: f64,
}

impl From<DraftCounts> for DraftReport {
    fn from(counts: DraftCounts) -> Self {
        let DraftCounts { rounds, guessed, accepted } = counts;
        Self {
            guessed,
            accepted,
            acceptance: accepted as f64 / guessed.max(1) as f64,
            tokens_per_pass: (rounds + accepted) as f64 / rounds.max(1) as f64,
        }
    }
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
            let message = ChatMessage {
                role: "user".into(),
                content: options.prompt.clone(),
                ..ChatMessage::default()
            };
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
    let need = CacheNeed {
        context_len,
        kv_dtype: options.run.kv_dtype(KvDType::F16)?,
        smaller_by: "--max-tokens or --context-len",
        precision: Precision::Int8,
        extra_bytes: 0,
    };
    let draft_bytes = options.draft.as_ref().map(|draft| draft_bytes(draft, &need));
    let need = CacheNeed { extra_bytes: draft_bytes.transpose()?.unwrap_or(0), ..need };
    let engine = engine_within(model, &options.run, &need)?;
    let session = engine.session(context_len, need.kv_dtype)?;
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
    let draft = options.draft.as_ref().map(|draft| {
        let draft = Draft::new(&engine, model, draft, &need)?;
        Ok::<_, ServiceError>(draft.session(context_len, need.kv_dtype)?)
    });
    let (finished, draft) = match draft.transpose()? {
        None => (Sequence::new(session).generate(&request, &mut decoder, &cancelled, &mut on_event)?, None),
        Some(draft) => {
            let mut sequence = Sequence::new(Drafted::new(session, draft));
            let finished = sequence.generate(&request, &mut decoder, &cancelled, &mut on_event)?;
            (finished, Some(DraftReport::from(sequence.model().counts())))
        }
    };
    Ok(GenerateReport {
        text,
        tokens,
        finish_reason: finished.reason.name(),
        prompt_tokens: finished.usage.prompt_tokens,
        completion_tokens: finished.usage.completion_tokens,
        ttft_ms: finished.timings.ttft_ms,
        tpot_ms: finished.timings.tpot_ms,
        tokens_per_s: finished.timings.tokens_per_s,
        draft,
        seed: request.sampling.seed,
        rss_peak_bytes: resident_bytes().1,
    })
}
