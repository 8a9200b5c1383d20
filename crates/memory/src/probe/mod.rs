//! Reading the device: memory, limits of control groups, stalls, processors.
//!
//! A [`Probe`] only reads; [`crate::MemoryStatus`] draws the conclusions. [`LinuxProbe`] reads files under a
//! [`ProbeRoot`], so that any device can be played from a folder. [`SystemProbe`] asks the operating system
//! through `sysinfo` and serves where there is no `/proc`. [`AndroidProbe`] and [`AppleProbe`] know how phones kill; an
//! app puts its own in place by [`set_platform_probe`].

mod android;
mod apple;
mod cgroup;
mod cpu;
mod limits;
mod meminfo;
mod pressure;
mod system;

pub use android::AndroidProbe;
pub use apple::{AppleFigures, AppleProbe};
pub use cpu::CpuAllowance;
pub use pressure::{Pressure, PressureAverages};
pub use system::SystemProbe;

use crate::status::{MemoryStatus, ProcessMemory, Readings};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Most bytes read of any one file; a mount table of a busy container host stays well below.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Whoever can tell about the memory of a device.
pub trait Probe: Send + Sync {
    /// Reads everything once. What cannot be read is left out and noted.
    fn read(&self) -> Readings;

    /// Reads only this process; cheap enough for several times a second.
    /// # Errors
    /// [`ProbeError`] when the system does not tell.
    fn process(&self) -> Result<ProcessMemory, ProbeError>;
}

/// Why the device's memory is not known.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A number without which nothing can be decided.
    #[error("the probe `{probe}` found no usable figure for {what} ({notes})")]
    Unknown {
        /// Name of the probe.
        probe: &'static str,
        /// What is missing.
        what: &'static str,
        /// Notes of the probe.
        notes: String,
    },
    /// A file that should be there cannot be read.
    #[error("`{path}` could not be read")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A file holds something else than it should.
    #[error("`{path}` has no usable `{field}`")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was looked for.
        field: &'static str,
    },
}

/// Where the files of a Linux system are: `/`, or a folder that plays one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeRoot {
    root: PathBuf,
    page_bytes: u64,
}

impl ProbeRoot {
    /// The machine we run on.
    #[must_use]
    pub fn host() -> Self {
        Self { root: PathBuf::from("/"), page_bytes: host_page_bytes() }
    }

    /// A folder with `proc/` and whatever the mount table in `proc/self/mountinfo` names.
    #[must_use]
    pub fn folder(root: impl Into<PathBuf>, page_bytes: u64) -> Self {
        Self { root: root.into(), page_bytes: page_bytes.max(1) }
    }

