//! The pruning maths on sums, against the same maths done the long way on tokens (goldens/make_maths.py).
#![expect(clippy::unwrap_used, reason = "tests")]

use secateur_prune::comp::ladder::{LadderOptions, Rung, choose_rung, fit_rung};
use secateur_prune::comp::mask::{MaskTuning, TuningOutcome, tune};
use secateur_prune::comp::metric::{collinearity, condition_scores, select_by_collinearity};
use secateur_prune::comp::{Comp, LayerImportance};
use secateur_prune::methods::{Fasp, Flap, Linear, Magnitude, Needs, SecondOrder, WandaSp, WidthMethod};
use secateur_prune::refit::{Damping, FitProblem, refit, squared_error};
use secateur_prune::select::{Quadratic, RemovalOptions, remove_units};
use secateur_prune::stats::{LayerStats, TargetStats};
use serde_json::Value;
use std::ops::ControlFlow;

struct Golden {
    json: Value,
    k: usize,
    d: usize,
    weight: Vec<f32>,
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn indices(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|value| value.as_u64().unwrap() as usize).collect()
}

fn singles(value: &Value) -> Vec<f32> {
    numbers(value).into_iter().map(|value| value as f32).collect()
}

/// `A'B` of row-major tokens, `[a_cols, b_cols]`.
fn product(a: &[f32], a_cols: usize, b: &[f32], b_cols: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; a_cols * b_cols];
    for (a, b) in a.chunks_exact(a_cols).zip(b.chunks_exact(b_cols)) {
        for (i, a) in a.iter().enumerate() {
            for (j, b) in b.iter().enumerate() {
                sums[i * b_cols + j] += f64::from(*a) * f64::from(*b);
            }
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

impl Golden {
    fn load() -> Self {
        let json: Value = serde_json::from_str(include_str!("goldens/maths.json")).unwrap();
        let size = |key: &str| json[key].as_u64().unwrap() as usize;
        Self { k: size("k"), d: size("d"), weight: singles(&json["w0"]), json }
    }

    fn linear(&self, unit_len: usize) -> Linear<'_> {
        Linear::new(&self.weight, self.d, self.k, unit_len).unwrap()
    }

    /// Statistics of the tokens `z` with the residual target `r`, blended as the script does.
    fn stats(&self, z: &str, r: &str) -> LayerStats {
        let (z, r) = (singles(&self.json[z]), singles(&self.json[r]));
        let mut stats = LayerStats::new(self.k, self.d);
        // In two windows, as a pipeline would.
        let cut = z.len() / self.k / 3 * self.k;
        stats.add_moments(&z[..cut]).unwrap();
        stats.add_moments(&z[cut..]).unwrap();
        stats.gram = Some(product(&z, self.k, &z, self.k));
        let column = |o: usize| r.iter().skip(o).step_by(self.d).map(|&value| f64::from(value));
        stats.target = Some(TargetStats {
            cross: product(&z, self.k, &r, self.d),
            sum: (0..self.d).map(|o| column(o).sum()).collect(),
            energy: r.iter().map(|&value| f64::from(value).powi(2)).sum(),
        });
        stats.blend_own_target(&self.weight, self.json["share"].as_f64().unwrap()).unwrap();
        stats
    }

    fn fitted(&self) -> LayerStats {
        self.stats("z", "r")
    }

    fn kept(&self) -> Vec<usize> {
        indices(&self.json["kept"])
    }
}

/// Every value within `tolerance` of the wanted one, relative to the largest.
#[track_caller]
fn assert_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let scale = want.iter().fold(0.0f64, |scale, value| scale.max(value.abs()));
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * scale, "{what}[{at}]: {got}, wanted {want}");
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[test]
fn blended_target_and_damping() {
    let golden = Golden::load();
    let stats = golden.fitted();
    let target = stats.target().unwrap();
    assert_close("energy", &[target.energy], &[golden.json["target_energy"].as_f64().unwrap()], 1e-5);
    assert_close("sum", &target.sum, &numbers(&golden.json["target_sum"]), 1e-5);
    let gram = stats.gram().unwrap();
    let diagonal: Vec<f64> = (0..golden.k).map(|j| f64::from(gram[j * golden.k + j])).collect();
    let want = numbers(&golden.json["lambda"]);
    // Each on its own scale: the silent coordinate's ridge is what matters.
    for (got, want) in Damping::DEFAULT.lambda(&diagonal).iter().zip(want) {
        assert_close("lambda", &[*got], &[want], 1e-5);
    }
}

