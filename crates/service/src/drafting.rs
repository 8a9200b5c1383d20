//! What computes answers: a model, and where there is one, a smaller model that guesses ahead of it.
//!
//! A draft changes the speed of answers and nothing else, so a service whose draft cannot be used answers without it, and
//! says why. Memory: a draft has weights, a cache and buffers of its own, but shares the program and the threads.

use crate::ServiceError;
use crate::convert::invalid;
use crate::opened::OpenModel;
use crate::ops::{CacheNeed, build_engine, footprint};
use secateur_engine::{Engine, EngineError, MAX_EACH, Precision, Session};
use secateur_generate::{DraftCounts, Drafted, PREFILL_STEP, TokenModel};
use secateur_model::{KvDType, WeightSource, kv_cache_bytes};
use secateur_model_file::ModelFile;
use secateur_store::EntryInUse;

/// The draft of a running service.
pub(crate) struct Draft {
    engine: Engine,
    pub(crate) file: ModelFile,
    /// What it takes beside the model.
    pub(crate) bytes: u64,
    /// Keeps its entry in the store.
    pub(crate) _hold: Option<EntryInUse>,
}

impl Draft {
    /// Makes `draft` ready to guess for `model`, which `engine` runs, with a cache like that of `need`.
    /// # Errors
    /// [`ServiceError::Invalid`] when it can never guess for this model; what the engine says of its weights.
    pub(crate) fn new(
        engine: &Engine,
        model: &OpenModel,
        draft: &OpenModel,
        need: &CacheNeed,
    ) -> Result<Self, ServiceError> {
        if !same_vocabulary(model, draft) {
            let message = "has another vocabulary than the model: a draft must be a pruned form of it";
            return Err(invalid("draft", message));
        }
        check_precision(engine.precision())?;
        // Both never compute at once, so they share the threads.
        let own = build_engine(draft, engine.pool())?.with_precision(engine.precision());
        // A cache of this kind may be impossible with its heads.
        own.session(1, need.kv_dtype)?;
        Ok(Self { engine: own, file: draft.file().clone(), bytes: draft_bytes(draft, need)?, _hold: None })
    }

    /// An empty cache for it.
    /// # Errors
    /// As [`Engine::session`].
    pub(crate) fn session(&self, context_len: usize, kv_dtype: KvDType) -> Result<Session, EngineError> {
        self.engine.session(context_len, kv_dtype)
    }
}

/// What a draft takes beside the model it guesses for.
/// # Errors
/// [`ServiceError::Invalid`] for a context that it cannot have.
pub(crate) fn draft_bytes(draft: &OpenModel, need: &CacheNeed) -> Result<u64, ServiceError> {
    let needed = footprint(draft, need)?;
    let guesses = 4 * (MAX_EACH - 1) * draft.file().config().vocab_size;
    Ok(needed.total_bytes() - needed.runtime_bytes + guesses as u64)
}

/// # Errors
/// [`ServiceError::Invalid`] when answers with a draft would differ from those without.
pub(crate) fn check_precision(precision: Precision) -> Result<(), ServiceError> {
    if precision == Precision::Int8 {
        return Ok(());
    }
    let message = "needs --precision int8: only then is a token computed alike alone and with its guesses";
    Err(invalid("draft", message))
}

fn same_vocabulary(model: &OpenModel, draft: &OpenModel) -> bool {
    let (a, b) = (model.tokenizer(), draft.tokenizer());
    let len = model.file().config().vocab_size;
    let ids = 0..u32::try_from(len).unwrap_or(u32::MAX);
    len == draft.file().config().vocab_size
        && ids.into_iter().all(|id| a.token_bytes(id) == b.token_bytes(id))
}

/// The engines of a running service.
pub(crate) struct Engines {
    pub(crate) base: Engine,
    pub(crate) draft: Option<Draft>,
}

impl Engines {
    /// An empty cache with `places`.
    /// # Errors
    /// As [`Engine::session`].
    pub(crate) fn session(&self, places: usize, kv_dtype: KvDType) -> Result<Answering, EngineError> {
        let base = self.base.session(places, kv_dtype)?;
        Ok(match &self.draft {
            None => Answering::Alone(base),
            Some(draft) => Answering::Drafted(Box::new(Drafted::new(base, draft.session(places, kv_dtype)?))),
        })
    }

    /// Bytes of a place in the caches of one request.
    pub(crate) fn place_bytes(&self, kv_dtype: KvDType) -> u64 {
        let engines = std::iter::once(&self.base).chain(self.draft.as_ref().map(|draft| &draft.engine));
        engines.map(|engine| kv_cache_bytes(engine.config(), &engine.config().layers, 1, kv_dtype)).sum()
    }

    /// Bytes that a request takes beside its places: logits, and the hidden states of one piece of a prompt, f32.
    pub(crate) fn request_bytes(&self) -> u64 {
        let bytes = |engine: &Engine, n_logits: usize| {
            let config = engine.config();
            4 * (n_logits * config.vocab_size + (PREFILL_STEP + 2) * config.hidden_size) as u64
        };
        match &self.draft {
            None => bytes(&self.base, 1),
            Some(draft) => bytes(&self.base, MAX_EACH) + bytes(&draft.engine, 1),
        }
    }
}

/// What answers one request.
pub(crate) enum Answering {
    Alone(Session),
    Drafted(Box<Drafted<Session, Session>>),
}

impl Answering {
    /// Gives the cache other places; see [`Session::resize`].
    /// # Errors
    /// As [`Session::resize`].
    pub(crate) fn resize(&mut self, places: usize) -> Result<(), EngineError> {
        match self {
            Self::Alone(session) => session.resize(places),
            Self::Drafted(drafted) => drafted.resize(places),
        }
    }

    /// A copy that has read the first `n_tokens`; see [`Session::fork`].
    /// # Errors
    /// As [`Session::fork`].
    pub(crate) fn fork(&self, n_tokens: usize, places: usize) -> Result<Self, EngineError> {
        Ok(match self {
            Self::Alone(session) => Self::Alone(session.fork(n_tokens, places)?),
            Self::Drafted(drafted) => Self::Drafted(Box::new(drafted.fork(n_tokens, places)?)),
        })
    }

    /// What became of guesses since this was last asked.
    pub(crate) fn take_counts(&mut self) -> DraftCounts {
        match self {
            Self::Alone(_) => DraftCounts::default(),
            Self::Drafted(drafted) => drafted.take_counts(),
        }
    }
}

impl TokenModel for Answering {
    fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        match self {
            Self::Alone(session) => session.extend(tokens, cancelled),
            Self::Drafted(drafted) => drafted.extend(tokens, cancelled),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Alone(session) => session.len(),
            Self::Drafted(drafted) => drafted.len(),
        }
    }

    fn context_len(&self) -> usize {
        match self {
            Self::Alone(session) => session.context_len(),
            Self::Drafted(drafted) => drafted.context_len(),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Alone(session) => session.truncate(len),
            Self::Drafted(drafted) => drafted.truncate(len),
        }
    }

    fn vocab_size(&self) -> usize {
        match self {
            Self::Alone(session) => TokenModel::vocab_size(session),
            Self::Drafted(drafted) => drafted.vocab_size(),
        }
    }
}
