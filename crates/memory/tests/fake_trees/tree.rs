//! Building the files of a made-up device.

use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const MIB: u64 = 1 << 20;

/// Files by absolute path.
#[derive(Clone)]
pub(crate) struct Tree {
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) page_bytes: u64,
}

/// What the probe should say. Bytes.
#[derive(Default)]
pub(crate) struct Want {
    /// Set when there must be an error that names this.
    pub(crate) unknown: Option<&'static str>,
    pub(crate) available: u64,
    pub(crate) binding: &'static str,
    /// Bounds in all, the device included.
    pub(crate) n_limits: usize,
    /// A part of each note, in order.
    pub(crate) notes: Vec<&'static str>,
    pub(crate) reachable: Option<u64>,
    pub(crate) cores: Option<usize>,
    pub(crate) pressure: Option<Vec<&'static str>>,
    pub(crate) rss: Option<u64>,
}

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) tree: Tree,
    pub(crate) want: Want,
}

pub(crate) fn meminfo(total: u64, available: u64) -> String {
    format!(
        "MemTotal:       {} kB\nMemFree:        1024 kB\nMemAvailable:   {} kB\nSwapFree:       999999 kB\n",
        total * 1024,
        available * 1024
    )
}

/// A process of 40 MiB: 10 anonymous, 30 of files.
pub(crate) fn status() -> String {
    "Name:\tx\nVmHWM:\t51200 kB\nVmRSS:\t40960 kB\nRssAnon:\t10240 kB\nRssFile:\t30720 kB\nRssShmem:\t0 kB\n\
     Cpus_allowed_list:\t0-3\n"
        .to_owned()
}

pub(crate) const PSI: &str =
    "some avg10=0.10 avg60=0.20 avg300=0.30 total=400\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

impl Tree {
    /// A device of 4000 MiB, 3000 of them available, without control groups.
    pub(crate) fn bare() -> Self {
        let tree = Self { files: BTreeMap::new(), page_bytes: 4096 };
        tree.file("/proc/meminfo", meminfo(4000, 3000)).file("/proc/self/status", status())
    }

    /// Version 2 only, the process in `group`.
    pub(crate) fn v2(group: &str) -> Self {
        Self::bare()
            .file("/proc/self/cgroup", format!("0::{group}\n"))
            .file("/proc/self/mountinfo", mount_v2("/", "/sys/fs/cgroup"))
    }

    /// Version 1 only, the process in `group` of both controllers.
    pub(crate) fn v1(group: &str) -> Self {
        Self::bare()
            .file("/proc/self/cgroup", format!("5:memory:{group}\n4:cpu,cpuacct:{group}\n1:name=systemd:/\n"))
            .file("/proc/self/mountinfo", mounts_v1("/"))
            .file(format!("/sys/fs/cgroup/cpu,cpuacct{group}/tasks"), "")
    }

    pub(crate) fn file(mut self, path: impl Into<String>, text: impl Into<String>) -> Self {
        self.files.insert(path.into(), text.into());
        self
    }

    pub(crate) fn without(mut self, path: &str) -> Self {
        assert!(self.files.remove(path).is_some(), "{path} was not there");
        self
    }

    pub(crate) fn page(mut self, page_bytes: u64) -> Self {
        self.page_bytes = page_bytes;
        self
    }

    /// A group of version 2: limits in MiB or words, usage in MiB, lines of `memory.stat` in MiB.
    pub(crate) fn group_v2(self, group: &str, max: &str, high: &str, current: u64, stat: &str) -> Self {
        let dir = format!("/sys/fs/cgroup{group}");
        self.file(format!("{dir}/memory.max"), mib_or_word(max))
            .file(format!("{dir}/memory.high"), mib_or_word(high))
            .file(format!("{dir}/memory.current"), format!("{}\n", current * MIB))
            .file(format!("{dir}/memory.stat"), stat_lines(stat))
    }

    /// A group of version 1, the same way.
    pub(crate) fn group_v1(self, group: &str, limit: &str, current: u64, stat: &str) -> Self {
        let dir = format!("/sys/fs/cgroup/memory{group}");
        self.file(format!("{dir}/memory.limit_in_bytes"), mib_or_word(limit))
            .file(format!("{dir}/memory.usage_in_bytes"), format!("{}\n", current * MIB))
            .file(format!("{dir}/memory.stat"), stat_lines(stat))
    }

    pub(crate) fn write(&self, folder: &Path) {
        for (path, text) in &self.files {
            let place = folder.join(path.trim_start_matches('/'));
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, text).unwrap();
        }
    }
}

pub(crate) fn mount_v2(root: &str, mount_point: &str) -> String {
    format!("25 1 0:22 {root} {mount_point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n")
}

pub(crate) fn mounts_v1(root: &str) -> String {
    format!(
        "22 1 0:21 / /proc rw - proc proc rw\n\
         30 25 0:26 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
         31 25 0:27 {root} /sys/fs/cgroup/memory rw shared:10 master:2 - cgroup cgroup rw,memory\n"
    )
}

/// `512` is MiB; a number of ten digits or more is bytes; all else stands as it is.
fn mib_or_word(text: &str) -> String {
    match text.parse::<u64>() {
        Ok(mib) if text.len() < 10 => format!("{}\n", mib * MIB),
        _ => format!("{text}\n"),
    }
}

fn stat_lines(stat: &str) -> String {
    let line = |(name, mib): (&str, &str)| format!("{name} {}\n", mib.parse::<u64>().unwrap() * MIB);
    stat.split(' ').filter_map(|field| field.split_once('=')).map(line).collect()
}
