//! One answer in the making, moved on step by step.
//!
//! A [`Generation`] holds everything about its answer but the KV cache, so that several can take turns, and one that
//! lost its cache goes on after reading its tokens again. A step reads at most [`PREFILL_STEP`] tokens of the prompt,
//! or one token of the answer.

use crate::{
    FinishReason, Finished, GenerateError, GenerateEvent, GenerateRequest, GrammarMatcher, OnEvent, Sampler,
    Sequence, StopMatcher, TextDecoder, Timings, TokenLogprobs, TokenModel, Usage, token_logprobs,
};
use secateur_engine::EngineError;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Tokens of a prompt that are read in one step: a batch of the engine.
pub const PREFILL_STEP: usize = 256;

/// What a step came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// There is more to do.
    More,
    /// The answer is complete.
    Finished(Finished),
}

/// What a running generation has measured so far.
#[derive(Debug, Default)]
struct Progress {
    usage: Usage,
    prefill: Duration,
    ttft: Duration,
    last_token: Duration,
}

/// An answer in the making.
#[derive(Debug)]
pub struct Generation<D> {
    request: GenerateRequest,
    decoder: D,
    grammar: Option<GrammarMatcher>,
    sampler: Sampler,
    stops: StopMatcher,
    /// Prompt and answer.
    tokens: Vec<u32>,
    context_len: usize,
    logprobs: Vec<TokenLogprobs>,
    progress: Progress,
    started: Option<Instant>,
    is_prefilled: bool,
}

/// What became of a token.
enum Written {
    More,
    Stopped(String),
    Refused,
}

type End = (FinishReason, Option<String>);

impl<D: TextDecoder> Generation<D> {
    /// An answer to `request` from a model with `vocab_size` logits, whose text follows `grammar`, within a context of
    /// `context_len` tokens.
    /// # Errors
    /// [`GenerateError::Param`], [`GenerateError::EmptyPrompt`] and [`GenerateError::PromptTooLong`].
    pub fn new(
        request: GenerateRequest,
        decoder: D,
        grammar: Option<GrammarMatcher>,
        vocab_size: usize,
        context_len: usize,
    ) -> Result<Self, GenerateError> {
        request.validate(vocab_size)?;
        let prompt_tokens = request.prompt.len();
        if prompt_tokens == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        // One place must be left, or a prompt that fills the context would get no answer and no reason.
        if context_len <= prompt_tokens && 0 < request.max_tokens {
            return Err(GenerateError::PromptTooLong { prompt_tokens, context_len });
        }
        let mut sampler = Sampler::new(request.sampling.clone(), vocab_size)?;
        sampler.observe_prompt(&request.prompt);
        let mut progress = Progress::default();
        progress.usage.prompt_tokens = prompt_tokens;
        Ok(Self {
            stops: StopMatcher::new(&request.stop_strings),
            tokens: request.prompt.clone(),
            request,
            decoder,
            grammar,
            sampler,
            context_len,
            logprobs: Vec::new(),
            progress,
            started: None,
            is_prefilled: false,
        })
    }

    /// Prompt and answer so far, the last token of the answer included although no cache holds it yet.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Places the cache must have for the next step over `sequence`.
    #[must_use]
    pub fn places_needed<M: TokenModel>(&self, sequence: &Sequence<M>) -> usize {
        let kept = sequence.common_prefix(&self.tokens);
        self.tokens.len().min(kept + PREFILL_STEP)
    }

    /// Moves on by a piece of the prompt or one token of the answer.
    ///
    /// `sequence` may hold anything: what is not the beginning of these tokens is forgotten. `cancelled` is asked at least
    /// once; `on_event` gets text as soon as it is certain. After the end or an error there is no other step.
    /// # Errors
    /// What the model, the grammar or the decoder says. Text reported before an error stands.
    pub fn step<M: TokenModel>(
        &mut self,
        sequence: &mut Sequence<M>,
        cancelled: &dyn Fn() -> bool,
        on_event: OnEvent<'_>,
    ) -> Result<Step, GenerateError> {
        let result = self.advance(sequence, cancelled, on_event);
        sequence.settle();
        let (reason, stop_string) = match result {
            Err(GenerateError::Model(EngineError::Cancelled)) => (FinishReason::Cancelled, None),
            Err(error) => return Err(error),
            Ok(None) => return Ok(Step::More),
            Ok(Some(end)) => end,
        };
        let Progress { usage, prefill, ttft, last_token } = self.progress;
        let prefilled = usage.prompt_tokens - usage.cached_tokens;
        let timings = Timings::measure(prefilled, prefill, ttft, last_token, usage.completion_tokens);
        Ok(Step::Finished(Finished { reason, stop_string, usage, timings }))
    }

