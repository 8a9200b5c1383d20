//! The generation loop: prompt in, text out, one token at a time.
//!
//! A [`Sequence`] owns a model's KV cache and knows which tokens are in it. A request that starts with the same tokens
//! as the last one (the next turn of a chat) reads only what differs. Invariant: `tokens` are exactly those the model
//! holds, also after an error.
//!
//! A cached prompt was read in other batches than a fresh one, so logits may differ in the last bits of their floats.

use crate::{
    FinishReason, Finished, GenerateError, GenerateEvent, GenerateRequest, Sampler, StopMatcher, TextDecoder,
    Timings, TokenLogprobs, TokenModel, Usage, token_logprobs,
};
use secateur_engine::EngineError;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// A model, and the tokens in its KV cache.
#[derive(Debug)]
pub struct Sequence<M> {
    model: M,
    tokens: Vec<u32>,
}

/// Takes the reports of a generation; `Break` ends it as cancelled.
pub type OnEvent<'a> = &'a mut dyn FnMut(GenerateEvent) -> ControlFlow<()>;

/// What a running generation has measured so far.
#[derive(Default)]
struct Progress {
    usage: Usage,
    prefill: Duration,
    ttft: Duration,
    last_token: Duration,
}

impl<M: TokenModel> Sequence<M> {
    /// A sequence over a model with an empty KV cache; what the cache holds is forgotten.
    #[must_use]
    pub fn new(mut model: M) -> Self {
        model.truncate(0);
        Self { model, tokens: Vec::new() }
    }

    /// Tokens in the KV cache.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Forgets everything in the KV cache.
    pub fn clear(&mut self) {
        self.model.truncate(0);
        self.tokens.clear();
    }

    /// Runs one request to its end.
    ///
    /// `cancelled` is asked at least once a token; `on_event` gets text as soon as it is certain.
    /// # Errors
    /// [`GenerateError::Param`], [`GenerateError::EmptyPrompt`] and [`GenerateError::PromptTooLong`] before anything
    /// runs; otherwise what the model or the decoder says. Text reported before an error stands.
    pub fn generate(
        &mut self,
        request: &GenerateRequest,
        decoder: &mut dyn TextDecoder,
        cancelled: &dyn Fn() -> bool,
        on_event: OnEvent<'_>,
    ) -> Result<Finished, GenerateError> {
        request.validate(self.model.vocab_size())?;
        let prompt_tokens = request.prompt.len();
        let context_len = self.model.context_len();
        if prompt_tokens == 0 {
            return Err(GenerateError::EmptyPrompt);
        }
        // One place must be left, or a prompt that fills the context would get no answer and no reason.
        if context_len <= prompt_tokens && 0 < request.max_tokens {
            return Err(GenerateError::PromptTooLong { prompt_tokens, context_len });
        }
        let mut progress = Progress::default();
        let result = self.run(request, decoder, cancelled, on_event, &mut progress);
        // The model may have stopped in the middle of a batch.
        self.tokens.truncate(self.model.len());
        let (reason, stop_string) = match result {
            Err(GenerateError::Model(EngineError::Cancelled)) => (FinishReason::Cancelled, None),
            other => other?,
        };
        let Progress { usage, prefill, ttft, last_token } = progress;
        let prefilled = usage.prompt_tokens - usage.cached_tokens;
        let timings = Timings::measure(prefilled, prefill, ttft, last_token, usage.completion_tokens);
        Ok(Finished { reason, stop_string, usage, timings })
    }

