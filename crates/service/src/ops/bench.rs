//! Speed of prefill and decode, as a user meets it: batch 1, through the same loop as serving.

use super::inspect::weights_of_token;
use super::run::{CacheNeed, RunOptions, engine_within};
use crate::ServiceError;
use crate::budget::resident_bytes;
use crate::convert::invalid;
use crate::opened::OpenModel;
use secateur_engine::{Engine, Precision, Session};
use secateur_model::{KvDType, WeightSource};
use secateur_prune::calibration::default_text;
use secateur_tensor::WeightMatrix;
use secateur_tensor::kernels::{active_isa, argmax, read_loop};
use secateur_tokenizer::AddSpecial;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Most repetitions.
const MAX_REPEATS: usize = 1000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub generate_tokens: usize,
    /// Measured runs; one more goes before them and is not counted.
    pub repeats: usize,
    /// Numbers of tokens in the cache at which to measure too.
    pub depths: Vec<usize>,
    /// How the model is run.
    pub run: RunOptions,
}

impl Default for BenchRequest {
    fn default() -> Self {
        Self {
            prompt_tokens: 512,
            generate_tokens: 128,
            repeats: 3,
            depths: Vec::new(),
            run: RunOptions::default(),
        }
    }
}

/// Smallest and largest of the runs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

/// Medians of the measured runs.
#[derive(Clone, Debug, Serialize)]
pub struct BenchReport {
    /// Tokens of the prompt read in a second.
    pub prefill_tokens_per_s: f64,
    /// Its spread.
    pub prefill_spread: Spread,
    /// Tokens generated in a second.
    pub decode_tokens_per_s: f64,
    /// Its spread.
    pub decode_spread: Spread,
    /// Milliseconds from the prompt to the first token.
    pub ttft_ms: f64,
    /// Milliseconds for a token.
    pub tpot_ms: f64,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generate_tokens: usize,
    /// Measured runs.
    pub repeats: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Weights that one token reads.
    pub weight_bytes_per_token: u64,
    /// Weights read in a second while decoding.
    pub decode_bytes_per_s: f64,
    /// The same weights read in a second by a loop that does nothing else.
    pub memory_bytes_per_s: f64,
    /// Share of that reached while decoding.
    pub memory_share: f64,
    /// How activations entered products.
    pub precision: &'static str,
    /// How keys and values were kept.
    pub kv_dtype: &'static str,
    /// Speed with tokens already in the cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub depths: Vec<DepthReport>,
    /// Size of the model file.
    pub model_bytes: u64,
    /// Peak resident memory of the process.
    pub rss_peak_bytes: u64,
}

/// Speed with `depth` tokens already in the cache.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DepthReport {
    /// Tokens in the cache.
    pub depth: usize,
    /// Tokens of a further prompt of [`DEPTH_PROMPT`] read in a second.
    pub prefill_tokens_per_s: f64,
    /// Tokens generated in a second after it.
    pub decode_tokens_per_s: f64,
}

/// Tokens read at each depth.
pub const DEPTH_PROMPT: usize = 128;
/// Tokens generated at each depth.
const DEPTH_GENERATE: usize = 32;

struct RunTimes {
    ttft_s: f64,
    decode_s: f64,
}

/// Measures the speed of a model.
/// # Errors
/// [`ServiceError::Invalid`]; [`ServiceError::Refused`] when it does not fit the budget.
pub fn bench(
    model: &OpenModel,
    request: &BenchRequest,
    progress: &mut dyn FnMut(usize, usize),
    cancel: &AtomicBool,
) -> Result<BenchReport, ServiceError> {
    check(request, model.file().config().max_position_embeddings)?;
    let deepest = request.depths.iter().max().map_or(0, |depth| depth + DEPTH_PROMPT + DEPTH_GENERATE);
    let context_len = deepest.max(request.prompt_tokens + request.generate_tokens);
    let need = CacheNeed {
        context_len,
        kv_dtype: request.run.kv_dtype(KvDType::F16)?,
        smaller_by: "--prompt-tokens, --generate-tokens or --depths",
        precision: Precision::Int8,
        extra_bytes: 0,
    };
    let engine = engine_within(model, &request.run, &need)?;
    let prompt = prompt_tokens(model, request.prompt_tokens)?;
    let mut session = engine.session(context_len, need.kv_dtype)?;
    let mut runs = Vec::with_capacity(request.repeats);
    for repeat in 0..=request.repeats {
        let times = run_once(&mut session, &prompt, request.generate_tokens, cancel)?;
        // The first run brings the weights into memory.
        if 0 < repeat {
            runs.push(times);
        }
        progress(repeat + 1, request.repeats + 1);
    }
    let mut depths = Vec::with_capacity(request.depths.len());
    for &depth in &request.depths {
        let filler = prompt_tokens(model, depth + DEPTH_PROMPT)?;
        let mut runs = Vec::with_capacity(request.repeats);
        for _ in 0..request.repeats {
            runs.push(run_deep(&mut session, &filler, depth, cancel)?);
        }
        let speed = |n: usize, of: fn(&RunTimes) -> f64| {
            median(&runs.iter().map(|run| n as f64 / of(run)).collect::<Vec<_>>())
        };
        depths.push(DepthReport {
            depth,
            prefill_tokens_per_s: speed(DEPTH_PROMPT, |run| run.ttft_s),
            decode_tokens_per_s: speed(DEPTH_GENERATE, |run| run.decode_s),
        });
    }
    let weights = weights_of_token(model)?;
    let weight_bytes: u64 = weights.iter().map(|weight| weight.data().len() as u64).sum();
    let memory_bytes_per_s = memory_speed(&engine, &weights, request.repeats);
    let prefill: Vec<f64> = runs.iter().map(|run| request.prompt_tokens as f64 / run.ttft_s).collect();
    let decode: Vec<f64> = runs.iter().map(|run| request.generate_tokens as f64 / run.decode_s).collect();
    let decode_tokens_per_s = median(&decode);
    Ok(BenchReport {
        prefill_tokens_per_s: median(&prefill),
        prefill_spread: spread(&prefill),
        decode_tokens_per_s,
        decode_spread: spread(&decode),
        ttft_ms: 1e3 * median(&runs.iter().map(|run| run.ttft_s).collect::<Vec<_>>()),
        tpot_ms: 1e3 / decode_tokens_per_s,
        prompt_tokens: request.prompt_tokens,
        generate_tokens: request.generate_tokens,
        repeats: request.repeats,
        threads: engine.n_threads(),
        isa: active_isa().isa,
        weight_bytes_per_token: weight_bytes,
        decode_bytes_per_s: weight_bytes as f64 * decode_tokens_per_s,
        memory_bytes_per_s,
        memory_share: weight_bytes as f64 * decode_tokens_per_s / memory_bytes_per_s,
        precision: engine.precision().name(),
        kv_dtype: need.kv_dtype.name(),
        depths,
        model_bytes: model.file().file_bytes(),
        rss_peak_bytes: resident_bytes().1,
    })
}

