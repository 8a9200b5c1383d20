//! Turns running generations into one answer: whole, or as a stream of chunks.
//!
//! Dropping either (the client is gone) drops the generations, which cancels them.

use super::params::StreamMode;
use super::shape::Shape;
use crate::app::{Phase, Shared};
use crate::backend::Events;
use crate::error::ApiError;
use crate::metrics::HttpMetrics;
use crate::sse::{EventSource, json_event, respond};
use axum::Json;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use secateur_service::api::{DraftCounts, FinishReason, GenerationEvent, Timings, TokenLogprobsView, Usage};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// What is the same in all parts of an answer.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
}

impl Envelope {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }
}

/// Usage of all choices together. A prompt with several answers was read once and counts once.
#[derive(Default)]
struct TotalUsage {
    usage: Usage,
}

impl TotalUsage {
    fn add(&mut self, usage: Usage, is_new_prompt: bool) {
        if is_new_prompt {
            self.usage.prompt_tokens += usage.prompt_tokens;
            self.usage.cached_tokens += usage.cached_tokens;
        }
        self.usage.completion_tokens += usage.completion_tokens;
    }

    fn object(&self) -> Value {
        let Usage { prompt_tokens, cached_tokens, completion_tokens } = self.usage;
        json!({
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        })
    }
}

/// Speed of one choice: llama-server's names, and the two latencies.
fn timings_object(usage: &Usage, timings: &Timings, drafted: Option<DraftCounts>) -> Value {
    let mut object = json!({
        "cache_n": usage.cached_tokens,
        "prompt_n": usage.prompt_tokens.saturating_sub(usage.cached_tokens),
        "prompt_ms": timings.prefill_ms,
        "prompt_per_second": timings.prompt_tokens_per_s,
        "predicted_n": usage.completion_tokens,
        "predicted_per_token_ms": timings.tpot_ms,
        "predicted_per_second": timings.tokens_per_s,
        "ttft_ms": timings.ttft_ms,
        "tpot_ms": timings.tpot_ms,
    });
    if let Some(DraftCounts { guessed, accepted, .. }) = drafted {
        object["draft_n"] = guessed.into();
        object["draft_n_accepted"] = accepted.into();
    }
    object
}

/// The name of a reason, or the error behind an end that nobody asked for.
fn reason_name(reason: FinishReason) -> Result<&'static str, ApiError> {
    match reason {
        FinishReason::Stop | FinishReason::Length => Ok(reason.name()),
        // The client still listens, so it was the server that cancelled.
        FinishReason::Cancelled => Err(ApiError::ShuttingDown),
    }
}

/// Answers with `choices`.
/// # Errors
/// What a generation failed with, when the answer is not streamed.
pub(crate) async fn answer<E: Events<GenerationEvent>, S: Shape>(
    shared: &Arc<Shared>,
    envelope: Envelope,
    shape: S,
    choices: Vec<E>,
    plan: AnswerPlan,
    permit: OwnedSemaphorePermit,
) -> Result<Response, ApiError> {
    if !plan.mode.stream {
        return tokio::select! {
            answer = whole(&shared.metrics, &envelope, shape, choices, plan.n_per_prompt) => answer,
            () = shared.reaches(Phase::Ending) => Err(ApiError::ShuttingDown),
        };
    }
    let source = ChunkSource {
        shared: shared.clone(),
        envelope,
        shape,
        choices: choices.into(),
        plan,
        choice_idx: 0,
        is_open: false,
        total: TotalUsage::default(),
        ready: VecDeque::new(),
        is_over: false,
        started: Instant::now(),
        _permit: permit,
    };
    Ok(respond(source, shared.options.ping_interval))
}

/// How an answer is put together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerPlan {
    /// Whole or as chunks.
    pub(crate) mode: StreamMode,
    /// Choices, one after another, that share a prompt.
    pub(crate) n_per_prompt: usize,
}

async fn whole<E: Events<GenerationEvent>, S: Shape>(
    metrics: &HttpMetrics,
    envelope: &Envelope,
    mut shape: S,
    choices: Vec<E>,
    n_per_prompt: usize,
) -> Result<Response, ApiError> {
    let mut total = TotalUsage::default();
    let mut objects = Vec::with_capacity(choices.len());
    let mut first_timings = Value::Null;
    for (choice_idx, mut events) in choices.into_iter().enumerate() {
        let done = collect(&mut events).await?;
        let reason = reason_name(done.reason)?;
        total.add(done.usage, choice_idx.is_multiple_of(n_per_prompt));
        metrics.observe_generation(&done.timings);
        objects.push(shape.whole(choice_idx, &done.text, &done.logprobs, reason));
        if choice_idx == 0 {
            first_timings = timings_object(&done.usage, &done.timings, done.drafted);
        }
    }
    let mut body = envelope.object(S::WHOLE, objects);
    body["usage"] = total.object();
    body["timings"] = first_timings;
    Ok(Json(body).into_response())
}

