//! Which control groups this process is in, and where their directories are.
//!
//! `/proc/self/cgroup` names the group in each hierarchy; `/proc/self/mountinfo` says where hierarchies are
//! mounted and which part of the tree the mount shows. Inside containers the two may disagree:
//! - the mount shows only our own part (`root` is a prefix of the group): what lies above is out of sight;
//! - the group's directory is out of sight although the mount shows the whole tree: the nearest directory
//!   above that can be seen still bounds us;
//! - the two have nothing in common (group names of the host, mount of the container): the mount point is
//!   taken, since a limit that is shown to a container is as a rule its own. All of this is noted.
//!
//! Version 2 has one hierarchy for all controllers; version 1 one for each; both at once is usual ("hybrid").

use super::ProbeRoot;

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 256;

/// Version of the interface of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// Directories of one hierarchy, absolute, from the innermost group to the outermost in sight.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) dirs: Vec<String>,
}

/// The hierarchies that matter to us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// All with memory limits: version 1 with `memory`, version 2.
    pub(super) memory: Vec<Hierarchy>,
    /// All with processor quotas: version 1 with `cpu`, version 2.
    pub(super) cpu: Vec<Hierarchy>,
}

/// A line of the mount table, as far as we care.
#[derive(Debug)]
struct Mount {
    root: String,
    mount_point: String,
    /// Controllers; `None` for version 2.
    controllers: Option<Vec<String>>,
}

impl Hierarchies {
    pub(super) fn read(root: &ProbeRoot, notes: &mut Vec<String>) -> Self {
        // No control groups at all is normal on small systems.
        let Some(groups) = root.noted_text("/proc/self/cgroup", notes) else { return Self::default() };
        let Some(mounts) = root.noted_text("/proc/self/mountinfo", notes) else {
            notes.push("/proc/self/mountinfo is not there: limits of control groups are unknown".to_owned());
            return Self::default();
        };
        let mounts: Vec<Mount> = mounts.lines().filter_map(parse_mount).collect();
        let mut all = Self::default();
        for line in groups.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(id), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next())
            else {
                notes.push(format!("/proc/self/cgroup: the line `{line}` makes no sense"));
                continue;
            };
            let mut find = |controller| locate(root, &mounts, group, controller, notes);
            if id == "0" && controllers.is_empty() {
                if let Some(dirs) = find(None) {
                    all.memory.push(Hierarchy { version: Version::V2, dirs: dirs.clone() });
                    all.cpu.push(Hierarchy { version: Version::V2, dirs });
                }
                continue;
            }
            let has = |controller| controllers.split(',').any(|name| name == controller);
            if has("memory") {
                let dirs = find(Some("memory"));
                all.memory.extend(dirs.map(|dirs| Hierarchy { version: Version::V1, dirs }));
            }
            if has("cpu") {
                let dirs = find(Some("cpu"));
                all.cpu.extend(dirs.map(|dirs| Hierarchy { version: Version::V1, dirs }));
            }
        }
        all
    }
}

/// `36 35 98:0 /root /mount/point options [tags..] - type source super,options`.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, mount_point) = (unescape(left.next()?), unescape(left.next()?));
    let mut right = right.split(' ');
    let controllers = match right.next()? {
        "cgroup2" => None,
        "cgroup" => Some(right.nth(1)?.split(',').map(str::to_owned).collect()),
        _ => return None,
    };
    Some(Mount { root, mount_point, controllers })
}

/// Spaces, tabs, newlines and backslashes stand as `\040` and so on.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// How a mount relates to our group.
#[derive(Debug, PartialEq, Eq)]
enum Relation {
    /// The group lies this far below the mount point (`""` or `/a/b`).
    Below(String),
    /// The mount shows a group above us, but not by which name we go below it.
    Above,
    /// Nothing in common.
    Strangers,
    /// The group lies outside of all that this namespace may see.
    Outside,
}

fn relate(mount_root: &str, group: &str) -> Relation {
    let mount_root = mount_root.trim_end_matches('/');
    let group = group.strip_suffix(" (deleted)").unwrap_or(group).trim_end_matches('/');
    let climbs = |path: &str| path.split('/').any(|part| part == "..");
    if let Some(rest) = group.strip_prefix(mount_root)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        return if climbs(rest) { Relation::Outside } else { Relation::Below(rest.to_owned()) };
    }
    let only_climbs = mount_root.split('/').all(|part| part.is_empty() || part == "..");
    match (only_climbs, climbs(group)) {
        (true, false) => Relation::Above,
        (_, true) => Relation::Outside,
        (false, false) => Relation::Strangers,
    }
}

