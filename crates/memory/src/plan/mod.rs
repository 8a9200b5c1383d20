//! The planner: from a shape, its weights and a number of bytes to a decision. Pure.
//!
//! All shapes that may be planned for a model stand on one [`ladder::Ladder`], from untouched to the deepest
//! cut. [`plan`] takes the first rung whose footprint fits, so it cuts as little as it can, and the least
//! footprint of all rungs is the smallest feasible budget, exactly. At a given context length more budget
//! never means more pruning.
//!
//! When no context length is asked for, a long context is given up before much of the model: the context
//! starts at [`DEFAULT_CONTEXT_LEN`] and is halved, not below [`MIN_CONTEXT_LEN`], while it would force out
//! more than [`SHORTER_CONTEXT_RATIO`] of the layers' parameters. More budget then never means a shorter
//! context, nor more pruning at the same context. (It may mean more pruning at a longer context: there is no
//! rule that keeps the context while it is cheap and is monotone in both.)
//!
//! With [`Storage::Auto`] matrices may be stored in fewer bits before anything is cut: 4 bits cost far less than
//! pruning as many bytes, above all in token table and output head, which are a third of a small model. Of all ways
//! that fit, the plan keeps the longest context, then the least predicted perplexity. Keys and values come first of all:
//! unless a type is asked for, they are kept as q8_0 where f16 would force something out.
//!
//! A plan is about serving: weights, cache, activations and the program itself. What pruning needs on its
//! way is bounded by the pruner. With [`PlanPolicy::Quality`] the pruner may move width between layers at
//! equal parameters; the footprint allows for it by counting the widest layer of the base.

mod ladder;
mod predict;
mod reason;
mod weights;

pub use predict::predicted_perplexity_factor;
use weights::is_for_layers;
pub use weights::{LayerWeights, WeightsSummary};

use crate::size::format_bytes;
use ladder::Ladder;
use predict::{LAYER_DTYPES, TABLE_DTYPES, cache_factor, storage_factor};
use secateur_model::{
    ConfigError, DType, Footprint, KvDType, LayerConfig, ModelConfig, PlanAction, PlanPolicy, PrunePlan,
    PruneRatio, activations_bytes, kv_cache_bytes, writable_dtype,
};

/// Context length when none is asked for, if the model was trained for as much.
pub const DEFAULT_CONTEXT_LEN: usize = 2048;
/// The context is not halved below this.
pub const MIN_CONTEXT_LEN: usize = 512;
/// The context is halved while it would force out more than this share of the layers' parameters.
pub const SHORTER_CONTEXT_RATIO: f64 = 0.25;
/// Share of the layers' parameters beyond which nothing worth serving is left.
pub const MAX_RATIO: f64 = 0.8;
/// Tokens of a prompt that pass through the layers together.
pub const DEFAULT_PREFILL_TOKENS: usize = 256;
/// The program without a model: code, tokenizer, server, allocator overhead.
pub const DEFAULT_RUNTIME_BYTES: u64 = 24 << 20;

/// How matrices may be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// As they are.
    #[default]
    Keep,
    /// In this dtype.
    As(DType),
    /// In whatever costs least for a budget. A plan by ratio keeps them.
    Auto,
}

impl Storage {
    /// The dtype asked for; `None` for what is kept.
    #[must_use]
    pub fn asked(self) -> Option<DType> {
        match self {
            Self::As(dtype) => Some(dtype),
            Self::Keep | Self::Auto => None,
        }
    }

    /// Whether this, asked for all matrices, is for token table and output head too: 4 bits are not.
    #[must_use]
    pub fn covers_tables(self) -> bool {
        self.asked().is_some_and(|dtype| !is_for_layers(dtype))
    }
}

/// What is wanted of a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlanRequest {
    /// Context length to have memory for; `None`: see the rules of the module.
    pub context_len: Option<usize>,
    /// Freedom of the pruner.
    pub policy: PlanPolicy,
    /// How all matrices of the result are stored; 4 bits are for those of the layers alone.
    pub dtype: Storage,
    /// How token table and output head may be stored, when `dtype` leaves them alone: only where that is smaller.
    pub tables: Storage,
    /// How keys and values are kept. `None`: as f16, or as q8_0 where a budget asks for less memory.
    pub kv_dtype: Option<KvDType>,
    /// What the program itself needs.
    pub runtime_bytes: u64,
    /// Tokens of a prompt that pass through the layers together.
    pub prefill_tokens: usize,
}

