//! How much memory each stage of a job had at most.
//!
//! The kernel's own mark never falls, so it tells what a whole process needed and not what a stage did; a thread
//! samples beside it.

use secateur_memory::{Watchdog, format_bytes, rss_bytes};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time between two samples.
const INTERVAL: Duration = Duration::from_millis(10);

#[derive(Default)]
struct Peaks {
    stage: String,
    by_stage: BTreeMap<String, u64>,
}

/// Watches this process while a job runs.
pub(crate) struct StageWatch {
    peaks: Arc<Mutex<Peaks>>,
    watchdog: Option<Watchdog>,
}

impl StageWatch {
    /// Starts in `stage`. The first sample above the budget is logged, with its stage.
    pub(crate) fn start(stage: &str, budget_bytes: u64) -> Self {
        let peaks = Arc::new(Mutex::new(Peaks { stage: stage.to_owned(), ..Peaks::default() }));
        let (sampled, warned) = (peaks.clone(), peaks.clone());
        let sample = move || {
            let rss = rss_bytes()?;
            let mut peaks = sampled.lock().unwrap_or_else(PoisonError::into_inner);
            let stage = peaks.stage.clone();
            let peak = peaks.by_stage.entry(stage).or_default();
            *peak = rss.max(*peak);
            Ok(rss)
        };
        let mut is_known = false;
        let on_over = move |over: secateur_memory::OverBudget| {
            if !std::mem::replace(&mut is_known, true) {
                let stage = warned.lock().unwrap_or_else(PoisonError::into_inner).stage.clone();
                let (rss, budget) = (format_bytes(over.rss_bytes), format_bytes(over.budget_bytes));
                tracing::warn!(stage, rss, budget, "resident memory is above the budget");
            }
        };
        let watchdog = Watchdog::start_with(sample, INTERVAL, Some(budget_bytes), on_over);
        if let Err(error) = &watchdog {
            tracing::warn!(%error, "no thread to watch memory with");
        }
        Self { peaks, watchdog: watchdog.ok() }
    }

    /// The job is in this stage from here on.
    pub(crate) fn enter(&self, stage: &str) {
        let mut peaks = self.peaks.lock().unwrap_or_else(PoisonError::into_inner);
        if peaks.stage != stage {
            stage.clone_into(&mut peaks.stage);
        }
    }

    /// Ends the watch: the largest sample of each stage.
    pub(crate) fn stop(mut self) -> BTreeMap<String, u64> {
        drop(self.watchdog.take());
        std::mem::take(&mut self.peaks.lock().unwrap_or_else(PoisonError::into_inner).by_stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_booked_to_the_stage_that_has_it() {
        let watch = StageWatch::start("small", u64::MAX);
        watch.enter("large");
        let block = vec![1_u8; 64 << 20];
        let peaks = watch.stop();
        assert!(block.iter().all(|&byte| byte == 1));
        // The last sample is taken at the end, while the block is still there.
        assert!(peaks["small"] + (32 << 20) < peaks["large"], "{peaks:?}");
    }
}