fn check(request: &BenchRequest, max_context: usize) -> Result<(), ServiceError> {
    let &BenchRequest { prompt_tokens, generate_tokens, repeats, .. } = request;
    let total = prompt_tokens.saturating_add(generate_tokens);
    if prompt_tokens == 0 || generate_tokens == 0 || max_context < total {
        let message = format!(
            "prompt and generated tokens must be at least 1 and together at most {max_context}, not {total}"
        );
        return Err(invalid("prompt_tokens", message));
    }
    for &depth in &request.depths {
        if max_context < depth.saturating_add(DEPTH_PROMPT + DEPTH_GENERATE) {
            let most = max_context.saturating_sub(DEPTH_PROMPT + DEPTH_GENERATE);
            return Err(invalid("depths", format!("{depth} is not in 0..={most}")));
        }
    }
    if !(1..=MAX_REPEATS).contains(&repeats) {
        return Err(invalid("repeats", format!("{repeats} is not in 1..={MAX_REPEATS}")));
    }
    Ok(())
}

/// Ordinary text, repeated as often as needed: random tokens would be no load anybody has.
fn prompt_tokens(model: &OpenModel, n_tokens: usize) -> Result<Vec<u32>, ServiceError> {
    let text = default_text();
    let encoded = model.tokenizer().encode(&text, AddSpecial::No);
    let mut tokens = encoded.map_err(|error| crate::convert::text_error("prompt_tokens", &error))?;
    if tokens.is_empty() {
        return Err(ServiceError::Internal { message: "the built-in text has no tokens".into() });
    }
    while tokens.len() < n_tokens {
        tokens.extend_from_within(..tokens.len().min(n_tokens - tokens.len()));
    }
    tokens.truncate(n_tokens);
    Ok(tokens)
}

fn run_once(
    session: &mut Session,
    prompt: &[u32],
    n_generate: usize,
    cancel: &AtomicBool,
) -> Result<RunTimes, ServiceError> {
    session.truncate(0);
    run_from(session, prompt, n_generate, cancel)
}

/// With the first `depth` tokens in the cache.
fn run_deep(
    session: &mut Session,
    tokens: &[u32],
    depth: usize,
    cancel: &AtomicBool,
) -> Result<RunTimes, ServiceError> {
    session.truncate(0);
    if 0 < depth {
        session.extend(&tokens[..depth], &|| cancel.load(Ordering::Relaxed))?;
    }
    run_from(session, &tokens[depth..], DEPTH_GENERATE, cancel)
}

fn run_from(
    session: &mut Session,
    prompt: &[u32],
    n_generate: usize,
    cancel: &AtomicBool,
) -> Result<RunTimes, ServiceError> {
    let cancelled = || cancel.load(Ordering::Relaxed);
    let started = Instant::now();
    let mut token = likeliest(session.extend(prompt, &cancelled)?)?;
    let ttft_s = started.elapsed().as_secs_f64();
    let decode_started = Instant::now();
    for _ in 0..n_generate {
        token = likeliest(session.extend(&[token], &cancelled)?)?;
    }
    Ok(RunTimes { ttft_s, decode_s: decode_started.elapsed().as_secs_f64() })
}

/// Bytes in a second of a loop over the weights that does nothing with them; the best of some runs.
fn memory_speed(engine: &Engine, weights: &[WeightMatrix], repeats: usize) -> f64 {
    let parts: Vec<&[u8]> = weights.iter().map(|weight| &weight.data()[..]).collect();
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let pool = engine.pool();
    let once = || {
        let started = Instant::now();
        read_loop(&pool, &parts);
        bytes as f64 / started.elapsed().as_secs_f64()
    };
    (0..repeats.max(3)).map(|_| once()).fold(0.0, f64::max)
}

fn likeliest(logits: &[f32]) -> Result<u32, ServiceError> {
    let no_token = || ServiceError::Internal { message: "the model's logits are not finite".into() };
    argmax(logits).and_then(|token| u32::try_from(token).ok()).ok_or_else(no_token)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]),
    }
}

fn spread(values: &[f64]) -> Spread {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Spread { min, max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, want) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0], 2.5), (vec![5.0], 5.0)] {
            assert_eq!(median(&values), want, "{values:?}");
        }
    }
}