impl Default for PlanRequest {
    fn default() -> Self {
        Self {
            context_len: None,
            policy: PlanPolicy::default(),
            dtype: Storage::Keep,
            tables: Storage::Keep,
            kv_dtype: None,
            runtime_bytes: DEFAULT_RUNTIME_BYTES,
            prefill_tokens: DEFAULT_PREFILL_TOKENS,
        }
    }
}

impl PlanRequest {
    /// How keys and values are kept where memory is no matter.
    fn base_kv(&self) -> KvDType {
        self.kv_dtype.unwrap_or_default()
    }
}

/// Nothing that may be planned fits the budget.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the smallest feasible memory budget is {smallest_budget_bytes} bytes ({}), given are {available_bytes}: {reason}",
    format_bytes(*smallest_budget_bytes)
)]
pub struct Refusal {
    /// The least budget for which the same request has a plan: exact to the byte.
    pub smallest_budget_bytes: u64,
    /// What the untouched model would need.
    pub needed_bytes: u64,
    /// The budget.
    pub available_bytes: u64,
    /// Why no less will do, for people.
    pub reason: String,
}

/// Why there is no plan.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The budget is too small.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The model's configuration is not one we can run.
    #[error("the model cannot be planned for")]
    Config(#[from] ConfigError),
    /// The context asked for is not one of this model.
    #[error("context length {asked} is not in 1..={max}, which is what the model was trained for")]
    Context {
        /// Tokens asked for.
        asked: usize,
        /// Tokens the model was trained for.
        max: usize,
    },
    /// The dtype can be read but not written.
    #[error("dtype `{0}` cannot be written: ask for f32, f16, bf16, q8_0, q4_0 or q4_1")]
    DType(DType),
    /// Heads of this width cannot be kept so.
    #[error(
        "keys and values of heads with {head_dim} values cannot be kept as {kv_dtype}, which takes them in groups of 32: choose f16"
    )]
    KvDType {
        /// How they should be kept.
        kv_dtype: &'static str,
        /// Values in a head.
        head_dim: usize,
    },
    /// More than can be removed.
    #[error("ratio {asked} is beyond what may be removed of this model: at most {reachable}")]
    Ratio {
        /// What was asked for.
        asked: PruneRatio,
        /// The deepest cut.
        reachable: PruneRatio,
    },
    /// The summary is one of another model.
    #[error("{layers} layers are configured, weights of {summarised} layers are summarised")]
    Mismatch {
        /// Layers in the configuration.
        layers: usize,
        /// Layers in the summary.
        summarised: usize,
    },
}

/// Decides what to cut so that serving stays within `budget_bytes`.
/// # Errors
/// [`PlanError::Refused`] when nothing fits; the others when the request makes no sense for the model.
pub fn plan(
    config: &ModelConfig,
    weights: &WeightsSummary,
    budget_bytes: u64,
    request: &PlanRequest,
) -> Result<PrunePlan, PlanError> {
    let plan = |kv_dtype| plan_with_cache(config, weights, budget_bytes, request, kv_dtype);
    let first = plan(request.base_kv());
    if request.kv_dtype.is_some() || KvDType::Q8_0.row_bytes(config.head_dim).is_none() {
        return first;
    }
    let second = plan(KvDType::Q8_0);
    if is_better(&second, &first) { second } else { first }
}

