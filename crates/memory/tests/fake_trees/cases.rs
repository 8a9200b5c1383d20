//! The table. The process holds 10 MiB of anonymous memory and 30 MiB of files throughout.

use super::tree::{Case, MIB, PSI, Tree, Want, meminfo, mount_v2, mounts_v1, status};

const DEVICE: &str = "/proc/meminfo MemAvailable";
/// What the device leaves: 3000 and the 10 that are ours.
const OF_DEVICE: u64 = 3010;

fn case(name: &'static str, tree: Tree, available: u64, binding: &'static str, n_limits: usize) -> Case {
    Case { name, tree, want: Want { available: available * MIB, binding, n_limits, ..Want::default() } }
}

fn unknown(name: &'static str, tree: Tree, what: &'static str) -> Case {
    Case { name, tree, want: Want { unknown: Some(what), ..Want::default() } }
}

impl Case {
    fn notes(mut self, notes: &[&'static str]) -> Self {
        self.want.notes = notes.to_vec();
        self
    }

    fn reachable(mut self, mib: u64) -> Self {
        self.want.reachable = Some(mib * MIB);
        self
    }

    fn cores(mut self, cores: usize) -> Self {
        self.want.cores = Some(cores);
        self
    }

    fn pressure(mut self, sources: &[&'static str]) -> Self {
        self.want.pressure = Some(sources.to_vec());
        self
    }

    fn rss(mut self, mib: u64) -> Self {
        self.want.rss = Some(mib * MIB);
        self
    }
}

/// The process in the root group, which has no limits.
fn root_group() -> Tree {
    Tree::v2("/").file("/sys/fs/cgroup/cgroup.procs", "")
}

pub(crate) fn all() -> Vec<Case> {
    [devices(), version_2(), containers(), version_1(), hybrid(), processors(), stalls()]
        .into_iter()
        .flatten()
        .collect()
}

fn devices() -> Vec<Case> {
    let old = "MemTotal: 4096000 kB\nMemFree: 1024000 kB\nCached: 2048000 kB\nShmem: 49152 kB\n";
    let estimated = "/proc/meminfo MemFree + (Cached - Shmem) / 2";
    let tiny = Tree::bare().file("/proc/meminfo", meminfo(420, 300));
    let huge_pages = "100 20480 15360 1 0 1 0\n";
    vec![
        case("no control groups at all", Tree::bare(), OF_DEVICE, DEVICE, 1).reachable(4000).rss(40),
        case("a board of 512 MB", tiny, 310, DEVICE, 1).reachable(420),
        case(
            "more available than there is",
            Tree::bare().file("/proc/meminfo", meminfo(100, 200)),
            100,
            DEVICE,
            1,
        ),
        case(
            "a kernel without MemAvailable",
            Tree::bare().file("/proc/meminfo", old),
            1000 + (2000 - 48) / 2 + 10,
            estimated,
            1,
        )
        .notes(&["estimated as"]),
        unknown("no meminfo", Tree::bare().without("/proc/meminfo"), "total memory"),
        unknown("garbage for meminfo", Tree::bare().file("/proc/meminfo", "\u{0}\u{1}"), "total memory"),
        unknown("zero total", Tree::bare().file("/proc/meminfo", meminfo(0, 0)), "total memory"),
        unknown(
            "garbage for the total",
            Tree::bare().file("/proc/meminfo", "MemTotal: many kB\nMemAvailable: 1 kB\n"),
            "total memory",
        ),
        unknown(
            "nothing but the total",
            Tree::bare().file("/proc/meminfo", "MemTotal: 1 kB\n"),
            "available memory",
        ),
        case("no status file", Tree::bare().without("/proc/self/status"), 3000, DEVICE, 1)
            .notes(&["own memory counts as used", "allowed processors"])
            .cores(1),
        case(
            "statm in pages of 16 KiB",
            // Resident 20480 pages = 320, shared 15360 pages = 240: 80 anonymous.
            Tree::bare().without("/proc/self/status").file("/proc/self/statm", huge_pages).page(16 << 10),
            3080,
            DEVICE,
            1,
        )
        .notes(&["allowed processors"])
        .rss(320),
        case(
            "statm in pages of 64 KiB",
            Tree::bare()
                .without("/proc/self/status")
                .file("/proc/self/statm", "9 640 480 1 0 1 0")
                .page(64 << 10),
            3010,
            DEVICE,
            1,
        )
        .notes(&["allowed processors"])
        .rss(40),
        case(
            "an old kernel does not split the resident set",
            Tree::bare().file("/proc/self/status", "VmRSS:\t40960 kB\nCpus_allowed_list:\t0\n"),
            3000,
            DEVICE,
            1,
        )
        .rss(40),
        case(
            "a garbled resident set",
            Tree::bare().file("/proc/self/status", "VmRSS:\tmuch kB\nCpus_allowed_list:\t0\n"),
            3000,
            DEVICE,
            1,
        )
        .notes(&["no usable `VmRSS`"]),
        case(
            "groups but no mount table",
            Tree::bare().file("/proc/self/cgroup", "0::/\n"),
            OF_DEVICE,
            DEVICE,
            1,
        )
        .notes(&["mountinfo is not there"]),
        case(
            "groups that are not mounted, as in a chroot",
            Tree::v2("/a").file("/proc/self/mountinfo", "22 1 0:21 / /proc rw - proc proc rw\n"),
            OF_DEVICE,
            DEVICE,
            1,
        ),
        case(
            "garbage in both tables",
            Tree::bare().file("/proc/self/cgroup", "nonsense\n").file("/proc/self/mountinfo", "a b c\n - \n"),
            OF_DEVICE,
            DEVICE,
            1,
        )
        .notes(&["makes no sense"]),
    ]
}

fn version_2() -> Vec<Case> {
    let app = "/sys/fs/cgroup/app/memory.max";
    let one = |max, high, current, stat| Tree::v2("/app").group_v2("/app", max, high, current, stat);
    let slice = |tree: Tree| {
        tree.group_v2("/system.slice", "max", "max", 900, "anon=700 inactive_file=100 active_file=100")
            .group_v2("/system.slice/x.service", "512", "max", 100, "anon=60 inactive_file=20 active_file=20")
    };
    let service = "/system.slice/x.service";
    vec![
        case("the root group", root_group(), OF_DEVICE, DEVICE, 1),
        // 512 - 100 + 20 + 20/2 + own 10 + own half of active 10
        case("a plain limit", one("512", "max", 100, "anon=60 inactive_file=20 active_file=20"), 462, app, 2)
            .reachable(512),
        // The page cache of earlier loads fills the group: all of it can go (ollama/ollama#15474).
        case(
            "page cache fills the group",
            one("512", "max", 512, "anon=12 inactive_file=500 active_file=0"),
            510,
            app,
            2,
        ),
        // Active pages of others count half: 512 - 512 + 250 + 10 + 15 (half of our 30).
        case("active page cache counts half", one("512", "max", 512, "anon=12 active_file=500"), 275, app, 2),
        // `max` must not override what the device says (ollama/ollama#15961).
        case("no limit", one("max", "max", 3600, "anon=3600"), OF_DEVICE, DEVICE, 1).reachable(4000),
        case("a limit above the device", one("9000", "max", 100, "anon=100"), OF_DEVICE, DEVICE, 2)
            .reachable(4000),
        case("high below max", one("512", "256", 100, "anon=100"), 166, "/sys/fs/cgroup/app/memory.high", 2)
            .reachable(256),
        case("high above max", one("256", "512", 100, "anon=100"), 166, app, 2),
        case("high alone", one("max", "256", 100, "anon=100"), 166, "/sys/fs/cgroup/app/memory.high", 2),
        case("usage above high", one("512", "256", 300, "anon=300"), 0, "/sys/fs/cgroup/app/memory.high", 2),
        case("a limit of nothing", one("0", "max", 0, "anon=0"), 0, app, 2),
        case(
            "our memory is charged elsewhere",
            // Only 2 of our 10 can be in here; the other 48 are the kernel's.
            one("100", "max", 50, "anon=2"),
            52,
            app,
            2,
        ),
        case(
            "nested, the outer is free",
            slice(Tree::v2(service)),
            462,
            "/sys/fs/cgroup/system.slice/x.service/memory.max",
            2,
        ),
        case(
            "nested, the parent is tighter",
            slice(Tree::v2(service)).group_v2("/system.slice", "1000", "max", 900, "anon=880 active_file=20"),
            // 1000 - 900 + 10 + 10 + 10
            130,
            "/sys/fs/cgroup/system.slice/memory.max",
            3,
        )
        .reachable(512),
        case(
            "four deep, the grandparent is slowed down",
            Tree::v2("/a/b/c/d")
                .group_v2("/a", "2000", "max", 1000, "anon=1000")
                .group_v2("/a/b", "2000", "800", 600, "anon=600")
                .group_v2("/a/b/c", "max", "max", 300, "anon=300")
                .group_v2("/a/b/c/d", "max", "max", 300, "anon=300"),
            210,
            "/sys/fs/cgroup/a/b/memory.high",
            3,
        )
        .reachable(800),
        case(
            "the controller is not handed down to the leaf",
            Tree::v2("/app/leaf")
                .group_v2("/app", "512", "max", 100, "anon=100")
                .file("/sys/fs/cgroup/app/leaf/cgroup.procs", ""),
            422,
            app,
            2,
        ),
        case(
            "no usage file",
            one("512", "max", 100, "anon=90").without("/sys/fs/cgroup/app/memory.current"),
            512,
            app,
            2,
        )
        .notes(&["usage is unknown"]),
        case(
            "no stat file",
            one("512", "max", 100, "").without("/sys/fs/cgroup/app/memory.stat"),
            422,
            app,
            2,
        ),
        case(
            "garbage for a limit",
            one("lots", "256", 100, "anon=100"),
            166,
            "/sys/fs/cgroup/app/memory.high",
            2,
        )
        .notes(&["holds `lots`"]),
        case("a negative limit", one("-1", "max", 100, "anon=100"), OF_DEVICE, DEVICE, 1)
            .notes(&["holds `-1`"]),
        case("an empty limit", one("", "max", 100, "anon=100"), OF_DEVICE, DEVICE, 1).notes(&["holds ``"]),
        case(
            "more digits than a number has",
            one("99999999999999999999999", "max", 100, ""),
            OF_DEVICE,
            DEVICE,
            1,
        ),
        case(
            "garbage in the stat file",
            one("512", "max", 100, "")
                .file("/sys/fs/cgroup/app/memory.stat", "anon x\ninactive_file\nactive_file 0\n"),
            422,
            app,
            2,
        )
        .notes(&["`anon x`", "`inactive_file`"]),
        case(
            "a stat file that claims more than is used",
            one("512", "max", 100, "anon=10 inactive_file=9999999"),
            512,
            app,
            2,
        ),
        case(
            "swap limits are ignored",
            one("512", "max", 100, "anon=100").file("/sys/fs/cgroup/app/memory.swap.max", "0\n"),
            422,
            app,
            2,
        ),
        case(
            "limits near the largest number",
            one("18446744073709551615", "18446744073709551614", 100, "anon=100"),
            OF_DEVICE,
            DEVICE,
            2,
        ),
    ]
}

fn containers() -> Vec<Case> {
    let top = "/sys/fs/cgroup/memory.max";
    let inside = |tree: Tree| tree.group_v2("", "512", "max", 100, "anon=100");
    vec![
        case("a container with its own namespace", inside(root_group()), 422, top, 2).reachable(512),
        case(
            "a container that sees the host's group name, mount and all",
            inside(
                Tree::v2("/docker/abc")
                    .file("/proc/self/mountinfo", mount_v2("/docker/abc", "/sys/fs/cgroup")),
            ),
            422,
            top,
            2,
        ),
        case(
            "a child group in a container",
            inside(
                Tree::v2("/docker/abc/x")
                    .file("/proc/self/mountinfo", mount_v2("/docker/abc", "/sys/fs/cgroup")),
            )
            .group_v2("/x", "256", "max", 50, "anon=50"),
            216,
            "/sys/fs/cgroup/x/memory.max",
            3,
        ),
        case(
            "the host's group name over the container's mount",
            inside(Tree::v2("/docker/abc")),
            422,
            top,
            2,
        )
        .notes(&["is not below /sys/fs/cgroup"]),
        case(
            "group and mount of different containers",
            inside(
                Tree::v2("/docker/abc")
                    .file("/proc/self/mountinfo", mount_v2("/kubepods/pod1", "/sys/fs/cgroup")),
            ),
            422,
            top,
            2,
        )
        .notes(&["do not match"]),
        case(
            "the mount of an outer namespace",
            inside(root_group().file("/proc/self/mountinfo", mount_v2("/..", "/sys/fs/cgroup"))),
            422,
            top,
            2,
        )
        .notes(&["is a group above"]),
        case("a group outside of the namespace", inside(Tree::v2("/../sibling")), OF_DEVICE, DEVICE, 1)
            .notes(&["is outside of what is mounted"]),
        case("a deleted group", inside(Tree::v2("/gone (deleted)")), 422, top, 2).notes(&["is not below"]),
        case(
            "a mount point with a space, mounted twice",
            Tree::v2("/app")
                .file(
                    "/proc/self/mountinfo",
                    mount_v2("/app", "/mnt/only\\040app") + &mount_v2("/", "/mnt/the\\040whole"),
                )
                .file("/mnt/only app/memory.max", "1048576000\n")
                .file("/mnt/the whole/app/memory.max", "104857600\n"),
            100,
            "/mnt/the whole/app/memory.max",
            2,
        )
        .notes(&["usage is unknown"]),
        case(
            "a proc file system that shows the container as the device",
            inside(root_group().file("/proc/meminfo", meminfo(512, 420))),
            422,
            top,
            2,
        ),
    ]
}

fn version_1() -> Vec<Case> {
    let app = "/sys/fs/cgroup/memory/app/memory.limit_in_bytes";
    let one = |limit, current, stat| Tree::v1("/app").group_v1("/app", limit, current, stat);
    let file = |name: &str| format!("/sys/fs/cgroup/memory/app/{name}");
    vec![
        case(
            "version 1, a plain limit",
            one("512", 100, "rss=60 inactive_file=20 active_file=20"),
            462,
            app,
            2,
        ),
        case(
            "version 1 counts children by the total fields",
            one("512", 400, "rss=1 inactive_file=1 total_rss=100 total_inactive_file=300"),
            512 - 400 + 300 + 10,
            app,
            2,
        ),
        case(
            "version 1, no limit in pages of 4 KiB",
            one("9223372036854771712", 100, ""),
            OF_DEVICE,
            DEVICE,
            1,
        ),
        case(
            "version 1, no limit in pages of 16 KiB",
            one("9223372036854759424", 100, "").page(16 << 10),
            OF_DEVICE,
            DEVICE,
            1,
        ),
        case(
            "version 1, no limit in pages of 64 KiB",
            one("9223372036854710272", 100, "").page(64 << 10),
            OF_DEVICE,
            DEVICE,
            1,
        ),
        case("version 1, no limit on 32 bits", one("8796093018112", 100, ""), OF_DEVICE, DEVICE, 1),
        case(
            "version 1, a soft limit is no limit",
            one("512", 100, "rss=100").file(file("memory.soft_limit_in_bytes"), "1048576\n"),
            422,
            app,
            2,
        ),
        case(
            "version 1, nested with a tighter parent",
            Tree::v1("/a/b")
                .group_v1("", "9223372036854771712", 2000, "total_rss=2000")
                .group_v1("/a", "300", 200, "total_rss=200")
                .group_v1("/a/b", "512", 100, "total_rss=100"),
            110,
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            3,
        )
        .reachable(300),
        case(
            "version 1, a parent that does not count its children",
            Tree::v1("/a/b")
                .group_v1("/a", "300", 290, "rss=290")
                .file("/sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n")
                .group_v1("/a/b", "512", 100, "rss=100"),
            422,
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            2,
        ),
        case(
            "version 1, a leaf that would not count its children",
            one("512", 100, "rss=100").file(file("memory.use_hierarchy"), "0\n"),
            422,
            app,
            2,
        ),
        case(
            "version 1, a limit above that is out of sight",
            Tree::v1("/docker/abc")
                .file("/proc/self/mountinfo", mounts_v1("/docker/abc"))
                .group_v1("", "9223372036854771712", 100, "")
                .file(
                    "/sys/fs/cgroup/memory/memory.stat",
                    format!("total_rss {}\nhierarchical_memory_limit {}\n", 100 * MIB, 400 * MIB),
                ),
            310,
            "/sys/fs/cgroup/memory/memory.stat:hierarchical_memory_limit",
            2,
        )
        .reachable(400),
        case(
            "version 1, no usage file",
            one("512", 100, "").without(&file("memory.usage_in_bytes")),
            512,
            app,
            2,
        )
        .notes(&["usage is unknown"]),
        case("version 1, garbage for the limit", one("unlimited", 100, ""), OF_DEVICE, DEVICE, 1)
            .notes(&["holds `unlimited`"]),
    ]
}

fn hybrid() -> Vec<Case> {
    let mounts = mounts_v1("/") + &mount_v2("/", "/sys/fs/cgroup/unified");
    let hybrid = |group: &str| {
        Tree::v1(group)
            .file("/proc/self/cgroup", format!("5:memory:{group}\n4:cpu,cpuacct:{group}\n0::{group}\n"))
            .file("/proc/self/mountinfo", mounts.clone())
            .file(format!("/sys/fs/cgroup/unified{group}/cgroup.procs"), "")
    };
    vec![
        case(
            "hybrid: limits are in version 1",
            hybrid("/app").group_v1("/app", "512", 100, "rss=100"),
            422,
            "/sys/fs/cgroup/memory/app/memory.limit_in_bytes",
            2,
        ),
        case(
            "hybrid: stall figures are in version 2",
            hybrid("/app")
                .group_v1("/app", "512", 100, "rss=100")
                .file("/sys/fs/cgroup/unified/app/memory.pressure", PSI),
            422,
            "/sys/fs/cgroup/memory/app/memory.limit_in_bytes",
            2,
        )
        .pressure(&["/sys/fs/cgroup/unified/app/memory.pressure"]),
        case(
            "hybrid: both limit, the tighter counts",
            hybrid("/app")
                .group_v1("/app", "512", 100, "rss=100")
                .file("/sys/fs/cgroup/unified/app/memory.max", "104857600\n")
                .file("/sys/fs/cgroup/unified/app/memory.current", "52428800\n")
                .file("/sys/fs/cgroup/unified/app/memory.stat", "anon 52428800\n"),
            60,
            "/sys/fs/cgroup/unified/app/memory.max",
            3,
        )
        .reachable(100),
    ]
}

fn processors() -> Vec<Case> {
    let v2 = |quota: &str| Tree::v2("/a/b").file("/sys/fs/cgroup/a/b/cpu.max", quota);
    let v1 = |quota: &str| {
        Tree::v1("/app")
            .file("/sys/fs/cgroup/memory/app/tasks", "")
            .file("/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us", quota)
            .file("/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us", "100000\n")
    };
    let cpu = |name, tree, cores| case(name, tree, OF_DEVICE, DEVICE, 1).cores(cores);
    vec![
        cpu("four processors, no quota", v2("max 100000\n"), 4),
        cpu("a quota of two", v2("200000 100000\n"), 2),
        cpu("a quota of two and a half", v2("250000 100000\n"), 2),
        cpu("a quota of a third", v2("33333 100000\n"), 1),
        cpu("a quota above the processors", v2("6400000 100000\n"), 4),
        cpu(
            "the parent's quota is tighter",
            v2("300000 100000\n").file("/sys/fs/cgroup/a/cpu.max", "100000 100000"),
            1,
        ),
        cpu("a garbled quota", v2("some of them\n"), 4).notes(&["processor quota"]),
        cpu("a period of nothing", v2("100000 0\n"), 4).notes(&["processor quota"]),
        cpu("version 1, a quota of three", v1("300000\n"), 3),
        cpu("version 1, no quota", v1("-1\n"), 4),
        cpu("version 1, a garbled quota", v1("-7\n"), 4).notes(&["processor quota"]),
        cpu(
            "bound to one processor",
            Tree::bare().file("/proc/self/status", status().replace("0-3", "2")),
            1,
        ),
    ]
}

fn stalls() -> Vec<Case> {
    let device = "/proc/pressure/memory";
    let psi = |name, tree, sources: &[&'static str]| case(name, tree, OF_DEVICE, DEVICE, 1).pressure(sources);
    vec![
        psi("no stall figures", root_group(), &[]),
        psi("stalls of the device", root_group().file(device, PSI), &[device]),
        psi(
            "stalls of the innermost group that has any",
            Tree::v2("/a/b")
                .file(device, PSI)
                .file("/sys/fs/cgroup/a/b/cgroup.procs", "")
                .file("/sys/fs/cgroup/a/memory.pressure", PSI)
                .file("/sys/fs/cgroup/memory.pressure", PSI),
            &[device, "/sys/fs/cgroup/a/memory.pressure"],
        ),
        psi("garbled stalls", root_group().file(device, "some avg10=lots\n"), &[]).notes(&["makes no sense"]),
    ]
}
