//! `/metrics` in the Prometheus text format: counters of the service and of the HTTP side.
//!
//! Labels are routes of the table and numbers, so their count is bounded whatever clients send.

use crate::app::AppState;
use crate::backend::Backend;
use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use secateur_service::api::{MetricsView, Timings};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Upper bounds of the histograms, in seconds.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Observations by size.
#[derive(Clone, Debug, Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, value: f64) {
        for (bound, count) in BUCKETS.iter().zip(&mut self.counts) {
            *count += u64::from(value <= *bound);
        }
        self.count += 1;
        self.sum += value;
    }

    fn render(&self, page: &mut Page, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in BUCKETS.iter().zip(&self.counts) {
            page.line(&format!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}}"), count);
        }
        page.line(&format!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}}"), self.count);
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        page.line(&format!("{name}_sum{braces}"), self.sum);
        page.line(&format!("{name}_count{braces}"), self.count);
    }
}

#[derive(Debug, Default)]
struct Counters {
    /// By method, route and status.
    requests: BTreeMap<(String, String, u16), u64>,
    /// By route, until the head of the answer.
    durations: BTreeMap<String, Histogram>,
    ttft: Histogram,
    tpot: Histogram,
}

/// Counters of the HTTP side.
#[derive(Debug, Default)]
pub(crate) struct HttpMetrics {
    counters: Mutex<Counters>,
}

impl HttpMetrics {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        // Counters are whole after every statement under the lock.
        self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answered request.
    pub(crate) fn count(&self, method: &Method, route: &str, status: StatusCode, seconds: f64) {
        let method = match *method {
            Method::GET | Method::POST | Method::DELETE | Method::HEAD | Method::OPTIONS | Method::PUT => {
                method.as_str()
            }
            _ => "other",
        };
        let mut counters = self.lock();
        *counters.requests.entry((method.to_owned(), route.to_owned(), status.as_u16())).or_default() += 1;
        counters.durations.entry(route.to_owned()).or_default().observe(seconds);
    }

    /// Notes the speed of a generation.
    pub(crate) fn observe_generation(&self, timings: &Timings) {
        let mut counters = self.lock();
        if 0.0 < timings.ttft_ms {
            counters.ttft.observe(timings.ttft_ms / 1e3);
        }
        if 0.0 < timings.tpot_ms {
            counters.tpot.observe(timings.tpot_ms / 1e3);
        }
    }
}

/// A page under construction.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, series: &str, value: impl Display) {
        let _ = writeln!(self.text, "{series} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, value);
    }
}

/// `GET /metrics`.
pub(crate) async fn metrics<B: Backend>(State(state): State<AppState<B>>) -> impl IntoResponse {
    let mut page = Page::default();
    let is_ready = state.backend.readiness().is_ready();
    page.single("secateur_ready", "gauge", "1 when requests are answered.", u8::from(is_ready));
    render_service(&mut page, &state.backend.metrics());
    render_http(&mut page, &state.shared.metrics.lock());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page.text)
}