fn plan_with_cache(
    config: &ModelConfig,
    weights: &WeightsSummary,
    budget_bytes: u64,
    request: &PlanRequest,
    kv_dtype: KvDType,
) -> Result<PrunePlan, PlanError> {
    if request.dtype == Storage::Auto || request.tables == Storage::Auto {
        return plan_any_storage(config, weights, budget_bytes, request, kv_dtype);
    }
    let planner = Planner::new(config, weights, request, kv_dtype)?;
    let contexts = context_lens(config, request)?;
    let mut first_need = None;
    for (nth, &context_len) in contexts.iter().enumerate() {
        let is_last = nth + 1 == contexts.len();
        let fitting = planner.first_fitting(context_len, budget_bytes);
        let Some(rung) = fitting else {
            first_need.get_or_insert(None);
            continue;
        };
        let ratio = planner.ladder.ratio(rung);
        if is_last || ratio <= SHORTER_CONTEXT_RATIO {
            let mut plan = planner.plan_at(rung, context_len)?;
            plan.reason = reason::of_budget(&planner, &plan, budget_bytes, contexts[0], first_need.flatten());
            return Ok(plan);
        }
        first_need.get_or_insert(Some(ratio));
    }
    let context_len = contexts[contexts.len() - 1];
    Err(planner.refuse(context_len, budget_bytes).into())
}

/// The best plan over all ways to store the matrices that the request leaves open.
fn plan_any_storage(
    config: &ModelConfig,
    weights: &WeightsSummary,
    budget_bytes: u64,
    request: &PlanRequest,
    kv_dtype: KvDType,
) -> Result<PrunePlan, PlanError> {
    let mut best: Option<Result<PrunePlan, PlanError>> = None;
    for dtype in candidates(request.dtype, &LAYER_DTYPES) {
        let is_open = request.dtype == Storage::Auto;
        let is_contrary = dtype.covers_tables() && request.tables.asked().is_some();
        let is_no_smaller = dtype.asked().is_some_and(|dtype| !weights.shrinks_layers(config, dtype));
        if is_open && (is_contrary || is_no_smaller) {
            continue;
        }
        let tables = if dtype.covers_tables() {
            vec![Storage::Keep]
        } else {
            candidates(request.tables, &TABLE_DTYPES)
        };
        for tables in tables {
            if request.tables == Storage::Auto
                && tables.asked().is_some_and(|dtype| weights.with_tables(config, dtype).is_none())
            {
                continue;
            }
            let request = PlanRequest { dtype, tables, ..*request };
            let next = plan_with_cache(config, weights, budget_bytes, &request, kv_dtype);
            if best.as_ref().is_none_or(|best| is_better(&next, best)) {
                best = Some(next);
            }
        }
    }
    best.expect("keeping everything is always tried")
}

/// What an open choice may be; keeping things as they are comes first and wins a tie.
fn candidates(asked: Storage, known: &[(DType, f64)]) -> Vec<Storage> {
    match asked {
        Storage::Auto => {
            std::iter::once(Storage::Keep).chain(known.iter().map(|(dtype, _)| Storage::As(*dtype))).collect()
        }
        fixed => vec![fixed],
    }
}

/// The longer context, then the lower predicted perplexity; of refusals the one that asks for less.
fn is_better(next: &Result<PrunePlan, PlanError>, best: &Result<PrunePlan, PlanError>) -> bool {
    match (best, next) {
        (Ok(best), Ok(next)) => {
            let of_context = best.context_len.cmp(&next.context_len);
            let factor = |plan: &PrunePlan| plan.predicted_perplexity_factor;
            of_context.then(factor(best).total_cmp(&factor(next)).reverse()).is_lt()
        }
        (Err(PlanError::Refused(best)), Err(PlanError::Refused(next))) => {
            next.smallest_budget_bytes < best.smallest_budget_bytes
        }
        (Err(PlanError::Refused(_)), Ok(_)) => true,
        _ => false,
    }
}

/// Plans the removal of a given share of the layers' parameters, whatever the memory.
///
/// The plan's ratio is the one reached: the nearest there is, see [`PlanPolicy`]; with
/// [`PlanPolicy::Quality`] it is within half a step of one layer. The context is the one asked for or
/// [`DEFAULT_CONTEXT_LEN`].
/// # Errors
/// [`PlanError::Ratio`] when so much cannot be removed; the others when the request makes no sense.
pub fn plan_ratio(
    config: &ModelConfig,
    weights: &WeightsSummary,
    ratio: PruneRatio,
    request: &PlanRequest,
) -> Result<PrunePlan, PlanError> {
    let planner = Planner::new(config, weights, request, request.base_kv())?;
    let context_len = context_lens(config, request)?[0];
    let rung = planner.ladder.nearest(ratio.get()).ok_or_else(|| PlanError::Ratio {
        asked: ratio,
        reachable: planner.ladder.prune_ratio(planner.ladder.n_rungs() - 1),
    })?;
    let mut plan = planner.plan_at(rung, context_len)?;
    plan.reason = reason::of_ratio(&planner, &plan, ratio);
    Ok(plan)
}

