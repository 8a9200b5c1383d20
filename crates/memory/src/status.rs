//! From raw readings to what this process may use. Pure: the probes read, this module decides.
//!
//! **What counts as available.** A budget bounds the resident set of the whole process, and what the process
//! already holds is counted as used by every source. So its own memory is added back, but only the part that
//! is not counted as available anyway:
//! - to `MemAvailable`, which already includes the file pages in the page cache: anonymous and shared memory;
//! - to a group's `limit - current + inactive_file + active_file / 2`: anonymous and shared memory, at most
//!   what the group is charged for, and the other half of our own active file pages, since whether the
//!   mapped weights stay is for us to decide.
//!
//! The answer is thus the same before and after the process has loaded its model. Swap is ignored: a model
//! that swaps is useless.
//!
//! **Reserve.** A tenth of what is available, at least 64 MiB and at most 1 GiB, so that the rest of the
//! device stays usable; but never more than a quarter, which matters in small groups only. The resulting
//! budget never falls when more memory becomes available.

use crate::probe::{CpuAllowance, Pressure, ProbeError};
use crate::size::format_bytes;

/// Reserve below which the rest of a device may suffer.
pub const MIN_RESERVE_BYTES: u64 = 64 << 20;
/// Reserve above which a device is only wasted.
pub const MAX_RESERVE_BYTES: u64 = 1 << 30;

/// What is left unused on purpose when `available_bytes` could be used; see the module's text.
#[must_use]
pub fn reserve_bytes(available_bytes: u64) -> u64 {
    (available_bytes / 10).clamp(MIN_RESERVE_BYTES, MAX_RESERVE_BYTES).min(available_bytes / 4)
}

/// A number and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The number, in bytes.
    pub bytes: u64,
    /// File and field.
    pub source: String,
}

/// Resident memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set: anonymous, file and shared pages.
    pub rss_bytes: u64,
    /// Largest resident set since the start (VmHWM).
    pub rss_peak_bytes: Option<u64>,
    /// Anonymous part: heap and stacks.
    pub rss_anon_bytes: Option<u64>,
    /// Mapped files: weights and the program itself.
    pub rss_file_bytes: Option<u64>,
    /// Shared memory and tmpfs.
    pub rss_shmem_bytes: Option<u64>,
}

impl ProcessMemory {
    /// The part that no source counts as available. Without a split it is unknown and taken as none,
    /// which errs towards a smaller budget.
    fn unreclaimable_bytes(&self) -> u64 {
        self.rss_anon_bytes.unwrap_or(0).saturating_add(self.rss_shmem_bytes.unwrap_or(0))
    }
}

/// One control group that this process is in, directly or through a child group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupReading {
    /// Directory of the group.
    pub path: String,
    /// The tighter of its limits, `None` when it has none.
    pub limit_bytes: Option<u64>,
    /// The file that holds that limit.
    pub limit_file: &'static str,
    /// What the group is charged for, page cache included.
    pub current_bytes: Option<u64>,
    /// File pages the kernel would drop first.
    pub inactive_file_bytes: u64,
    /// File pages in recent use.
    pub active_file_bytes: u64,
    /// Anonymous and shared memory of the group.
    pub unreclaimable_bytes: Option<u64>,
}

impl GroupReading {
    /// Pages that may be counted as free: inactive file pages and half of the active ones.
    #[must_use]
    pub fn reclaimable_bytes(&self) -> u64 {
        let file = self.inactive_file_bytes.saturating_add(self.active_file_bytes / 2);
        file.min(self.current_bytes.unwrap_or(0))
    }

    /// How large this process may get within the group, or `None` when the group has no limit.
    fn available_bytes(&self, process: &ProcessMemory) -> Option<u64> {
        let limit = self.limit_bytes?;
        let Some(current) = self.current_bytes else { return Some(limit) };
        let charged = self.unreclaimable_bytes.unwrap_or(current);
        let own = process.unreclaimable_bytes().min(charged);
        let own_file = process.rss_file_bytes.unwrap_or(0).min(self.active_file_bytes) / 2;
        let given_back = self.reclaimable_bytes().saturating_add(own).saturating_add(own_file).min(current);
        // No more is given back than is charged, so this is at most the limit. A group may be over
        // `memory.high`, so the difference is taken last.
        Some(limit.saturating_add(given_back).saturating_sub(current))
    }
}

