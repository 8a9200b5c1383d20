//! What goes to stdout and stderr. A closed pipe is no failure of the command.

use crate::failure::{Failure, IO};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Writes a line to stdout.
/// # Errors
/// [`Failure`] when it cannot be written; a reader that has gone is fine.
pub(crate) fn print(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let result = writeln!(out, "{line}").and_then(|()| out.flush());
    match result {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(IO, "io", format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes text to stdout as it comes, without a line end.
pub(crate) fn stream(text: &str) {
    let mut out = std::io::stdout().lock();
    // The rest of the command still matters when nobody reads.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to stderr.
pub(crate) fn note(line: &str) {
    // There is nowhere to report this to.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Shows a report as one JSON object, or as the text that `human` makes of it.
/// # Errors
/// As [`print()`].
pub(crate) fn report<T: Serialize>(
    value: &T,
    json: bool,
    human: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    if !json {
        return print(&human(value));
    }
    let line = serde_json::to_string(value);
    print(&line.map_err(|error| Failure::new(crate::failure::SOFTWARE, "internal", error.to_string()))?)
}

/// Two columns, the first one as wide as it needs to be.
pub(crate) fn table(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    lines.join("\n")
}