/// What serving the untouched model needs.
/// # Errors
/// As [`plan`], refusal excepted.
pub fn footprint(
    config: &ModelConfig,
    weights: &WeightsSummary,
    context_len: usize,
    request: &PlanRequest,
) -> Result<Footprint, PlanError> {
    let kept = Storage::Keep;
    let request = PlanRequest { context_len: Some(context_len), dtype: kept, tables: kept, ..*request };
    let planner = Planner::new(config, weights, &request, request.base_kv())?;
    context_lens(config, &request)?;
    Ok(planner.base_footprint(context_len))
}

/// Context lengths to try, longest first; never empty.
fn context_lens(config: &ModelConfig, request: &PlanRequest) -> Result<Vec<usize>, PlanError> {
    let max = config.max_position_embeddings;
    if let Some(asked) = request.context_len {
        let known = (1..=max).contains(&asked);
        return if known { Ok(vec![asked]) } else { Err(PlanError::Context { asked, max }) };
    }
    let longest = DEFAULT_CONTEXT_LEN.min(max);
    let halved = std::iter::successors(Some(longest), |len| Some(len / 2));
    Ok(halved.take_while(|&len| len == longest || MIN_CONTEXT_LEN <= len).collect())
}

/// A request together with the ladder of its model.
struct Planner<'a> {
    config: &'a ModelConfig,
    base_weights: &'a WeightsSummary,
    /// With the tables as they will be stored.
    weights: WeightsSummary,
    request: &'a PlanRequest,
    /// How keys and values are kept.
    kv_dtype: KvDType,
    ladder: Ladder,
    /// The dtype of the tables when they are stored anew.
    tables: Option<DType>,
    /// The dtype when it has to be changed, so that even an uncut model is rewritten.
    rewrite: Option<DType>,
}

impl<'a> Planner<'a> {
    fn new(
        config: &'a ModelConfig,
        base_weights: &'a WeightsSummary,
        request: &'a PlanRequest,
        kv_dtype: KvDType,
    ) -> Result<Self, PlanError> {
        config.validate()?;
        let (layers, summarised) = (config.n_layers(), base_weights.layers.len());
        if layers != summarised {
            return Err(PlanError::Mismatch { layers, summarised });
        }
        let head_dim = config.head_dim;
        if kv_dtype.row_bytes(head_dim).is_none() {
            return Err(PlanError::KvDType { kv_dtype: kv_dtype.name(), head_dim });
        }
        let (dtype, tables) = (request.dtype.asked(), request.tables.asked());
        let asked = dtype.into_iter().chain(tables);
        if let Some(dtype) = asked.into_iter().find(|&dtype| writable_dtype(dtype) != dtype) {
            return Err(PlanError::DType(dtype));
        }
        let restored = tables.and_then(|dtype| base_weights.with_tables(config, dtype));
        let tables = tables.filter(|_| restored.is_some());
        let weights = restored.unwrap_or_else(|| base_weights.clone());
        let rewrite = dtype.filter(|&dtype| !weights.is_all(config, dtype));
        let ladder = Ladder::new(config, &weights, request);
        Ok(Self { config, base_weights, weights, request, kv_dtype, ladder, tables, rewrite })
    }

    fn footprint(&self, weights_bytes: u64, layers: &[LayerConfig], context_len: usize) -> Footprint {
        let request = self.request;
        let n_tokens = request.prefill_tokens.clamp(1, context_len);
        // The pruner may leave one layer as wide as it was and take more from the others.
        let widest = match request.policy {
            PlanPolicy::Quality => &self.config.layers,
            PlanPolicy::Compatible => layers,
        };
        Footprint {
            weights_bytes,
            kv_cache_bytes: kv_cache_bytes(self.config, layers, context_len, self.kv_dtype),
            activations_bytes: activations_bytes(self.config, widest, n_tokens),
            runtime_bytes: request.runtime_bytes,
        }
    }

