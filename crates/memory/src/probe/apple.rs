//! Apple's systems: an app has a limit of its own, and the system says how far it is from that.
//!
//! `os_proc_available_memory` is what this process may still allocate before it is killed; `phys_footprint` is what is
//! counted against the limit: dirty pages, not the clean pages of a mapped model. The calls themselves need `unsafe` and
//! live where the app is bound; here is what the figures mean.

use super::{CpuAllowance, Probe, ProbeError, SystemProbe, host_page_bytes};
use crate::status::{ProcessMemory, Reading, Readings};

/// What the system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppleFigures {
    /// `os_proc_available_memory()`; 0 where an app has no limit (a simulator, a Mac).
    pub available_bytes: u64,
    /// `phys_footprint` of `TASK_VM_INFO`.
    pub footprint_bytes: u64,
    /// `resident_size`.
    pub resident_bytes: u64,
    /// `resident_size_peak`.
    pub resident_peak_bytes: u64,
}

/// A probe over figures from `ask`; `None` when the system does not answer.
pub struct AppleProbe<F> {
    ask: F,
}

impl<F: Fn() -> Option<AppleFigures> + Send + Sync> AppleProbe<F> {
    /// A probe that asks `ask` each time.
    pub fn new(ask: F) -> Self {
        Self { ask }
    }
}

impl<F> std::fmt::Debug for AppleProbe<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppleProbe").finish_non_exhaustive()
    }
}

impl<F: Fn() -> Option<AppleFigures> + Send + Sync> Probe for AppleProbe<F> {
    fn read(&self) -> Readings {
        let system = SystemProbe.read();
        from_figures((self.ask)(), system)
    }

    fn process(&self) -> Result<ProcessMemory, ProbeError> {
        match (self.ask)() {
            Some(figures) => Ok(process_of(&figures)),
            None => SystemProbe.process(),
        }
    }
}

fn process_of(figures: &AppleFigures) -> ProcessMemory {
    ProcessMemory {
        rss_bytes: figures.resident_bytes,
        rss_peak_bytes: Some(figures.resident_peak_bytes.max(figures.resident_bytes)),
        // What counts against the limit, which is what must be added to `available`.
        rss_anon_bytes: Some(figures.footprint_bytes),
        rss_file_bytes: Some(figures.resident_bytes.saturating_sub(figures.footprint_bytes)),
        rss_shmem_bytes: None,
    }
}

/// Puts the app's own figures in the place of the device's, where there are some.
fn from_figures(figures: Option<AppleFigures>, system: Readings) -> Readings {
    let mut readings = Readings {
        probe: "apple",
        page_bytes: host_page_bytes(),
        total: system.total,
        available: system.available,
        process: system.process,
        cpu: CpuAllowance { ..system.cpu },
        notes: system.notes,
        ..Readings::default()
    };
    let Some(figures) = figures else {
        readings.notes.push("the system does not tell what this app may use".to_owned());
        return readings;
    };
    readings.process = process_of(&figures);
    if figures.available_bytes == 0 {
        readings.notes.push("this app has no limit of its own: the device's free memory counts".to_owned());
        return readings;
    }
    let source = "os_proc_available_memory".to_owned();
    readings.available = Some(Reading { bytes: figures.available_bytes, source });
    // An app never gets all of the device; its limit is what it has and what it may still have.
    let limit_bytes = figures.available_bytes.saturating_add(figures.footprint_bytes);
    let total = readings.total.as_ref().map_or(limit_bytes, |total| total.bytes.min(limit_bytes));
    readings.total = Some(Reading { bytes: total, source: "limit of this app".to_owned() });
    readings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryStatus;

    const MIB: u64 = 1 << 20;

    fn system(total: u64, available: u64) -> Readings {
        let reading = |bytes| Some(Reading { bytes, source: "device".to_owned() });
        Readings {
            probe: "sysinfo",
            total: reading(total),
            available: reading(available),
            ..Readings::default()
        }
    }

    #[test]
    fn an_app_has_what_it_holds_and_what_it_may_still_have() {
        // An iPhone of 4 GiB with its usual limit of 2,098 MiB an app, early in a run and with a model mapped.
        let fresh = AppleFigures {
            available_bytes: 2_060 * MIB,
            footprint_bytes: 38 * MIB,
            resident_bytes: 90 * MIB,
            resident_peak_bytes: 95 * MIB,
        };
        let loaded = AppleFigures {
            available_bytes: 1_740 * MIB,
            footprint_bytes: 358 * MIB,
            resident_bytes: 1_290 * MIB,
            resident_peak_bytes: 1_300 * MIB,
        };
        for figures in [fresh, loaded] {
            let readings = from_figures(Some(figures), system(3_750 * MIB, 900 * MIB));
            let status = MemoryStatus::from_readings(readings).unwrap();
            assert_eq!(status.available_bytes, 2_098 * MIB, "the same before and after loading");
            assert_eq!(status.reachable_bytes, 2_098 * MIB);
            assert_eq!(status.binding_limit().source, "os_proc_available_memory");
            assert!(status.notes.is_empty());
        }
    }

    #[test]
    fn without_a_limit_the_device_counts() {
        let figures =
            AppleFigures { footprint_bytes: 30 * MIB, resident_bytes: 60 * MIB, ..AppleFigures::default() };
        let status = from_figures(Some(figures), system(16_000 * MIB, 6_000 * MIB));
        let status = MemoryStatus::from_readings(status).unwrap();
        assert_eq!(status.available_bytes, 6_030 * MIB);
        assert!(status.notes[0].contains("no limit of its own"));
        let silent =
            MemoryStatus::from_readings(from_figures(None, system(4_000 * MIB, 1_000 * MIB))).unwrap();
        assert_eq!(silent.available_bytes, 1_000 * MIB);
        assert!(silent.notes[0].contains("does not tell"));
    }

    #[test]
    fn a_probe_asks_each_time() {
        let probe = AppleProbe::new(|| Some(AppleFigures { resident_bytes: 7, ..AppleFigures::default() }));
        assert_eq!(probe.process().unwrap().rss_peak_bytes, Some(7));
        assert_eq!(probe.read().probe, "apple");
    }
}
