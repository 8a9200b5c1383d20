//! How far a job is: every part of it weighs what it is expected to take, so that shares are shares of time.

use crate::job::{Job, Stage};
use crate::layer_pass::LayerDecision;
use crate::registry::Method;
use crate::speed::{embed_weight, layer_weights, measure_weights};
use secateur_model::LayerConfig;
use std::time::Instant;

/// Least share of the job behind an estimate.
const LEAST_SHARE: f64 = 0.02;
/// The evaluation takes so little that it is not counted.
const PRUNE_END: f64 = 0.99;

/// Shares of a job at which its parts end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    embed_end: f64,
    /// After each step of the measuring.
    measured: Vec<f64>,
    /// After each layer.
    pruned: Vec<f64>,
}

impl Course {
    pub(crate) fn of(job: &Job<'_>, method: &Method) -> Self {
        let stays = 1.0 - job.request.ratio.get();
        let narrowed = |layer: &LayerConfig| LayerDecision::Keep {
            width: (stays * layer.intermediate_size as f64) as usize,
            kv_groups: layer.num_key_value_heads,
        };
        // Until it is decided: all alike.
        let decisions: Vec<LayerDecision> = job.request.source.config().layers.iter().map(narrowed).collect();
        let prune = layer_weights(job, &decisions, method);
        let (embed, measure) = (embed_weight(job), measure_weights(job, method));
        let parts = [embed, measure.iter().sum(), prune.iter().sum()];
        let parts = ends(0.0, PRUNE_END, &parts);
        Self {
            embed_end: parts[0],
            measured: ends(parts[0], parts[1], &measure),
            pruned: ends(parts[1], PRUNE_END, &prune),
        }
    }

    /// Takes into account what each layer loses.
    pub(crate) fn decided(&mut self, weights: &[f64]) {
        self.pruned = ends(self.measure_end(), PRUNE_END, weights);
    }

    fn measure_end(&self) -> f64 {
        self.measured.last().copied().unwrap_or(self.embed_end)
    }

    pub(crate) fn embedded(&self) -> f64 {
        self.embed_end
    }

    /// `done`: share of the measuring that is done, by its weight.
    pub(crate) fn measured(&self, done: f64) -> f64 {
        self.embed_end + (self.measure_end() - self.embed_end) * done
    }

    /// After `n_layers` layers of the damage sweep.
    pub(crate) fn swept(&self, n_layers: usize) -> f64 {
        end_of(&self.measured, n_layers).unwrap_or(self.embed_end)
    }

    /// After `n_layers` layers of the cutting.
    pub(crate) fn pruned(&self, n_layers: usize) -> f64 {
        end_of(&self.pruned, n_layers).unwrap_or_else(|| self.measure_end())
    }
}

fn end_of(ends: &[f64], n_done: usize) -> Option<f64> {
    n_done.checked_sub(1).and_then(|last| ends.get(last)).copied()
}

/// Where the parts of a stretch end that have these weights.
fn ends(from: f64, to: f64, weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    let mut done = 0.0;
    let end = |weight: &f64| {
        done += weight;
        from + (to - from) * done / sum.max(f64::MIN_POSITIVE)
    };
    weights.iter().map(end).collect()
}

/// When a run and its stage began, and what of the job was done then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    run: (Instant, f64),
    stage: (Stage, Instant, f64),
}

impl Pace {
    /// At the first report of a run.
    pub(crate) fn new(stage: Stage, now: Instant, done: f64) -> Self {
        Self { run: (now, done), stage: (stage, now, done) }
    }

    /// Seconds to the end: at the pace of the stage once enough of it is done, until then at that of the run.
    pub(crate) fn eta_seconds(&mut self, stage: Stage, now: Instant, done: f64) -> Option<f64> {
        if self.stage.0 != stage {
            self.stage = (stage, now, done);
        }
        let at = |(from, before): (Instant, f64)| {
            let fresh = done - before;
            let elapsed = now.saturating_duration_since(from).as_secs_f64();
            (LEAST_SHARE < fresh).then(|| elapsed * (1.0 - done) / fresh)
        };
        at((self.stage.1, self.stage.2)).or_else(|| at(self.run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn parts_end_by_their_weights() {
        let found = ends(0.2, 1.0, &[1.0, 0.0, 3.0]);
        assert!(found.iter().zip([0.4, 0.4, 1.0]).all(|(end, want)| (end - want).abs() < 1e-12), "{found:?}");
        assert!(ends(0.2, 1.0, &[]).is_empty());
        assert_eq!(ends(0.2, 1.0, &[0.0]), [0.2]);
    }

    #[test]
    fn what_an_earlier_run_did_and_the_pace_of_other_stages_do_not_count() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        // A run that takes up a job of which 40 % are done: 1 % a second.
        let mut pace = Pace::new(Stage::Measure, begin, 0.4);
        assert_eq!(pace.eta_seconds(Stage::Measure, begin, 0.4), None);
        let eta = pace.eta_seconds(Stage::Measure, after(10), 0.5);
        assert!(eta.is_some_and(|eta| (eta - 50.0).abs() < 1e-9), "{eta:?}");
        // The next stage takes twice as long: seen as soon as something of it is done.
        let eta = pace.eta_seconds(Stage::Prune, after(10), 0.5);
        assert!(eta.is_some_and(|eta| (eta - 50.0).abs() < 1e-9), "{eta:?}");
        let eta = pace.eta_seconds(Stage::Prune, after(20), 0.55);
        assert!(eta.is_some_and(|eta| (eta - 90.0).abs() < 1e-9), "{eta:?}");
        assert_eq!(pace.eta_seconds(Stage::Evaluate, after(110), 1.0), Some(0.0));
    }
}
