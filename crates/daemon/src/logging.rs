//! The log: to journald, or as text or JSON lines on stderr; never the text of a prompt or an answer.

use crate::failure::Failure;
use crate::settings::Settings;
use std::io::{IsTerminal, stderr};
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// Changes what is logged while the process runs.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(settings: &Settings, level: &str) -> Result<EnvFilter, Failure> {
    let text = settings.log.as_deref().unwrap_or(level);
    EnvFilter::try_new(text).map_err(|error| {
        Failure::usage(format!("--log `{text}`: {error}; give error, warn, info, debug, trace or a filter"))
    })
}

/// Starts the log with the level of the settings, or `level` when they name none.
/// # Errors
/// [`Failure`] when the filter is none, or journald is asked for and not there.
pub(crate) fn start(settings: &Settings, level: &str) -> Result<(), Failure> {
    let (filter, handle) = reload::Layer::new(filter(settings, level)?);
    let text = || {
        let layer = tracing_subscriber::fmt::layer().with_writer(stderr);
        layer.with_ansi(stderr().is_terminal()).with_target(false).boxed()
    };
    let layer = match settings.log_format.as_str() {
        "json" => tracing_subscriber::fmt::layer().with_writer(stderr).json().boxed(),
        "text" => text(),
        "journald" => journald()?,
        // Under systemd stderr is the journal already; its own protocol keeps the fields.
        "auto" if stderr_is_the_journal() => journald().unwrap_or_else(|_| text()),
        "auto" => text(),
        other => {
            let allowed = "allowed are auto, text, json, journald";
            return Err(Failure::usage(format!("--log-format `{other}`: {allowed}")));
        }
    };
    tracing_subscriber::registry().with(filter).with(layer).init();
    // The log is started once.
    let _ = FILTER.set(handle);
    Ok(())
}

/// Takes over the level of other settings.
/// # Errors
/// [`Failure`] when the filter is none.
pub(crate) fn reload(settings: &Settings, level: &str) -> Result<(), Failure> {
    let filter = filter(settings, level)?;
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter)
    {
        tracing::warn!(%error, "the level of the log stays");
    }
    Ok(())
}

fn journald<S>() -> Result<Box<dyn Layer<S> + Send + Sync>, Failure>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_journald::layer()
        .map_err(|error| Failure::usage(format!("--log-format journald: there is no journal: {error}")))?;
    Ok(layer.with_syslog_identifier("secateur".to_owned()).boxed())
}

/// True when systemd has connected stderr to the journal: the variable names the device and inode of that stream.
fn stderr_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", metadata.dev(), metadata.ino())
}