    fn advance<M: TokenModel>(
        &mut self,
        sequence: &mut Sequence<M>,
        cancelled: &dyn Fn() -> bool,
        on_event: OnEvent<'_>,
    ) -> Result<Option<End>, GenerateError> {
        if cancelled() {
            return Ok(Some((FinishReason::Cancelled, None)));
        }
        // Nothing is forgotten while the sequence stays the same; another one may hold anything.
        let at = sequence.keep_common_prefix(&self.tokens);
        let started = match self.started {
            Some(started) => started,
            None => {
                self.progress.usage.cached_tokens = at;
                *self.started.insert(Instant::now())
            }
        };
        let to = self.tokens.len().min(at + PREFILL_STEP);
        let logits = sequence.extend(&self.tokens[at..to], cancelled)?;
        if to < self.tokens.len() {
            return Ok(None);
        }
        let usage = &mut self.progress.usage;
        if !std::mem::replace(&mut self.is_prefilled, true) {
            self.progress.prefill = started.elapsed();
            let event = GenerateEvent::Prefilled {
                prompt_tokens: usage.prompt_tokens,
                cached_tokens: usage.cached_tokens,
            };
            if on_event(event).is_break() || cancelled() {
                return Ok(Some((FinishReason::Cancelled, None)));
            }
        }
        if self.request.max_tokens <= usage.completion_tokens {
            return self.finish(FinishReason::Length, on_event).map(Some);
        }
        let token = match &mut self.grammar {
            Some(grammar) => self.sampler.sample_among(logits, &grammar.allowed()?)?,
            None => self.sampler.sample(logits)?,
        };
        usage.completion_tokens += 1;
        self.progress.last_token = started.elapsed();
        if usage.completion_tokens == 1 {
            self.progress.ttft = self.progress.last_token;
        }
        if self.request.stop_tokens.contains(&token) {
            return self.finish(FinishReason::Stop, on_event).map(Some);
        }
        let logprobs = self.request.logprobs.map(|n_top| token_logprobs(logits, token, n_top));
        match self.write(token, logprobs, on_event)? {
            Written::More => {}
            Written::Stopped(stop_string) => return Ok(Some((FinishReason::Stop, Some(stop_string)))),
            Written::Refused => return Ok(Some((FinishReason::Cancelled, None))),
        }
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
            if grammar.is_over() {
                return self.finish(FinishReason::Stop, on_event).map(Some);
            }
        }
        let is_full = self.context_len <= self.tokens.len();
        if is_full || self.request.max_tokens <= self.progress.usage.completion_tokens {
            return self.finish(FinishReason::Length, on_event).map(Some);
        }
        self.sampler.accept(token);
        self.tokens.push(token);
        Ok(None)
    }

    fn write(
        &mut self,
        token: u32,
        logprobs: Option<TokenLogprobs>,
        on_event: OnEvent<'_>,
    ) -> Result<Written, GenerateError> {
        self.logprobs.extend(logprobs);
        let mut decoded = String::new();
        self.decoder.push(token, &mut decoded)?;
        let mut text = String::new();
        let found = self.stops.push(&decoded, &mut text);
        // Tokens whose text is held back wait with their logprobs.
        if !text.is_empty() {
            let logprobs = std::mem::take(&mut self.logprobs);
            if on_event(GenerateEvent::Delta { text, logprobs }).is_break() {
                return Ok(Written::Refused);
            }
        }
        Ok(found.map_or(Written::More, |found| Written::Stopped(found.stop_string)))
    }

    /// Sends all that was held back: the answer ends here without a stop string, unless the decoder's last
    /// characters complete one.
    fn finish(&mut self, reason: FinishReason, on_event: OnEvent<'_>) -> Result<End, GenerateError> {
        let mut decoded = String::new();
        self.decoder.finish(&mut decoded);
        let mut text = String::new();
        let found = self.stops.push(&decoded, &mut text);
        if found.is_none() {
            self.stops.finish(&mut text);
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        let nothing_left = text.is_empty() && (logprobs.is_empty() || found.is_some());
        if !nothing_left && on_event(GenerateEvent::Delta { text, logprobs }) == ControlFlow::Break(()) {
            return Ok((FinishReason::Cancelled, None));
        }
        let reason = if found.is_some() { FinishReason::Stop } else { reason };
        Ok((reason, found.map(|found| found.stop_string)))
    }
}
