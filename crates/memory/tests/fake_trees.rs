//! Devices played from folders: what the probe must make of control groups of every kind.
//!
//! Each case lists files and what is expected; all failures are shown at once. Sizes in the cases are MiB
//! unless a file's format says otherwise.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "fake_trees/cases.rs"]
mod cases;
#[path = "fake_trees/tree.rs"]
mod tree;

use secateur_memory::{ProbeError, ProbeRoot, probe};
use std::collections::BTreeSet;
use tree::{Case, MIB, Tree};

/// Everything about a case that is not as expected.
fn faults(case: &Case) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    case.tree.write(folder.path());
    let root = ProbeRoot::folder(folder.path(), case.tree.page_bytes);
    let want = &case.want;
    let status = match (probe(&root), want.unknown) {
        (Ok(status), None) => status,
        (Err(ProbeError::Unknown { what, .. }), Some(unknown)) if what == unknown => return Vec::new(),
        (got, unknown) => return vec![format!("got {got:?}, unknown should be {unknown:?}")],
    };
    let mut faults = Vec::new();
    let mut differ = |what: &str, got: String, want: String| {
        if got != want {
            faults.push(format!("{what} is {got}, should be {want}"));
        }
    };
    let mib = |bytes: u64| format!("{:.3} MiB", bytes as f64 / MIB as f64);
    differ("available", mib(status.available_bytes), mib(want.available));
    differ("binding limit", status.binding_limit().source.clone(), want.binding.to_owned());
    differ("limits", status.limits.len().to_string(), want.n_limits.to_string());
    differ("notes", format!("{:?}", status.notes.len()), format!("{:?}", want.notes.len()));
    for (note, part) in status.notes.iter().zip(&want.notes) {
        if !note.contains(part) {
            faults.push(format!("note `{note}` should contain `{part}`"));
        }
    }
    let mut differ = |what: &str, got: String, want: String| {
        if got != want {
            faults.push(format!("{what} is {got}, should be {want}"));
        }
    };
    differ("budget", mib(status.auto_budget_bytes), mib(status.available_bytes - status.reserve_bytes));
    differ("page", status.page_bytes.to_string(), case.tree.page_bytes.to_string());
    if let Some(reachable) = want.reachable {
        differ("reachable", mib(status.reachable_bytes), mib(reachable));
    }
    if let Some(cores) = want.cores {
        differ("usable cores", status.cpu.usable_cores.to_string(), cores.to_string());
    }
    if let Some(pressure) = &want.pressure {
        let got: Vec<&str> = status.pressure.iter().map(|pressure| pressure.source.as_str()).collect();
        differ("pressure", format!("{got:?}"), format!("{pressure:?}"));
    }
    if let Some(rss) = want.rss {
        differ("rss", mib(status.process.rss_bytes), mib(rss));
    }
    faults
}

#[test]
fn every_tree_is_read_right() {
    let cases = cases::all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "names of cases are unique");
    assert!(40 <= cases.len(), "{} cases", cases.len());
    let mut failed = Vec::new();
    for case in &cases {
        failed.extend(faults(case).into_iter().map(|fault| format!("{}: {fault}", case.name)));
    }
    assert!(failed.is_empty(), "{} of {} checks:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// Whatever stands in the files, and whichever is missing, the probe answers without a panic, and never promises more than there is.
#[test]
fn garbage_in_any_file_is_survived() {
    let garbage = [None, Some(""), Some("garbage"), Some("-1"), Some("99999999999999999999999"), Some("0")];
    let mut seen = BTreeSet::new();
    let cases = cases::all();
    // Trees with the same files differ in numbers only, which are overwritten anyway.
    let distinct =
        cases.iter().filter(|case| seen.insert(case.tree.files.keys().cloned().collect::<Vec<_>>()));
    for case in distinct {
        let folder = tempfile::tempdir().unwrap();
        case.tree.write(folder.path());
        let root = ProbeRoot::folder(folder.path(), case.tree.page_bytes);
        for (path, original) in &case.tree.files {
            for text in garbage {
                let place = folder.path().join(path.trim_start_matches('/'));
                match text {
                    Some(text) => std::fs::write(&place, text).unwrap(),
                    None => std::fs::remove_file(&place).unwrap(),
                }
                if let Ok(status) = probe(&root) {
                    assert!(status.available_bytes <= status.total_bytes, "{}: {path} = {text:?}", case.name);
                    assert!(1 <= status.cpu.usable_cores, "{}: {path} = {text:?}", case.name);
                }
                std::fs::write(&place, original).unwrap();
            }
        }
    }
}

/// A file that cannot be read is noted, not mistaken for one that is not there.
#[test]
fn a_folder_in_place_of_a_file_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let tree = Tree::v2("/app").group_v2("/app", "512", "max", 100, "");
    tree.write(folder.path());
    let place = folder.path().join("sys/fs/cgroup/app/memory.max");
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    let status = probe(&ProbeRoot::folder(folder.path(), 4096)).unwrap();
    assert!(status.notes[0].contains("memory.max could not be read"), "{:?}", status.notes);
}

