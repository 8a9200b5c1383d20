//! `/proc/meminfo` and `/proc/self/status`: fields in kibibytes, one on a line.

use super::{ProbeError, ProbeRoot};
use crate::status::{ProcessMemory, Reading};
use std::path::PathBuf;

const MEMINFO: &str = "/proc/meminfo";
const STATUS: &str = "/proc/self/status";
const STATM: &str = "/proc/self/statm";

/// What `/proc/meminfo` tells.
#[derive(Debug, Default)]
pub(super) struct Meminfo {
    pub(super) total: Option<Reading>,
    pub(super) available: Option<Reading>,
}

/// A field of a `Name:   123 kB` file in bytes. `Ok(None)`: no such line; `Err`: a line that makes no sense.
fn kib_field(text: &str, name: &str) -> Result<Option<u64>, ()> {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':').map(str::to_owned);
    let Some(value) = text.lines().find_map(value) else { return Ok(None) };
    let mut words = value.split_ascii_whitespace();
    let (number, unit, rest) = (words.next(), words.next(), words.next());
    match (number.map(str::parse::<u64>), unit, rest) {
        (Some(Ok(kib)), Some("kB"), None) => kib.checked_mul(1024).map(Some).ok_or(()),
        _ => Err(()),
    }
}

pub(super) fn read_meminfo(root: &ProbeRoot, notes: &mut Vec<String>) -> Meminfo {
    let Some(text) = root.noted_text(MEMINFO, notes) else {
        notes.push(format!("{MEMINFO} is not there"));
        return Meminfo::default();
    };
    let mut field = |name: &str| {
        kib_field(&text, name).unwrap_or_else(|()| {
            notes.push(format!("{MEMINFO}: {name} makes no sense"));
            None
        })
    };
    let reading = |bytes, what: &str| Some(Reading { bytes, source: format!("{MEMINFO} {what}") });
    // A machine without memory runs nothing: zero means that the file is not to be trusted.
    let total = field("MemTotal").filter(|&total| total != 0);
    let Some(total) = total else {
        notes.push(format!("{MEMINFO} has no MemTotal"));
        return Meminfo::default();
    };
    if let Some(available) = field("MemAvailable") {
        return Meminfo {
            total: reading(total, "MemTotal"),
            available: reading(available.min(total), "MemAvailable"),
        };
    }
    // Linux before 3.14. Shared memory stands in `Cached` and cannot be dropped; of the rest, half is taken.
    let (free, cached, shmem) = (field("MemFree"), field("Cached"), field("Shmem").unwrap_or(0));
    let estimate = free.map(|free| free + cached.unwrap_or(0).saturating_sub(shmem) / 2);
    if estimate.is_some() {
        notes.push(format!("{MEMINFO} has no MemAvailable: estimated as MemFree + (Cached - Shmem) / 2"));
    } else {
        notes.push(format!("{MEMINFO} has neither MemAvailable nor MemFree"));
    }
    let available = estimate.and_then(|bytes| reading(bytes.min(total), "MemFree + (Cached - Shmem) / 2"));
    Meminfo { total: reading(total, "MemTotal"), available }
}

/// Resident memory of this process; `/proc/self/statm`, in pages, when the status file has no figures.
pub(super) fn read_process(root: &ProbeRoot) -> Result<ProcessMemory, ProbeError> {
    let text = read(root, STATUS)?.unwrap_or_default();
    let malformed = |field| ProbeError::Malformed { path: PathBuf::from(STATUS), field };
    let field = |name: &'static str| kib_field(&text, name).map_err(|()| malformed(name));
    let Some(rss_bytes) = field("VmRSS")? else { return read_statm(root) };
    Ok(ProcessMemory {
        rss_bytes,
        rss_peak_bytes: field("VmHWM")?,
        rss_anon_bytes: field("RssAnon")?,
        rss_file_bytes: field("RssFile")?,
        rss_shmem_bytes: field("RssShmem")?,
    })
}

fn read_statm(root: &ProbeRoot) -> Result<ProcessMemory, ProbeError> {
    let malformed = || ProbeError::Malformed { path: PathBuf::from(STATM), field: "resident" };
    let text = read(root, STATM)?.ok_or_else(malformed)?;
    let mut words = text.split_ascii_whitespace().skip(1);
    let mut pages = || words.next()?.parse::<u64>().ok()?.checked_mul(root.page_bytes());
    let rss_bytes = pages().ok_or_else(malformed)?;
    // The third field counts file and shared pages together: what is left is anonymous.
    let shared = pages().filter(|&shared| shared <= rss_bytes);
    Ok(ProcessMemory {
        rss_bytes,
        rss_anon_bytes: shared.map(|shared| rss_bytes - shared),
        ..ProcessMemory::default()
    })
}

fn read(root: &ProbeRoot, path: &str) -> Result<Option<String>, ProbeError> {
    root.text(path).map_err(|source| ProbeError::Unreadable { path: PathBuf::from(path), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_taken_whole_or_not_at_all() {
        let cases = [
            ("MemTotal:  16 kB\n", Ok(Some(16 << 10))),
            ("Other: 1 kB\nMemTotal:\t16 kB", Ok(Some(16 << 10))),
            ("MemTotalX: 16 kB\n", Ok(None)),
            ("", Ok(None)),
            ("MemTotal: kB\n", Err(())),
            ("MemTotal: 16\n", Err(())),
            ("MemTotal: 16 MB\n", Err(())),
            ("MemTotal: 16 kB extra\n", Err(())),
            ("MemTotal: -16 kB\n", Err(())),
            ("MemTotal: 1.5 kB\n", Err(())),
            ("MemTotal: 18446744073709551615 kB\n", Err(())),
        ];
        for (text, want) in cases {
            assert_eq!(kib_field(text, "MemTotal"), want, "{text:?}");
        }
    }
}
