//! What one may ask of the service and what it answers: plain types, no behaviour.
//!
//! These are the wire types of the house: HTTP, the command line (`--json`) and a phone app show the same
//! objects. They mirror the core's types, so that those can change without breaking clients.

pub use secateur_generate::{
    DraftCounts, FinishReason, Grammar, MAX_TOP_LOGPROBS, SamplingParams, Timings, Usage,
};
pub use secateur_store::{
    FootprintRecord as FootprintView, LayerRecord as LayerView, PlanRecord as PlanView,
};

use crate::ServiceError;
use serde::{Deserialize, Serialize};

/// Name of a long job, unique in one state folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Whether requests can be answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Readiness {
    /// The service has started and has not looked at the model yet.
    Starting,
    /// The model is being opened.
    Loading,
    /// The model is being pruned to fit the budget; nothing is served meanwhile.
    Pruning {
        /// The job that does it.
        job: JobId,
        /// How far it is.
        progress: Option<ProgressView>,
    },
    /// Requests are answered.
    Ready,
    /// The model was let go of because the device is short of memory; it comes back when that is over.
    Released,
    /// There is no model to serve; one can be activated.
    NoModel,
    /// The model could not be made ready.
    Failed {
        /// Why, in words, with the way out.
        message: String,
    },
    /// The service drains and will stop.
    ShuttingDown,
}

impl Readiness {
    /// True when requests are answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }
}

/// How far a prune job is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgressView {
    /// What is being done, as the report names its stages.
    pub stage: String,
    /// Layer at work, from 0.
    pub layer_idx: Option<usize>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Share of the whole job that is done, `0.0..=1.0`.
    pub done: f64,
    /// Expected seconds to the end; absent at the beginning.
    pub eta_s: Option<f64>,
    /// Resident memory of the process.
    pub rss_bytes: u64,
    /// Its highest value so far.
    pub rss_peak_bytes: u64,
    /// Held-out calibration loss (nats per token), when one has just been measured.
    pub loss: Option<f64>,
}

/// The service at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct StatusView {
    /// Version of the program.
    pub version: String,
    /// Whether requests can be answered.
    pub readiness: Readiness,
    /// What is served.
    pub model: Option<ServedView>,
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Requests waiting for the compute thread.
    pub queued: usize,
    /// Requests at work, which take turns.
    pub running: usize,
    /// Places in the queue.
    pub queue_len: usize,
    /// The job at work, if any.
    pub active_job: Option<JobId>,
    /// Threads that compute.
    pub n_threads: usize,
}

/// The model that is served.
#[derive(Clone, Debug, Serialize)]
pub struct ServedView {
    /// The model.
    pub model: ModelView,
    /// Tokens a request and its answer may have together.
    pub context_len: usize,
    /// How keys and values are kept.
    pub kv_dtype: String,
    /// The plan the model was chosen by.
    pub plan: Option<PlanView>,
    /// The model that guesses ahead; absent when none was asked for.
    pub draft: Option<DraftView>,
}

/// A model that was asked to guess ahead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DraftView {
    /// As it was named.
    pub model: String,
    /// Memory that it takes; 0 when it is not used.
    pub bytes: u64,
    /// Why it is not used; absent when it is.
    pub unused: Option<String>,
}

/// Where a model comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A file given by the user.
    Base,
    /// A pruned model of the store.
    Pruned,
}

/// A model that can be served.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelView {
    /// Digest of the file (hex): the name to use with [`crate::ServiceHandle::activate_model`].
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Where it comes from.
    pub kind: ModelKind,
    /// Size of the file.
    pub bytes: u64,
    /// Served at the moment.
    pub active: bool,
    /// Unix time of its making, seconds.
    pub created_unix_s: u64,
    /// Layers that are left.
    pub n_layers: usize,
    /// Matrix parameters of the decoder layers.
    pub layer_params: u64,
    /// Longest context the model was trained for.
    pub max_position_embeddings: usize,
    /// Digest of the base model; for pruned models.
    pub source_digest: Option<String>,
    /// Share of decoder-layer parameters removed; for pruned models.
    pub ratio: Option<f64>,
    /// Method that made it; for pruned models.
    pub method: Option<String>,
}

