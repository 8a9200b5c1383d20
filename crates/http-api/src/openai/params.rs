//! Fields that chats and completions share, each honoured or refused by name.

use crate::error::ApiError;
use crate::fields::{Fields, parse_list, parse_string};
use secateur_service::api::{GenerationParams, SamplingParams};
use serde_json::value::RawValue;

/// Most stop strings, as the OpenAI documentation says.
pub(crate) const MAX_STOPS: usize = 4;
/// Longest stop string in bytes.
pub(crate) const MAX_STOP_BYTES: usize = 1024;
/// Most answers to one request.
pub(crate) const MAX_CHOICES: u64 = 8;
/// Largest number of tokens that can be asked for; the context ends earlier.
pub(crate) const MAX_TOKENS: u64 = 1 << 24;
/// Most entries of `logit_bias`.
const MAX_BIASES: usize = 1024;
/// Most tokens for `top_k`: beyond any vocabulary.
const MAX_TOP_K: u64 = 1 << 20;

/// How the answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamMode {
    /// As server-sent events.
    pub(crate) stream: bool,
    /// With a last chunk that has the usage.
    pub(crate) include_usage: bool,
}

/// Documented fields of both kinds of requests that no setting here answers.
pub(crate) fn refuse_shared(fields: &Fields<'_>) -> Result<(), ApiError> {
    // Labels for OpenAI's own monitoring: nothing to do, but a wrong type is still a client's mistake.
    fields.name("user")?;
    fields.name("safety_identifier")?;
    Ok(())
}

/// `stream` and `stream_options`.
pub(crate) fn stream_mode(fields: &Fields<'_>) -> Result<StreamMode, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let Some(raw) = fields.raw("stream_options") else {
        return Ok(StreamMode { stream, include_usage: false });
    };
    let options = Fields::of_value(raw, "stream_options", &["include_usage", "include_obfuscation"])?;
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // Padding against traffic analysis: false is what loopback wants, true would be a promise we do not keep.
    options.boolean("include_obfuscation")?;
    options.refuse("include_obfuscation", &["false"], "streams are not padded")?;
    if !stream {
        return Err(fields.bad("stream_options", "absent unless `stream` is true"));
    }
    Ok(StreamMode { stream, include_usage })
}

/// How many answers are wanted.
pub(crate) fn n_choices(fields: &Fields<'_>) -> Result<usize, ApiError> {
    Ok(fields.integer("n", 1, MAX_CHOICES)?.unwrap_or(1) as usize)
}

/// Sampling settings with OpenAI's defaults, and the settings of other servers for what OpenAI lacks.
pub(crate) fn sampling(fields: &Fields<'_>) -> Result<SamplingParams, ApiError> {
    let number = |name, min, max, default: f32| {
        fields.number(name, min, max).map(|value| value.map_or(default, |value| value as f32))
    };
    Ok(SamplingParams {
        temperature: number("temperature", 0.0, 2.0, 1.0)?,
        top_k: fields.integer("top_k", 0, MAX_TOP_K)?.unwrap_or(0) as usize,
        top_p: number("top_p", 0.0, 1.0, 1.0)?,
        min_p: number("min_p", 0.0, 1.0, 0.0)?,
        repetition_penalty: number("repetition_penalty", 0.01, 10.0, 1.0)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, 0.0)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, 0.0)?,
        logit_bias: logit_bias(fields)?,
        seed: seed(fields)?.unwrap_or_else(SamplingParams::random_seed),
    })
}

/// `seed`: any 64-bit integer, negative ones included.
fn seed(fields: &Fields<'_>) -> Result<Option<u64>, ApiError> {
    let Some(raw) = fields.raw("seed") else { return Ok(None) };
    let signed = serde_json::from_str::<i64>(raw.get()).map(i64::cast_unsigned);
    let seed = signed.or_else(|_| serde_json::from_str::<u64>(raw.get()));
    seed.map(Some).map_err(|_| fields.bad("seed", "a whole number of 64 bits"))
}

fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(entries) = fields.entries("logit_bias", MAX_BIASES)? else { return Ok(Vec::new()) };
    let mut biases: Vec<(u32, f32)> = Vec::with_capacity(entries.len());
    for (token, raw) in entries {
        let bias = serde_json::from_str::<f32>(raw.get()).ok().filter(|bias| (-100.0..=100.0).contains(bias));
        // Digits only: `+5` and ` 5` parse as numbers elsewhere.
        let digits = token.bytes().all(|byte| byte.is_ascii_digit());
        let token = token.parse::<u32>().ok().filter(|_| digits);
        let (Some(token), Some(bias)) = (token, bias) else {
            return Err(fields.bad("logit_bias", "a map of token ids to numbers from -100 to 100"));
        };
        if biases.iter().any(|(seen, _)| *seen == token) {
            return Err(fields.bad("logit_bias", "a map in which each token stands once"));
        }
        biases.push((token, bias));
    }
    Ok(biases)
}

/// `stop`: a string, or an array of up to four.
pub(crate) fn stops(fields: &Fields<'_>) -> Result<Vec<String>, ApiError> {
    let Some(raw) = fields.raw("stop") else { return Ok(Vec::new()) };
    let expected = || {
        fields
            .bad("stop", format!("a string of 1 to {MAX_STOP_BYTES} bytes or an array of up to {MAX_STOPS}"))
    };
    let stops = match parse_string(raw) {
        Some(stop) => vec![stop],
        None => {
            let list = parse_list(raw, MAX_STOPS).ok_or_else(expected)?;
            list.into_iter().map(parse_string).collect::<Option<Vec<_>>>().ok_or_else(expected)?
        }
    };
    let fits = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
    if stops.iter().all(fits) { Ok(stops) } else { Err(expected()) }
}

/// `model`: any name; whether it is served is the service's to say.
pub(crate) fn model(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    fields.name("model")
}

/// The settings of the answer `choice_idx`: each has a seed of its own, or all would be the same.
pub(crate) fn for_choice(params: &GenerationParams, choice_idx: usize) -> GenerationParams {
    let mut params = params.clone();
    params.sampling.seed = params.sampling.seed.wrapping_add(choice_idx as u64);
    params
}

/// The token ids of an array that is not empty, or `None` when it is anything else.
pub(crate) fn token_ids(raw: &RawValue) -> Option<Vec<u32>> {
    serde_json::from_str::<Vec<u32>>(raw.get()).ok().filter(|tokens| !tokens.is_empty())
}