/// A device whose figures change: the ladder is fed with what the probe makes of them.
#[test]
fn pressure_of_a_group_is_climbed_and_comes_down() {
    use secateur_memory::{PressureLadder, PressureSample, PressureStep};
    use std::fs;
    use std::time::Duration;
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/meminfo", "MemTotal: 4096000 kB\nMemFree: 100000 kB\nMemAvailable: 3072000 kB\n");
    write("proc/self/status", "VmRSS: 102400 kB\nVmHWM: 102400 kB\nRssAnon: 51200 kB\nRssFile: 51200 kB\n");
    write("proc/self/cgroup", "0::/app\n");
    write("proc/self/mountinfo", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    write("sys/fs/cgroup/app/memory.max", "536870912\n");
    write("sys/fs/cgroup/app/memory.current", "209715200\n");
    write("sys/fs/cgroup/app/memory.stat", "anon 52428800\ninactive_file 52428800\nactive_file 104857600\n");
    let stalls = |total_us: u64| {
        let line = format!("avg10=0.00 avg60=0.00 avg300=0.00 total={total_us}");
        let text = format!("some {line}\nfull {line}\n");
        write("sys/fs/cgroup/app/memory.pressure", &text);
    };
    let mut ladder = PressureLadder::default();
    let mut observe = |second: u64| {
        let status = probe(&ProbeRoot::folder(folder.path(), 4096)).unwrap();
        ladder.observe(Duration::from_secs(second), PressureSample::of(&status, false))
    };
    stalls(0);
    assert_eq!(observe(0), PressureStep::Calm);
    stalls(100_000);
    assert_eq!(observe(2), PressureStep::Calm, "a twentieth of the time");
    stalls(900_000);
    assert_eq!(observe(4), PressureStep::DropCaches, "four tenths of the time");
    stalls(1_300_000);
    assert_eq!(observe(6), PressureStep::ShrinkCaches);
    for second in (8..36).step_by(2) {
        assert_eq!(observe(second), PressureStep::ShrinkCaches, "second {second}");
    }
    assert_eq!(observe(38), PressureStep::DropCaches);
    assert_eq!(observe(68), PressureStep::Calm);
    // No stalls, but the group is full of memory that cannot be dropped.
    write("proc/self/status", "VmRSS: 512000 kB\nVmHWM: 512000 kB\nRssAnon: 500000 kB\nRssFile: 12000 kB\n");
    write("sys/fs/cgroup/app/memory.current", "536000000\n");
    write("sys/fs/cgroup/app/memory.stat", "anon 530000000\ninactive_file 0\nactive_file 1000000\n");
    assert_eq!(observe(70), PressureStep::DropCaches);
}

/// The machine this runs on: our own reading against that of another library.
#[test]
fn the_host_agrees_with_sysinfo() {
    let status = probe(&ProbeRoot::host()).unwrap();
    let kind = sysinfo::MemoryRefreshKind::nothing().with_ram();
    let system =
        sysinfo::System::new_with_specifics(sysinfo::RefreshKind::nothing().with_memory(kind)).unwrap();
    assert_eq!(status.total_bytes, system.total_memory());
    let device = &status.limits[0];
    let gap = device.available_bytes.abs_diff(system.available_memory());
    assert!(gap < status.total_bytes / 10, "{gap} of {}", status.total_bytes);
    assert!(status.page_bytes.is_power_of_two() && 4096 <= status.page_bytes);
    assert!(status.cpu.usable_cores <= std::thread::available_parallelism().unwrap().get());
    assert_eq!(
        status.available_bytes,
        status.limits.iter().map(|limit| limit.available_bytes).min().unwrap()
    );
    assert!(0 < status.process.rss_bytes);
    assert!(status.process.rss_bytes <= secateur_memory::rss_peak_bytes().unwrap());
}

/// The fallback for systems without `/proc` gives the same totals, here where both work.
#[test]
fn the_fallback_probe_works() {
    use secateur_memory::{MemoryStatus, Probe, SystemProbe};
    let status = MemoryStatus::from_readings(SystemProbe.read()).unwrap();
    assert_eq!(status.total_bytes, probe(&ProbeRoot::host()).unwrap().total_bytes);
    let ours = secateur_memory::rss_bytes().unwrap();
    let theirs = SystemProbe.process().unwrap().rss_bytes;
    assert!(ours.abs_diff(theirs) < 16 * MIB, "{ours} {theirs}");
}
