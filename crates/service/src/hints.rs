//! What the platform tells an app about memory and heat, and what the service does about it.
//!
//! A phone's system speaks to apps, not to `/proc`: the app passes it on here. Memory: when it is short, what a
//! request left behind is dropped; when it is very short, requests and jobs end, the model is let go of, and it comes
//! back when the pressure is over. Heat: the compute thread rests a share of the time, so that the device can cool
//! without losing the answer.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Longest rest between two tokens, so that a cancellation is seen soon.
const MAX_REST: Duration = Duration::from_millis(500);

/// How short of memory the device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum MemoryPressure {
    /// Enough for all.
    #[default]
    None = 0,
    /// Others may suffer soon: what requests left behind is dropped.
    Moderate = 1,
    /// The process may be killed: the model is let go of until this is over.
    Critical = 2,
}

/// How hot the device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ThermalState {
    /// Full speed.
    #[default]
    Nominal = 0,
    /// Warm: a quarter of the time is rest.
    Fair = 1,
    /// Hot: half of the time is rest.
    Serious = 2,
    /// Very hot: three quarters of the time are rest.
    Critical = 3,
}

impl ThermalState {
    /// Rest for each second of work.
    #[must_use]
    pub fn rest_per_work(self) -> f64 {
        match self {
            Self::Nominal => 0.0,
            Self::Fair => 1.0 / 3.0,
            Self::Serious => 1.0,
            Self::Critical => 3.0,
        }
    }
}

/// The latest hints.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    memory: AtomicU8,
    thermal: AtomicU8,
}

impl Hints {
    pub(crate) fn memory(&self) -> MemoryPressure {
        match self.memory.load(Ordering::Acquire) {
            0 => MemoryPressure::None,
            1 => MemoryPressure::Moderate,
            _ => MemoryPressure::Critical,
        }
    }

    pub(crate) fn thermal(&self) -> ThermalState {
        match self.thermal.load(Ordering::Acquire) {
            0 => ThermalState::Nominal,
            1 => ThermalState::Fair,
            2 => ThermalState::Serious,
            _ => ThermalState::Critical,
        }
    }

    /// True when this is news.
    pub(crate) fn set_memory(&self, level: MemoryPressure) -> bool {
        self.memory.swap(level as u8, Ordering::AcqRel) != level as u8
    }

    pub(crate) fn set_thermal(&self, state: ThermalState) {
        self.thermal.store(state as u8, Ordering::Release);
    }
}

/// Rests in proportion to the work since the last rest.
pub(crate) struct Pacer {
    since: Instant,
}

impl Pacer {
    pub(crate) fn new() -> Self {
        Self { since: Instant::now() }
    }

    /// Rests as the heat demands.
    pub(crate) fn rest(&mut self, thermal: ThermalState) {
        let rest = rest_after(self.since.elapsed(), thermal);
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
        self.since = Instant::now();
    }
}

fn rest_after(work: Duration, thermal: ThermalState) -> Duration {
    work.mul_f64(thermal.rest_per_work()).min(MAX_REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_follows_work_and_heat() {
        let work = Duration::from_millis(60);
        let cases = [
            (ThermalState::Nominal, 0),
            (ThermalState::Fair, 20),
            (ThermalState::Serious, 60),
            (ThermalState::Critical, 180),
        ];
        for (thermal, want_ms) in cases {
            assert_eq!(rest_after(work, thermal).as_millis(), want_ms, "{thermal:?}");
        }
        assert_eq!(rest_after(Duration::from_secs(9), ThermalState::Critical), MAX_REST);
    }

    #[test]
    fn hints_tell_news() {
        let hints = Hints::default();
        assert!(!hints.set_memory(MemoryPressure::None));
        assert!(hints.set_memory(MemoryPressure::Critical));
        assert!(!hints.set_memory(MemoryPressure::Critical));
        assert_eq!(hints.memory(), MemoryPressure::Critical);
        hints.set_thermal(ThermalState::Serious);
        assert_eq!(hints.thermal(), ThermalState::Serious);
    }
}
