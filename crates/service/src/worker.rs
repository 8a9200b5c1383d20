//! The compute thread: owns the engine, the session and the jobs. Takes commands, sends events.

use crate::ServiceError;
use crate::api::{DraftView, EmbeddingView, GenerationEvent, MetricsView, ModelView, PlanView, Readiness};
use crate::budget::{PlanSettings, plan_view, summarize};
use crate::catalog::{Known, all_models, find_model, resolve_model};
use crate::convert::{error_chain, internal, invalid};
use crate::drafting::{Draft, Engines};
use crate::hints::{MemoryPressure, Pacer};
use crate::opened::OpenModel;
use crate::ops::{CacheNeed, build_engine, precision};
use crate::queue::Next;
use crate::served::{PreparedRequest, Served, longest_token_bytes, reply_decoder};
use crate::shared::{Control, Request, Shared, Swap};
use crate::slots::{Ended, SlotLimits, Slots};
use secateur_engine::{Engine, Precision};
use secateur_generate::{DraftCounts, FinishReason, Finished, Generation};
use secateur_memory::{PlanRequest, PressureStep, Storage, format_bytes};
use secateur_model::{PlanAction, PrunePlan, WeightSource};
use secateur_model_file::ModelFile;
use secateur_store::EntryInUse;
use secateur_tensor::kernels::ThreadPool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Neurons in one step of the pruner.
const STEP_NEURONS: usize = 32;

/// The model that answers.
pub(crate) struct Loaded {
    served: Arc<Served>,
    engines: Engines,
    slots: Slots,
    file: ModelFile,
    pacer: Pacer,
    /// A request that needs more room than there is beside those at work.
    waiting: Option<Request>,
    /// Bytes that serving it needs at most.
    pub(crate) footprint_bytes: u64,
    /// Keeps its entry in the store.
    _hold: Option<EntryInUse>,
}

impl Loaded {
    pub(crate) fn model_id(&self) -> String {
        self.served.model.id.clone()
    }

    /// Lets go of what only saves work.
    fn drop_caches(&mut self) {
        self.slots.drop_idle();
        self.served.drop_caches();
    }

    /// Gives up what the step says; a model that is unloaded is not this one's to say.
    pub(crate) fn give_up(&mut self, step: PressureStep) {
        if PressureStep::DropCaches <= step {
            self.drop_caches();
        }
        let is_tight = PressureStep::ShrinkCaches <= step;
        self.slots.set_tight(is_tight);
        if is_tight {
            self.slots.shrink();
        }
        if PressureStep::GiveBackPages <= step {
            self.file.give_back_all();
            if let Some(draft) = &self.engines.draft {
                draft.file.give_back_all();
            }
        }
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
    // After a panic somebody may still wait.
    while let Some(request) = shared.queue().try_request() {
        refuse(&shared, request);
    }
    drop(worker);
    shared.set_stopped();
}

impl Worker {
    fn run(&mut self) {
        self.start_up();
        self.take_up_pending();
        loop {
            if let Some(control) = self.shared.queue().try_control() {
                self.control(control);
                continue;
            }
            if self.loaded.as_mut().is_some_and(|loaded| serve_round(&self.shared, loaded)) {
                continue;
            }
            self.shared.set_idle(true);
            let next = self.shared.queue().next();
            self.shared.set_idle(false);
            match next {
                Next::Request(request) => match &mut self.loaded {
                    Some(loaded) => take_request(&self.shared, loaded, request),
                    None => refuse(&self.shared, request),
                },
                Next::Control(control) => self.control(control),
                Next::Closed => return,
            }
        }
    }