fn render_service(page: &mut Page, metrics: &MetricsView) {
    let m = metrics;
    let mut counter = |name: &str, help: &str, value: &dyn Display| page.single(name, "counter", help, value);
    counter("secateur_requests_total", "Generations taken into the queue.", &m.requests_total);
    counter(
        "secateur_requests_busy_total",
        "Generations refused as the queue was full.",
        &m.requests_busy_total,
    );
    counter("secateur_requests_failed_total", "Generations ended by an error.", &m.requests_failed_total);
    counter(
        "secateur_requests_cancelled_total",
        "Generations whose client left.",
        &m.requests_cancelled_total,
    );
    counter("secateur_prompt_tokens_total", "Prompt tokens.", &m.prompt_tokens_total);
    counter("secateur_cached_tokens_total", "Prompt tokens found in the KV cache.", &m.cached_tokens_total);
    counter("secateur_generated_tokens_total", "Tokens generated.", &m.generated_tokens_total);
    counter("secateur_draft_tokens_total", "Guesses of a draft.", &m.draft_tokens_total);
    let help = "Guesses of a draft that became part of an answer.";
    counter("secateur_draft_accepted_tokens_total", help, &m.draft_accepted_tokens_total);
    counter("secateur_prefill_seconds_total", "Seconds spent reading prompts.", &m.prefill_seconds_total);
    counter("secateur_decode_seconds_total", "Seconds spent generating.", &m.decode_seconds_total);
    counter("secateur_jobs_succeeded_total", "Jobs that succeeded.", &m.jobs_succeeded_total);
    counter("secateur_jobs_failed_total", "Jobs that failed.", &m.jobs_failed_total);
    counter("secateur_jobs_cancelled_total", "Jobs that were cancelled at work.", &m.jobs_cancelled_total);
    if let Some(seconds) = &m.stalled_seconds_total {
        let help = "Seconds in which some task waited for memory, of the device or a group of the service.";
        counter("secateur_memory_stalled_seconds_total", help, seconds);
    }
    let mut gauge = |name: &str, help: &str, value: &dyn Display| page.single(name, "gauge", help, value);
    gauge("secateur_requests_queued", "Generations waiting.", &m.queued);
    gauge("secateur_queue_places", "Generations that may wait.", &m.queue_len);
    gauge("secateur_requests_running", "Generations at work.", &m.running);
    gauge("secateur_jobs_queued", "Jobs waiting.", &m.jobs_queued);
    gauge("secateur_jobs_running", "Jobs at work.", &m.jobs_running);
    gauge("secateur_resident_memory_bytes", "Resident memory of the process.", &m.rss_bytes);
    gauge("secateur_resident_memory_peak_bytes", "Its highest value.", &m.rss_peak_bytes);
    gauge("secateur_memory_budget_bytes", "What the process may use.", &m.budget_bytes);
    gauge(
        "secateur_memory_available_bytes",
        "What the process could grow to, its present memory included.",
        &m.available_bytes,
    );
    gauge(
        "secateur_memory_pressure_step",
        "What memory pressure makes the service give up, 0 to 6.",
        &m.pressure_step,
    );
    gauge("secateur_model_bytes", "Size of the served model.", &m.model_bytes);
    gauge("secateur_uptime_seconds", "Seconds since the start.", &m.uptime_s);
}

fn render_http(page: &mut Page, counters: &Counters) {
    page.head("secateur_http_requests_total", "counter", "Answered HTTP requests.");
    for ((method, route, status), count) in &counters.requests {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        page.line(&format!("secateur_http_requests_total{{{labels}}}"), count);
    }
    let name = "secateur_http_response_seconds";
    page.head(name, "histogram", "Seconds until the head of the answer.");
    for (route, histogram) in &counters.durations {
        histogram.render(page, name, &format!("route=\"{route}\""));
    }
    let name = "secateur_time_to_first_token_seconds";
    page.head(name, "histogram", "Seconds from the start of a generation to its first token.");
    counters.ttft.render(page, name, "");
    let name = "secateur_time_per_token_seconds";
    page.head(name, "histogram", "Seconds for each token after the first.");
    counters.tpot.render(page, name, "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_up_to_each_bound() {
        let mut histogram = Histogram::default();
        for value in [0.001, 0.01, 0.3, 100.0] {
            histogram.observe(value);
        }
        let mut page = Page::default();
        histogram.render(&mut page, "h", "route=\"/x\"");
        for line in [
            "h_bucket{route=\"/x\",le=\"0.005\"} 1",
            "h_bucket{route=\"/x\",le=\"0.01\"} 2",
            "h_bucket{route=\"/x\",le=\"0.5\"} 3",
            "h_bucket{route=\"/x\",le=\"60\"} 3",
            "h_bucket{route=\"/x\",le=\"+Inf\"} 4",
            "h_count{route=\"/x\"} 4",
        ] {
            assert!(page.text.lines().any(|found| found == line), "{line} in\n{}", page.text);
        }
    }
}
