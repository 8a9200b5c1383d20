//! The compute thread: owns the engine, the session and the jobs. Takes commands, sends events.

use crate::ServiceError;
use crate::api::{EmbeddingView, GenerationEvent, ModelView, PlanView, Readiness};
use crate::budget::{PlanSettings, plan_view, summarize};
use crate::catalog::{Known, all_models, find_model};
use crate::convert::{error_chain, internal};
use crate::hints::{MemoryPressure, Pacer};
use crate::opened::OpenModel;
use crate::ops::{build_engine, precision};
use crate::queue::Next;
use crate::served::{Served, reply_decoder};
use crate::shared::{Control, Request, Shared};
use crate::stream::EventSink;
use secateur_engine::{Engine, Precision, Session};
use secateur_generate::{FinishReason, Finished, GenerateEvent, GenerateRequest, Sequence};
use secateur_memory::{PlanRequest, Tables, format_bytes};
use secateur_model::{PlanAction, PrunePlan, WeightSource};
use secateur_store::EntryInUse;
use secateur_tensor::kernels::ThreadPool;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// Neurons in one step of the pruner.
const STEP_NEURONS: usize = 32;

/// The model that answers.
pub(crate) struct Loaded {
    served: Arc<Served>,
    engine: Engine,
    sequence: Sequence<Session>,
    /// Bytes that serving it needs at most.
    pub(crate) footprint_bytes: u64,
    /// Keeps its entry in the store.
    _hold: Option<EntryInUse>,
}

impl Loaded {
    pub(crate) fn model_id(&self) -> String {
        self.served.model.id.clone()
    }
}

pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) loaded: Option<Loaded>,
}

/// Runs the compute thread to its end.
pub(crate) fn run(shared: Arc<Shared>) {
    let mut worker = Worker { shared: shared.clone(), loaded: None };
    let result = catch_unwind(AssertUnwindSafe(|| worker.run()));
    if result.is_err() {
        tracing::error!("the compute thread has panicked; the service stops");
        let message = "an internal error stopped the compute thread; see the log".to_owned();
        shared.set_readiness(Readiness::Failed { message });
    }
    shared.set_served(None);
    shared.queue().close();
    drop(worker);
    shared.set_stopped();
}

impl Worker {
    fn run(&mut self) {
        self.start_up();
        loop {
            self.shared.set_idle(true);
            let next = self.shared.queue().next();
            self.shared.set_idle(false);
            match next {
                Next::Request(request) => handle_request(&self.shared, self.loaded.as_mut(), request),
                Next::Control(Control::Prune(job)) => self.run_job(&job),
                Next::Control(Control::Activate { id, reply }) => {
                    let result = self.activate(&id);
                    // The caller may have gone.
                    let _ = reply.send(result);
                }
                Next::Control(Control::Relieve) => self.relieve(),
                Next::Closed => return,
            }
        }
    }

    /// Serves the model of the options: as it is when it fits, pruned otherwise.
    fn start_up(&mut self) {
        self.shared.set_readiness(Readiness::Loading);
        self.shared.sweep();
        match self.first_model() {
            Ok(()) => {}
            Err(ServiceError::Cancelled) => {}
            Err(error) => {
                let message = error_chain(&error);
                tracing::error!(error = message, "the model cannot be served");
                self.shared.set_readiness(Readiness::Failed { message });
            }
        }
    }

    fn first_model(&mut self) -> Result<(), ServiceError> {
        let Some(known) = self.shared.first_model()? else {
            self.shared.set_readiness(Readiness::NoModel);
            return Ok(());
        };
        let model = OpenModel::open(&known.path)?;
        if known.entry.is_some() {
            let plan = self.fit(&model)?;
            return self.serve(&known, model, &plan);
        }
        let settings = &self.shared.options().prune.plan;
        let plan = crate::budget::plan_file(model.file(), self.shared.budget_bytes(), settings)?;
        tracing::info!(model = known.view.name, reason = plan.reason, "planned");
        match plan.action {
            PlanAction::Untouched => self.serve(&known, model, &plan),
            PlanAction::Prune => {
                drop(model);
                self.serve_pruned()
            }
        }
    }

