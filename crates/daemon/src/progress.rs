//! Progress on stderr: one line that is written over on a terminal, plain lines otherwise.

use secateur_service::api::ProgressView;
use secateur_service::format_bytes;
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Shortest time between two plain lines of the same stage and layer.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest time between two redraws.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);
const BAR_WIDTH: usize = 24;

/// Where progress is shown.
pub(crate) struct ProgressLine {
    on_terminal: bool,
    last: Option<Instant>,
    last_text: String,
    is_open: bool,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self { on_terminal: stderr().is_terminal(), last: None, last_text: String::new(), is_open: false }
    }

    /// Shows how far a prune job is.
    pub(crate) fn prune(&mut self, view: &ProgressView) {
        let text = prune_text(view);
        if self.on_terminal {
            self.draw(view.done, &text);
        } else {
            // A layer is news, its parts are not.
            let key = format!("{} {:?}", view.stage, view.layer_idx);
            self.line(&key, &text);
        }
    }

    /// Shows `done` of `total` with the measure so far.
    pub(crate) fn count(&mut self, what: &str, done: usize, total: usize, so_far: &str) {
        let text = format!("{what} {done}/{total}  {so_far}");
        if self.on_terminal {
            self.draw(done as f64 / total.max(1) as f64, &text);
        } else if done == total {
            self.line(&text, &text);
        } else {
            self.line(what, &text);
        }
    }

    fn draw(&mut self, done: f64, text: &str) {
        if self.last.is_some_and(|last| last.elapsed() < DRAW_INTERVAL) && done < 1.0 {
            return;
        }
        self.last = Some(Instant::now());
        self.is_open = true;
        let filled = ((done.clamp(0.0, 1.0) * BAR_WIDTH as f64) as usize).min(BAR_WIDTH);
        let bar: String = (0..BAR_WIDTH).map(|at| if at < filled { '=' } else { ' ' }).collect();
        // A terminal that is gone is no reason to stop.
        let _ = write!(stderr().lock(), "\r\x1b[2K[{bar}] {text}");
    }

    fn line(&mut self, key: &str, text: &str) {
        let is_fresh = key != self.last_text;
        if !is_fresh && self.last.is_some_and(|last| last.elapsed() < LINE_INTERVAL) {
            return;
        }
        self.last = Some(Instant::now());
        key.clone_into(&mut self.last_text);
        crate::output::note(text);
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.is_open {
            let _ = writeln!(stderr().lock());
        }
    }
}

/// `prune layer 7/30  41 %  rss 93.1 MiB (peak 110.0 MiB)  eta 64 s  loss 0.0213`.
pub(crate) fn prune_text(view: &ProgressView) -> String {
    let mut text = view.stage.clone();
    if let Some(layer_idx) = view.layer_idx {
        text.push_str(&format!(" layer {}/{}", layer_idx + 1, view.n_layers));
    }
    text.push_str(&format!(
        "  {:.0} %  rss {} (peak {})",
        100.0 * view.done,
        format_bytes(view.rss_bytes),
        format_bytes(view.rss_peak_bytes)
    ));
    if let Some(eta_s) = view.eta_s {
        text.push_str(&format!("  eta {eta_s:.0} s"));
    }
    if let Some(loss) = view.loss {
        text.push_str(&format!("  drift {loss:.4}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_layer_memory_and_time() {
        let view = ProgressView {
            stage: "prune".into(),
            layer_idx: Some(6),
            n_layers: 30,
            done: 0.41,
            eta_s: Some(64.2),
            rss_bytes: 93 << 20,
            rss_peak_bytes: 110 << 20,
            loss: Some(0.0213),
        };
        let want = "prune layer 7/30  41 %  rss 93.0 MiB (peak 110.0 MiB)  eta 64 s  drift 0.0213";
        assert_eq!(prune_text(&view), want);
    }
}
