//! How many threads can compute at once: processors we may run on, and quotas of control groups.

use super::ProbeRoot;
use super::cgroup::{Hierarchies, Version};

/// Most processors counted; a longer list is a broken file.
const MAX_CPUS: usize = 1 << 16;

/// Processors this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuAllowance {
    /// Processors the scheduler may put us on; `None` when unknown.
    pub allowed_cpus: Option<usize>,
    /// Tightest quota of all groups, in processors.
    pub quota_cores: Option<f64>,
    /// The file that sets the quota.
    pub quota_source: Option<String>,
    /// Threads worth starting, at least 1: the allowed processors, at most the quota rounded down. More would
    /// use up the quota early in each period and then stand still together.
    pub usable_cores: usize,
}

impl Default for CpuAllowance {
    fn default() -> Self {
        Self { allowed_cpus: None, quota_cores: None, quota_source: None, usable_cores: 1 }
    }
}

pub(super) fn read_cpu(root: &ProbeRoot, groups: &Hierarchies, notes: &mut Vec<String>) -> CpuAllowance {
    let allowed_cpus = allowed_cpus(root).or_else(|| {
        let host = root.is_host().then(std::thread::available_parallelism);
        host.and_then(Result::ok).map(usize::from)
    });
    if allowed_cpus.is_none() {
        notes.push("/proc/self/status does not tell the allowed processors: one is used".to_owned());
    }
    let mut quota: Option<(f64, String)> = None;
    for hierarchy in &groups.cpu {
        for dir in &hierarchy.dirs {
            let read = match hierarchy.version {
                Version::V1 => quota_v1(root, dir, notes),
                Version::V2 => quota_v2(root, dir, notes),
            };
            let Some(read) = read else { continue };
            if quota.as_ref().is_none_or(|(tightest, _)| read.0 < *tightest) {
                quota = Some(read);
            }
        }
    }
    let mut usable_cores = allowed_cpus.unwrap_or(1);
    if let Some((cores, _)) = quota {
        usable_cores = usable_cores.min(cores as usize).max(1);
    }
    let (quota_cores, quota_source) = quota.unzip();
    CpuAllowance { allowed_cpus, quota_cores, quota_source, usable_cores }
}

/// The line `Cpus_allowed_list: 0-3,8`.
fn allowed_cpus(root: &ProbeRoot) -> Option<usize> {
    let text = root.text("/proc/self/status").ok()??;
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    count_list(list.trim())
}

fn count_list(list: &str) -> Option<usize> {
    let mut count = 0_usize;
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        let n = last.checked_sub(first)?.checked_add(1)?;
        count = count.checked_add(n).filter(|&count| count <= MAX_CPUS)?;
    }
    Some(count)
}

/// `cpu.max`: `quota period` in microseconds, the quota may be `max`.
fn quota_v2(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> Option<(f64, String)> {
    let path = format!("{dir}/cpu.max");
    let text = root.noted_text(&path, notes)?;
    let mut words = text.split_ascii_whitespace();
    let quota = words.next().unwrap_or_default();
    if quota == "max" {
        return None;
    }
    let cores = quota.parse().ok().zip(words.next().unwrap_or_default().parse().ok());
    divide(cores, path, notes)
}

/// `cpu.cfs_quota_us`, -1 for none, over `cpu.cfs_period_us`.
fn quota_v1(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> Option<(f64, String)> {
    let path = format!("{dir}/cpu.cfs_quota_us");
    let quota = root.noted_text(&path, notes)?;
    if quota.trim() == "-1" {
        return None;
    }
    let period = root.noted_text(&format!("{dir}/cpu.cfs_period_us"), notes).unwrap_or_default();
    divide(quota.trim().parse().ok().zip(period.trim().parse().ok()), path, notes)
}

fn divide(pair: Option<(u64, u64)>, path: String, notes: &mut Vec<String>) -> Option<(f64, String)> {
    match pair {
        Some((quota, period)) if quota != 0 && period != 0 => Some((quota as f64 / period as f64, path)),
        _ => {
            notes.push(format!("{path} makes no sense as a processor quota: ignored"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_lists_are_counted() {
        let cases = [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-1,4,6-7", Some(5)),
            ("", None),
            ("3-1", None),
            ("a-b", None),
            ("0-", None),
            ("0-18446744073709551615", None),
            ("0-99999999", None),
        ];
        for (list, want) in cases {
            assert_eq!(count_list(list), want, "{list:?}");
        }
    }
}