    /// Makes `model` the one that answers; the plan says with which context.
    fn serve(&mut self, known: &Known, model: OpenModel, plan: &PrunePlan) -> Result<(), ServiceError> {
        let view = plan_view(plan, self.shared.budget_bytes(), &PlanSettings::default());
        self.load(known, model, plan, Some(view))
    }

    /// Lets go of the model before, then makes `model` the one that answers, with the context of `fit`.
    pub(crate) fn load(
        &mut self,
        known: &Known,
        model: OpenModel,
        fit: &PrunePlan,
        plan: Option<PlanView>,
    ) -> Result<(), ServiceError> {
        self.unload();
        self.shared.set_readiness(Readiness::Loading);
        let result = self.load_fresh(known, model, fit, plan);
        if let Err(error) = &result {
            self.shared.set_readiness(Readiness::Failed { message: error_chain(error) });
        }
        result
    }

    fn load_fresh(
        &mut self,
        known: &Known,
        model: OpenModel,
        fit: &PrunePlan,
        plan: Option<PlanView>,
    ) -> Result<(), ServiceError> {
        let shared = self.shared.clone();
        let hold = known.entry.as_ref().map(|id| shared.store().hold(id)).transpose()?;
        let precision = precision(shared.options().precision.as_deref(), Precision::Int8)?;
        let pool = Arc::new(ThreadPool::new(shared.n_threads()));
        let engine = build_engine(&model, pool)?.with_precision(precision);
        let sequence = Sequence::new(engine.session(fit.context_len, fit.kv_dtype)?);
        let served = Arc::new(Served {
            tokenizer: model.tokenizer().clone(),
            model: ModelView { active: true, ..known.view.clone() },
            plan,
            context_len: fit.context_len,
            kv_dtype: fit.kv_dtype,
            vocab_size: model.file().config().vocab_size,
        });
        shared.set_served(Some(served.clone()));
        let footprint_bytes = fit.footprint.total_bytes();
        self.loaded = Some(Loaded { served, engine, sequence, footprint_bytes, _hold: hold });
        shared.set_last_served(None);
        shared.set_readiness(Readiness::Ready);
        tracing::info!(
            model = known.view.name,
            id = known.view.id,
            context_len = fit.context_len,
            footprint = format_bytes(footprint_bytes),
            "ready"
        );
        Ok(())
    }

    /// Lets go of the model: its cache, its mapping, its entry.
    pub(crate) fn unload(&mut self) {
        self.shared.set_served(None);
        self.loaded = None;
    }

    /// Acts on the latest memory hint.
    fn relieve(&mut self) {
        match (self.shared.hints().memory(), &mut self.loaded) {
            (MemoryPressure::None, None) => self.serve_again(),
            (MemoryPressure::None, Some(_)) | (_, None) => {}
            (MemoryPressure::Moderate, Some(loaded)) => loaded.sequence.clear(),
            (MemoryPressure::Critical, Some(loaded)) => {
                let id = loaded.model_id();
                self.shared.set_last_served(Some(id));
                self.unload();
                self.shared.set_readiness(Readiness::Released);
            }
        }
        secateur_tensor::kernels::heap::return_free_memory();
    }

