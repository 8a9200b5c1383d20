//! The log: text or JSON lines on stderr, never the text of a prompt or an answer.

use crate::failure::Failure;
use crate::settings::Settings;
use std::io::{IsTerminal, stderr};
use tracing_subscriber::EnvFilter;

/// Starts the log with the level of the settings, or `level` when they name none.
/// # Errors
/// [`Failure`] when the filter is none.
pub(crate) fn start(settings: &Settings, level: &str) -> Result<(), Failure> {
    let filter = settings.log.as_deref().unwrap_or(level);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("--log `{filter}`: {error}; give error, warn, info, debug, trace or a filter"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match settings.log_format.as_str() {
        "json" => builder.json().init(),
        "text" => builder.with_ansi(stderr().is_terminal()).with_target(false).init(),
        other => return Err(Failure::usage(format!("--log-format `{other}`: allowed are text, json"))),
    }
    Ok(())
}
