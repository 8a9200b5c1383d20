//! All shapes that may be planned for a model, in order.
//!
//! Rung 0 is the untouched model; each rung cuts a little more than the one before, and never gives anything
//! back. First the MLP narrows, down to an eighth of its width; then whole KV groups go, down to one: at
//! ratios that a small model survives, attention is worth more than its bytes. With
//! [`PlanPolicy::Quality`] a rung takes one step of one layer, so that the layers stay within one step of
//! each other; with [`PlanPolicy::Compatible`] it takes all layers to the next common width.
//!
//! Memory: one [`Step`] for each rung and layer, `O(n_layers * MAX_STEPS)`.

use super::{MAX_RATIO, PlanRequest, WeightsSummary};
use secateur_model::{DType, LayerConfig, LayerIdx, ModelConfig, PlanPolicy, PruneRatio};

/// Widths are multiples of this, or of the block of the dtype if that is longer.
const WIDTH_UNIT: usize = 32;
/// The MLP is not narrowed below this share of its width.
const WIDTH_FLOOR: usize = 8;
/// Most widths of one layer; beyond, steps are several units wide.
const MAX_STEPS: usize = 1024;

/// A layer takes another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) layer_idx: LayerIdx,
    pub(super) layer: LayerConfig,
}

/// The shapes of one model, shallow cuts first.
#[derive(Debug)]
pub(super) struct Ladder {
    base: Vec<LayerConfig>,
    steps: Vec<Step>,
    /// For each rung, how many steps lead to it and which share of the parameters is gone.
    rungs: Vec<(usize, f64)>,
}

impl Ladder {
    pub(super) fn new(config: &ModelConfig, weights: &WeightsSummary, request: &PlanRequest) -> Self {
        let mut ladder = Self { base: config.layers.clone(), steps: Vec::new(), rungs: vec![(0, 0.0)] };
        let unit = |layer_idx: LayerIdx| {
            request.dtype.asked().map_or_else(|| down_unit(config, weights, layer_idx), dtype_unit)
        };
        let rounds = match request.policy {
            PlanPolicy::Quality => quality_rounds(config, unit),
            PlanPolicy::Compatible => compatible_rounds(config, unit),
        };
        let all_params = config.all_layer_params();
        let mut layers = config.layers.clone();
        let mut params = all_params;
        for round in rounds {
            let n_steps = ladder.steps.len();
            for step in round {
                params -= config.layer_params(&layers[step.layer_idx]) - config.layer_params(&step.layer);
                layers[step.layer_idx] = step.layer;
                ladder.steps.push(step);
            }
            let ratio = (all_params - params) as f64 / all_params as f64;
            if MAX_RATIO < ratio {
                ladder.steps.truncate(n_steps);
                break;
            }
            ladder.rungs.push((ladder.steps.len(), ratio));
        }
        ladder
    }

    /// Number of shapes; at least 1.
    pub(super) fn n_rungs(&self) -> usize {
        self.rungs.len()
    }

    /// The steps that lead from the rung before to this one.
    pub(super) fn steps_of(&self, rung: usize) -> &[Step] {
        let start = rung.checked_sub(1).map_or(0, |before| self.rungs[before].0);
        &self.steps[start..self.rungs[rung].0]
    }

    /// Share of the layers' parameters that is gone.
    pub(super) fn ratio(&self, rung: usize) -> f64 {
        self.rungs[rung].1
    }

    pub(super) fn prune_ratio(&self, rung: usize) -> PruneRatio {
        PruneRatio::new(self.ratio(rung)).expect("ratios on a ladder are at most MAX_RATIO")
    }

    pub(super) fn shape(&self, rung: usize) -> Vec<LayerConfig> {
        let mut layers = self.base.clone();
        for step in &self.steps[..self.rungs[rung].0] {
            layers[step.layer_idx] = step.layer;
        }
        layers
    }

    /// The rung nearest to `ratio`; of two, the shallower. `None` when the ratio lies beyond the last rung
    /// by more than half the last step.
    pub(super) fn nearest(&self, ratio: f64) -> Option<usize> {
        let above = self.rungs.partition_point(|&(_, reached)| reached < ratio);
        let Some(&(_, reached)) = self.rungs.get(above) else {
            let last = self.rungs.len() - 1;
            let step = self.ratio(last) - self.ratio(last.saturating_sub(1));
            return (ratio - self.ratio(last) <= step / 2.0).then_some(last);
        };
        let below = above.saturating_sub(1);
        let nearer_below = ratio - self.ratio(below) <= reached - ratio;
        Some(if nearer_below { below } else { above })
    }
}

fn dtype_unit(dtype: DType) -> usize {
    WIDTH_UNIT.max(dtype.block_len())
}

/// The unit that the stored `down_proj` of a cut layer needs.
fn down_unit(config: &ModelConfig, weights: &WeightsSummary, layer_idx: LayerIdx) -> usize {
    let base = &config.layers[layer_idx];
    let narrower = LayerConfig { intermediate_size: 0, ..*base };
    let dtypes = weights.dtypes(base, &narrower, layer_idx);
    dtype_unit(dtypes[dtypes.len() - 1])
}

/// Widths below `width` that are multiples of `unit` and at least an eighth of it, widest first.
fn narrower_widths(width: usize, unit: usize) -> Vec<usize> {
    let step = unit * width.div_ceil(unit * MAX_STEPS).max(1);
    let floor = width.div_ceil(WIDTH_FLOOR);
    let below = width.saturating_sub(1) / step * step;
    std::iter::successors(Some(below), |&narrower| narrower.checked_sub(step))
        .take_while(|&narrower| narrower != 0 && floor <= narrower)
        .collect()
}