#[test]
fn removal_of_weights_equals_exhaustive_refits() {
    let golden = Golden::load();
    let stats = golden.fitted();
    for case in golden.json["removals"].as_array().unwrap() {
        let unit_len = case["unit_len"].as_u64().unwrap() as usize;
        let linear = golden.linear(unit_len);
        let problem = FitProblem::from_stats(&linear, &stats, Damping::DEFAULT).unwrap();
        let keep = indices(&case["kept"]).len();
        let options = RemovalOptions { unit_len, keep, step: case["step"].as_u64().unwrap() as usize };
        let mut seen = Vec::new();
        let removal = remove_units(Quadratic::of_weights(&problem).unwrap(), &options, &mut |round| {
            seen.push((round.n_removed, round.coefficients.len()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(removal.order, indices(&case["order"]), "{case}");
        assert_eq!(removal.kept, indices(&case["kept"]), "{case}");
        assert_close("errors", &removal.errors, &numbers(&case["errors"]), 1e-5);
        let last = seen.last().unwrap();
        assert_eq!(*last, (removal.order.len(), removal.kept.len() * unit_len * golden.d));
        // The updated coefficients are the refit on what is left.
        let exact = refit(&problem, &linear.columns(&removal.kept)).unwrap();
        assert_close("coefficients", &widened(&removal.coefficients), &widened(&exact), 1e-3);
    }
}

#[test]
fn removal_in_mask_space_equals_exhaustive_refits() {
    let golden = Golden::load();
    let stats = golden.fitted();
    for case in golden.json["mask_removals"].as_array().unwrap() {
        let linear = golden.linear(case["unit_len"].as_u64().unwrap() as usize);
        let keep = indices(&case["kept"]).len();
        let step = case["step"].as_u64().unwrap() as usize;
        let found = select_by_collinearity(&linear, &stats, keep, step).unwrap();
        assert_eq!(found.removal.order, indices(&case["order"]), "{case}");
        assert_close("errors", &found.removal.errors, &numbers(&case["errors"]), 1e-4);
        let (n_removed, variance) = *found.variances.last().unwrap();
        assert_eq!(n_removed, found.removal.order.len());
        assert_eq!(found.removable_within(f64::INFINITY), n_removed);
        assert_eq!(found.removable_within(-1.0), 0);
        assert!(0.0 < variance && variance < 1.0, "{variance}");
    }
}

#[test]
fn every_rung_of_the_ladder() {
    let golden = Golden::load();
    let (fit, held_out) = (golden.fitted(), golden.stats("z_held", "r_held"));
    let (linear, kept) = (golden.linear(1), golden.kept());
    let options = LadderOptions::DEFAULT;
    let choice = choose_rung(&linear, &fit, &held_out, &kept, &Rung::ALL, &options).unwrap();
    for error in &choice.errors {
        let want = &golden.json["rungs"][error.rung.name()];
        let name = error.rung.name();
        assert_close(name, &[error.fitted], &[want["fitted"].as_f64().unwrap()], 1e-4);
        assert_close(name, &[error.held_out], &[want["held_out"].as_f64().unwrap()], 1e-4);
        let recovery = fit_rung(&linear, &fit, &kept, error.rung, &options).unwrap();
        assert_close(name, &widened(&recovery.weight), &numbers(&want["weight"]), 1e-4);
        let bias = recovery.bias.as_deref().map_or(vec![0.0; golden.d], widened);
        assert_close(name, &bias, &numbers(&want["bias"]), 1e-4);
    }
    assert_eq!(choice.rung, Rung::RidgeBias);
    let stock = choose_rung(&linear, &fit, &held_out, &kept, &Rung::WITHOUT_BIAS, &options).unwrap();
    assert_eq!((stock.rung, stock.recovery.bias), (Rung::Ridge, None));
    assert!(choose_rung(&linear, &fit, &held_out, &kept, &[], &options).is_err());
}

#[test]
fn second_order_method_is_selection_then_refit() {
    let golden = Golden::load();
    let stats = golden.fitted();
    let linear = golden.linear(4);
    let case = &golden.json["removals"][3];
    let method = SecondOrder { damping: Damping::DEFAULT };
    let kept = method.select(&linear, &stats, 1).unwrap();
    assert_eq!(kept, indices(&case["kept"]));
    let recovery = method.recover(&linear, &stats, &kept).unwrap();
    let error = squared_error(&stats, &linear.columns(&kept), &recovery).unwrap();
    assert!(error < stats.target().unwrap().energy);
    let scores = method.scores(&linear, &stats).unwrap();
    let lowest = (0..6).min_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
    assert_eq!(lowest, indices(&case["order"])[0]);
    assert_close("first score", &[scores[lowest]], &numbers(&case["errors"])[1..2], 1e-4);
}

#[test]
fn tuned_masks_and_their_variance_bound() {
    let golden = Golden::load();
    let stats = golden.fitted();
    let (linear, kept) = (golden.linear(1), golden.kept());
    let (gram, own) = (stats.gram().unwrap(), stats.own_target(&golden.weight).unwrap());
    let target = &stats.target().unwrap().cross;
    let tuned = tune(&linear, gram, target, &kept, &MaskTuning::DEFAULT).unwrap();
    let want = &golden.json["mask"];
    assert_eq!((tuned.ridge_factor, tuned.outcome), (1.0, TuningOutcome::Tuned));
    assert_close("mask", &tuned.scale, &numbers(&want["scale"]), 1e-4);
    assert_close("variance", &[tuned.variance], &[want["variance"].as_f64().unwrap()], 1e-3);
    let mut outcomes = Vec::new();
    for want in golden.json["wild_masks"].as_array().unwrap() {
        let amplitude = want["amplitude"].as_f64().unwrap() as f32;
        let sign = |at: usize| if (at % golden.d).is_multiple_of(3) { -amplitude } else { amplitude };
        let cross: Vec<f32> = own.cross.iter().enumerate().map(|(at, value)| value * sign(at)).collect();
        let tuned = tune(&linear, gram, &cross, &kept, &MaskTuning::DEFAULT).unwrap();
        assert_eq!(tuned.ridge_factor, want["ridge_factor"].as_f64().unwrap());
        assert_close("variance", &[tuned.variance], &[want["variance"].as_f64().unwrap()], 1e-3);
        match tuned.outcome {
            TuningOutcome::Tuned => assert_close("mask", &tuned.scale, &numbers(&want["scale"]), 1e-4),
            TuningOutcome::Stopped => assert!(tuned.scale.iter().all(|&scale| scale == 1.0)),
        }
        outcomes.push(tuned.outcome);
    }
    assert_eq!(outcomes, [TuningOutcome::Tuned, TuningOutcome::Stopped]);
}

#[test]
fn matrix_condition_metrics() {
    let golden = Golden::load();
    let stats = golden.fitted();
    for want in golden.json["collinearity"].as_array().unwrap() {
        let linear = golden.linear(want["unit_len"].as_u64().unwrap() as usize);
        let found = collinearity(&linear, &stats).unwrap();
        assert_close("scores", &found.scores, &numbers(&want["scores"]), 1e-4);
        assert_close("indices", &found.indices, &numbers(&want["indices"]), 1e-4);
        assert_eq!(Comp::COLLINEARITY.scores(&linear, &stats).unwrap(), found.scores);
    }
    for (unit_len, key) in [(1, "condition"), (4, "condition_groups")] {
        let got = condition_scores(&golden.linear(unit_len), &stats).unwrap();
        assert_close(key, &got, &numbers(&golden.json["rivals"][key]), 1e-5);
    }
}

#[test]
fn rivals_score_and_recover_as_published() {
    let golden = Golden::load();
    let mut stats = golden.fitted();
    stats.target = None;
    let want = &golden.json["rivals"];
    let (gate, up) = (singles(&golden.json["gate"]), singles(&golden.json["up"]));
    let coupled = [gate.as_slice(), up.as_slice()];
    let linear = Linear { coupled: &coupled, ..golden.linear(1) };
    let cases: [(&dyn WidthMethod, usize, &str); 4] =
        [(&WandaSp, 1, "wanda"), (&Flap, 1, "flap"), (&Flap, 4, "flap_groups"), (&Magnitude, 1, "magnitude")];
    for (method, unit_len, key) in cases {
        let linear = Linear { unit_len, ..linear };
        assert_close(key, &method.scores(&linear, &stats).unwrap(), &numbers(&want[key]), 1e-5);
    }
    let kept = golden.kept();
    let flap = Flap.recover(&linear, &stats, &kept).unwrap();
    assert_close("flap bias", &widened(&flap.bias.unwrap()), &numbers(&want["flap_bias"]), 1e-5);
    assert_eq!(flap.weight, linear.sliced(&kept));
    let fasp = Fasp.recover(&linear, &stats, &kept).unwrap();
    assert_close("fasp", &widened(&fasp.weight), &numbers(&want["fasp_weight"]), 1e-4);
    let plain = Comp::CONDITION_ONLY.recover(&linear, &stats, &kept).unwrap();
    assert_eq!((plain.weight, plain.bias), (linear.sliced(&kept), None));
    // Without the Gram matrix the methods that need it say so, the others work.
    stats.gram = None;
    for method in secateur_prune::methods::WIDTH_METHODS {
        let works = method.select(&linear, &stats, 5).is_ok();
        let recovers = method.recover(&linear, &stats, &kept).is_ok();
        assert_eq!(works && recovers, method.needs() < Needs::Gram, "{}", method.name());
    }
}

#[test]
fn layer_importance_in_windows() {
    let golden = Golden::load();
    let (z, held) = (singles(&golden.json["z"]), singles(&golden.json["z_held"]));
    let after: Vec<f32> = z.iter().zip(held.iter().cycle()).map(|(z, held)| held * 0.5 + z).collect();
    let mut importance = LayerImportance::default();
    for (before, after) in z.chunks(7 * golden.k).zip(after.chunks(7 * golden.k)) {
        importance.add_window(before, after, golden.k).unwrap();
    }
    let want = &golden.json["layer"];
    let check = |got: f64, key: &str| assert_close(key, &[got], &[want[key].as_f64().unwrap()], 1e-5);
    check(importance.block_influence(), "block_influence");
    check(importance.aggregated(), "aggregated");
    check(importance.magnitude_ratio(), "magnitude_ratio");
    assert_eq!(importance.n_tokens(), 160);
    assert!(importance.add_window(&z[..5], &after[..5], golden.k).is_err());
    let mut silent = LayerImportance::default();
    silent.add_window(&[0.0; 4], &[0.0; 4], 2).unwrap();
    assert_eq!((silent.block_influence(), silent.aggregated(), silent.magnitude_ratio()), (0.0, 0.0, 1.0));
    silent.add_window(&[0.0; 2], &[1.0, 0.0], 2).unwrap();
    assert!(0.3 < silent.block_influence() && silent.aggregated() == 1.0);
}
