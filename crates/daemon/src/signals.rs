//! Signals of commands that run once: the first one cancels, the second one ends the process at once.

use crate::failure::INTERRUPTED;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// A flag that turns true at the first SIGINT or SIGTERM. Without the system's help it never does.
pub(crate) fn cancel_flag() -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let watched = flag.clone();
    let thread = std::thread::Builder::new().name("signals".to_owned()).stack_size(256 << 10);
    let started = thread.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        match runtime {
            Ok(runtime) => runtime.block_on(watch(&watched)),
            Err(error) => tracing::warn!(%error, "signals end the process at once"),
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "signals end the process at once");
    }
    flag
}

async fn watch(flag: &AtomicBool) {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!(%error, "signals end the process at once");
            return;
        }
    };
    signals.next().await;
    flag.store(true, Ordering::Relaxed);
    signals.next().await;
    std::process::exit(i32::from(INTERRUPTED));
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Takes the signals over from their default action.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// SIGHUP: read the configuration again.
pub(crate) fn hangup() -> std::io::Result<tokio::signal::unix::Signal> {
    signal(SignalKind::hangup())
}
