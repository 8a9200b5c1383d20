//! What the routes need of the service, as a trait, so that tests can script it.

use secateur_service::api::{
    ChatMessage, ChatRequest, CompletionRequest, EmbeddingView, GenerationEvent, JobEvent, JobId, JobView,
    MemoryView, MetricsView, ModelView, PlanQuery, PlanView, Prompt, PruneQuery, Readiness, StatusView,
};
use secateur_service::{AddSpecial, EventStream, JobEvents, ServiceError, ServiceHandle};
use serde_json::Value;
use std::future::Future;

/// Events that are waited for one by one. Dropping it tells the source that nobody listens.
pub trait Events<T>: Send + 'static {
    /// The next event; `None` after the last one. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<T>> + Send;
}

impl Events<GenerationEvent> for EventStream {
    async fn next(&mut self) -> Option<GenerationEvent> {
        EventStream::next(self).await
    }
}

impl Events<JobEvent> for JobEvents {
    async fn next(&mut self) -> Option<JobEvent> {
        JobEvents::next(self).await
    }
}

/// The service behind the routes: [`ServiceHandle`], or a script in tests.
///
/// Methods that are not `async` may take milliseconds; the routes call them from a blocking thread, except
/// [`Self::readiness`], [`Self::status`], [`Self::is_swapping`], [`Self::metrics`], [`Self::job`], [`Self::jobs`] and [`Self::job_events`],
/// which only look.
#[expect(missing_docs, reason = "the methods are those of ServiceHandle")]
pub trait Backend: Clone + Send + Sync + 'static {
    /// Events of a generation; dropping them cancels it.
    type Generation: Events<GenerationEvent>;
    /// Events of a job.
    type JobEvents: Events<JobEvent>;

    fn readiness(&self) -> Readiness;
    fn status(&self) -> StatusView;
    fn metrics(&self) -> MetricsView;
    fn memory(&self) -> Result<MemoryView, ServiceError>;
    fn models(&self) -> Result<Vec<ModelView>, ServiceError>;
    fn plan(&self, query: &PlanQuery) -> Result<PlanView, ServiceError>;
    fn start_prune(&self, query: PruneQuery) -> Result<JobId, ServiceError>;
    fn job(&self, id: JobId) -> Result<JobView, ServiceError>;
    fn jobs(&self) -> Vec<JobView>;
    fn job_events(&self, id: JobId, after: Option<u64>) -> Result<Self::JobEvents, ServiceError>;
    fn cancel_job(&self, id: JobId) -> Result<JobView, ServiceError>;
    fn chat(&self, request: &ChatRequest) -> Result<Self::Generation, ServiceError>;
    fn complete(&self, request: &CompletionRequest) -> Result<Self::Generation, ServiceError>;
    fn embed(&self, prompt: &Prompt) -> impl Future<Output = Result<EmbeddingView, ServiceError>> + Send;
    fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError>;
    fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError>;
    fn apply_template(&self, messages: &[ChatMessage], tools: Option<&Value>)
    -> Result<String, ServiceError>;
    fn is_swapping(&self) -> bool;
    fn swapped(&self) -> impl Future<Output = ()> + Send;
    fn activate_model(&self, id: &str) -> impl Future<Output = Result<ModelView, ServiceError>> + Send;
    fn delete_model(&self, id: &str) -> Result<(), ServiceError>;
}

impl Backend for ServiceHandle {
    type Generation = EventStream;
    type JobEvents = JobEvents;

    fn readiness(&self) -> Readiness {
        ServiceHandle::readiness(self)
    }

    fn status(&self) -> StatusView {
        ServiceHandle::status(self)
    }

    fn metrics(&self) -> MetricsView {
        ServiceHandle::metrics(self)
    }

    fn memory(&self) -> Result<MemoryView, ServiceError> {
        ServiceHandle::memory(self)
    }

    fn models(&self) -> Result<Vec<ModelView>, ServiceError> {
        ServiceHandle::models(self)
    }

    fn plan(&self, query: &PlanQuery) -> Result<PlanView, ServiceError> {
        ServiceHandle::plan(self, query)
    }

    fn start_prune(&self, query: PruneQuery) -> Result<JobId, ServiceError> {
        ServiceHandle::start_prune(self, query)
    }

    fn job(&self, id: JobId) -> Result<JobView, ServiceError> {
        ServiceHandle::job(self, id)
    }

    fn jobs(&self) -> Vec<JobView> {
        ServiceHandle::jobs(self)
    }

    fn job_events(&self, id: JobId, after: Option<u64>) -> Result<JobEvents, ServiceError> {
        ServiceHandle::job_events(self, id, after)
    }

    fn cancel_job(&self, id: JobId) -> Result<JobView, ServiceError> {
        ServiceHandle::cancel_job(self, id)
    }

    fn chat(&self, request: &ChatRequest) -> Result<EventStream, ServiceError> {
        ServiceHandle::chat(self, request)
    }

    fn complete(&self, request: &CompletionRequest) -> Result<EventStream, ServiceError> {
        ServiceHandle::complete(self, request)
    }

    async fn embed(&self, prompt: &Prompt) -> Result<EmbeddingView, ServiceError> {
        ServiceHandle::embed(self, prompt).await
    }

    fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
        ServiceHandle::tokenize(self, text, special)
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError> {
        ServiceHandle::detokenize(self, tokens)
    }

    fn apply_template(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
    ) -> Result<String, ServiceError> {
        ServiceHandle::apply_template_with(self, messages, tools)
    }

    fn is_swapping(&self) -> bool {
        ServiceHandle::is_swapping(self)
    }

    async fn swapped(&self) {
        ServiceHandle::swapped(self).await;
    }

    async fn activate_model(&self, id: &str) -> Result<ModelView, ServiceError> {
        ServiceHandle::activate_model(self, id).await
    }

    fn delete_model(&self, id: &str) -> Result<(), ServiceError> {
        ServiceHandle::delete_model(self, id)
    }
}
