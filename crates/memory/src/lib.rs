//! What the device can give, the budget, and the planner.
//!
//! - [`probe()`] reads memory, limits of control groups, stalls and processors: [`MemoryStatus`] says for each
//!   number where it came from.
//! - [`MemoryBudget`] is what users write: `auto`, `128MiB`, `70%`.
//! - [`plan()`] and [`plan_ratio`] decide what to cut: pure functions of shape, weights and budget.
//! - [`PressureLadder`] says what to give up when memory runs short, [`PressureWatch`] waits for the kernel's word.
//! - [`Watchdog`] watches the resident set of this process against the budget.
//!
//! `sysinfo` is known here only. Nothing here frees or allocates on the caller's behalf.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod budget;
mod plan;
mod pressure;
mod probe;
mod size;
mod status;
mod watchdog;

pub use budget::{BudgetError, MemoryBudget, Percent, ResolvedBudget};
pub use plan::{
    DEFAULT_CONTEXT_LEN, DEFAULT_PREFILL_TOKENS, DEFAULT_RUNTIME_BYTES, LayerWeights, MAX_RATIO,
    MIN_CONTEXT_LEN, PlanError, PlanRequest, Refusal, SHORTER_CONTEXT_RATIO, Storage, WeightsSummary,
    footprint, plan, plan_ratio, predicted_perplexity_factor,
};
pub use pressure::{
    PressureLadder, PressureSample, PressureStep, PressureWake, PressureWatch, wait_for_pressure,
};
pub use probe::{
    AndroidProbe, AppleFigures, AppleProbe, CpuAllowance, LinuxProbe, Pressure, PressureAverages, Probe,
    ProbeError, ProbeRoot, SystemProbe, probe, process_memory, rss_bytes, rss_peak_bytes, set_platform_probe,
};
pub use size::format_bytes;
pub use status::{
    GroupReading, MAX_RESERVE_BYTES, MIN_RESERVE_BYTES, MemoryLimit, MemoryStatus, ProcessMemory, Reading,
    Readings, reserve_bytes,
};
pub use watchdog::{OverBudget, Watchdog, WatchdogReport};