/// All that a probe can tell; the input of [`MemoryStatus::from_readings`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Name of the probe.
    pub probe: &'static str,
    /// Size of a page.
    pub page_bytes: u64,
    /// All memory of the device.
    pub total: Option<Reading>,
    /// What the device could give without swapping.
    pub available: Option<Reading>,
    /// Groups from the innermost to the outermost, those without limits included.
    pub groups: Vec<GroupReading>,
    /// This process.
    pub process: ProcessMemory,
    /// Stall figures, the device's first.
    pub pressure: Vec<Pressure>,
    /// Processors.
    pub cpu: CpuAllowance,
    /// What could not be read or made no sense, in words.
    pub notes: Vec<String>,
}

/// One bound on the size of this process and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// File and field that set the bound.
    pub source: String,
    /// The size nothing may exceed: a group's limit, or all memory.
    pub limit_bytes: u64,
    /// What is charged against it; `None` when the source only tells what is available.
    pub current_bytes: Option<u64>,
    /// File pages counted as free.
    pub reclaimable_bytes: u64,
    /// How large this process may get, its present memory included.
    pub available_bytes: u64,
}

/// What the device and its groups leave to this process.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryStatus {
    /// Name of the probe that read the numbers.
    pub probe: &'static str,
    /// Size of a page.
    pub page_bytes: u64,
    /// All memory of the device.
    pub total_bytes: u64,
    /// Where that was read.
    pub total_source: String,
    /// The most this process could ever have: total memory or the tightest group limit.
    pub reachable_bytes: u64,
    /// How large this process may get at this moment, its present memory included: the least of `limits`.
    pub available_bytes: u64,
    /// Left unused on purpose.
    pub reserve_bytes: u64,
    /// `available_bytes - reserve_bytes`: what the budget `auto` means.
    pub auto_budget_bytes: u64,
    /// Every bound: the device first, then groups from the innermost to the outermost.
    pub limits: Vec<MemoryLimit>,
    /// Groups as read, those without a limit included.
    pub groups: Vec<GroupReading>,
    /// This process.
    pub process: ProcessMemory,
    /// Stall figures, the device's first.
    pub pressure: Vec<Pressure>,
    /// Processors.
    pub cpu: CpuAllowance,
    /// What could not be read or made no sense, in words.
    pub notes: Vec<String>,
}

impl MemoryStatus {
    /// Draws the conclusions from what a probe read.
    /// # Errors
    /// [`ProbeError::Unknown`] when the device does not tell how much memory it has or could give.
    pub fn from_readings(readings: Readings) -> Result<Self, ProbeError> {
        let Readings { probe, page_bytes, total, available, groups, process, pressure, cpu, notes } =
            readings;
        let unknown = |what| ProbeError::Unknown { probe, what, notes: notes.join("; ") };
        let total = total.ok_or_else(|| unknown("total memory"))?;
        let available = available.ok_or_else(|| unknown("available memory"))?;
        let device = MemoryLimit {
            available_bytes: available.bytes.saturating_add(process.unreclaimable_bytes()).min(total.bytes),
            source: available.source,
            limit_bytes: total.bytes,
            current_bytes: None,
            reclaimable_bytes: 0,
        };
        let of_group = |group: &GroupReading| {
            Some(MemoryLimit {
                source: format!("{}/{}", group.path.trim_end_matches('/'), group.limit_file),
                limit_bytes: group.limit_bytes?,
                current_bytes: group.current_bytes,
                reclaimable_bytes: group.reclaimable_bytes(),
                available_bytes: group.available_bytes(&process)?,
            })
        };
        let limits: Vec<_> = std::iter::once(device).chain(groups.iter().filter_map(of_group)).collect();
        let least = |of: fn(&MemoryLimit) -> u64| limits.iter().map(of).fold(u64::MAX, u64::min);
        let available_bytes = least(|limit| limit.available_bytes);
        let reserve_bytes = reserve_bytes(available_bytes);
        Ok(Self {
            probe,
            page_bytes,
            total_bytes: total.bytes,
            total_source: total.source,
            reachable_bytes: least(|limit| limit.limit_bytes),
            available_bytes,
            reserve_bytes,
            auto_budget_bytes: available_bytes - reserve_bytes,
            limits,
            groups,
            process,
            pressure,
            cpu,
            notes,
        })
    }

