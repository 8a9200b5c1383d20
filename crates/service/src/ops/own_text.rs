//! A calibration text that the model writes itself, where no text like what it will see is at hand.
//!
//! As in LLM-QAT (Liu et al. 2023, arXiv 2305.17888, sec. 3.1): each stretch begins with a random token, goes on with
//! the likeliest ones for [`N_LIKELIEST`] tokens, so that it finds a sense, and is drawn from the model's own
//! distribution after that.

use super::prune::check_out;
use super::run::{CacheNeed, RunOptions, engine_within};
use crate::ServiceError;
use crate::budget::resident_bytes;
use crate::convert::{invalid, io_error, text_error};
use crate::opened::OpenModel;
use secateur_engine::Precision;
use secateur_generate::{Rng, Sampler, SamplingParams};
use secateur_model::{KvDType, WeightSource};
use secateur_tokenizer::{TokenKind, Tokenizer};
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Tokens of one stretch: a calibration window.
const STRETCH: usize = 512;
/// Tokens after the first that are the likeliest ones.
const N_LIKELIEST: usize = 4;
/// Most tokens that may be asked for.
const MAX_TOKENS: usize = 1 << 20;

/// What to write.
#[derive(Clone, Debug)]
pub struct OwnTextRequest {
    /// File to write.
    pub out: PathBuf,
    /// Tokens in all.
    pub tokens: usize,
    /// Seed of the draws: the same one gives the same text.
    pub seed: u64,
    /// How the model is run.
    pub run: RunOptions,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct OwnTextReport {
    /// The file.
    pub out: PathBuf,
    /// Tokens drawn.
    pub tokens: usize,
    /// Bytes of text.
    pub bytes: usize,
    /// Seed.
    pub seed: u64,
    /// Tokens in a second.
    pub tokens_per_s: f64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

/// Lets the model write a text into a file that appears when it is whole. `progress` gets tokens done and in all.
/// # Errors
/// [`ServiceError::Invalid`], [`ServiceError::Io`]; [`ServiceError::Refused`] when the model does not fit the budget;
/// [`ServiceError::Cancelled`].
pub fn own_text(
    model: &OpenModel,
    request: &OwnTextRequest,
    progress: &mut dyn FnMut(usize, usize),
    cancel: &AtomicBool,
) -> Result<OwnTextReport, ServiceError> {
    if !(1..=MAX_TOKENS).contains(&request.tokens) {
        return Err(invalid("tokens", format!("{} is not in 1..={MAX_TOKENS}", request.tokens)));
    }
    check_out(&request.out, model.file().path())?;
    let config = model.file().config();
    let context_len = STRETCH.min(config.max_position_embeddings);
    let need = CacheNeed {
        context_len,
        kv_dtype: KvDType::F16,
        smaller_by: "model",
        precision: Precision::Int8,
        extra_bytes: 0,
    };
    let engine = engine_within(model, &request.run, &need)?;
    let cancelled = || cancel.load(Ordering::Relaxed);
    let params = SamplingParams { temperature: 1.0, seed: request.seed, ..SamplingParams::default() };
    let wrong = |error: &dyn std::error::Error| invalid("model", error.to_string());
    let mut drawn = Sampler::new(params, config.vocab_size).map_err(|error| wrong(&error))?;
    let mut likeliest =
        Sampler::new(SamplingParams::default(), config.vocab_size).map_err(|error| wrong(&error))?;
    let mut rng = Rng::new(request.seed);
    let mut session = engine.session(context_len, KvDType::F16)?;
    let started = Instant::now();
    let (mut done, mut text) = (0, String::new());
    while done < request.tokens {
        session.truncate(0);
        let mut tokens = vec![first_token(model.tokenizer(), config.vocab_size, &mut rng)?];
        let wanted = context_len.min(request.tokens - done);
        while tokens.len() < wanted {
            let last = &tokens[tokens.len() - 1..];
            let logits = session.extend(last, &cancelled)?;
            let sampler = if tokens.len() <= N_LIKELIEST { &mut likeliest } else { &mut drawn };
            let token = sampler.sample(logits)?;
            if model.tokenizer().is_stop(token) {
                break;
            }
            tokens.push(token);
        }
        done += tokens.len();
        text += &model.tokenizer().decode(&tokens).map_err(|error| text_error("text", &error))?;
        text += "\n\n";
        progress(done, request.tokens.max(done));
    }
    secateur_prune::write_atomic(&request.out, |file| file.write_all(text.as_bytes()))
        .map_err(|error| io_error(&request.out, error))?;
    Ok(OwnTextReport {
        out: request.out.clone(),
        tokens: done,
        bytes: text.len(),
        seed: request.seed,
        tokens_per_s: done as f64 / started.elapsed().as_secs_f64().max(1e-9),
        rss_peak_bytes: resident_bytes().1,
    })
}

/// A random token of ordinary text.
fn first_token(tokenizer: &Tokenizer, vocab_size: usize, rng: &mut Rng) -> Result<u32, ServiceError> {
    /// A vocabulary without a single word among so many tokens is none.
    const TRIES: usize = 10_000;
    let mut draw = || u32::try_from(rng.next_u64() % vocab_size as u64).unwrap_or(0);
    let found = (0..TRIES).map(|_| draw()).find(|&id| tokenizer.token_kind(id) == Some(TokenKind::Normal));
    found.ok_or_else(|| invalid("model", "has no ordinary tokens to begin a text with"))
}
