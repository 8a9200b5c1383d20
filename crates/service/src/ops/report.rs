//! A prune job as one HTML page a person can look at: no script, no file beside it.

use super::prune::PruneFileReport;
use secateur_memory::format_bytes;
use secateur_prune::LayerReport;
use std::fmt::Write;

/// Pixels of a chart.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;
/// Pixels left for the scale.
const MARGIN: f64 = 48.0;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;\
color:#1c2b22;background:#fdfdfb}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}\
td.n,th.n{text-align:right}svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#55635a}\
.kept{fill:#3f7d58}.cut{fill:#dfe7e1}.a{fill:#b5653a}.b{fill:#4a6fa5}@media(prefers-color-scheme:dark){\
body{color:#e6ece8;background:#161b18}.cut{fill:#2d3a32}text{fill:#a8b5ad}}";

/// Text that is safe between tags.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// One bar of a chart: `value` of `whole`, both in the chart's unit.
struct Bar {
    value: f64,
    whole: f64,
    title: String,
}

/// A bar chart over layers; the scale ends at the largest value.
fn chart(class: &str, bars: &[Bar], unit: &str) -> String {
    let top = bars.iter().map(|bar| bar.value.max(bar.whole)).fold(0.0, f64::max);
    let scale = if 0.0 < top { HEIGHT / top } else { 0.0 };
    let step = (WIDTH - MARGIN) / bars.len().max(1) as f64;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\"><text x=\"0\" y=\"12\">{}</text><text x=\"0\" y=\"{HEIGHT}\">0</text>",
        HEIGHT + 18.0,
        escape(&format!("{} {unit}", short(top)))
    );
    for (at, bar) in bars.iter().enumerate() {
        let x = MARGIN + at as f64 * step;
        let mut rect = |class: &str, value: f64| {
            let height = value * scale;
            // Writing to a string cannot fail.
            let _ = write!(
                svg,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{}</title></rect>",
                HEIGHT - height,
                step * 0.8,
                escape(&bar.title)
            );
        };
        if bar.value < bar.whole {
            rect("cut", bar.whole);
        }
        rect(class, bar.value);
        if at % 5 == 0 {
            let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{}\">{at}</text>", HEIGHT + 14.0);
        }
    }
    svg.push_str("</svg>");
    svg
}

fn short(value: f64) -> String {
    if value == 0.0 || (0.01..10_000.0).contains(&value.abs()) {
        format!("{:.3}", value).trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.1e}")
    }
}

fn layer_charts(layers: &[LayerReport]) -> String {
    let bars = |value: &dyn Fn(&LayerReport) -> (f64, f64)| -> Vec<Bar> {
        let bar = |layer: &LayerReport| {
            let (value, whole) = value(layer);
            Bar { value, whole, title: format!("layer {}: {}", layer.layer_idx, short(value)) }
        };
        layers.iter().map(bar).collect()
    };
    let mut out = String::from("<h2>MLP neurons kept, layer by layer</h2>");
    let kept = |layer: &LayerReport| (layer.intermediate_size as f64, layer.intermediate_size_before as f64);
    out += &chart("kept", &bars(&kept), "neurons");
    out += "<h2>Drift of the residual stream on held-out tokens, |h - t|&sup2; / |t|&sup2;</h2>";
    out += &chart("a", &bars(&|layer| (layer.held_out_drift, 0.0)), "");
    if layers.iter().any(|layer| layer.importance.is_some()) {
        out += "<h2>Importance of the layer (1 - cosine of what enters and what leaves)</h2>";
        out += &chart("b", &bars(&|layer| (layer.importance.unwrap_or(0.0), 0.0)), "");
    }
    out
}

/// The page.
#[must_use]
pub(super) fn html(report: &PruneFileReport, layers: &[LayerReport]) -> String {
    let rows = [
        ("Method", format!("{}, seed {}", report.method, report.seed)),
        ("Removed", format!("{:.2} % of the decoder layers' parameters", 100.0 * report.ratio_reached)),
        ("Size", format!("{} to {}", format_bytes(report.bytes_before), format_bytes(report.bytes_after))),
        (
            "Held-out loss",
            format!("{:.4} to {:.4} nats a token", report.held_out_loss_before, report.held_out_loss_after),
        ),
        ("Calibration", format!("{} tokens", report.calibration_tokens)),
        (
            "Peak memory",
            format!("{} of {}", format_bytes(report.rss_peak_bytes), format_bytes(report.budget_bytes)),
        ),
        ("Serving needs", format_bytes(report.footprint.total_bytes)),
        ("Time", format!("{:.1} s", report.seconds_total)),
        ("Why so much", report.reason.clone()),
        ("Digest", report.output_digest.clone()),
    ];
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Secateur: {name}</title><style>{STYLE}</style><h1>{name}</h1><table>",
        name = escape(&report.out.file_name().unwrap_or_default().to_string_lossy())
    );
    for (what, value) in rows {
        let _ = write!(page, "<tr><th>{what}</th><td>{}</td></tr>", escape(&value));
    }
    page.push_str("</table>");
    page += &layer_charts(layers);
    page.push_str("<h2>Seconds by stage</h2><table>");
    for (stage, seconds) in &report.seconds {
        let _ = write!(page, "<tr><th>{}</th><td class=\"n\">{seconds:.1}</td></tr>", escape(stage));
    }
    page.push_str("</table>");
    if !report.notes.is_empty() {
        page.push_str("<h2>Notes</h2><ul>");
        for note in &report.notes {
            let _ = write!(page, "<li>{}</li>", escape(note));
        }
        page.push_str("</ul>");
    }
    page.push_str(
        "<h2>Layers</h2><table><tr><th class=\"n\">layer</th><th class=\"n\">neurons</th><th class=\"n\">KV heads</th>\
         <th class=\"n\">fit drift</th><th class=\"n\">held-out drift</th><th>recovery</th></tr>",
    );
    for layer in layers {
        let _ = write!(
            page,
            "<tr><td class=\"n\">{}</td><td class=\"n\">{} of {}</td><td class=\"n\">{} of {}</td>\
             <td class=\"n\">{:.5}</td><td class=\"n\">{:.5}</td><td>{}</td></tr>",
            layer.layer_idx,
            layer.intermediate_size,
            layer.intermediate_size_before,
            layer.num_key_value_heads,
            layer.num_key_value_heads_before,
            layer.fit_drift,
            layer.held_out_drift,
            if layer.removed { "layer removed" } else { &layer.recovery }
        );
    }
    page.push_str("</table></html>\n");
    page
}