    fn base_footprint(&self, context_len: usize) -> Footprint {
        let weights_bytes = self.base_weights.base_bytes(self.config);
        let (layers, kv_dtype) = (&self.config.layers, self.request.base_kv());
        Footprint {
            kv_cache_bytes: kv_cache_bytes(self.config, layers, context_len, kv_dtype),
            ..self.footprint(weights_bytes, layers, context_len)
        }
    }

    fn rung_footprint(&self, rung: usize, context_len: usize) -> Footprint {
        let layers = self.ladder.shape(rung);
        let weights_bytes = self.weights.bytes(self.config, &layers, self.rewrite);
        self.footprint(weights_bytes, &layers, context_len)
    }

    /// The least cut that fits.
    fn first_fitting(&self, context_len: usize, budget_bytes: u64) -> Option<usize> {
        let mut totals = self.totals(context_len);
        totals.find(|(_, total)| *total <= budget_bytes).map(|(rung, _)| rung)
    }

    /// Every rung with its total footprint, shallow first. Only the layers that a rung changes are counted
    /// anew, so that a pass is linear in the steps of the ladder.
    fn totals(&self, context_len: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let mut layers = self.config.layers.clone();
        let layer_bytes = |layers: &[LayerConfig], layer_idx: usize| {
            self.weights.layer_bytes(self.config, layers, layer_idx, self.rewrite)
        };
        let mut weights_bytes = self.weights.bytes(self.config, &layers, self.rewrite);
        let compatible = self.request.policy == PlanPolicy::Compatible;
        let mut footprint = self.footprint(weights_bytes, &layers, context_len);
        (0..self.ladder.n_rungs()).map(move |rung| {
            for step in self.ladder.steps_of(rung) {
                let layer_idx = step.layer_idx;
                let old_layer = layers[layer_idx];
                weights_bytes -= layer_bytes(&layers, layer_idx);
                layers[layer_idx] = step.layer;
                weights_bytes += layer_bytes(&layers, layer_idx);
                if old_layer.num_key_value_heads != step.layer.num_key_value_heads {
                    footprint.kv_cache_bytes =
                        kv_cache_bytes(self.config, &layers, context_len, self.kv_dtype);
                }
            }
            if compatible {
                footprint = self.footprint(weights_bytes, &layers, context_len);
            }
            footprint.weights_bytes = weights_bytes;
            (rung, footprint.total_bytes())
        })
    }

    fn plan_at(&self, rung: usize, context_len: usize) -> Result<PrunePlan, PlanError> {
        let ratio = self.ladder.prune_ratio(rung);
        let untouched = rung == 0 && self.rewrite.is_none() && self.tables.is_none();
        Ok(PrunePlan {
            action: if untouched { PlanAction::Untouched } else { PlanAction::Prune },
            policy: self.request.policy,
            ratio,
            dtype: self.request.dtype.asked(),
            table_dtype: self.tables,
            layers_to_remove: Vec::new(),
            layers: self.ladder.shape(rung),
            context_len,
            kv_dtype: self.kv_dtype,
            base_footprint: self.base_footprint(context_len),
            footprint: self.rung_footprint(rung, context_len),
            predicted_perplexity_factor: predicted_perplexity_factor(ratio)
                * storage_factor(&TABLE_DTYPES, self.tables)
                * storage_factor(&LAYER_DTYPES, self.rewrite)
                * cache_factor(self.kv_dtype),
            reason: String::new(),
        })
    }

    fn refuse(&self, context_len: usize, budget_bytes: u64) -> Refusal {
        let least = self.totals(context_len).min_by_key(|(_, total)| *total);
        let (rung, smallest_budget_bytes) = least.expect("every ladder has the untouched model");
        Refusal {
            smallest_budget_bytes,
            needed_bytes: self.base_footprint(context_len).total_bytes(),
            available_bytes: budget_bytes,
            reason: reason::of_refusal(self, rung, context_len),
        }
    }
}
