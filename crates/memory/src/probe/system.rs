//! Asking the operating system through `sysinfo`: for systems without `/proc`, and where it is hidden.
//!
//! It knows nothing of control groups as they apply to us and nothing of stalls.

use super::{CpuAllowance, Probe, ProbeError, host_page_bytes};
use crate::status::{ProcessMemory, Reading, Readings};
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, RefreshKind, System};

const NAME: &str = "sysinfo";

/// The probe of last resort, on every system that `sysinfo` knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemProbe;

impl Probe for SystemProbe {
    fn read(&self) -> Readings {
        let kind = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let mut notes = Vec::new();
        let system =
            System::new_with_specifics(kind).map_err(|error| notes.push(format!("sysinfo: {error}"))).ok();
        // It answers 0 when it does not know.
        let known = |of: fn(&System) -> u64, what: &str| {
            let bytes = system.as_ref().map(of).filter(|&bytes| bytes != 0)?;
            Some(Reading { bytes, source: format!("{} {what}", std::env::consts::OS) })
        };
        let process = self.process().unwrap_or_else(|error| {
            notes.push(format!("{error}, so own memory counts as used"));
            ProcessMemory::default()
        });
        let allowed_cpus = std::thread::available_parallelism().map(usize::from).ok();
        Readings {
            probe: NAME,
            page_bytes: host_page_bytes(),
            total: known(System::total_memory, "total memory"),
            available: known(System::available_memory, "available memory"),
            process,
            cpu: CpuAllowance {
                allowed_cpus,
                usable_cores: allowed_cpus.unwrap_or(1),
                ..CpuAllowance::default()
            },
            notes,
            ..Readings::default()
        }
    }

    fn process(&self) -> Result<ProcessMemory, ProbeError> {
        let unknown =
            |notes: &str| ProbeError::Unknown { probe: NAME, what: "own memory", notes: notes.to_owned() };
        let pid = Pid::from_u32(std::process::id());
        let mut system = System::new().map_err(|error| unknown(&error.to_string()))?;
        let kind = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, kind);
        let process = system.process(pid).ok_or_else(|| unknown("own process is not listed"))?;
        if process.memory() == 0 {
            return Err(unknown("own size is zero"));
        }
        Ok(ProcessMemory { rss_bytes: process.memory(), ..ProcessMemory::default() })
    }
}