/// What the device can give and what we allow ourselves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryView {
    /// Memory of the device.
    pub total_bytes: u64,
    /// What the system says can be had, cgroups included.
    pub available_bytes: u64,
    /// What we allow ourselves; the peak of the whole process stays below.
    pub budget_bytes: u64,
    /// How the budget was written: `auto`, a size, a percentage.
    pub budget: String,
    /// Resident memory of this process.
    pub rss_bytes: u64,
    /// Its highest value.
    pub rss_peak_bytes: u64,
    /// Every limit found, with its source.
    pub limits: Vec<LimitView>,
    /// Share of time in which tasks waited for memory, percent over 10 s; absent where the kernel does not say.
    pub pressure_some_avg10: Option<f64>,
}

/// One source of a memory limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LimitView {
    /// Where it was read.
    pub source: String,
    /// What it leaves us.
    pub available_bytes: u64,
}

/// Asks what would be done, without doing it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanQuery {
    /// Id or name of a model; the base model of the service when absent.
    pub model: Option<String>,
    /// `auto`, a size or a percentage; the service's own when absent.
    pub memory_budget: Option<String>,
    /// Share of decoder-layer parameters to remove, whatever the budget.
    pub ratio: Option<f64>,
    /// Context to plan for.
    pub context_len: Option<usize>,
    /// `quality` (default) or `compatible`.
    pub policy: Option<String>,
    /// `keep` (default), `f32`, `f16`, `q8_0`, `q4_0`, `q4_1`.
    pub dtype: Option<String>,
    /// Token table and output head: `auto` (default), `keep`, or a dtype.
    pub table_dtype: Option<String>,
}

/// Asks for a pruned model in the store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneQuery {
    /// Id or name of a model; the base model of the service when absent.
    pub model: Option<String>,
    /// `auto`, a size or a percentage; the service's own when absent. Bounds the job itself, and decides how
    /// much is cut unless `ratio` does.
    pub memory_budget: Option<String>,
    /// Share of decoder-layer parameters to remove, whatever the budget.
    pub ratio: Option<f64>,
    /// Context to plan for.
    pub context_len: Option<usize>,
    /// `comp` (default) or another method of this build.
    pub method: Option<String>,
    /// `quality` (default) or `compatible`.
    pub policy: Option<String>,
    /// `keep` (default), `f32`, `f16`, `q8_0`, `q4_0`, `q4_1`.
    pub dtype: Option<String>,
    /// Token table and output head: `auto` (default), `keep`, or a dtype.
    pub table_dtype: Option<String>,
    /// Seed of whatever is random; 0 when absent.
    pub seed: Option<u64>,
    /// Calibration tokens to fit on.
    pub calibration_tokens: Option<usize>,
    /// Text that replaces the built-in calibration text.
    pub calibration_text: Option<String>,
    /// Serve the result when it is done.
    pub activate: bool,
}

/// State of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for the compute thread.
    Queued,
    /// At work.
    Running,
    /// Done; the result is in the store.
    Succeeded,
    /// Ended by an error.
    Failed,
    /// Ended by a request.
    Cancelled,
}

impl JobState {
    /// True when nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A job.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// Its name.
    pub id: JobId,
    /// `prune`.
    pub kind: &'static str,
    /// State.
    pub state: JobState,
    /// Unix time of the request, seconds.
    pub created_unix_s: u64,
    /// Seconds at work so far.
    pub elapsed_s: f64,
    /// How far it is.
    pub progress: Option<ProgressView>,
    /// What was planned; absent until the plan is made.
    pub plan: Option<PlanView>,
    /// Id of the model made, when it succeeded.
    pub model: Option<String>,
    /// Report of the pruner, when it succeeded.
    pub report: Option<serde_json::Value>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Something that happened to a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobEvent {
    /// Number of the event, ascending from 1: the `id` of a server-sent event.
    pub id: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: JobEventKind,
}

/// Kinds of [`JobEvent`].
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", content = "data", rename_all = "snake_case")]
pub enum JobEventKind {
    /// The job moved on.
    Progress(ProgressView),
    /// The plan is made.
    Planned(Box<PlanView>),
    /// The job came into this state; the last event of a job is a final one.
    State(Box<JobView>),
}

impl JobEventKind {
    /// Name of the event: `progress`, `planned`, `state`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Progress(_) => "progress",
            Self::Planned(_) => "planned",
            Self::State(_) => "state",
        }
    }
}

