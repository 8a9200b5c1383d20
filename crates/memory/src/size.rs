//! Bytes as people write and read them.

/// Binary units, largest first.
const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// Formats bytes for people, with one decimal: `127.4 MiB`. Rounds to nearest, so it is not exact.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    for (unit, name) in UNITS {
        // What rounds to 1.0 of a unit is written in it, so that nothing ever reads `1024.0 KiB`.
        let tenths = (u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit);
        if 10 <= tenths {
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

/// Formats bytes exactly, in the largest binary unit that divides them: `128MiB`, `1000B`.
pub(crate) fn format_exact(bytes: u64) -> String {
    let fits = |(unit, _): &&(u64, &str)| bytes != 0 && bytes.is_multiple_of(*unit);
    match UNITS.iter().find(fits) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_well() {
        let cases = [
            (0, "0 B"),
            (972, "972 B"),
            (973, "1.0 KiB"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (128 << 20, "128.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        let wrong: Vec<_> = cases.iter().filter(|(bytes, want)| format_bytes(*bytes) != *want).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