/// A generation that has ended.
struct Done {
    text: String,
    logprobs: Vec<TokenLogprobsView>,
    reason: FinishReason,
    usage: Usage,
    timings: Timings,
    drafted: Option<DraftCounts>,
}

async fn collect<E: Events<GenerationEvent>>(events: &mut E) -> Result<Done, ApiError> {
    let mut text = String::new();
    let mut logprobs = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            GenerationEvent::Started { .. } => {}
            GenerationEvent::Delta { text: more, logprobs: more_logprobs } => {
                text.push_str(&more);
                logprobs.extend(more_logprobs);
            }
            GenerationEvent::Finished { reason, usage, timings, drafted, .. } => {
                return Ok(Done { text, logprobs, reason, usage, timings, drafted });
            }
            GenerationEvent::Failed(error) => return Err(error.into()),
        }
    }
    Err(broken_off())
}

/// The service dropped a generation without a word: it stops, or it has a bug.
fn broken_off() -> ApiError {
    tracing::warn!("a generation ended without its last event");
    ApiError::ShuttingDown
}

/// The chunks of a streamed answer, choice after choice.
struct ChunkSource<E, S> {
    shared: Arc<Shared>,
    envelope: Envelope,
    shape: S,
    /// The choice at work in front.
    choices: VecDeque<E>,
    plan: AnswerPlan,
    choice_idx: usize,
    /// The first chunk of the choice at work is out.
    is_open: bool,
    total: TotalUsage,
    ready: VecDeque<Event>,
    is_over: bool,
    started: Instant,
    /// The place among the requests, until the stream is gone.
    _permit: OwnedSemaphorePermit,
}

impl<E: Events<GenerationEvent>, S: Shape> ChunkSource<E, S> {
    fn push_chunk(&mut self, choice: Value, timings: Option<Value>) {
        let mut chunk = self.envelope.object(S::CHUNK, vec![choice]);
        if self.plan.mode.include_usage {
            chunk["usage"] = Value::Null;
        }
        if let Some(timings) = timings {
            chunk["timings"] = timings;
        }
        self.ready.push_back(json_event(&chunk));
    }

    fn open(&mut self) {
        if !std::mem::replace(&mut self.is_open, true)
            && let Some(choice) = self.shape.opening(self.choice_idx)
        {
            self.push_chunk(choice, None);
        }
    }

    fn fail(&mut self, error: &ApiError) {
        self.ready.push_back(json_event(&error.openai_body()));
        // What has not begun is not begun any more.
        self.choices.clear();
        self.is_over = true;
    }

    fn take(&mut self, event: Option<GenerationEvent>) {
        match event {
            Some(GenerationEvent::Started { .. }) => self.open(),
            Some(GenerationEvent::Delta { text, logprobs }) => {
                self.open();
                if let Some(choice) = self.shape.delta(self.choice_idx, &text, &logprobs) {
                    self.push_chunk(choice, None);
                }
            }
            Some(GenerationEvent::Finished { reason, usage, timings, drafted, .. }) => {
                match reason_name(reason) {
                    Ok(reason) => self.finish_choice(reason, usage, &timings, drafted),
                    Err(error) => self.fail(&error),
                }
            }
            Some(GenerationEvent::Failed(error)) => self.fail(&error.into()),
            None => self.fail(&broken_off()),
        }
    }

    fn finish_choice(&mut self, reason: &str, usage: Usage, timings: &Timings, drafted: Option<DraftCounts>) {
        self.open();
        self.total.add(usage, self.choice_idx.is_multiple_of(self.plan.n_per_prompt));
        self.shared.metrics.observe_generation(timings);
        let mut last = self.shape.closing(self.choice_idx, reason);
        let end = last.pop();
        for choice in last {
            self.push_chunk(choice, None);
        }
        if let Some(choice) = end {
            self.push_chunk(choice, Some(timings_object(&usage, timings, drafted)));
        }
        self.choices.pop_front();
        self.choice_idx += 1;
        self.is_open = false;
        if self.choices.is_empty() {
            if self.plan.mode.include_usage {
                let mut chunk = self.envelope.object(S::CHUNK, Vec::new());
                chunk["usage"] = self.total.object();
                self.ready.push_back(json_event(&chunk));
            }
            self.ready.push_back(Event::default().data("[DONE]"));
            self.is_over = true;
            let seconds = self.started.elapsed().as_secs_f64();
            let usage = self.total.usage;
            tracing::info!(
                prompt_tokens = usage.prompt_tokens,
                completion_tokens = usage.completion_tokens,
                seconds,
                "stream finished"
            );
        }
    }
}

impl<E: Events<GenerationEvent>, S: Shape> EventSource for ChunkSource<E, S> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            let events = self.choices.front_mut()?;
            tokio::select! {
                event = events.next() => self.take(event),
                () = self.shared.reaches(Phase::Ending) => self.fail(&ApiError::ShuttingDown),
            }
        }
    }
}
