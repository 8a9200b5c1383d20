//! An engine within a budget, for functions that run a model once.

use crate::ServiceError;
use crate::budget::{Budget, PlanSettings, parse_kv_dtype, summarize};
use crate::convert::data_error;
use crate::opened::OpenModel;
use secateur_engine::{Engine, EngineError, Precision};
use secateur_memory::{PlanRequest, format_bytes};
use secateur_model::{Footprint, KvDType};
use secateur_tensor::kernels::ThreadPool;
use std::sync::Arc;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// `auto`, a size or a percentage: the bound on the whole process.
    pub memory_budget: String,
    /// Threads that compute; what the device allows when absent.
    pub n_threads: Option<usize>,
    /// `f32` or `int8`: how activations enter products with weights. Answers and their speed are computed with
    /// `int8` when absent, measures of quality with `f32`.
    pub precision: Option<String>,
    /// `f32`, `f16` or `q8_0`: how keys and values are kept. `f16` when absent or `auto`, for measures of quality `f32`.
    pub kv_dtype: Option<String>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { memory_budget: "auto".to_owned(), n_threads: None, precision: None, kv_dtype: None }
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

    /// How keys and values are kept.
    /// # Errors
    /// [`ServiceError::Invalid`].
    pub(crate) fn kv_dtype(&self, default: KvDType) -> Result<KvDType, ServiceError> {
        Ok(parse_kv_dtype(self.kv_dtype.as_deref())?.unwrap_or(default))
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

/// The precision asked for, or `default`.
/// # Errors
/// [`ServiceError::Invalid`] for another name.
pub(crate) fn precision(asked: Option<&str>, default: Precision) -> Result<Precision, ServiceError> {
    let Some(name) = asked else { return Ok(default) };
    let unknown =
        || crate::convert::invalid("precision", format!("`{name}` is not known, allowed are f32, int8"));
    Precision::from_name(name).ok_or_else(unknown)
}

/// What a run needs of the cache.
pub(crate) struct CacheNeed {
    /// Tokens in it.
    pub(crate) context_len: usize,
    /// How they are kept.
    pub(crate) kv_dtype: KvDType,
    /// Setting that makes it smaller, for the error.
    pub(crate) smaller_by: &'static str,
    /// How activations enter products when the options do not say.
    pub(crate) precision: Precision,
    /// Memory beyond that of the model and its cache.
    pub(crate) extra_bytes: u64,
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
    let precision = precision(options.precision.as_deref(), need.precision)?;
    check_fits(model, budget.bytes(), need)?;
    Ok(build_engine(model, Arc::new(ThreadPool::new(n_threads)))?.with_precision(precision))
}

pub(crate) fn build_engine(model: &OpenModel, pool: Arc<ThreadPool>) -> Result<Engine, ServiceError> {
    Engine::with_pool(model.source(), pool).map_err(|error| match error {
        EngineError::Cancelled => ServiceError::Cancelled,
        other => data_error(model.file().path(), &other),
    })
}

/// What running a model with such a cache takes.
pub(crate) fn footprint(model: &OpenModel, need: &CacheNeed) -> Result<Footprint, ServiceError> {
    let file = model.file();
    let request = PlanRequest { kv_dtype: Some(need.kv_dtype), ..PlanSettings::default().request()? };
    // Evaluation may use windows beyond the trained length; memory does not care.
    let mut config = file_config(model);
    config.max_position_embeddings = config.max_position_embeddings.max(need.context_len);
    Ok(secateur_memory::footprint(&config, &summarize(file)?, need.context_len, &request)?)
}

fn check_fits(model: &OpenModel, budget_bytes: u64, need: &CacheNeed) -> Result<(), ServiceError> {
    let needed_bytes = footprint(model, need)?.total_bytes() + need.extra_bytes;
    if needed_bytes <= budget_bytes {
        return Ok(());
    }
    let message = format!(
        "running {} with {} tokens of context needs {} ({needed_bytes} bytes), the memory budget is {}: give \
         --memory-budget {needed_bytes} or more, a smaller {}, or prune the model first with `secateur prune`",
        model.file().path().display(),
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