    /// The context with which a model fits the budget as it is.
    ///
    /// A pruner cuts whole steps of neurons and may stop half a step short of its plan. So much is let pass: it is
    /// far less than what the program's share of the footprint is rounded up by.
    /// # Errors
    /// [`ServiceError::Refused`] when it does not.
    pub(crate) fn fit(&self, model: &OpenModel) -> Result<PrunePlan, ServiceError> {
        let step_bytes = (STEP_NEURONS * 3 * model.file().config().hidden_size * size_of::<f32>()) as u64;
        let budget_bytes = self.shared.budget_bytes() + step_bytes;
        let plan_settings = &self.shared.options().prune.plan;
        let base = PlanRequest { dtype: None, tables: Tables::Keep, ..plan_settings.request()? };
        let summary = summarize(model.file())?;
        let config = model.file().config();
        let max_context = config.max_position_embeddings;
        let longest = base.context_len.unwrap_or(secateur_memory::DEFAULT_CONTEXT_LEN).min(max_context);
        let mut context_len = longest;
        loop {
            let request = PlanRequest { context_len: Some(context_len), ..base };
            match secateur_memory::plan(config, &summary, budget_bytes, &request) {
                Ok(plan) if plan.action == PlanAction::Untouched => return Ok(plan),
                Err(secateur_memory::PlanError::Refused(_)) | Ok(_) => {}
                Err(other) => return Err(other.into()),
            }
            if base.context_len.is_some() || context_len / 2 < secateur_memory::MIN_CONTEXT_LEN {
                break;
            }
            context_len /= 2;
        }
        let request = PlanRequest { context_len: Some(context_len), ..base };
        let needed = secateur_memory::footprint(config, &summary, context_len, &request)?.total_bytes();
        let message = format!(
            "serving {} with {context_len} tokens of context needs {} ({needed} bytes), the memory budget is {}: \
             prune it, or give a larger budget",
            model.name(),
            format_bytes(needed),
            format_bytes(self.shared.budget_bytes()),
        );
        Err(ServiceError::Refused { message, smallest_budget_bytes: Some(needed) })
    }

    fn activate(&mut self, id: &str) -> Result<ModelView, ServiceError> {
        if self.shared.hints().memory() == MemoryPressure::Critical {
            return Err(self.shared.end_reason());
        }
        let models = all_models(self.shared.base(), self.shared.store())?;
        let known = find_model(&models, id)?;
        let model = OpenModel::open(&known.path)?;
        let plan = self.fit(&model)?;
        let before = self.loaded.as_ref().map(Loaded::model_id);
        let result = self.serve(&known, model, &plan);
        if let Err(error) = &result {
            self.restore(&models, before, error);
        }
        result.map(|()| ModelView { active: true, ..known.view })
    }

    /// Serves again what was served before.
    fn restore(&mut self, models: &[Known], before: Option<String>, why: &ServiceError) {
        let again = before.map(|id| {
            let known = find_model(models, &id)?;
            let model = OpenModel::open(&known.path)?;
            let plan = self.fit(&model)?;
            self.serve(&known, model, &plan)
        });
        match again {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                self.shared.set_readiness(Readiness::Failed { message: error_chain(&error) });
            }
            None => self.shared.set_readiness(Readiness::Failed { message: error_chain(why) }),
        }
    }
}

/// Answers one request with the model that is loaded.
pub(crate) fn handle_request(shared: &Shared, loaded: Option<&mut Loaded>, request: Request) {
    let started = Instant::now();
    shared.set_running(1);
    match (request, loaded) {
        (Request::Generate { sink, .. }, _) if sink.is_cancelled() => {
            shared.counters().view.requests_cancelled_total += 1;
        }
        (Request::Generate { sink, .. }, None) => sink.send(GenerationEvent::Failed(not_loaded(shared))),
        (Request::Embed { reply, .. }, None) => {
            let _ = reply.send(Err(not_loaded(shared)));
        }
        (Request::Generate { request, sink }, Some(loaded)) => generate(shared, loaded, &request, &sink),
        (Request::Embed { tokens, reply }, Some(loaded)) => {
            let cancelled = || {
                shared.tick();
                reply.is_closed() || shared.drained()
            };
            let values = loaded.engine.embed(&tokens, &cancelled);
            let view = values.map(|values| EmbeddingView { values, prompt_tokens: tokens.len() });
            let mut counters = shared.counters();
            counters.view.prompt_tokens_total += tokens.len() as u64;
            counters.view.requests_failed_total += u64::from(view.is_err());
            drop(counters);
            // The caller may have gone.
            let _ = reply.send(view.map_err(ServiceError::from));
        }
    }
    shared.counters().request_took(started.elapsed().as_secs_f64());
    shared.set_running(0);
}

