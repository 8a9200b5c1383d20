//! Android: Linux, where the system kills apps long before memory is used up, and where a part of the process is not ours.
//!
//! - `MemAvailable` counts down to zero, but the low-memory killer acts earlier. Its threshold for an app in the
//!   foreground is taken off: from the kernel's killer (devices up to Android 9 or so) or from what the app was told by
//!   `ActivityManager.MemoryInfo`. Where neither speaks, the thresholds of the stock configuration are used.
//! - The Java heap lies in the same process. The app's own objects come and go without us, so their pages are not
//!   counted as memory that a model could have: own memory is added back without them.

use super::{LinuxProbe, Probe, ProbeError, ProbeRoot};
use crate::status::{ProcessMemory, Readings};
use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};

const MINFREE: &str = "/sys/module/lowmemorykiller/parameters/minfree";
const ADJ: &str = "/sys/module/lowmemorykiller/parameters/adj";
const SMAPS: &str = "/proc/self/smaps";
/// Importance (`oom_score_adj`) of a foreground service: "perceptible".
const PERCEPTIBLE_ADJ: i64 = 200;
/// Most lines of `smaps` that are read; a large app has 3,000 mappings of 25 lines.
const MAX_SMAPS_LINES: usize = 1 << 20;
/// Names of mappings that belong to the Java virtual machine.
const ART_NAMES: [&str; 2] = ["[anon:dalvik-", "/dev/ashmem/dalvik-"];

/// Reads an Android device under a [`ProbeRoot`].
#[derive(Debug)]
pub struct AndroidProbe {
    root: ProbeRoot,
    linux: LinuxProbe,
    threshold_bytes: AtomicU64,
}

impl AndroidProbe {
    /// A probe of the device at `root`.
    #[must_use]
    pub fn new(root: ProbeRoot) -> Self {
        Self { linux: LinuxProbe::new(root.clone()), root, threshold_bytes: AtomicU64::new(0) }
    }

    /// Takes over `ActivityManager.MemoryInfo.threshold`, which only the app can ask for.
    pub fn set_threshold_bytes(&self, bytes: u64) {
        self.threshold_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Where killing begins, and who says so.
    fn threshold(&self, total_bytes: u64, notes: &mut Vec<String>) -> (u64, String) {
        let told = self.threshold_bytes.load(Ordering::Relaxed);
        if told != 0 {
            return (told, "MemoryInfo.threshold".to_owned());
        }
        let minfree = self.root.noted_text(MINFREE, notes);
        let adj = self.root.noted_text(ADJ, notes);
        if let (Some(minfree), Some(adj)) = (minfree, adj) {
            if let Some(pages) = killer_pages(&minfree, &adj) {
                return (
                    pages.saturating_mul(self.root.page_bytes()),
                    format!("{MINFREE} for adj {PERCEPTIBLE_ADJ}"),
                );
            }
            notes.push(format!("{MINFREE} makes no sense"));
        }
        (stock_threshold_bytes(total_bytes), "the stock threshold of the low-memory killer".to_owned())
    }

    /// Resident bytes of the Java virtual machine.
    fn art_bytes(&self, notes: &mut Vec<String>) -> u64 {
        let file = match std::fs::File::open(self.root.place(SMAPS)) {
            Ok(file) => file,
            Err(error) => {
                notes.push(format!("{SMAPS} could not be read, so the Java heap counts as ours: {error}"));
                return 0;
            }
        };
        let mut is_art = false;
        let mut kib = 0_u64;
        for line in BufReader::new(file).lines().take(MAX_SMAPS_LINES).map_while(Result::ok) {
            match line.strip_prefix("Rss:") {
                Some(value) if is_art => {
                    let number =
                        value.trim().strip_suffix("kB").and_then(|kib| kib.trim().parse::<u64>().ok());
                    kib = kib.saturating_add(number.unwrap_or(0));
                }
                Some(_) => {}
                None => {
                    if let Some(name) = mapping_name(&line) {
                        is_art = ART_NAMES.iter().any(|art| name.starts_with(art));
                    }
                }
            }
        }
        kib.saturating_mul(1024)
    }
}

/// The name at the end of a mapping's head line, empty for a mapping without; `None` for any other line.
fn mapping_name(line: &str) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let is_address = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_address(from) || !is_address(to) {
        return None;
    }
    // Permissions, offset, device and inode stand before the name, which may hold spaces.
    let mut rest = rest.trim_start();
    for _ in 0..4 {
        rest = rest.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    }
    Some(rest)
}