/// A message of a chat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the model's template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Further fields for the model's template, such as `tool_calls` and `tool_call_id`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// How to generate, the same for chats and completions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationParams {
    /// Most tokens of the answer; what is left of the context when absent.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Report logprobs with this many alternatives.
    pub logprobs: Option<usize>,
    /// What the text of the answer must be.
    pub grammar: Option<Grammar>,
    /// Descriptions of tools for the model's template; chats only.
    pub tools: Option<serde_json::Value>,
}

/// Continue a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// How to generate.
    pub params: GenerationParams,
}

/// A text to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text; tokenised with the special tokens the model wants in front.
    Text(String),
    /// Tokens, used as they are.
    Tokens(Vec<u32>),
}

/// Continue a text.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The text.
    pub prompt: Prompt,
    /// How to generate.
    pub params: GenerationParams,
}

/// A token, its text and its logprob.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprobView {
    /// The id.
    pub token_id: u32,
    /// Its text; U+FFFD where it is part of a character.
    pub token: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability.
    pub logprob: f32,
}

/// Logprobs of one chosen token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprobsView {
    /// What was chosen.
    pub chosen: TokenLogprobView,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<TokenLogprobView>,
}

/// What a running generation reports: `Started`, any number of `Delta`, then `Finished` or `Failed`.
#[derive(Debug)]
pub enum GenerationEvent {
    /// The prompt has been read.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// How many of them were still in the KV cache.
        cached_tokens: usize,
    },
    /// More text. A reader that is slow gets several in one.
    Delta {
        /// Whole characters.
        text: String,
        /// Logprobs, when asked for.
        logprobs: Vec<TokenLogprobsView>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// The stop string that ended it.
        stop_string: Option<String>,
        /// Tokens read and written.
        usage: Usage,
        /// How long it took.
        timings: Timings,
        /// What became of a draft's guesses; absent without a draft.
        drafted: Option<DraftCounts>,
    },
    /// The end, by an error.
    Failed(ServiceError),
}

/// A mean-pooled embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingView {
    /// The vector: `[hidden_size]`.
    pub values: Vec<f32>,
    /// Tokens read.
    pub prompt_tokens: usize,
}

/// Counters since the start, for the metrics page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MetricsView {
    /// Requests taken into the queue.
    pub requests_total: u64,
    /// Requests refused because the queue was full.
    pub requests_busy_total: u64,
    /// Requests ended by an error.
    pub requests_failed_total: u64,
    /// Requests whose client went away.
    pub requests_cancelled_total: u64,
    /// Prompt tokens read.
    pub prompt_tokens_total: u64,
    /// Of these, found in the KV cache.
    pub cached_tokens_total: u64,
    /// Tokens generated.
    pub generated_tokens_total: u64,
    /// Guesses of drafts that models have read.
    pub draft_tokens_total: u64,
    /// Of these, part of an answer.
    pub draft_accepted_tokens_total: u64,
    /// Seconds spent reading prompts.
    pub prefill_seconds_total: f64,
    /// Seconds spent generating.
    pub decode_seconds_total: f64,
    /// Jobs that succeeded.
    pub jobs_succeeded_total: u64,
    /// Jobs that failed.
    pub jobs_failed_total: u64,
    /// Jobs that were cancelled.
    pub jobs_cancelled_total: u64,
    /// Jobs waiting.
    pub jobs_queued: u64,
    /// Jobs at work.
    pub jobs_running: u64,
    /// Requests waiting.
    pub queued: u64,
    /// Requests that may wait.
    pub queue_len: u64,
    /// Requests at work.
    pub running: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// Its highest value.
    pub rss_peak_bytes: u64,
    /// What the process may use.
    pub budget_bytes: u64,
    /// What the process could grow to at this moment, its present memory included.
    pub available_bytes: u64,
    /// Seconds in which some task waited for memory, of the device or of a group of ours, whichever are more;
    /// absent where the kernel does not say.
    pub stalled_seconds_total: Option<f64>,
    /// What memory pressure makes the service give up: 0 nothing, 1 prompt caches, 2 spare room of caches, 3 pages
    /// of the model, 4 new requests, 5 the model, 6 a smaller model is made.
    pub pressure_step: u64,
    /// Bytes of the served model's file; 0 without a model.
    pub model_bytes: u64,
    /// Seconds since the start.
    pub uptime_s: f64,
}
