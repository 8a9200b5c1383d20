//! Plans in words.

use super::{Planner, SHORTER_CONTEXT_RATIO};
use crate::size::format_bytes;
use secateur_model::{LayerConfig, PlanAction, PrunePlan, PruneRatio, kv_cache_bytes};

/// Why a plan for a budget is as it is. `first_need`: the ratio that the longest context would have needed,
/// `None` when it would not have fitted at all.
pub(super) fn of_budget(
    planner: &Planner<'_>,
    plan: &PrunePlan,
    budget_bytes: u64,
    first_context: usize,
    first_need: Option<f64>,
) -> String {
    let base = format_bytes(plan.base_footprint.total_bytes());
    let (budget, context_len) = (format_bytes(budget_bytes), plan.context_len);
    let context = match (context_len == first_context, first_need) {
        (true, _) => String::new(),
        (false, Some(ratio)) => format!(
            " The context is {context_len} tokens, since {first_context} would force out {:.0} % of the layers, more \
             than {:.0} %.",
            ratio * 100.0,
            SHORTER_CONTEXT_RATIO * 100.0,
        ),
        (false, None) => {
            format!(" The context is {context_len} tokens, since {first_context} cannot be made to fit.")
        }
    };
    let serving = format!("Untouched, serving {context_len} tokens of context needs {base}");
    let verdict = match plan.action {
        PlanAction::Untouched if planner.kv_dtype == planner.request.base_kv() => {
            format!("{serving}; {budget} are allowed: nothing is pruned.")
        }
        PlanAction::Untouched => {
            format!("{serving}; {budget} are allowed: nothing is pruned, {}.", change(planner, plan))
        }
        PlanAction::Prune => format!("{serving}; {budget} are allowed: {}.", change(planner, plan)),
    };
    verdict + &context
}

/// Why a plan for a ratio is as it is.
pub(super) fn of_ratio(planner: &Planner<'_>, plan: &PrunePlan, asked: PruneRatio) -> String {
    if plan.action == PlanAction::Untouched {
        return format!("A ratio of {asked} leaves the model as it is.");
    }
    format!("A ratio of {asked} was asked for: {}.", change(planner, plan))
}

/// Why no less than `rung` will do.
pub(super) fn of_refusal(planner: &Planner<'_>, rung: usize, context_len: usize) -> String {
    let footprint = planner.rung_footprint(rung, context_len);
    let what = if rung != 0 {
        format!("with the deepest cut of {}", planner.ladder.prune_ratio(rung))
    } else if planner.ladder.n_rungs() == 1 {
        "and this model has nothing that may be cut under this policy".to_owned()
    } else {
        "and cutting makes it no smaller".to_owned()
    };
    let parts = format!(
        "weights take {}, {context_len} tokens of context {}, activations {} and the program {}",
        format_bytes(footprint.weights_bytes),
        format_bytes(footprint.kv_cache_bytes),
        format_bytes(footprint.activations_bytes),
        format_bytes(footprint.runtime_bytes),
    );
    let shorter = if planner.request.context_len.is_some_and(|asked| 1 < asked) {
        "; a shorter context needs less"
    } else {
        ""
    };
    format!("{parts}, {what}{shorter}")
}

/// What is done and what it leads to.
fn change(planner: &Planner<'_>, plan: &PrunePlan) -> String {
    let mut done = Vec::new();
    if plan.ratio != PruneRatio::ZERO {
        let (before, after) = (&planner.config.layers, &plan.layers);
        let mut parts = Vec::new();
        for (what, of) in [
            ("MLP width", (|layer| layer.intermediate_size) as fn(&LayerConfig) -> usize),
            ("KV groups", |layer| layer.num_key_value_heads),
        ] {
            let (before, after) = (range(before, of), range(after, of));
            if before != after {
                parts.push(format!("{what} {before} to {after}"));
            }
        }
        done.push(format!("{} of the layers' parameters go ({})", plan.ratio, parts.join(", ")));
    }
    if planner.kv_dtype != planner.request.base_kv() {
        let bytes = |kv_dtype| kv_cache_bytes(planner.config, &plan.layers, plan.context_len, kv_dtype);
        let less = bytes(planner.request.base_kv()).saturating_sub(bytes(planner.kv_dtype));
        done.insert(
            0,
            format!("keys and values are kept as {} ({} less)", planner.kv_dtype.name(), format_bytes(less)),
        );
    }
    if let Some(dtype) = planner.tables {
        let bytes = |weights: &super::WeightsSummary| weights.embedding_bytes + weights.head_bytes;
        let (before, after) = (bytes(planner.base_weights), bytes(&planner.weights));
        done.insert(
            0,
            format!(
                "the token table is stored as {dtype} ({} less)",
                format_bytes(before.saturating_sub(after))
            ),
        );
    }
    if let Some(dtype) = planner.rewrite {
        done.push(format!("matrices are stored as {dtype}"));
    }
    if done.is_empty() {
        done.push("nothing is pruned".to_owned());
    }
    format!("{}, which needs {}", done.join(" and "), format_bytes(plan.footprint.total_bytes()))
}

/// `1536`, or `992-1024` when layers differ.
fn range(layers: &[LayerConfig], of: fn(&LayerConfig) -> usize) -> String {
    let least = layers.iter().map(of).min().unwrap_or(0);
    let most = layers.iter().map(of).max().unwrap_or(0);
    if least == most { most.to_string() } else { format!("{least}-{most}") }
}