/// Pages that must stay free for a process of [`PERCEPTIBLE_ADJ`]: the greatest entry for an importance up to that.
fn killer_pages(minfree: &str, adj: &str) -> Option<u64> {
    let minfree = minfree.trim().split(',').map(|pages| pages.trim().parse::<u64>().ok());
    let adj = adj.trim().split(',').map(|adj| adj.trim().parse::<i64>().ok());
    let pairs: Option<Vec<(u64, i64)>> = minfree.zip(adj).map(|(pages, adj)| Some((pages?, adj?))).collect();
    pairs?.into_iter().filter(|&(_, adj)| adj <= PERCEPTIBLE_ADJ).map(|(pages, _)| pages).max()
}

/// What the framework sets on a device of this size for the last entry of the table that `MemoryInfo.threshold` is:
/// from 36 MiB on a device of 512 MiB to 315 MiB on one of 4 GiB and more.
fn stock_threshold_bytes(total_bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    (total_bytes / 13).clamp(36 * MIB, 315 * MIB)
}

impl Probe for AndroidProbe {
    fn read(&self) -> Readings {
        let mut readings = self.linux.read();
        readings.probe = "android";
        let notes = &mut readings.notes;
        if let (Some(total), Some(available)) = (&readings.total, &mut readings.available) {
            let (threshold, source) = self.threshold(total.bytes, notes);
            available.bytes = available.bytes.saturating_sub(threshold);
            available.source = format!("{} less {source}", available.source);
        }
        let art = self.art_bytes(notes);
        readings.process = without(readings.process, art);
        readings
    }

    /// The whole process, the Java heap included: what the system kills by.
    fn process(&self) -> Result<ProcessMemory, ProbeError> {
        self.linux.process()
    }
}

fn without(process: ProcessMemory, art_bytes: u64) -> ProcessMemory {
    ProcessMemory {
        rss_bytes: process.rss_bytes.saturating_sub(art_bytes),
        rss_anon_bytes: process.rss_anon_bytes.map(|bytes| bytes.saturating_sub(art_bytes)),
        ..process
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_mappings_may_hold_spaces() {
        let cases = [
            (
                "12c00000-32c00000 rw-p 00000000 00:00 0                                  [anon:dalvik-main space (region space)]",
                Some("[anon:dalvik-main space (region space)]"),
            ),
            (
                "7f8a2c1000-7f8a2c3000 r--p 00000000 fd:00 1234           /system/lib64/libc.so",
                Some("/system/lib64/libc.so"),
            ),
            ("7f8a2c1000-7f8a2c3000 rw-p 00000000 00:00 0", Some("")),
            ("Rss:                1712 kB", None),
            ("VmFlags: rd wr mr mw me ac", None),
            ("Name:           [anon:dalvik-main space (region space)]", None),
            ("", None),
        ];
        for (line, want) in cases {
            assert_eq!(mapping_name(line), want, "{line}");
        }
    }

    #[test]
    fn the_killers_table_is_read_for_a_foreground_service() {
        let adj = "0,100,200,300,900,906";
        let cases = [
            ("18432,23040,27648,32256,55296,80640", adj, Some(27_648)),
            ("1536,2048,4096,5120,5632,6144\n", "0,58,117,176,529,1000\n", Some(5_120)),
            ("18432", adj, Some(18_432)),
            ("", adj, None),
            ("a,b", adj, None),
            ("18432,23040", "500,600", None),
        ];
        for (minfree, adj, want) in cases {
            assert_eq!(killer_pages(minfree, adj), want, "{minfree} {adj}");
        }
    }
}
