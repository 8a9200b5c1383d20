//! Pressure stall information: how much of the time tasks wait for memory.

use super::ProbeRoot;
use super::cgroup::{Hierarchies, Version};

/// Shares of time in per cent over the last 10, 60 and 300 seconds, and all stalled time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureAverages {
    /// Per cent of the last 10 s.
    pub avg10: f64,
    /// Per cent of the last 60 s.
    pub avg60: f64,
    /// Per cent of the last 300 s.
    pub avg300: f64,
    /// Stalled time since the start.
    pub total_us: u64,
}

/// Memory stalls of the device or of one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Pressure {
    /// The file it was read from.
    pub source: String,
    /// At least one task waits.
    pub some: PressureAverages,
    /// All tasks wait at once; absent on some kernels.
    pub full: Option<PressureAverages>,
}

/// The device's figures, then those of the innermost group that has any.
///
/// No files at all is normal: kernels may be built or started without this accounting.
pub(super) fn read_pressure(
    root: &ProbeRoot,
    groups: &Hierarchies,
    notes: &mut Vec<String>,
) -> Vec<Pressure> {
    let mut found = Vec::new();
    let mut read = |path: String| {
        let Ok(Some(text)) = root.text(&path) else {
            // With the accounting switched off at boot the files are there, but reading them fails.
            return false;
        };
        match parse_pressure(&text) {
            Some((some, full)) => found.push(Pressure { source: path, some, full }),
            None => notes.push(format!("{path} makes no sense")),
        }
        true
    };
    read("/proc/pressure/memory".to_owned());
    let v2 = groups.memory.iter().filter(|hierarchy| hierarchy.version == Version::V2);
    let _ = v2.flat_map(|hierarchy| &hierarchy.dirs).any(|dir| read(format!("{dir}/memory.pressure")));
    found
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, then the same with `full`.
fn parse_pressure(text: &str) -> Option<(PressureAverages, Option<PressureAverages>)> {
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    let some = parse_averages(line("some")?)?;
    let full = match line("full") {
        Some(full) => Some(parse_averages(full)?),
        None => None,
    };
    Some((some, full))
}

fn parse_averages(line: &str) -> Option<PressureAverages> {
    let field = |name: &str| {
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let share = |name| {
        let share: f64 = field(name)?.parse().ok()?;
        (0.0..=100.0).contains(&share).then_some(share)
    };
    Some(PressureAverages {
        avg10: share("avg10")?,
        avg60: share("avg60")?,
        avg300: share("avg300")?,
        total_us: field("total")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_or_refused() {
        let averages = PressureAverages { avg10: 1.5, avg60: 0.25, avg300: 100.0, total_us: 42 };
        let some = "some avg10=1.50 avg60=0.25 avg300=100.00 total=42\n";
        let full = some.replace("some", "full");
        assert_eq!(parse_pressure(some), Some((averages, None)));
        assert_eq!(parse_pressure(&format!("{some}{full}")), Some((averages, Some(averages))));
        let wrong = [
            "",
            "full avg10=1.50 avg60=0.25 avg300=100.00 total=42",
            "some avg10=x avg60=0.25 avg300=1.00 total=42",
            "some avg10=NaN avg60=0.25 avg300=1.00 total=42",
            "some avg10=-1 avg60=0.25 avg300=1.00 total=42",
            "some avg10=101 avg60=0.25 avg300=1.00 total=42",
            "some avg10=1 avg60=1 avg300=1 total=-4",
            "some avg10=1 avg60=1 total=4",
            "some",
        ];
        for text in wrong {
            assert_eq!(parse_pressure(text), None, "{text:?}");
        }
    }
}
