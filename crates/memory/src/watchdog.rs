//! Watching the resident set of this process while something runs.
//!
//! A thread samples at an interval and keeps the largest value. Samples miss short peaks, which the kernel's
//! own mark (VmHWM) does not; but that mark never falls, so within a long-lived process only samples tell
//! what one piece of work needed. The two complement each other.

use crate::probe::{ProbeError, rss_bytes};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A sample above the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverBudget {
    /// What was seen.
    pub rss_bytes: u64,
    /// What was allowed.
    pub budget_bytes: u64,
}

/// What a watchdog saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchdogReport {
    /// Largest sample.
    pub rss_max_bytes: u64,
    /// Samples taken.
    pub n_samples: u64,
    /// Samples above the budget.
    pub n_over: u64,
    /// Samples that could not be had.
    pub n_failed: u64,
}

#[derive(Default)]
struct Shared {
    rss_max_bytes: AtomicU64,
    n_samples: AtomicU64,
    n_over: AtomicU64,
    n_failed: AtomicU64,
    is_over: AtomicBool,
    stopped: Mutex<bool>,
    wake: Condvar,
}

impl Shared {
    fn report(&self) -> WatchdogReport {
        WatchdogReport {
            rss_max_bytes: self.rss_max_bytes.load(Ordering::Acquire),
            n_samples: self.n_samples.load(Ordering::Acquire),
            n_over: self.n_over.load(Ordering::Acquire),
            n_failed: self.n_failed.load(Ordering::Acquire),
        }
    }

    fn take(&self, sample: Result<u64, ProbeError>, budget_bytes: Option<u64>) -> Option<OverBudget> {
        let Ok(rss_bytes) = sample else {
            self.n_failed.fetch_add(1, Ordering::AcqRel);
            return None;
        };
        self.rss_max_bytes.fetch_max(rss_bytes, Ordering::AcqRel);
        self.n_samples.fetch_add(1, Ordering::AcqRel);
        let over = budget_bytes.filter(|&budget_bytes| budget_bytes < rss_bytes);
        self.is_over.store(over.is_some(), Ordering::Release);
        let budget_bytes = over?;
        self.n_over.fetch_add(1, Ordering::AcqRel);
        Some(OverBudget { rss_bytes, budget_bytes })
    }

    /// Waits for the interval; true when the watchdog was stopped.
    fn wait(&self, interval: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(stopped, interval, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// A running watch. Dropping it stops and joins the thread.
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Samples this process every `interval`, and calls `on_over` for each sample above the budget.
    ///
    /// The first sample is taken before this returns, so even the shortest watch has one.
    /// # Errors
    /// The operating system's error when no thread can be started.
    pub fn start(
        interval: Duration,
        budget_bytes: Option<u64>,
        on_over: impl FnMut(OverBudget) + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::start_with(rss_bytes, interval, budget_bytes, on_over)
    }

    /// As [`Self::start`], with samples from elsewhere.
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        mut sample: impl FnMut() -> Result<u64, ProbeError> + Send + 'static,
        interval: Duration,
        budget_bytes: Option<u64>,
        mut on_over: impl FnMut(OverBudget) + Send + 'static,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut look = {
            let shared = shared.clone();
            move || {
                if let Some(over) = shared.take(sample(), budget_bytes) {
                    on_over(over);
                }
            }
        };
        look();
        let watched = shared.clone();
        let run = move || {
            while !watched.wait(interval) {
                look();
            }
            // A last look, so that what was allocated since the last tick is seen.
            look();
        };
        let thread = std::thread::Builder::new().name("memory-watchdog".to_owned()).spawn(run)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// True when the last sample was above the budget.
    #[must_use]
    pub fn is_over_budget(&self) -> bool {
        self.shared.is_over.load(Ordering::Acquire)
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> WatchdogReport {
        self.shared.report()
    }

    /// Takes a last sample, ends the thread and tells what was seen.
    #[must_use]
    pub fn stop(mut self) -> WatchdogReport {
        self.join();
        self.shared.report()
    }

    fn join(&mut self) {
        *self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            // Only `on_over` or a foreign `sample` can have panicked: the caller's own panic goes on.
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn samples_rise_fall_and_fail() {
        let (overs, seen) = mpsc::channel();
        let mut samples = [50, 120, 80, 150, 90].into_iter().map(Some).chain([None]).cycle();
        let sample = move || {
            let missing = ProbeError::Malformed { path: "/fake".into(), field: "VmRSS" };
            samples.next().flatten().ok_or(missing)
        };
        let watchdog = Watchdog::start_with(sample, SOON, Some(100), move |over| {
            let _ = overs.send(over.rss_bytes);
        });
        let watchdog = watchdog.unwrap();
        let first: Vec<u64> = seen.iter().take(3).collect();
        assert_eq!(first, [120, 150, 120]);
        let report = watchdog.stop();
        assert_eq!(report.rss_max_bytes, 150);
        assert!(3 <= report.n_over && 1 <= report.n_failed, "{report:?}");
        assert!(report.n_over < report.n_samples, "{report:?}");
    }

    #[test]
    fn the_flag_follows_the_last_sample_and_stopping_does_not_wait() {
        let watchdog = Watchdog::start_with(|| Ok(200), NEVER, Some(100), |_| ()).unwrap();
        assert!(watchdog.is_over_budget());
        let report = watchdog.stop();
        assert_eq!(report, WatchdogReport { rss_max_bytes: 200, n_samples: 2, n_over: 2, n_failed: 0 });
        let watchdog = Watchdog::start_with(|| Ok(100), NEVER, Some(100), |_| panic!("not over")).unwrap();
        assert!(!watchdog.is_over_budget());
        drop(watchdog);
        let watchdog = Watchdog::start_with(|| Ok(u64::MAX), NEVER, None, |_| panic!("no budget")).unwrap();
        assert_eq!(watchdog.stop().n_over, 0);
    }

    #[test]
    fn sees_what_this_process_allocates() {
        let watchdog = Watchdog::start(NEVER, None, |_| ()).unwrap();
        let before = watchdog.report().rss_max_bytes;
        let block = vec![1_u8; 64 << 20];
        let after = watchdog.stop().rss_max_bytes;
        // Tests that run beside this one may free memory meanwhile, but not half as much.
        assert!(before + (32 << 20) < after, "{before} -> {after}");
        assert!(block.iter().all(|&byte| byte == 1));
    }
}
