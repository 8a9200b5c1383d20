//! What must hold for any tokens, weights and budgets.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use secateur_prune::comp::mask::{MaskTuning, TuningOutcome, tune};
use secateur_prune::methods::{
    DepthMethod, Linear, PooledLayer, Recovery, SecondOrder, WIDTH_METHODS, WidthMethod, pool_units,
    top_units,
};
use secateur_prune::numeric::NumericError;
use secateur_prune::refit::{Damping, FitProblem, refit, squared_error};
use secateur_prune::select::{Quadratic, RemovalOptions, remove_units};
use secateur_prune::stats::LayerStats;
use secateur_prune::widths::{DamageCurve, Stack, WidthGrid, allocate, uniform};
use std::ops::ControlFlow;

/// A projection with tokens behind it.
#[derive(Clone, Debug)]
struct Case {
    k: usize,
    d: usize,
    n: usize,
    unit_len: usize,
    inputs: Vec<f32>,
    weight: Vec<f32>,
    noise: Vec<f32>,
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() + next()).collect()
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..5, 1usize..9, 1usize..7, 1usize..60, 1u64..10_000).prop_map(|(unit_len, units, d, n, seed)| {
        let k = unit_len * units;
        let mut inputs = noise(n * k, seed);
        // Neighbours resemble each other, one column is large, one may be silent.
        for row in inputs.chunks_exact_mut(k) {
            for j in 1..k {
                row[j] += 0.7 * row[j - 1];
            }
            row[seed as usize % k] *= 20.0;
            if seed % 3 == 0 {
                row[k / 2] = 0.0;
            }
        }
        Case { k, d, n, unit_len, inputs, weight: noise(d * k, seed + 1), noise: noise(n * d, seed + 2) }
    })
}

