//! What systemd is told: ready, status, signs of life. Nothing when `NOTIFY_SOCKET` is not set.

use crate::progress::prune_text;
use sd_notify::NotifyState;
use secateur_service::ServiceHandle;
use secateur_service::api::Readiness;
use std::time::{Duration, Instant};

/// A compute thread that has not moved for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(600);

pub(crate) fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// One line for people.
fn status_line(readiness: &Readiness) -> String {
    match readiness {
        Readiness::Starting => "starting".to_owned(),
        Readiness::Loading => "loading the model".to_owned(),
        Readiness::Pruning { progress: Some(progress), .. } => format!("pruning: {}", prune_text(progress)),
        Readiness::Pruning { progress: None, .. } => "pruning".to_owned(),
        Readiness::Ready => "serving".to_owned(),
        Readiness::Released => "short of memory; the model comes back later".to_owned(),
        Readiness::NoModel => "no model; activate one".to_owned(),
        Readiness::Failed { message } => format!("failed: {message}"),
        Readiness::ShuttingDown => "shutting down".to_owned(),
    }
}

/// Tells the status whenever it changes, on stderr too where the log does not.
pub(crate) async fn follow_status(handle: ServiceHandle) {
    let mut readiness = handle.watch_readiness();
    loop {
        let line = status_line(&readiness.borrow_and_update());
        send(&[NotifyState::Status(&line)]);
        tracing::info!(status = line, "status");
        if readiness.changed().await.is_err() {
            return;
        }
    }
}

/// Tells that the configuration is being read again; [`NotifyState::Ready`] tells the end.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the clock could not be read"),
    }
}

/// Feeds the watchdog while the runtime runs this task and the compute thread moves.
pub(crate) async fn feed_watchdog(handle: ServiceHandle) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut interval = tokio::time::interval(timeout / 3);
    let mut last_move = (handle.heartbeat(), Instant::now());
    loop {
        interval.tick().await;
        let beat = handle.heartbeat();
        if beat != last_move.0 || beat.idle {
            last_move = (beat, Instant::now());
        }
        if last_move.1.elapsed() < STUCK_AFTER {
            send(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the compute thread has not moved for {} s", STUCK_AFTER.as_secs());
        }
    }
}