    fn run(
        &mut self,
        request: &GenerateRequest,
        decoder: &mut dyn TextDecoder,
        cancelled: &dyn Fn() -> bool,
        on_event: OnEvent<'_>,
        progress: &mut Progress,
    ) -> Result<(FinishReason, Option<String>), GenerateError> {
        let started = Instant::now();
        let mut sampler = Sampler::new(request.sampling.clone(), self.model.vocab_size())?;
        sampler.observe_prompt(&request.prompt);
        let cached_tokens = self.keep_common_prefix(&request.prompt);
        progress.usage.prompt_tokens = request.prompt.len();
        progress.usage.cached_tokens = cached_tokens;
        let context_len = self.model.context_len();
        let Self { model, tokens } = self;
        let mut writer = Writer::new(decoder, &request.stop_strings, on_event);

        tokens.extend_from_slice(&request.prompt[cached_tokens..]);
        let mut logits = model.extend(&request.prompt[cached_tokens..], cancelled)?;
        progress.prefill = started.elapsed();
        if writer
            .report(GenerateEvent::Prefilled { prompt_tokens: request.prompt.len(), cached_tokens })
            .is_break()
        {
            return Ok((FinishReason::Cancelled, None));
        }
        loop {
            if cancelled() {
                return Ok((FinishReason::Cancelled, None));
            }
            if request.max_tokens <= progress.usage.completion_tokens {
                return writer.finish(FinishReason::Length);
            }
            let token = sampler.sample(logits)?;
            progress.usage.completion_tokens += 1;
            progress.last_token = started.elapsed();
            if progress.usage.completion_tokens == 1 {
                progress.ttft = progress.last_token;
            }
            if request.stop_tokens.contains(&token) {
                return writer.finish(FinishReason::Stop);
            }
            let logprobs = request.logprobs.map(|n_top| token_logprobs(logits, token, n_top));
            match writer.write(token, logprobs)? {
                Written::More => {}
                Written::Stopped(stop_string) => return Ok((FinishReason::Stop, Some(stop_string))),
                Written::Refused => return Ok((FinishReason::Cancelled, None)),
            }
            if request.max_tokens <= progress.usage.completion_tokens || context_len <= tokens.len() {
                return writer.finish(FinishReason::Length);
            }
            sampler.accept(token);
            tokens.push(token);
            logits = model.extend(&[token], cancelled)?;
        }
    }

    /// Forgets what differs from `prompt` and returns how many of its tokens need not be read again.
    fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let common = self.tokens.iter().zip(prompt).take_while(|(have, want)| have == want).count();
        // The last token must be read for its logits.
        let kept = common.min(prompt.len() - 1);
        self.model.truncate(kept);
        self.tokens.truncate(kept);
        kept
    }
}

/// What became of a token.
enum Written {
    More,
    Stopped(String),
    Refused,
}

/// Turns tokens into text events: decodes, looks for stop strings, holds logprobs until their text is out.
struct Writer<'a, 'e> {
    decoder: &'a mut dyn TextDecoder,
    stops: StopMatcher,
    on_event: OnEvent<'e>,
    decoded: String,
    logprobs: Vec<TokenLogprobs>,
}

impl<'a, 'e> Writer<'a, 'e> {
    fn new(decoder: &'a mut dyn TextDecoder, stop_strings: &[String], on_event: OnEvent<'e>) -> Self {
        let stops = StopMatcher::new(stop_strings);
        Self { decoder, stops, on_event, decoded: String::new(), logprobs: Vec::new() }
    }

    fn report(&mut self, event: GenerateEvent) -> ControlFlow<()> {
        (self.on_event)(event)
    }

    fn write(&mut self, token: u32, logprobs: Option<TokenLogprobs>) -> Result<Written, GenerateError> {
        self.logprobs.extend(logprobs);
        self.decoded.clear();
        self.decoder.push(token, &mut self.decoded)?;
        let mut text = String::new();
        let found = self.stops.push(&self.decoded, &mut text);
        if self.emit(text).is_break() {
            return Ok(Written::Refused);
        }
        Ok(found.map_or(Written::More, |found| Written::Stopped(found.stop_string)))
    }

    /// Sends text with the logprobs of its tokens; tokens whose text is held back wait.
    fn emit(&mut self, text: String) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        self.report(GenerateEvent::Delta { text, logprobs })
    }

    /// Sends all that was held back: the answer ends here without a stop string, unless the decoder's last
    /// characters complete one.
    fn finish(mut self, reason: FinishReason) -> Result<(FinishReason, Option<String>), GenerateError> {
        self.decoded.clear();
        self.decoder.finish(&mut self.decoded);
        let mut text = String::new();
        let found = self.stops.push(&self.decoded, &mut text);
        if found.is_none() {
            self.stops.finish(&mut text);
        }
        let logprobs = std::mem::take(&mut self.logprobs);
        let nothing_left = text.is_empty() && (logprobs.is_empty() || found.is_some());
        if !nothing_left && self.report(GenerateEvent::Delta { text, logprobs }).is_break() {
            return Ok((FinishReason::Cancelled, None));
        }
        let reason = if found.is_some() { FinishReason::Stop } else { reason };
        Ok((reason, found.map(|found| found.stop_string)))
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