impl Case {
    fn linear(&self) -> Linear<'_> {
        Linear::new(&self.weight, self.d, self.k, self.unit_len).unwrap()
    }

    /// Target of token i: the layer's own output and noise.
    fn target(&self) -> Vec<f64> {
        let value = |at: usize| {
            let (i, o) = (at / self.d, at % self.d);
            let own =
                |j: usize| f64::from(self.inputs[i * self.k + j]) * f64::from(self.weight[o * self.k + j]);
            (0..self.k).map(own).sum::<f64>() + 0.5 * f64::from(self.noise[at])
        };
        (0..self.n * self.d).map(value).collect()
    }

    fn stats(&self) -> LayerStats {
        let mut stats = LayerStats::new(self.k, self.d);
        stats.add_moments(&self.inputs).unwrap();
        let z = |i: usize, j: usize| f64::from(self.inputs[i * self.k + j]);
        let over = |f: &dyn Fn(usize) -> f64| (0..self.n).map(f).sum::<f64>();
        let gram = |at: usize| over(&|i| z(i, at / self.k) * z(i, at % self.k)) as f32;
        stats.gram = Some((0..self.k * self.k).map(gram).collect());
        let target = self.target();
        let t = |i: usize, o: usize| target[i * self.d + o];
        stats.set_own_target(&self.weight).unwrap();
        let sums = stats.target.as_mut().unwrap();
        sums.cross =
            (0..self.k * self.d).map(|at| over(&|i| z(i, at / self.d) * t(i, at % self.d)) as f32).collect();
        sums.sum = (0..self.d).map(|o| over(&|i| t(i, o))).collect();
        sums.energy = target.iter().map(|value| value * value).sum();
        stats
    }

    /// The error over tokens, the long way.
    fn error(&self, columns: &[usize], recovery: &Recovery) -> f64 {
        let target = self.target();
        let residual = |at: usize| {
            let (i, o) = (at / self.d, at % self.d);
            let term = |(p, &j): (usize, &usize)| {
                f64::from(self.inputs[i * self.k + j]) * f64::from(recovery.weight[o * columns.len() + p])
            };
            let bias = recovery.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
            target[at] - columns.iter().enumerate().map(term).sum::<f64>() - bias
        };
        (0..self.n * self.d).map(|at| residual(at).powi(2)).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn error_from_sums_is_error_over_tokens(case in cases(), bits in any::<u64>()) {
        let (linear, stats) = (case.linear(), case.stats());
        let kept: Vec<usize> = (0..linear.n_units()).filter(|unit| bits >> unit & 1 == 1).collect();
        let columns = linear.columns(&kept);
        let bias = noise(case.d, bits | 1);
        for bias in [None, Some(bias)] {
            let recovery = Recovery { weight: linear.sliced(&kept), bias };
            let (got, want) = (squared_error(&stats, &columns, &recovery).unwrap(), case.error(&columns, &recovery));
            let scale = stats.target().unwrap().energy.max(want);
            prop_assert!((got - want).abs() <= 1e-5 * scale, "{got} against {want}");
        }
    }

    #[test]
    fn refit_is_never_worse_than_no_refit(case in cases(), bits in any::<u64>()) {
        let (linear, stats) = (case.linear(), case.stats());
        let kept: Vec<usize> = (0..linear.n_units()).filter(|unit| bits >> unit & 1 == 1).collect();
        let columns = linear.columns(&kept);
        let plain = Recovery { weight: linear.sliced(&kept), bias: None };
        let problem = FitProblem::from_stats(&linear, &stats, Damping::DEFAULT).unwrap();
        let refitted = Recovery { weight: refit(&problem, &columns).unwrap(), bias: None };
        let (plain, refitted) = (case.error(&columns, &plain), case.error(&columns, &refitted));
        let noise = 1e-5 * stats.target().unwrap().energy;
        prop_assert!(refitted <= plain + noise, "{refitted} above {plain}");
    }

    #[test]
    fn one_removal_costs_what_the_formula_says(case in cases()) {
        let (linear, stats) = (case.linear(), case.stats());
        let problem = FitProblem::from_stats(&linear, &stats, Damping::DEFAULT).unwrap();
        let options = RemovalOptions { unit_len: case.unit_len, keep: linear.n_units() - 1, step: 1 };
        let quadratic = Quadratic::of_weights(&problem).unwrap();
        let removal = remove_units(quadratic, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        // The objective without a unit, by refit: fit, ridge of the others, and the removed columns' ridge.
        let objective = |kept: &[usize]| {
            let columns = linear.columns(kept);
            let weight = refit(&problem, &columns).unwrap();
            let gram = stats.gram().unwrap();
            let diagonal: Vec<f64> = (0..case.k).map(|j| f64::from(gram[j * case.k + j])).collect();
            let lambda = Damping::DEFAULT.lambda(&diagonal);
            let mut ridge = 0.0;
            for o in 0..case.d {
                for (j, lambda) in lambda.iter().enumerate() {
                    let fitted = columns.binary_search(&j).map_or(0.0, |p| weight[o * columns.len() + p]);
                    ridge += lambda * f64::from(fitted - case.weight[o * case.k + j]).powi(2);
                }
            }
            ridge + case.error(&columns, &Recovery { weight, bias: None })
        };
        let all: Vec<usize> = (0..linear.n_units()).collect();
        let base = objective(&all);
        let costs: Vec<f64> = all.iter().map(|unit| {
            let rest: Vec<usize> = all.iter().copied().filter(|other| other != unit).collect();
            objective(&rest) - base
        }).collect();
        let noise = 1e-4 * stats.target().unwrap().energy;
        prop_assert!((removal.errors[1] - costs[removal.order[0]]).abs() <= noise);
        let lowest = costs.iter().copied().fold(f64::INFINITY, f64::min);
        prop_assert!(costs[removal.order[0]] <= lowest + noise);
    }

    #[test]
    fn removal_bookkeeping_adds_up(case in cases(), keep in 0usize..9, step in 1usize..5) {
        let (linear, stats) = (case.linear(), case.stats());
        let n_units = linear.n_units();
        let keep = keep.min(n_units);
        let problem = FitProblem::from_stats(&linear, &stats, Damping::DEFAULT).unwrap();
        let options = RemovalOptions { unit_len: case.unit_len, keep, step };
        let quadratic = Quadratic::of_weights(&problem).unwrap();
        let removal = remove_units(quadratic.clone(), &options, &mut |_| ControlFlow::Continue(())).unwrap();
        prop_assert_eq!(removal.kept.len(), keep);
        prop_assert_eq!(removal.errors.len(), n_units - keep + 1);
        prop_assert!(removal.errors.windows(2).all(|pair| pair[0] <= pair[1]));
        let all: Vec<usize> = (0..n_units).collect();
        prop_assert_eq!(removal.kept_after(0), all);
        prop_assert_eq!(removal.kept_after(removal.order.len()), removal.kept.clone());
        // Stopping after the first round leaves the same beginning.
        let stopped = remove_units(quadratic, &options, &mut |_| ControlFlow::Break(())).unwrap();
        prop_assert!(removal.order.starts_with(&stopped.order));
        prop_assert_eq!(stopped.order.len(), step.min(n_units - keep));
        prop_assert_eq!(removal.kept_after(stopped.order.len()), stopped.kept);
    }

    #[test]
    fn every_method_keeps_what_was_asked(case in cases(), keep in 1usize..9) {
        let (linear, stats) = (case.linear(), case.stats());
        let keep = keep.min(linear.n_units());
        for method in WIDTH_METHODS {
            let kept = method.select(&linear, &stats, keep).unwrap();
            prop_assert_eq!(kept.len(), keep, "{}", method.name());
            prop_assert!(kept.is_sorted_by(|a, b| a < b));
            let recovery = method.recover(&linear, &stats, &kept).unwrap();
            prop_assert_eq!(recovery.weight.len(), case.d * keep * case.unit_len);
            prop_assert!(recovery.weight.iter().all(|value| value.is_finite()));
            prop_assert!(method.select(&linear, &stats, linear.n_units() + 1).is_err());
        }
    }

    #[test]
    fn masks_stay_within_the_bound(case in cases(), bound in 0.0f64..0.2) {
        let (linear, stats) = (case.linear(), case.stats());
        let kept: Vec<usize> = (0..linear.n_units()).step_by(2).collect();
        let tuning = MaskTuning { variance_bound: bound, ..MaskTuning::DEFAULT };
        let gram = stats.gram().unwrap();
        let tuned = tune(&linear, gram, &stats.target().unwrap().cross, &kept, &tuning).unwrap();
        prop_assert_eq!(tuned.variance <= bound, tuned.outcome == TuningOutcome::Tuned);
        // With all columns and the own output there is nothing to tune; rounding of the f32 sums is measured
        // against the ridge, 0.01 of a column's energy, and a neighbour may have 10000 times that energy.
        let own = stats.own_target(&case.weight).unwrap();
        let all: Vec<usize> = (0..linear.n_units()).collect();
        let tuned = tune(&linear, gram, &own.cross, &all, &MaskTuning::DEFAULT).unwrap();
        prop_assert!(tuned.scale.iter().all(|scale| (scale - 1.0).abs() < 5e-3), "{:?}", tuned.scale);
    }

    #[test]
    fn budgets_are_met_or_refused(
        layers in prop::collection::vec((2usize..50, 0.01f64..10.0), 1..12),
        share in 0.0f64..1.0,
        snap in 1usize..5,
    ) {
        let grid = WidthGrid { snap, floor: 1 };
        let errors: Vec<f64> = (0..=50).map(|i| f64::from(i).powi(2)).collect();
        let unit_params = 7;
        let stacks: Vec<Stack> = layers.iter().map(|&(n_units, measured)| {
            let curve = DamageCurve { errors: &errors, reference: 10, measured, gamma: 1.0 };
            Stack::new(n_units, unit_params, grid, &curve).unwrap()
        }).collect();
        let all: u64 = layers.iter().map(|&(n_units, _)| n_units as u64 * unit_params).sum();
        let asked = (all as f64 * share) as u64;
        match allocate(&stacks, asked, all) {
            Ok(found) => {
                prop_assert!(found.removed_params.abs_diff(asked) as f64 <= 0.005 * all as f64);
                let kept: u64 = found.keep.iter().map(|&keep| keep as u64 * unit_params).sum();
                prop_assert_eq!(all - kept, found.removed_params);
                for ((n_units, _), keep) in layers.iter().zip(&found.keep) {
                    prop_assert!(keep == n_units || (keep % snap == 0 && 1 <= *keep && keep < n_units));
                }
                prop_assert_eq!(allocate(&stacks, asked, all).unwrap(), found);
            }
            Err(NumericError::Unreachable { reached, .. }) => {
                // Refused for a reason: with single units the greedy allocation always gets there.
                let floor: u64 = stacks.iter().map(|stack| stack.removed_params[stack.widths.len() - 1]).sum();
                let coarse = (snap as u64 * unit_params) as f64 > 0.005 * all as f64;
                prop_assert!(coarse || floor < asked, "{reached} of {asked}");
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        }
    }

    #[test]
    fn pooled_units_come_close_to_the_budget(
        layers in prop::collection::vec((1usize..30, 1u64..20, 0usize..4), 1..6),
        share in 0.0f64..0.9,
    ) {
        let layers: Vec<PooledLayer> = layers.into_iter().enumerate().map(|(at, (n, unit_params, floor))| {
            let scores = noise(n, at as u64 + 1).iter().map(|&score| f64::from(score)).collect();
            PooledLayer { scores, unit_params, floor }
        }).collect();
        let all: u64 = layers.iter().map(|layer| layer.scores.len() as u64 * layer.unit_params).sum();
        let asked = (all as f64 * share) as u64;
        let largest = layers.iter().map(|layer| layer.unit_params).max().unwrap();
        if let Ok(found) = pool_units(&layers, asked) {
            prop_assert!(found.removed_params.abs_diff(asked) <= largest);
            let mut removed = 0;
            for (layer, kept) in layers.iter().zip(&found.kept) {
                prop_assert!(layer.floor.min(layer.scores.len()) <= kept.len());
                removed += (layer.scores.len() - kept.len()) as u64 * layer.unit_params;
                let top = top_units(&layer.scores, kept.len()).unwrap();
                prop_assert_eq!(&top, kept, "inside of a layer the best stay");
            }
            prop_assert_eq!(removed, found.removed_params);
        } else {
            let most: u64 = layers.iter().map(|layer| {
                layer.scores.len().saturating_sub(layer.floor) as u64 * layer.unit_params
            }).sum();
            prop_assert!(most < asked);
        }
    }
}

/// Convex damage and equal steps: greedy is optimal, so it must equal the best of all combinations.
#[test]
fn greedy_finds_the_best_of_all_combinations() {
    let errors: Vec<f64> = (0..=8).map(f64::from).collect();
    let measured = [1.0, 0.25, 3.0];
    let stacks: Vec<Stack> = measured
        .iter()
        .map(|&measured| {
            let curve = DamageCurve { errors: &errors, reference: 4, measured, gamma: 3.0 };
            Stack::new(8, 10, WidthGrid { snap: 1, floor: 1 }, &curve).unwrap()
        })
        .collect();
    for units in 0..=21u64 {
        let found = allocate(&stacks, units * 10, 240).unwrap();
        assert_eq!(found.removed_params, units * 10);
        let mut best = f64::INFINITY;
        for at in 0..8usize.pow(3) {
            let places = [at % 8, at / 8 % 8, at / 64];
            if places.iter().sum::<usize>() as u64 == units {
                let damage = places.iter().zip(&stacks).map(|(&at, stack)| stack.damage[at]).sum();
                best = f64::min(best, damage);
            }
        }
        assert!((found.damage - best).abs() <= 1e-12 * best, "{units}: {} against {best}", found.damage);
    }
    assert!(matches!(
        allocate(&stacks, 230, 240),
        Err(NumericError::Unreachable { asked: 230, reached: 210 })
    ));
}

#[test]
fn a_jump_crosses_a_small_hill() {
    // The first step of layer 0 costs more than any of layer 1, the next three are free.
    let hill = Stack {
        widths: vec![5, 4, 3, 2, 1],
        removed_params: vec![0, 1, 2, 3, 4],
        damage: vec![0.0, 2.0, 2.0, 2.0, 2.0],
    };
    let slope = Stack { damage: vec![0.0, 1.0, 2.0, 3.0, 4.0], ..hill.clone() };
    let found = allocate(&[hill, slope], 4, 10).unwrap();
    assert_eq!((found.keep, found.damage), (vec![1, 5], 2.0));
}

#[test]
fn grids_and_curves() {
    assert_eq!(WidthGrid::NEURONS.widths(160), [160, 128, 96, 64]);
    assert_eq!(WidthGrid::NEURONS.widths(150), [150, 128, 96, 64]);
    assert_eq!(WidthGrid::NEURONS.widths(40), [40]);
    assert_eq!(WidthGrid { snap: 1, floor: 1 }.widths(3), [3, 2, 1]);
    assert_eq!(WidthGrid { snap: 256, floor: 64 }.widths(1536), [1536, 1280, 1024, 768, 512, 256]);
    let curve = DamageCurve { errors: &[0.0, 1.0, 2.0], reference: 1, measured: 0.5, gamma: 2.0 };
    assert_eq!((curve.at(0), curve.at(1), curve.at(2), curve.at(3)), (Some(0.0), Some(0.5), Some(2.0), None));
    let short = Stack::new(4, 1, WidthGrid { snap: 1, floor: 1 }, &curve);
    assert!(matches!(short, Err(NumericError::Range { value: 3.0, .. })), "{short:?}");
    // Removing the first unit is free, the second has no scale: infinite, but never chosen before finite ones.
    let free = DamageCurve { errors: &[0.0, 0.0, 2.0], reference: 1, measured: 0.5, gamma: 2.0 };
    let grid = WidthGrid { snap: 1, floor: 1 };
    let stacks = [Stack::new(3, 1, grid, &free).unwrap(), Stack::new(3, 1, grid, &curve).unwrap()];
    assert_eq!(allocate(&stacks, 3, 6).unwrap().keep, [2, 1]);
    assert_eq!(allocate(&stacks, 4, 6).unwrap().keep, [1, 1]);
}

#[test]
fn uniform_width_is_the_closest_of_the_grid() {
    let asked = (30 * 1536 * 10) / 5;
    let found = uniform(1536, 10, 30, WidthGrid { snap: 256, floor: 64 }, asked).unwrap();
    assert_eq!((found.keep, found.removed_params), (vec![1280; 30], 30 * 256 * 10));
    assert!(uniform(1536, 10, 0, WidthGrid::NEURONS, 1).is_err());
}

#[derive(Debug, PartialEq)]
enum Failure {
    Numeric(NumericError),
    Cancelled,
}

impl From<NumericError> for Failure {
    fn from(error: NumericError) -> Self {
        Self::Numeric(error)
    }
}

#[test]
fn depth_methods() {
    let influence = [0.9, 0.1, 0.3, 0.1, 0.2];
    let never = &mut |_: &[bool], _: usize| -> Result<f64, Failure> { panic!("ShortGPT measures nothing") };
    assert_eq!(DepthMethod::ShortGpt.select_layers(&influence, 3, never), Ok(vec![1, 3, 4]));
    // Layers 1 and 2 are cheap alone and dear together: only measuring again after each removal sees it.
    let loss = |present: &[bool]| {
        let alone = [0.0, 1.0, 1.1, 1.5, 0.0];
        let sum: f64 =
            present.iter().zip(alone).filter(|(present, _)| !**present).map(|(_, cost)| cost).sum();
        sum + if !present[1] && !present[2] { 5.0 } else { 0.0 }
    };
    let mut n_calls = 0;
    let mut oracle = |present: &[bool], trial: usize| -> Result<f64, Failure> {
        assert!(present[0] && present[4] && !present[trial]);
        n_calls += 1;
        Ok(loss(present))
    };
    assert_eq!(DepthMethod::Sleb.select_layers(&influence, 2, &mut oracle), Ok(vec![1, 3]));
    assert_eq!(n_calls, 3 + 2);
    let cancelled = DepthMethod::Sleb.select_layers(&influence, 1, &mut |_, _| Err(Failure::Cancelled));
    assert_eq!(cancelled, Err(Failure::Cancelled));
    let too_many = DepthMethod::Sleb.select_layers(&influence, 4, &mut |_, _| Ok::<_, Failure>(0.0));
    assert!(matches!(too_many, Err(Failure::Numeric(NumericError::Range { value: 4.0, .. }))));
    let nan = DepthMethod::Sleb.select_layers(&influence, 1, &mut |_, _| Ok::<_, Failure>(f64::NAN));
    assert!(nan.is_err());
    assert_eq!(DepthMethod::from_name("sleb"), Some(DepthMethod::Sleb));
}

#[test]
fn silent_layers_are_left_as_they_are() {
    let weight = noise(12, 5);
    let linear = Linear::new(&weight, 2, 6, 1).unwrap();
    let mut stats = LayerStats::new(6, 2);
    stats.add_moments(&[0.0; 18]).unwrap();
    stats.gram = Some(vec![0.0; 36]);
    let kept = SecondOrder::REFIT.select(&linear, &stats, 3).unwrap();
    let recovery = SecondOrder::REFIT.recover(&linear, &stats, &kept).unwrap();
    assert_eq!(recovery.weight, linear.sliced(&kept));
    stats.gram = Some(vec![f32::NAN; 36]);
    assert!(matches!(SecondOrder::REFIT.select(&linear, &stats, 3), Err(NumericError::Linalg(_))));
}

#[test]
fn names_are_unique() {
    let mut names: Vec<&str> = WIDTH_METHODS.iter().map(|method| method.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), WIDTH_METHODS.len());
}
