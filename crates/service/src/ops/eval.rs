//! Perplexity of a text.
//!
//! Protocol: the whole text is tokenised as one string, with a BOS token only where the vocabulary asks for it;
//! windows of `seq_len` follow each other; every token of a window but its first is scored. The rest of the text
//! that fills no whole window counts as a shorter one.

use super::run::{CacheNeed, RunOptions, build_engine, engine_within, footprint};
use crate::ServiceError;
use crate::budget::resident_bytes;
use crate::calibration::read_text;
use crate::convert::{invalid, text_error};
use crate::opened::OpenModel;
use secateur_engine::Precision;
use secateur_model::{KvDType, WeightSource};
use secateur_tensor::kernels::ThreadPool;
use secateur_tokenizer::AddSpecial;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Window when none is asked for.
pub const DEFAULT_SEQ_LEN: usize = 2048;
/// Most bytes of a text that are evaluated.
const MAX_TEXT_BYTES: usize = 256 << 20;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvalRequest {
    /// The text.
    pub text: PathBuf,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Tokens of the text that are used, from its start.
    pub max_tokens: Option<usize>,
    /// A model to tell the divergence from.
    pub base: Option<OpenModel>,
    /// How the model is run.
    pub run: RunOptions,
}

/// Perplexity and how it was had.
#[derive(Clone, Debug, Serialize)]
pub struct EvalReport {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean negative log likelihood of a scored token, in nats.
    pub nll: f64,
    /// Mean KL divergence (nats a token) of the predictions from those of the base model, when one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_base: Option<f64>,
    /// Tokens scored.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub seq_len: usize,
    /// Tokens scored in a second.
    pub tokens_per_s: f64,
    /// Seconds it took.
    pub seconds: f64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

/// Where an evaluation is.
#[derive(Clone, Copy, Debug)]
pub struct EvalProgress {
    /// Windows or items done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
    /// The measure so far: perplexity or accuracy.
    pub so_far: f64,
}

/// Measures the perplexity of a text.
/// # Errors
/// [`ServiceError::Invalid`], [`ServiceError::Io`], [`ServiceError::Data`]; [`ServiceError::Refused`] when it does
/// not fit the budget; [`ServiceError::Cancelled`].
pub fn eval_text(
    model: &OpenModel,
    request: &EvalRequest,
    progress: &mut dyn FnMut(EvalProgress),
    cancel: &AtomicBool,
) -> Result<EvalReport, ServiceError> {
    let max_context = model.file().config().max_position_embeddings;
    if !(2..=max_context).contains(&request.seq_len) {
        let message =
            format!("{} is not in 2..={max_context}, which the model was trained for", request.seq_len);
        return Err(invalid("seq_len", message));
    }
    let tokens = text_tokens(model, request)?;
    let mut need = CacheNeed {
        context_len: request.seq_len.min(tokens.len()),
        kv_dtype: request.run.kv_dtype(KvDType::F32)?,
        smaller_by: "--seq-len",
        precision: Precision::F32,
        extra_bytes: 0,
    };
    let base = match &request.base {
        None => None,
        Some(base) => {
            need.extra_bytes = footprint(base, &need)?.total_bytes();
            Some(build_engine(base, std::sync::Arc::new(ThreadPool::new(request.run.resolve()?.1)))?)
        }
    };
    let engine = engine_within(model, &request.run, &need)?.with_kv_dtype(need.kv_dtype);
    let cancelled = || cancel.load(Ordering::Relaxed);
    let started = Instant::now();
    let windows: Vec<&[u32]> = tokens.chunks(request.seq_len).filter(|window| 2 <= window.len()).collect();
    let (mut sum, mut divergence, mut scored) = (0.0_f64, 0.0, 0);
    for (idx, window) in windows.iter().enumerate() {
        let (losses, window_divergence) = match &base {
            Some(base) => engine.score_beside(base, window, &cancelled)?,
            None => (engine.score(window, &cancelled)?, 0.0),
        };
        divergence += window_divergence;
        sum += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
        scored += losses.len();
        let so_far = (sum / scored as f64).exp();
        progress(EvalProgress { done: idx + 1, total: windows.len(), so_far });
    }
    let seconds = started.elapsed().as_secs_f64();
    let nll = sum / scored as f64;
    Ok(EvalReport {
        perplexity: nll.exp(),
        nll,
        kl_base: base.map(|_| divergence / scored as f64),
        tokens: scored,
        windows: windows.len(),
        seq_len: request.seq_len,
        tokens_per_s: scored as f64 / seconds.max(1e-9),
        seconds,
        rss_peak_bytes: resident_bytes().1,
    })
}

fn text_tokens(model: &OpenModel, request: &EvalRequest) -> Result<Vec<u32>, ServiceError> {
    let part = read_text(&request.text, MAX_TEXT_BYTES)?;
    if !part.is_whole {
        let message =
            format!("{} has more than {MAX_TEXT_BYTES} bytes; cut it first", request.text.display());
        return Err(invalid("text", message));
    }
    let encoded = model.tokenizer().encode(&part.text, AddSpecial::Yes);
    let mut tokens = encoded.map_err(|error| text_error("text", &error))?;
    tokens.truncate(request.max_tokens.unwrap_or(usize::MAX));
    tokens.shrink_to_fit();
    if tokens.len() < 2 {
        let message =
            format!("{} has {} tokens; at least 2 are needed", request.text.display(), tokens.len());
        return Err(invalid("text", message));
    }
    Ok(tokens)
}