fn not_loaded(shared: &Shared) -> ServiceError {
    shared.served().err().unwrap_or(ServiceError::NotReady { message: "the model has just changed".into() })
}

fn generate(shared: &Shared, loaded: &mut Loaded, request: &GenerateRequest, sink: &EventSink) {
    let Loaded { served, sequence, .. } = loaded;
    // The request was checked against the model that was served when it came.
    let checked = request.validate(served.vocab_size).is_ok() && request.prompt.len() < served.context_len;
    if !checked {
        let message = "the model has changed since the request came; send it again".to_owned();
        sink.send(GenerationEvent::Failed(ServiceError::Conflict { message }));
        return;
    }
    let cancelled = || {
        shared.tick();
        sink.is_cancelled() || shared.drained()
    };
    let mut pacer = Pacer::new();
    let mut on_event = |event| {
        pacer.rest(shared.hints().thermal());
        match event {
            GenerateEvent::Prefilled { prompt_tokens, cached_tokens } => {
                sink.send(GenerationEvent::Started { prompt_tokens, cached_tokens });
            }
            GenerateEvent::Delta { text, logprobs } => {
                let logprobs = logprobs.iter().map(|token| served.logprobs_view(token)).collect();
                sink.send(GenerationEvent::Delta { text, logprobs });
            }
        }
        ControlFlow::Continue(())
    };
    let mut decoder = reply_decoder(&served.tokenizer);
    let result = catch_unwind(AssertUnwindSafe(|| {
        sequence.generate(request, &mut decoder, &cancelled, &mut on_event)
    }));
    let result = match result {
        Ok(result) => result.map_err(ServiceError::from),
        Err(_) => {
            // What the cache holds is unknown after a panic.
            sequence.clear();
            let message = "generation panicked; see the log".to_owned();
            Err(ServiceError::Internal { message })
        }
    };
    finish(shared, sink, result);
}

fn finish(shared: &Shared, sink: &EventSink, result: Result<Finished, ServiceError>) {
    let mut counters = shared.counters();
    let view = &mut counters.view;
    match result {
        Ok(Finished { reason, stop_string, usage, timings }) => {
            view.prompt_tokens_total += usage.prompt_tokens as u64;
            view.cached_tokens_total += usage.cached_tokens as u64;
            view.generated_tokens_total += usage.completion_tokens as u64;
            view.prefill_seconds_total += timings.prefill_ms / 1e3;
            view.decode_seconds_total +=
                timings.tpot_ms / 1e3 * usage.completion_tokens.saturating_sub(1) as f64;
            if reason == FinishReason::Cancelled {
                view.requests_cancelled_total += 1;
                // Nobody reads this unless the service is what ended the request.
                sink.send(GenerationEvent::Failed(shared.end_reason()));
            } else {
                sink.send(GenerationEvent::Finished { reason, stop_string, usage, timings });
            }
        }
        Err(error) => {
            view.requests_failed_total += 1;
            if let ServiceError::Internal { message } = &error {
                tracing::error!(error = message, "a request failed");
            }
            sink.send(GenerationEvent::Failed(error));
        }
    }
}

/// Starts the compute thread.
/// # Errors
/// [`ServiceError::Internal`] when the system gives no thread.
pub(crate) fn spawn(shared: &Arc<Shared>) -> Result<std::thread::JoinHandle<()>, ServiceError> {
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name("compute".to_owned());
    thread.spawn(move || run(shared)).map_err(|error| internal(&error))
}
