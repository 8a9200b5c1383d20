//! The handle through which everybody talks to the service.
//!
//! Methods that are not `async` compute or read files for a moment (milliseconds): async callers call them from
//! a blocking thread. Long work is queued for the compute thread and reported through streams.

use crate::ServiceError;
use crate::api::{
    ChatMessage, ChatRequest, CompletionRequest, EmbeddingView, JobId, JobView, MemoryView, MetricsView,
    ModelView, PlanQuery, PlanView, Prompt, PruneQuery, Readiness, StatusView,
};
use crate::hints::{MemoryPressure, ThermalState};
use crate::jobs::{JobEvents, Origin};
use crate::shared::{Control, Request, Shared};
use crate::stream::{EventStream, event_channel};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// A handle on a running service. Cloning is cheap; all clones talk to the same service.
#[derive(Clone)]
pub struct ServiceHandle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for ServiceHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceHandle").field("readiness", &self.readiness()).finish_non_exhaustive()
    }
}

impl ServiceHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether requests can be answered.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.shared.readiness()
    }

    /// Follows the readiness.
    #[must_use]
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.shared.watch_readiness()
    }

    /// Ticks of the compute thread: the value changes while it moves, at least once a second unless it is
    /// idle. For watchdogs.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        self.shared.heartbeat()
    }

    /// The service at a glance.
    #[must_use]
    pub fn status(&self) -> StatusView {
        self.shared.status()
    }

    /// What the device can give and what we allow ourselves.
    /// # Errors
    /// [`ServiceError::Io`] when the system cannot be asked.
    pub fn memory(&self) -> Result<MemoryView, ServiceError> {
        self.shared.memory()
    }

    /// The base model and every pruned model of the store.
    /// # Errors
    /// [`ServiceError::Io`] when the store cannot be read.
    pub fn models(&self) -> Result<Vec<ModelView>, ServiceError> {
        self.shared.models()
    }

    /// The planner's decision for a model, without doing anything.
    /// # Errors
    /// [`ServiceError::Refused`] when nothing fits, [`ServiceError::ModelNotFound`], [`ServiceError::Invalid`].
    pub fn plan(&self, query: &PlanQuery) -> Result<PlanView, ServiceError> {
        self.shared.plan(query)
    }

    /// Queues a prune job.
    /// # Errors
    /// [`ServiceError::Invalid`] and [`ServiceError::ModelNotFound`] at once; what is found out later is the
    /// job's error. [`ServiceError::Conflict`] when too many jobs wait.
    pub fn start_prune(&self, query: PruneQuery) -> Result<JobId, ServiceError> {
        self.shared.check_prune(&query)?;
        let job = self.shared.jobs().add(Origin::Client, query)?;
        // Before anybody is told of it.
        self.shared.keep_jobs();
        let queued = self.shared.control(Control::Prune(job.clone()));
        if queued.is_err() {
            job.cancel();
        }
        queued.map(|()| job.id())
    }

    /// A job.
    /// # Errors
    /// [`ServiceError::JobNotFound`].
    pub fn job(&self, id: JobId) -> Result<JobView, ServiceError> {
        Ok(self.shared.jobs().get(id)?.view())
    }

    /// All jobs, oldest first.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobView> {
        self.shared.jobs().all().iter().map(|job| job.view()).collect()
    }

    /// The events of a job with numbers above `after`; all that are kept when absent.
    /// # Errors
    /// [`ServiceError::JobNotFound`].
    pub fn job_events(&self, id: JobId, after: Option<u64>) -> Result<JobEvents, ServiceError> {
        Ok(JobEvents::new(self.shared.jobs().get(id)?, after))
    }

    /// Asks a job to stop. A job that has ended stays as it is.
    /// # Errors
    /// [`ServiceError::JobNotFound`].
    pub fn cancel_job(&self, id: JobId) -> Result<JobView, ServiceError> {
        let job = self.shared.jobs().get(id)?;
        job.cancel();
        self.shared.keep_jobs();
        Ok(job.view())
    }

    /// Continues a conversation.
    /// # Errors
    /// [`ServiceError::Busy`], [`ServiceError::NotReady`], [`ServiceError::ShuttingDown`],
    /// [`ServiceError::Invalid`], [`ServiceError::PromptTooLong`]; later failures come through the stream.
    pub fn chat(&self, request: &ChatRequest) -> Result<EventStream, ServiceError> {
        self.shared.with_served(|served| {
            let prompt = served.chat_tokens(&request.messages, request.params.tools.as_ref())?;
            self.generate(served, prompt, &request.params)
        })
    }

    /// Continues a text.
    /// # Errors
    /// As [`Self::chat`].
    pub fn complete(&self, request: &CompletionRequest) -> Result<EventStream, ServiceError> {
        self.shared.with_served(|served| {
            let prompt = served.prompt_tokens(&request.prompt)?;
            self.generate(served, prompt, &request.params)
        })
    }

    fn generate(
        &self,
        served: &crate::served::Served,
        prompt: Vec<u32>,
        params: &crate::api::GenerationParams,
    ) -> Result<EventStream, ServiceError> {
        let prepared = Box::new(served.prepare(prompt, params)?);
        let (sink, stream) = event_channel();
        self.shared.request(Request::Generate { prepared, sink })?;
        Ok(stream)
    }

    /// The mean-pooled embedding of a text.
    /// # Errors
    /// As [`Self::chat`].
    pub async fn embed(&self, prompt: &Prompt) -> Result<EmbeddingView, ServiceError> {
        let answer = self.shared.with_served(|served| {
            let tokens = served.embed_tokens(prompt)?;
            let (reply, answer) = oneshot::channel();
            self.shared.request(Request::Embed { tokens, reply }).map(|()| answer)
        })?;
        answer.await.map_err(|_| ServiceError::ShuttingDown)?
    }

    /// The tokens of a text; `special` says whether to add the tokens the model wants in front.
    /// # Errors
    /// [`ServiceError::NotReady`] without a model.
    pub fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
        self.shared.served()?.tokenize(text, special)
    }

    /// The text of tokens; broken characters become U+FFFD.
    /// # Errors
    /// [`ServiceError::NotReady`] without a model; [`ServiceError::Invalid`] for tokens that do not exist.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError> {
        self.shared.served()?.detokenize(tokens)
    }

    /// The prompt the model's chat template makes of a conversation.
    /// # Errors
    /// [`ServiceError::NotReady`] without a model; [`ServiceError::Invalid`] when the template refuses.
    pub fn apply_template(&self, messages: &[ChatMessage]) -> Result<String, ServiceError> {
        self.apply_template_with(messages, None)
    }

    /// As [`Self::apply_template`], with descriptions of tools.
    /// # Errors
    /// As [`Self::apply_template`].
    pub fn apply_template_with(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
    ) -> Result<String, ServiceError> {
        self.shared.served()?.apply_template(messages, tools)
    }

    /// True while another model takes the place of the served one: requests made meanwhile find no model, and are
    /// worth making again after [`Self::swapped`].
    #[must_use]
    pub fn is_swapping(&self) -> bool {
        self.shared.is_swapping()
    }

    /// Waits until no model is being changed for another one.
    pub async fn swapped(&self) {
        self.shared.swapped().await;
    }

    /// Serves another model: an id or a name of [`Self::models`]. Ends when it is ready.
    /// # Errors
    /// [`ServiceError::ModelNotFound`]; [`ServiceError::Refused`] when it does not fit the budget: the model
    /// served before goes on then.
    pub async fn activate_model(&self, id: &str) -> Result<ModelView, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.shared.control(Control::Activate { id: id.to_owned(), reply })?;
        answer.await.map_err(|_| ServiceError::ShuttingDown)?
    }

    /// Removes a pruned model from the store.
    /// # Errors
    /// [`ServiceError::Conflict`] while it is served; [`ServiceError::ModelNotFound`].
    pub fn delete_model(&self, id: &str) -> Result<(), ServiceError> {
        self.shared.delete_model(id)
    }

    /// Counters since the start.
    #[must_use]
    pub fn metrics(&self) -> MetricsView {
        self.shared.metrics()
    }

    /// Passes on what the system says about memory; see [`MemoryPressure`] for what happens then.
    pub fn hint_memory(&self, level: MemoryPressure) {
        self.shared.hint_memory(level);
    }

    /// Passes on what the system says about heat: the compute thread rests accordingly.
    pub fn hint_thermal(&self, state: ThermalState) {
        self.shared.hints().set_thermal(state);
    }

    /// Ends when the compute thread has ended: after a shutdown, or when it broke.
    pub async fn stopped(&self) {
        self.shared.wait_stopped().await;
    }

    /// Stops: takes nothing new, lets requests finish until `drain` has passed, then cancels them; a job at
    /// work stops at its last checkpoint. Ends when the compute thread has ended.
    pub async fn shutdown(&self, drain: Duration) {
        self.shared.begin_shutdown(drain);
        self.shared.wait_stopped().await;
    }
}

/// Whether [`ServiceHandle::tokenize`] adds the tokens the model wants around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// As for a completion.
    Yes,
    /// The bare text.
    No,
}

/// A sign of life of the compute thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Changes while the thread moves.
    pub ticks: u64,
    /// The thread has nothing to do.
    pub idle: bool,
}
