//! Reads `/v1/completions` requests.

use super::format::{grammar, response_format};
use super::params::{self, MAX_CHOICES, MAX_TOKENS, StreamMode};
use crate::error::ApiError;
use crate::fields::{Fields, parse_list, parse_string};
use secateur_service::api::{GenerationParams, Grammar, Prompt};

/// Most alternatives beside a token: this route's own limit.
const MAX_COMPLETION_LOGPROBS: u64 = 5;
/// Tokens of an answer when the request does not say, as documented.
const DEFAULT_MAX_TOKENS: u64 = 16;

/// Every field that is documented or honoured.
pub(crate) const FIELDS: &[&str] = &[
    "best_of",
    "cache_prompt",
    "echo",
    "frequency_penalty",
    "grammar",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "repetition_penalty",
    "response_format",
    "safety_identifier",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_k",
    "top_p",
    "user",
];

/// A request to continue texts.
#[derive(Clone, Debug)]
pub(crate) struct CompletionCall {
    pub(crate) model: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) params: GenerationParams,
    /// Answers to each prompt.
    pub(crate) n_choices: usize,
    /// Repeat the prompt before the answer.
    pub(crate) echo: bool,
    pub(crate) mode: StreamMode,
}

impl CompletionCall {
    /// Reads the body of a request.
    /// # Errors
    /// [`ApiError`] naming the first field that is wrong or not honoured.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::of_body(body, FIELDS)?;
        params::refuse_shared(&fields)?;
        fields.refuse("suffix", &["\"\""], "the model continues text, it does not fill gaps")?;
        fields.refuse("cache_prompt", &["true"], "the last prompts are always kept: true")?;
        let n_choices = params::n_choices(&fields)?;
        best_of(&fields, n_choices)?;
        let prompts = prompts(&fields)?;
        if MAX_CHOICES < (prompts.len() * n_choices) as u64 {
            return Err(fields.bad("n", format!("such that there are at most {MAX_CHOICES} answers in all")));
        }
        let logprobs = fields.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)?.map(|top| top as usize);
        let echo = fields.boolean("echo")?.unwrap_or(false);
        if echo && logprobs.is_some() {
            return Err(ApiError::unsupported("echo", "logprobs of the prompt are not computed"));
        }
        if echo && prompts.iter().any(|prompt| matches!(prompt, Prompt::Tokens(_))) {
            return Err(ApiError::unsupported("echo", "only a prompt of text can be repeated"));
        }
        Ok(Self {
            model: params::model(&fields)?,
            prompts,
            params: GenerationParams {
                max_tokens: Some(
                    fields.integer("max_tokens", 1, MAX_TOKENS)?.unwrap_or(DEFAULT_MAX_TOKENS) as usize
                ),
                sampling: params::sampling(&fields)?,
                stop: params::stops(&fields)?,
                logprobs,
                grammar: answer_grammar(&fields)?,
                tools: None,
            },
            n_choices,
            echo,
            mode: params::stream_mode(&fields)?,
        })
    }
}

/// `grammar`, or `response_format` as newer clients send it here too.
fn answer_grammar(fields: &Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    match (response_format(fields)?, grammar(fields)?) {
        (Some(_), Some(_)) => Err(fields.bad("grammar", "absent when `response_format` asks for JSON")),
        (format, grammar) => Ok(format.or(grammar)),
    }
}

/// Only as many candidates as answers: there is no choosing of the best.
fn best_of(fields: &Fields<'_>, n_choices: usize) -> Result<(), ApiError> {
    match fields.integer("best_of", 1, MAX_CHOICES)? {
        Some(best_of) if best_of != n_choices as u64 => {
            Err(ApiError::unsupported("best_of", "answers are not ranked: the same as `n`"))
        }
        _ => Ok(()),
    }
}

/// A string, an array of strings, of tokens, or of arrays of tokens.
fn prompts(fields: &Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let raw = fields.required("prompt", fields.raw("prompt"))?;
    if let Some(text) = parse_string(raw) {
        return Ok(vec![Prompt::Text(text)]);
    }
    let expected = || {
        let what = format!("a string, an array of tokens, or an array of at most {MAX_CHOICES} of either");
        fields.bad("prompt", what)
    };
    if let Some(tokens) = params::token_ids(raw) {
        return Ok(vec![Prompt::Tokens(tokens)]);
    }
    let list = parse_list(raw, MAX_CHOICES as usize).filter(|list| !list.is_empty()).ok_or_else(expected)?;
    let prompt = |raw| {
        let text = parse_string(raw).map(Prompt::Text);
        text.or_else(|| params::token_ids(raw).map(Prompt::Tokens))
    };
    list.into_iter().map(prompt).collect::<Option<Vec<_>>>().ok_or_else(expected)
}