    /// The bound that decides: the first of those that leave the least.
    #[must_use]
    pub fn binding_limit(&self) -> &MemoryLimit {
        let least = self.limits.iter().min_by_key(|limit| limit.available_bytes);
        least.expect("the device itself is always a limit")
    }

    /// How the budget `auto` came about, for people.
    #[must_use]
    pub fn auto_explanation(&self) -> String {
        format!(
            "{} left by {}, less a reserve of {}",
            format_bytes(self.available_bytes),
            self.binding_limit().source,
            format_bytes(self.reserve_bytes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reserve_leaves_room_from_small_boards_to_large_machines() {
        let cases = [
            (0, 0),
            (100 * MIB, 25 * MIB),
            (256 * MIB, 64 * MIB),
            (512 * MIB, 64 * MIB),
            (1000 * MIB, 100 * MIB),
            (8000 * MIB, 800 * MIB),
            (24 << 30, 1 << 30),
        ];
        for (available, want) in cases {
            assert_eq!(reserve_bytes(available), want, "of {available}");
        }
    }

    proptest! {
        #[test]
        fn the_budget_grows_with_what_is_available(a in 0_u64..1 << 46, more in 0_u64..1 << 34) {
            let budget = |available: u64| available - reserve_bytes(available);
            prop_assert!(budget(a) <= budget(a + more));
            let small = a >> 16;
            prop_assert!(budget(small) <= budget(small + (more >> 16)));
        }

        /// Loading a model must not change the answer: what moves into the process is added back.
        #[test]
        fn own_memory_does_not_count_against_us(
            anon in 0_u64..400, active in 0_u64..400, inactive in 0_u64..400, limit in 2000_u64..3000,
        ) {
            let readings = |anon: u64, active: u64, inactive: u64| {
                let process = ProcessMemory {
                    rss_bytes: anon + active + inactive,
                    rss_peak_bytes: None,
                    rss_anon_bytes: Some(anon),
                    rss_file_bytes: Some(active + inactive),
                    rss_shmem_bytes: Some(0),
                };
                let group = GroupReading {
                    path: "/g".into(),
                    limit_bytes: Some(limit),
                    limit_file: "memory.max",
                    current_bytes: Some(200 + anon + active + inactive),
                    inactive_file_bytes: inactive,
                    active_file_bytes: active,
                    unreclaimable_bytes: Some(200 + anon),
                };
                let reading = |bytes| Some(Reading { bytes, source: "test".into() });
                let (total, available) = (reading(9000), reading(8000 - anon));
                Readings { total, available, groups: vec![group], process, ..Readings::default() }
            };
            let idle = MemoryStatus::from_readings(readings(0, 0, 0)).unwrap();
            let loaded = MemoryStatus::from_readings(readings(anon, active, inactive)).unwrap();
            prop_assert_eq!(idle.available_bytes, limit - 200);
            // Halving odd numbers may lose a byte on either side.
            prop_assert!(loaded.available_bytes.abs_diff(idle.available_bytes) <= 1);
            prop_assert_eq!(loaded.limits[0].available_bytes, 8000);
        }
    }

    #[test]
    fn a_device_that_does_not_tell_is_an_error() {
        let error = MemoryStatus::from_readings(Readings { probe: "test", ..Readings::default() });
        assert!(matches!(error, Err(ProbeError::Unknown { what: "total memory", .. })));
    }
}