    /// True for the machine we run on.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Size of a page on this system.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.page_bytes
    }

    /// The place of an absolute path of that system.
    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Text of a file of that system, given by its absolute path; `None` when there is no such file.
    ///
    /// Bytes that are not UTF-8 are replaced: they can only stand in names, never in numbers.
    fn text(&self, path: &str) -> io::Result<Option<String>> {
        let opened = std::fs::File::open(self.place(path));
        let file = match opened {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        match file.take(MAX_FILE_BYTES).read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Self::text`], with a note instead of an error.
    fn noted_text(&self, path: &str, notes: &mut Vec<String>) -> Option<String> {
        self.text(path).unwrap_or_else(|error| {
            notes.push(format!("{path} could not be read: {error}"));
            None
        })
    }
}

impl Default for ProbeRoot {
    fn default() -> Self {
        Self::host()
    }
}

/// A group can vanish between listing and reading; that is the same as never having been there.
fn is_absent(error: &io::Error) -> bool {
    let gone = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    #[cfg(unix)]
    let no_device = error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
    #[cfg(not(unix))]
    let no_device = false;
    gone.contains(&error.kind()) || no_device
}

#[cfg(unix)]
fn host_page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

#[cfg(not(unix))]
fn host_page_bytes() -> u64 {
    4096
}

/// Reads `/proc` and the control groups.
#[derive(Clone, Debug, Default)]
pub struct LinuxProbe {
    root: ProbeRoot,
}

impl LinuxProbe {
    /// A probe of the system at `root`.
    #[must_use]
    pub fn new(root: ProbeRoot) -> Self {
        Self { root }
    }
}

impl Probe for LinuxProbe {
    fn read(&self) -> Readings {
        let root = &self.root;
        let mut notes = Vec::new();
        let meminfo = meminfo::read_meminfo(root, &mut notes);
        let process = self.process().unwrap_or_else(|error| {
            notes.push(format!("{}, so own memory counts as used", chain(&error)));
            ProcessMemory::default()
        });
        let groups = cgroup::Hierarchies::read(root, &mut notes);
        Readings {
            probe: "linux",
            page_bytes: root.page_bytes,
            total: meminfo.total,
            available: meminfo.available,
            groups: limits::read_groups(root, &groups, &mut notes),
            process,
            pressure: pressure::read_pressure(root, &groups, &mut notes),
            cpu: cpu::read_cpu(root, &groups, &mut notes),
            notes,
        }
    }

    fn process(&self) -> Result<ProcessMemory, ProbeError> {
        meminfo::read_process(&self.root)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

static PLATFORM: OnceLock<Box<dyn Probe>> = OnceLock::new();

/// Puts the probe of an app's platform in place of the host's own; the first one stays. False when there was one.
pub fn set_platform_probe(probe: Box<dyn Probe>) -> bool {
    PLATFORM.set(probe).is_ok()
}

/// The platform's probe, if the host has one.
fn platform() -> Option<&'static dyn Probe> {
    if cfg!(target_os = "android") {
        return Some(PLATFORM.get_or_init(|| Box::new(AndroidProbe::new(ProbeRoot::host()))).as_ref());
    }
    PLATFORM.get().map(Box::as_ref)
}

/// Reads the system at `root` and draws the conclusions.
///
/// On the host, figures that `/proc` does not give are asked of the operating system instead, with a note.
/// # Errors
/// [`ProbeError::Unknown`] when nobody tells how much memory there is or could be given.
pub fn probe(root: &ProbeRoot) -> Result<MemoryStatus, ProbeError> {
    if let Some(platform) = platform().filter(|_| root.is_host()) {
        return MemoryStatus::from_readings(platform.read());
    }
    let has_proc = cfg!(any(target_os = "linux", target_os = "android"));
    if root.is_host() && !has_proc {
        return MemoryStatus::from_readings(SystemProbe.read());
    }
    let mut readings = LinuxProbe::new(root.clone()).read();
    if root.is_host() && (readings.total.is_none() || readings.available.is_none()) {
        let system = SystemProbe.read();
        readings.notes.push("memory figures come from the operating system, not from /proc".to_owned());
        readings.total = readings.total.or(system.total);
        readings.available = readings.available.or(system.available);
    }
    MemoryStatus::from_readings(readings)
}

/// Resident memory of this process now.
/// # Errors
/// [`ProbeError`] when the system does not tell.
pub fn process_memory() -> Result<ProcessMemory, ProbeError> {
    if let Some(platform) = platform() {
        platform.process()
    } else if cfg!(any(target_os = "linux", target_os = "android")) {
        LinuxProbe::default().process()
    } else {
        SystemProbe.process()
    }
}

/// Resident set of this process now.
/// # Errors
/// [`ProbeError`] when the system does not tell.
pub fn rss_bytes() -> Result<u64, ProbeError> {
    process_memory().map(|process| process.rss_bytes)
}

/// Largest resident set of this process since its start.
///
/// On systems that keep no such mark this is the present size: use a [`crate::Watchdog`] there.
/// # Errors
/// [`ProbeError`] when the system does not tell.
pub fn rss_peak_bytes() -> Result<u64, ProbeError> {
    process_memory().map(|process| process.rss_peak_bytes.unwrap_or(process.rss_bytes).max(process.rss_bytes))
}