/// One step of one layer at a time. Within a round the middle layers go first: the first and the last ones
/// hurt most.
fn quality_rounds(config: &ModelConfig, unit: impl Fn(LayerIdx) -> usize) -> Vec<Vec<Step>> {
    let mlp =
        |layer_idx: LayerIdx| narrower_widths(config.layers[layer_idx].intermediate_size, unit(layer_idx));
    let widths: Vec<Vec<usize>> = (0..config.n_layers()).map(mlp).collect();
    let mut layers = config.layers.clone();
    let mut rounds = Vec::new();
    for (layer_idx, nth) in evenly(&widths.iter().map(Vec::len).collect::<Vec<_>>()) {
        layers[layer_idx].intermediate_size = widths[layer_idx][nth];
        rounds.push(vec![Step { layer_idx, layer: layers[layer_idx] }]);
    }
    let groups = |layer: &LayerConfig| layer.num_key_value_heads.saturating_sub(1);
    for (layer_idx, _) in evenly(&config.layers.iter().map(groups).collect::<Vec<_>>()) {
        layers[layer_idx] = without_a_group(&layers[layer_idx]);
        rounds.push(vec![Step { layer_idx, layer: layers[layer_idx] }]);
    }
    rounds
}

fn without_a_group(layer: &LayerConfig) -> LayerConfig {
    LayerConfig {
        num_attention_heads: layer.num_attention_heads - layer.heads_per_kv_group(),
        num_key_value_heads: layer.num_key_value_heads - 1,
        ..*layer
    }
}

/// `(layer, which of its steps)` for layers with so many steps each, such that all are about equally far.
fn evenly(n_steps: &[usize]) -> Vec<(LayerIdx, usize)> {
    let centre = n_steps.len().saturating_sub(1);
    let mut order: Vec<(LayerIdx, usize)> = n_steps
        .iter()
        .enumerate()
        .flat_map(|(layer_idx, &n)| (0..n).map(move |nth| (layer_idx, nth)))
        .collect();
    order.sort_by(|&(a, a_nth), &(b, b_nth)| {
        let a_done = (a_nth + 1) * n_steps[b];
        let b_done = (b_nth + 1) * n_steps[a];
        let from_centre = |layer_idx: LayerIdx| (2 * layer_idx).abs_diff(centre);
        a_done.cmp(&b_done).then(from_centre(a).cmp(&from_centre(b))).then(a.cmp(&b))
    });
    order
}

/// All layers to the next common width, then one KV group of each. None when the layers of the base cannot
/// be made alike by cutting MLPs: different heads, a part missing in some, or too different widths.
fn compatible_rounds(config: &ModelConfig, unit: impl Fn(LayerIdx) -> usize) -> Vec<Vec<Step>> {
    let first = &config.layers[0];
    let alike = |layer: &LayerConfig| {
        layer.num_attention_heads == first.num_attention_heads
            && layer.num_key_value_heads == first.num_key_value_heads
            && (layer.intermediate_size == 0) == (first.intermediate_size == 0)
    };
    if !config.layers.iter().all(alike) {
        return Vec::new();
    }
    let unit = (0..config.n_layers()).map(unit).max().unwrap_or(WIDTH_UNIT);
    let narrowest = config.layers.iter().map(|layer| layer.intermediate_size).min().unwrap_or(0);
    let widest = config.layers.iter().map(|layer| layer.intermediate_size).max().unwrap_or(0);
    let mut widths = narrower_widths(narrowest, unit);
    if narrowest != widest {
        // Uneven layers are alike first at the width of the narrowest.
        widths.insert(0, narrowest);
    }
    // The floor holds for every layer; where the widest cannot come down to the narrowest, nothing is alike.
    let floor = widest.div_ceil(WIDTH_FLOOR);
    if narrowest < floor {
        return Vec::new();
    }
    widths.retain(|&width| floor <= width);
    let mut layers = config.layers.clone();
    let mut rounds = Vec::new();
    let mut round = |layers: &mut Vec<LayerConfig>, change: &dyn Fn(&LayerConfig) -> LayerConfig| {
        let steps = layers.iter_mut().enumerate().filter_map(|(layer_idx, layer)| {
            let changed = change(layer);
            let differs = changed != *layer;
            *layer = changed;
            differs.then_some(Step { layer_idx, layer: changed })
        });
        rounds.push(steps.collect());
    };
    for width in widths {
        round(&mut layers, &|layer| LayerConfig { intermediate_size: width, ..*layer });
    }
    for _ in 1..first.num_key_value_heads {
        round(&mut layers, &without_a_group);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_multiples_and_end_at_an_eighth() {
        assert_eq!(narrower_widths(256, 32), [224, 192, 160, 128, 96, 64, 32]);
        assert_eq!(narrower_widths(300, 32), [288, 256, 224, 192, 160, 128, 96, 64]);
        assert_eq!(narrower_widths(1536, 256), [1280, 1024, 768, 512, 256]);
        assert_eq!(narrower_widths(32, 32), [0; 0]);
        assert_eq!(narrower_widths(0, 32), [0; 0]);
        let huge = narrower_widths(1 << 18, 32);
        assert!(huge.len() <= MAX_STEPS && huge.iter().all(|width| width % 256 == 0));
    }

    #[test]
    fn steps_are_spread_evenly_from_the_middle() {
        let order = evenly(&[2, 2, 2]);
        assert_eq!(order, [(1, 0), (0, 0), (2, 0), (1, 1), (0, 1), (2, 1)]);
        let order = evenly(&[1, 0, 3]);
        assert_eq!(order, [(2, 0), (2, 1), (0, 0), (2, 2)]);
    }
}
