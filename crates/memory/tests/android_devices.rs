//! Android devices played from folders: what is left to an app before the system kills it.
//!
//! The files have the form and the figures of real devices: names of mappings and their sizes as `smaps` prints them,
//! tables of the low-memory killer as they are shipped.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use secateur_memory::{AndroidProbe, MemoryStatus, Probe, ProbeRoot};
use std::path::Path;

const MIB: u64 = 1 << 20;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A phone of 5,600 MiB with 2,400 available, and an app of 300 MiB: 180 anonymous, of which 60 are Java's.
fn phone(root: &Path) {
    let meminfo = format!(
        "MemTotal:        {} kB\nMemFree:          183184 kB\nMemAvailable:    {} kB\nBuffers:            5232 kB\n\
         Cached:          2402936 kB\nSwapCached:        23532 kB\n",
        5_600 * 1024,
        2_400 * 1024
    );
    write(root, "/proc/meminfo", &meminfo);
    let status = "Name:\tev.secateur.app\nVmHWM:\t  321000 kB\nVmRSS:\t  307200 kB\nRssAnon:\t  184320 kB\n\
                  RssFile:\t  120832 kB\nRssShmem:\t    2048 kB\nCpus_allowed_list:\t0-7\n";
    write(root, "/proc/self/status", status);
    write(root, "/proc/self/smaps", SMAPS);
}

const SMAPS: &str = "\
12c00000-32c00000 rw-p 00000000 00:00 0                                  [anon:dalvik-main space (region space)]
Name:           [anon:dalvik-main space (region space)]
Size:             524288 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:               51200 kB
Pss:               51200 kB
VmFlags: rd wr mr mw me ac
6fb00000-6fce2000 rw-p 00000000 00:00 0                                  [anon:dalvik-/apex/com.android.art/javalib/boot.art]
Name:           [anon:dalvik-/apex/com.android.art/javalib/boot.art]
Size:               1928 kB
Rss:                1712 kB
Pss:                1246 kB
7a10000000-7a10400000 rw-p 00000000 00:00 0                              [anon:dalvik-LinearAlloc]
Size:               4096 kB
Rss:                4096 kB
7a20000000-7a20800000 rw-s 00000000 00:05 8841                           /dev/ashmem/dalvik-jit-code-cache (deleted)
Size:               8192 kB
Rss:                4432 kB
7a30000000-7a38000000 rw-p 00000000 00:00 0                              [anon:scudo:primary]
Size:             131072 kB
Rss:              112640 kB
7a40000000-7a48000000 r--s 00000000 fd:05 2211                           /data/data/dev.secateur.app/files/model.gguf
Size:             131072 kB
Rss:              102400 kB
7a50000000-7a50100000 r-xp 00000000 fd:05 99                             /system/lib64/libart.so
Size:               1024 kB
Rss:                1024 kB
";

struct Case {
    name: &'static str,
    change: fn(&Path, &AndroidProbe),
    page_bytes: u64,
    available: u64,
    source: &'static str,
}

#[test]
fn what_is_left_before_the_system_kills() {
    // 2,400 available, and the 122 MiB that are ours already (120 anonymous without Java's 60, and 2 shared).
    let cases = [
        Case {
            name: "nobody tells the threshold",
            change: |_, _| {},
            page_bytes: 4096,
            available: 2_400 + 122 - 315,
            source: "/proc/meminfo MemAvailable less the stock threshold of the low-memory killer",
        },
        Case {
            name: "the app was told",
            change: |_, probe| probe.set_threshold_bytes(226 * MIB),
            page_bytes: 4096,
            available: 2_400 + 122 - 226,
            source: "/proc/meminfo MemAvailable less MemoryInfo.threshold",
        },
        Case {
            name: "the killer is the kernel's",
            change: |root, _| {
                write(
                    root,
                    "/sys/module/lowmemorykiller/parameters/minfree",
                    "18432,23040,27648,32256,55296,80640\n",
                );
                write(root, "/sys/module/lowmemorykiller/parameters/adj", "0,100,200,300,900,906\n");
            },
            page_bytes: 4096,
            available: 2_400 + 122 - 108,
            source: "/proc/meminfo MemAvailable less /sys/module/lowmemorykiller/parameters/minfree for adj 200",
        },
        Case {
            name: "pages of 16 KiB",
            change: |root, _| {
                write(
                    root,
                    "/sys/module/lowmemorykiller/parameters/minfree",
                    "4608,5760,6912,8064,13824,20160\n",
                );
                write(root, "/sys/module/lowmemorykiller/parameters/adj", "0,100,200,300,900,906\n");
            },
            page_bytes: 16_384,
            available: 2_400 + 122 - 108,
            source: "/proc/meminfo MemAvailable less /sys/module/lowmemorykiller/parameters/minfree for adj 200",
        },
        Case {
            name: "less is available than must stay free",
            change: |_, probe| probe.set_threshold_bytes(3_000 * MIB),
            page_bytes: 4096,
            available: 122,
            source: "/proc/meminfo MemAvailable less MemoryInfo.threshold",
        },
    ];
    let mut faults = Vec::new();
    for case in cases {
        let folder = tempfile::tempdir().unwrap();
        phone(folder.path());
        let probe = AndroidProbe::new(ProbeRoot::folder(folder.path(), case.page_bytes));
        (case.change)(folder.path(), &probe);
        let status = MemoryStatus::from_readings(probe.read()).unwrap();
        let got = (status.available_bytes, status.binding_limit().source.as_str(), status.probe);
        if got != (case.available * MIB, case.source, "android") {
            faults.push(format!(
                "{}: {} MiB, {got:?}, {:?}",
                case.name,
                status.available_bytes as f64 / MIB as f64,
                status.notes
            ));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn javas_heap_is_not_ours_but_counts_as_resident() {
    let folder = tempfile::tempdir().unwrap();
    phone(folder.path());
    let probe = AndroidProbe::new(ProbeRoot::folder(folder.path(), 4096));
    let art = (51_200 + 1_712 + 4_096 + 4_432) * 1024;
    assert_eq!(art, 60 * MIB);
    let status = MemoryStatus::from_readings(probe.read()).unwrap();
    assert_eq!(status.process.rss_bytes, 300 * MIB - art);
    assert_eq!(probe.process().unwrap().rss_bytes, 300 * MIB, "what the system kills by");
    std::fs::remove_file(folder.path().join("proc/self/smaps")).unwrap();
    let blind = MemoryStatus::from_readings(probe.read()).unwrap();
    assert_eq!(blind.process.rss_bytes, 300 * MIB);
    assert!(blind.notes.iter().any(|note| note.contains("Java heap")), "{:?}", blind.notes);
}
