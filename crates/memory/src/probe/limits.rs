//! Memory limits and usage of control groups, both versions.
//!
//! Version 2: the limit is the lower of `memory.max` (killed beyond) and `memory.high` (slowed down to a crawl
//! beyond). Version 1: `memory.limit_in_bytes`; the soft limit is ignored, since it only matters when the whole
//! device is short, which `MemAvailable` tells. Swap limits are ignored. Usage counts the page cache, so file
//! pages come from `memory.stat` and are counted as free by [`GroupReading::reclaimable_bytes`].

use super::ProbeRoot;
use super::cgroup::{Hierarchies, Hierarchy, Version};
use crate::status::GroupReading;

/// Version 1 has no word for "no limit" but a number near `2^63`, rounded down to whole pages.
const NO_LIMIT_BYTES: u64 = 1 << 60;
/// Pages in the same number on 32-bit systems, give or take rounding.
const NO_LIMIT_PAGES_32: u64 = i32::MAX as u64 - 1;

/// A number as the kernel writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Bytes(u64),
    Unlimited,
}

/// `max`, or digits; more digits than fit are as good as no limit. `None` for anything else.
fn parse_number(text: &str) -> Option<Number> {
    let text = text.trim();
    if text == "max" {
        return Some(Number::Unlimited);
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().map_or(Number::Unlimited, Number::Bytes))
}

/// All groups of all hierarchies, innermost first.
pub(super) fn read_groups(
    root: &ProbeRoot,
    hierarchies: &Hierarchies,
    notes: &mut Vec<String>,
) -> Vec<GroupReading> {
    let mut groups = Vec::new();
    for Hierarchy { version, dirs } in &hierarchies.memory {
        for (depth, dir) in dirs.iter().enumerate() {
            if *version == Version::V1 && depth != 0 && !is_hierarchical(root, dir, notes) {
                // What children use is not charged here, and neither is what lies above.
                break;
            }
            let group = match version {
                Version::V1 => read_v1(root, dir, notes),
                Version::V2 => read_v2(root, dir, notes),
            };
            groups.extend(group);
        }
    }
    groups
}

fn is_hierarchical(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> bool {
    let text = root.noted_text(&format!("{dir}/memory.use_hierarchy"), notes);
    text.is_none_or(|text| text.trim() != "0")
}

/// A number in a file of the group, `None` when the file is not there or makes no sense (noted).
fn number(root: &ProbeRoot, dir: &str, file: &str, notes: &mut Vec<String>) -> Option<Number> {
    let path = format!("{dir}/{file}");
    let text = root.noted_text(&path, notes)?;
    let number = parse_number(&text);
    if number.is_none() {
        let text: String = text.trim().chars().take(40).collect();
        notes.push(format!("{path} holds `{text}`, which is no number: ignored"));
    }
    number
}

fn bytes(number: Option<Number>) -> Option<u64> {
    match number {
        Some(Number::Bytes(bytes)) => Some(bytes),
        Some(Number::Unlimited) | None => None,
    }
}

fn read_v2(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> Option<GroupReading> {
    // The root group has no limits, nor has a group whose parent does not hand the controller down.
    let max = number(root, dir, "memory.max", notes);
    let high = number(root, dir, "memory.high", notes);
    if max.is_none() && high.is_none() {
        return None;
    }
    let (max, high) = (bytes(max), bytes(high));
    let (limit_bytes, limit_file) = match (max, high) {
        (max, Some(high)) if max.is_none_or(|max| high < max) => (Some(high), "memory.high"),
        (max, _) => (max, "memory.max"),
    };
    let current_bytes = bytes(number(root, dir, "memory.current", notes));
    let stat = Stat::read(root, dir, notes);
    let group = GroupReading {
        path: dir.to_owned(),
        limit_bytes,
        limit_file,
        current_bytes,
        inactive_file_bytes: stat.get("inactive_file").unwrap_or(0),
        active_file_bytes: stat.get("active_file").unwrap_or(0),
        unreclaimable_bytes: stat.get("anon").map(|anon| anon.saturating_add(stat.get("shmem").unwrap_or(0))),
    };
    note_missing_usage(&group, notes);
    Some(group)
}

fn read_v1(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> Option<GroupReading> {
    let limit = number(root, dir, "memory.limit_in_bytes", notes);
    let stat = Stat::read(root, dir, notes);
    // The kernel's own minimum over the group and all above, also those out of sight in a container.
    let above = stat.get("hierarchical_memory_limit");
    if limit.is_none() && above.is_none() {
        return None;
    }
    let real = |bytes: &u64| *bytes < NO_LIMIT_BYTES && *bytes / root.page_bytes() < NO_LIMIT_PAGES_32;
    let (limit, above) = (bytes(limit).filter(real), above.filter(real));
    let (limit_bytes, limit_file) = match (limit, above) {
        (limit, Some(above)) if limit.is_none_or(|limit| above < limit) => {
            (Some(above), "memory.stat:hierarchical_memory_limit")
        }
        (limit, _) => (limit, "memory.limit_in_bytes"),
    };
    // Plain fields count the group alone, `total_` ones its children too, as the usage does.
    let total = |name: &str| stat.get(&format!("total_{name}")).or_else(|| stat.get(name));
    let group = GroupReading {
        path: dir.to_owned(),
        limit_bytes,
        limit_file,
        current_bytes: bytes(number(root, dir, "memory.usage_in_bytes", notes)),
        inactive_file_bytes: total("inactive_file").unwrap_or(0),
        active_file_bytes: total("active_file").unwrap_or(0),
        unreclaimable_bytes: total("rss").map(|rss| rss.saturating_add(total("shmem").unwrap_or(0))),
    };
    note_missing_usage(&group, notes);
    Some(group)
}

fn note_missing_usage(group: &GroupReading, notes: &mut Vec<String>) {
    if group.limit_bytes.is_some() && group.current_bytes.is_none() {
        notes.push(format!("{}: usage is unknown, the whole limit counts as available", group.path));
    }
}

/// `memory.stat`: `name bytes` on each line.
struct Stat(Vec<(String, u64)>);

impl Stat {
    fn read(root: &ProbeRoot, dir: &str, notes: &mut Vec<String>) -> Self {
        let path = format!("{dir}/memory.stat");
        let Some(text) = root.noted_text(&path, notes) else { return Self(Vec::new()) };
        let mut fields = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let field = line.split_once(' ').and_then(|(name, value)| match parse_number(value)? {
                Number::Bytes(bytes) => Some((name.to_owned(), bytes)),
                Number::Unlimited => None,
            });
            match field {
                Some(field) => fields.push(field),
                None => notes.push(format!("{path}: the line `{line}` makes no sense")),
            }
        }
        Self(fields)
    }

    fn get(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, bytes)| *bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits_or_max() {
        let cases = [
            ("max\n", Some(Number::Unlimited)),
            ("0\n", Some(Number::Bytes(0))),
            ("18446744073709551615", Some(Number::Bytes(u64::MAX))),
            ("18446744073709551616", Some(Number::Unlimited)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("12 34", None),
            ("1e9", None),
            ("MAX", None),
            ("0x10", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_number(text), want, "{text:?}");
        }
    }
}
