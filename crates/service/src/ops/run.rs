//! An engine within a budget, for functions that run a model once.

use crate::ServiceError;
use crate::budget::{Budget, PlanSettings, summarize};
use crate::convert::data_error;
use crate::opened::OpenModel;
use secateur_engine::{Engine, EngineError, EngineOptions};
use secateur_memory::{PlanRequest, format_bytes};
use secateur_model::KvDType;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// `auto`, a size or a percentage: the bound on the whole process.
    pub memory_budget: String,
    /// Threads that compute; what the device allows when absent.
    pub n_threads: Option<usize>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { memory_budget: "auto".to_owned(), n_threads: None }
    }
}

/// Most threads that may be asked for.
const MAX_THREADS: usize = 256;

impl RunOptions {
    /// The budget in bytes, and the number of threads.
    /// # Errors
    /// [`ServiceError::Invalid`].
    pub(crate) fn resolve(&self) -> Result<(Budget, usize), ServiceError> {
        let budget = Budget::resolve(&self.memory_budget)?;
        if let Some(warning) = &budget.resolved.warning {
            tracing::warn!("{warning}");
        }
        let n_threads = threads(self.n_threads, &budget)?;
        Ok((budget, n_threads))
    }
}

/// The number of threads asked for, or those the device allows.
/// # Errors
/// [`ServiceError::Invalid`] for none or too many.
pub(crate) fn threads(asked: Option<usize>, budget: &Budget) -> Result<usize, ServiceError> {
    match asked {
        None => Ok(budget.status.cpu.usable_cores.clamp(1, MAX_THREADS)),
        Some(n_threads) if (1..=MAX_THREADS).contains(&n_threads) => Ok(n_threads),
        Some(n_threads) => {
            let message = format!("{n_threads} is not in 1..={MAX_THREADS}");
            Err(crate::convert::invalid("threads", message))
        }
    }
}

/// What a run needs of the cache.
pub(crate) struct CacheNeed {
    /// Tokens in it.
    pub(crate) context_len: usize,
    /// How they are kept.
    pub(crate) kv_dtype: KvDType,
    /// Setting that makes it smaller, for the error.
    pub(crate) smaller_by: &'static str,
}

/// Builds an engine when running with such a cache stays within the budget.
/// # Errors
/// [`ServiceError::Refused`] with the budget that would do; what the engine says of the weights.
pub(crate) fn engine_within(
    model: &OpenModel,
    options: &RunOptions,
    need: &CacheNeed,
) -> Result<Engine, ServiceError> {
    let (budget, n_threads) = options.resolve()?;
    check_fits(model, budget.bytes(), need)?;
    build_engine(model, n_threads)
}

pub(crate) fn build_engine(model: &OpenModel, n_threads: usize) -> Result<Engine, ServiceError> {
    Engine::new(model.source(), EngineOptions { n_threads }).map_err(|error| match error {
        EngineError::Cancelled => ServiceError::Cancelled,
        other => data_error(model.file().path(), &other),
    })
}

fn check_fits(model: &OpenModel, budget_bytes: u64, need: &CacheNeed) -> Result<(), ServiceError> {
    let file = model.file();
    let request = PlanRequest { kv_dtype: need.kv_dtype, ..PlanSettings::default().request()? };
    // Evaluation may use windows beyond the trained length; memory does not care.
    let mut config = file_config(model);
    config.max_position_embeddings = config.max_position_embeddings.max(need.context_len);
    let footprint = secateur_memory::footprint(&config, &summarize(file)?, need.context_len, &request)?;
    let needed_bytes = footprint.total_bytes();
    if needed_bytes <= budget_bytes {
        return Ok(());
    }
    let message = format!(
        "running {} with {} tokens of context needs {} ({needed_bytes} bytes), the memory budget is {}: give \
         --memory-budget {needed_bytes} or more, a smaller {}, or prune the model first with `secateur prune`",
        file.path().display(),
        need.context_len,
        format_bytes(needed_bytes),
        format_bytes(budget_bytes),
        need.smaller_by,
    );
    Err(ServiceError::Refused { message, smallest_budget_bytes: Some(needed_bytes) })
}

fn file_config(model: &OpenModel) -> secateur_model::ModelConfig {
    use secateur_model::WeightSource;
    model.file().config().clone()
}