    fn control(&mut self, control: Control) {
        match control {
            Control::Prune(job) => self.run_job(&job),
            Control::Activate { id, reply } => {
                let result = self.activate(&id);
                // The caller may have gone.
                let _ = reply.send(result);
            }
            Control::Pressure => self.react_to_pressure(),
            Control::Relieve => self.relieve(),
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
        self.retire();
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
        let base = build_engine(&model, pool)?.with_precision(precision);
        let (draft, draft_view) = self.draft_for(&base, &model, known, fit);
        let footprint_bytes = fit.footprint.total_bytes() + draft.as_ref().map_or(0, |draft| draft.bytes);
        let engines = Engines { base, draft };
        let (tokenizer, vocab_size) = (model.tokenizer().clone(), model.file().config().vocab_size);
        let served = Arc::new(Served {
            max_token_bytes: longest_token_bytes(&tokenizer, vocab_size),
            grammars: Mutex::default(),
            tokenizer,
            model: ModelView { active: true, ..known.view.clone() },
            plan,
            draft: draft_view,
            context_len: fit.context_len,
            kv_dtype: fit.kv_dtype,
            vocab_size,
        });
        let limits = SlotLimits::new(&engines, &served, shared.options().parallel);
        let slots = Slots::new(limits);
        shared.set_served(Some(served.clone()));
        self.loaded = Some(Loaded {
            served,
            engines,
            slots,
            file: model.file().clone(),
            pacer: Pacer::new(),
            waiting: None,
            footprint_bytes,
            _hold: hold,
        });
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

    /// The draft of the options for a model that was planned as `fit`, and what is said of it.
    fn draft_for(
        &self,
        engine: &Engine,
        model: &OpenModel,
        known: &Known,
        fit: &PrunePlan,
    ) -> (Option<Draft>, Option<DraftView>) {
        let Some(name) = &self.shared.options().draft else { return (None, None) };
        let view = DraftView { model: name.clone(), bytes: 0, unused: None };
        match self.open_draft(name, engine, model, known, fit) {
            Ok(draft) => {
                let bytes = draft.bytes;
                (Some(draft), Some(DraftView { bytes, ..view }))
            }
            Err(error) => {
                let why = error_chain(&error);
                tracing::warn!(draft = name, why, "the draft is not used");
                (None, Some(DraftView { unused: Some(why), ..view }))
            }
        }
    }

    fn open_draft(
        &self,
        name: &str,
        engine: &Engine,
        model: &OpenModel,
        known: &Known,
        fit: &PrunePlan,
    ) -> Result<Draft, ServiceError> {
        let path = resolve_model(name, &self.shared.options().state_dir)?;
        if path == known.path {
            return Err(invalid("draft", "is the model itself"));
        }
        let need = CacheNeed {
            context_len: fit.context_len,
            kv_dtype: fit.kv_dtype,
            smaller_by: "context",
            precision: engine.precision(),
            extra_bytes: 0,
        };
        let mut draft = Draft::new(engine, model, &OpenModel::open(&path)?, &need)?;
        let needed = fit.footprint.total_bytes() + draft.bytes;
        if self.shared.budget_bytes() < needed {
            let message = format!(
                "the model and {name} beside it need {} ({needed} bytes), the memory budget is {}",
                format_bytes(needed),
                format_bytes(self.shared.budget_bytes()),
            );
            return Err(ServiceError::Refused { message, smallest_budget_bytes: Some(needed) });
        }
        let entries = self.shared.store().list()?.entries;
        let entry = entries.iter().find(|entry| entry.model_path() == path);
        draft._hold = entry.map(|entry| self.shared.store().hold(&entry.id)).transpose()?;
        Ok(draft)
    }

    /// Finishes the requests that were made for the model, then lets go of it: its caches, its mapping, its entry.
    pub(crate) fn retire(&mut self) {
        if self.shared.readiness().is_ready() {
            self.shared.set_readiness(Readiness::Loading);
        }
        // Waits for requests that are being prepared: what is queued after this is for the next model.
        self.shared.set_served(None);
        if let Some(mut loaded) = self.loaded.take() {
            while serve_round(&self.shared, &mut loaded) {}
        }
    }

    /// Acts on the latest memory hint.
    fn relieve(&mut self) {
        match (self.shared.hints().memory(), &mut self.loaded) {
            (MemoryPressure::None, None) => self.serve_again(),
            (MemoryPressure::None, Some(_)) | (_, None) => {}
            (MemoryPressure::Moderate, Some(loaded)) => loaded.drop_caches(),
            (MemoryPressure::Critical, Some(loaded)) => {
                let id = loaded.model_id();
                self.shared.set_last_served(Some(id));
                // Requests at work end at once: they are told why.
                self.retire();
                self.shared.set_readiness(Readiness::Released);
            }
        }
        secateur_tensor::kernels::heap::release_free_heap();
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
        let base = PlanRequest { dtype: Storage::Keep, tables: Storage::Keep, ..plan_settings.request()? };
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

    /// Lets requests wait for the next model instead of failing, when there is one before it.
    pub(crate) fn begin_swap(&self) -> Option<Swap> {
        self.loaded.is_some().then(|| Swap::begin(self.shared.clone()))
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
        let _swap = self.begin_swap();
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

/// Takes in what there is room for and moves every request on by a step. False when there was nothing to do.
pub(crate) fn serve_round(shared: &Shared, loaded: &mut Loaded) -> bool {
    while loaded.waiting.is_none() && loaded.slots.has_room() {
        let Some(request) = shared.queue().try_request() else { break };
        take_request(shared, loaded, request);
    }
    if let Some(request) = loaded.waiting.take() {
        take_request(shared, loaded, request);
    }
    if loaded.slots.n_active() == 0 {
        return false;
    }
    let Loaded { served, engines, slots, .. } = loaded;
    let ended = slots.turn(engines, served, &|| shared.tick(), &|| shared.drained());
    for Ended { result, sink, seconds, drafted } in ended {
        let mut counters = shared.counters();
        counters.request_took(seconds);
        let event = finish(shared, &mut counters.view, result, drafted);
        drop(counters);
        sink.send(event);
    }
    shared.set_running(loaded.slots.n_active() as u64);
    loaded.pacer.rest(shared.hints().thermal());
    true
}

/// Starts a request, or puts it aside until there is room.
fn take_request(shared: &Shared, loaded: &mut Loaded, request: Request) {
    match request {
        Request::Generate { sink, .. } if sink.is_cancelled() => {
            shared.counters().view.requests_cancelled_total += 1;
        }
        Request::Generate { prepared, sink } => {
            let PreparedRequest { request, grammar } = *prepared;
            let served = &loaded.served;
            let decoder = reply_decoder(&served.tokenizer);
            match Generation::new(request, decoder, grammar, served.vocab_size, served.context_len) {
                Ok(generation) => loaded.slots.admit(generation, sink),
                Err(error) => {
                    let event = finish(shared, &mut shared.counters().view, Err(error.into()), None);
                    sink.send(event);
                }
            }
        }
        Request::Embed { tokens, reply } => {
            if !loaded.slots.spare(tokens.len()) {
                loaded.waiting = Some(Request::Embed { tokens, reply });
                return;
            }
            shared.set_running(1);
            let started = Instant::now();
            let cancelled = || {
                shared.tick();
                reply.is_closed() || shared.drained()
            };
            let session = loaded.engines.base.session(tokens.len(), loaded.served.kv_dtype);
            let values = session.and_then(|mut session| session.embed(&tokens, &cancelled));
            let view = values.map(|values| EmbeddingView { values, prompt_tokens: tokens.len() });
            let mut counters = shared.counters();
            counters.view.prompt_tokens_total += tokens.len() as u64;
            counters.view.requests_failed_total += u64::from(view.is_err());
            counters.request_took(started.elapsed().as_secs_f64());
            drop(counters);
            shared.set_running(loaded.slots.n_active() as u64);
            // The caller may have gone.
            let _ = reply.send(view.map_err(ServiceError::from));
        }
    }
}

/// Answers a request for which there is no model.
fn refuse(shared: &Shared, request: Request) {
    match request {
        Request::Generate { sink, .. } => sink.send(GenerationEvent::Failed(not_loaded(shared))),
        Request::Embed { reply, .. } => {
            let _ = reply.send(Err(not_loaded(shared)));
        }
    }
}

fn not_loaded(shared: &Shared) -> ServiceError {
    shared.served().err().unwrap_or(ServiceError::NotReady { message: "the model has just changed".into() })
}

/// Counts a request that has ended and says so to its reader.
fn finish(
    shared: &Shared,
    view: &mut MetricsView,
    result: Result<Finished, ServiceError>,
    drafted: Option<DraftCounts>,
) -> GenerationEvent {
    let DraftCounts { guessed, accepted, .. } = drafted.unwrap_or_default();
    view.draft_tokens_total += guessed;
    view.draft_accepted_tokens_total += accepted;
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
                return GenerationEvent::Failed(shared.end_reason());
            }
            GenerationEvent::Finished { reason, stop_string, usage, timings, drafted }
        }
        Err(error) => {
            view.requests_failed_total += 1;
            if let ServiceError::Internal { message } = &error {
                tracing::error!(error = message, "a request failed");
            }
            GenerationEvent::Failed(error)
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