/// Directories of `group` in the hierarchy of `controller` (`None`: version 2), innermost first.
fn locate(
    root: &ProbeRoot,
    mounts: &[Mount],
    group: &str,
    controller: Option<&str>,
    notes: &mut Vec<String>,
) -> Option<Vec<String>> {
    let serves = |mount: &&Mount| match (controller, &mount.controllers) {
        (None, None) => true,
        (Some(want), Some(names)) => names.iter().any(|name| name == want),
        _ => false,
    };
    let name = controller.map_or("cgroup2".to_owned(), |name| format!("cgroup {name}"));
    let mut mounts = mounts.iter().filter(serves).peekable();
    // The group is named by the kernel even where nothing is mounted, as in a bare chroot.
    mounts.peek()?;
    let mut best: Option<(usize, Vec<String>, String)> = None;
    for mount in mounts {
        let (rank, dirs, note) = dirs_in(root, mount, group, &name);
        // A lower rank is a surer answer; at the same rank, the mount that shows more of the tree.
        let better = best.as_ref().is_none_or(|(best_rank, best_dirs, _)| {
            rank < *best_rank || (rank == *best_rank && best_dirs.len() < dirs.len())
        });
        if better {
            best = Some((rank, dirs, note));
        }
    }
    let (_, dirs, note) = best?;
    if !note.is_empty() {
        notes.push(note);
    }
    (!dirs.is_empty()).then_some(dirs)
}

/// How sure an answer is (0 = sure), its directories, and a note.
fn dirs_in(root: &ProbeRoot, mount: &Mount, group: &str, name: &str) -> (usize, Vec<String>, String) {
    let top = mount.mount_point.trim_end_matches('/').to_owned();
    match relate(&mount.root, group) {
        Relation::Below(rest) => {
            let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).take(MAX_DEPTH).collect();
            let ups = (0..=parts.len()).rev();
            let dirs = ups.map(|n| parts[..n].iter().fold(top.clone(), |dir, part| dir + "/" + part));
            let seen: Vec<String> = dirs.filter(|dir| root.place(dir).is_dir()).collect();
            if seen.len() == parts.len() + 1 {
                return (0, seen, String::new());
            }
            let note =
                format!("{name}: the directory of group {group} is not below {top}, groups above it count");
            (1, seen, note)
        }
        Relation::Above => {
            let note = format!("{name}: {top} is a group above {group}; what lies between is out of sight");
            (2, vec![top], note)
        }
        Relation::Strangers => {
            let note = format!("{name}: group {group} and mount {} do not match, {top} counts", mount.root);
            (3, vec![top], note)
        }
        Relation::Outside => {
            let note = format!("{name}: group {group} is outside of what is mounted, its limits are unknown");
            (4, Vec::new(), note)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_mounts_relate() {
        let below = |rest: &str| Relation::Below(rest.to_owned());
        let cases = [
            ("/", "/", below("")),
            ("/", "/a/b", below("/a/b")),
            ("/", "/a/b (deleted)", below("/a/b")),
            ("/docker/x", "/docker/x", below("")),
            ("/docker/x", "/docker/x/y", below("/y")),
            ("/docker/x", "/docker/xy", Relation::Strangers),
            ("/docker/x", "/user.slice", Relation::Strangers),
            ("/docker/x", "/", Relation::Strangers),
            ("/..", "/", Relation::Above),
            ("/../..", "/a", Relation::Above),
            ("/..", "/../b", below("/b")),
            ("/..", "/../../b", Relation::Outside),
            ("/", "/../b", Relation::Outside),
            ("/docker/x", "/../b", Relation::Outside),
        ];
        let wrong: Vec<_> = cases.iter().filter(|(root, group, want)| relate(root, group) != *want).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn escapes_are_undone() {
        let cases =
            [("/a\\040b", "/a b"), ("\\134x\\", "\\x\\"), ("\\9", "\\9"), ("\\777", "\\777"), ("ä", "ä")];
        for (text, want) in cases {
            assert_eq!(unescape(text), want);
        }
    }
}
