//! Reports as text for people.

use crate::output::table;
use secateur_service::api::{FootprintView, LayerView};
use secateur_service::format_bytes;
use secateur_service::ops::{
    BenchReport, CompareReport, DoctorReport, DraftReport, EvalReport, ExportReport, GenerateReport,
    InspectReport, Level, OwnTextReport, PlanReport, PruneFileReport, TasksReport,
};

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn footprint(footprint: &FootprintView) -> String {
    format!(
        "{} (weights {}, cache {}, activations {}, program {})",
        format_bytes(footprint.total_bytes),
        format_bytes(footprint.weights_bytes),
        format_bytes(footprint.kv_cache_bytes),
        format_bytes(footprint.activations_bytes),
        format_bytes(footprint.runtime_bytes)
    )
}

/// `1536` when all are equal, or else `1024-1536 (mean 1228)`.
fn range(values: &[usize]) -> String {
    let (Some(min), Some(max)) = (values.iter().min(), values.iter().max()) else { return "none".to_owned() };
    if min == max {
        return min.to_string();
    }
    let mean = values.iter().sum::<usize>() as f64 / values.len() as f64;
    format!("{min}-{max} (mean {mean:.0})")
}

fn widths(layers: &[LayerView]) -> String {
    range(&layers.iter().map(|layer| layer.intermediate_size).collect::<Vec<_>>())
}

pub(super) fn plan(report: &PlanReport) -> String {
    let plan = &report.plan;
    let mut rows = vec![
        ("budget", format!("{} ({})", format_bytes(report.budget_bytes), report.budget_explanation)),
        ("plan", plan.reason.clone()),
        ("untouched needs", footprint(&plan.base_footprint)),
    ];
    if plan.action == "prune" {
        rows.push(("pruned needs", footprint(&plan.footprint)));
        if plan.table_dtype != "keep" {
            rows.push(("token table", format!("stored as {}", plan.table_dtype)));
        }
        rows.push(("remove", format!("{} of the layers' parameters", percent(plan.ratio))));
        rows.push(("MLP widths", widths(&plan.layers)));
        rows.push(("perplexity", format!("times {:.2}, roughly", plan.predicted_perplexity_factor)));
    }
    rows.push(("context", format!("{} tokens, keys and values in {}", plan.context_len, plan.kv_dtype)));
    rows.extend(report.warning.iter().map(|warning| ("warning", warning.clone())));
    table(&rows)
}

pub(super) fn prune(report: &PruneFileReport) -> String {
    let kept: Vec<usize> = report.widths.iter().copied().filter(|width| 0 < *width).collect();
    let stage = |(stage, seconds): (&String, &f64)| match report.rates.get(stage) {
        Some(rate) => format!("{stage} {seconds:.1} s at {:.0} GFLOP/s", rate.gflop_per_s),
        None => format!("{stage} {seconds:.1} s"),
    };
    let stages: Vec<String> = report.seconds.iter().map(stage).collect();
    let mut rows = vec![
        ("wrote", report.out.display().to_string()),
        ("size", format!("{} -> {}", format_bytes(report.bytes_before), format_bytes(report.bytes_after))),
        (
            "removed",
            format!("{} of the layers' parameters ({})", percent(report.ratio_reached), report.method),
        ),
        ("MLP widths", range(&kept)),
        (
            "held-out loss",
            format!("{:.4} -> {:.4} nats", report.held_out_loss_before, report.held_out_loss_after),
        ),
        ("calibration", format!("{} tokens", report.calibration_tokens)),
        ("serving needs", footprint(&report.footprint)),
        (
            "peak memory",
            format!("{} of {}", format_bytes(report.rss_peak_bytes), format_bytes(report.budget_bytes)),
        ),
        ("time", format!("{:.1} s ({})", report.seconds_total, stages.join(", "))),
        ("digest", report.output_digest.clone()),
    ];
    if !report.layers_removed.is_empty() {
        rows.insert(3, ("layers removed", format!("{:?}", report.layers_removed)));
    }
    rows.extend(report.notes.iter().map(|note| ("note", note.clone())));
    table(&rows)
}

pub(super) fn eval(report: &EvalReport) -> String {
    let kl_base = report.kl_base.map(|kl| format!("{kl:.5} nats a token from the base model"));
    table(&[
        ("perplexity", format!("{:.4}", report.perplexity)),
        ("loss", format!("{:.5} nats a token", report.nll)),
        ("divergence", kl_base.unwrap_or_else(|| "not asked for (--base)".to_owned())),
        ("scored", format!("{} tokens in {} windows of {}", report.tokens, report.windows, report.seq_len)),
        ("speed", format!("{:.1} tokens/s", report.tokens_per_s)),
        ("peak memory", format_bytes(report.rss_peak_bytes)),
    ])
}

pub(super) fn own_text(report: &OwnTextReport) -> String {
    table(&[
        ("written", format!("{} ({} tokens)", report.out.display(), report.tokens)),
        ("speed", format!("{:.1} tokens/s", report.tokens_per_s)),
        ("peak memory", format_bytes(report.rss_peak_bytes)),
    ])
}

pub(super) fn tasks(report: &TasksReport) -> String {
    let with_error = |value: f64, stderr: f64| format!("{} +- {}", percent(value), percent(stderr));
    table(&[
        ("acc", with_error(report.acc, report.acc_stderr)),
        ("acc_norm", with_error(report.acc_norm, report.acc_norm_stderr)),
        ("items", format!("{} (guessing gets {})", report.items, percent(report.chance))),
        ("peak memory", format_bytes(report.rss_peak_bytes)),
    ])
}

/// A Markdown table: perplexity for each text, `acc / acc_norm` for each file of tasks.
pub(super) fn compare(report: &CompareReport) -> String {
    let Some(first) = report.rows.first() else { return String::new() };
    let mut head = vec!["method".to_owned(), "removed".to_owned(), "size".to_owned()];
    head.extend(first.texts.iter().map(|text| text.text.clone()));
    head.extend(first.tasks.iter().map(|tasks| format!("{} acc / acc_norm", tasks.tasks)));
    head.push("seconds".to_owned());
    let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![row(&head), row(&vec!["---".to_owned(); head.len()])];
    for of in &report.rows {
        let mut cells = vec![of.method.clone(), percent(of.ratio_reached), format_bytes(of.bytes)];
        cells.extend(of.texts.iter().map(|text| format!("{:.2}", text.perplexity)));
        cells.extend(of.tasks.iter().map(|tasks| {
            format!("{} / {} +- {}", percent(tasks.acc), percent(tasks.acc_norm), percent(tasks.acc_stderr))
        }));
        cells.push(format!("{:.0}", of.prune_seconds));
        lines.push(row(&cells));
    }
    lines.push(format!("{} calibration tokens for every method", report.calibration_tokens));
    lines.join("\n")
}

pub(super) fn generated(report: &GenerateReport) -> String {
    let draft = report.draft.map(|draft| {
        let DraftReport { guessed, accepted, tokens_per_pass, .. } = draft;
        format!(", {accepted} of {guessed} guesses accepted ({tokens_per_pass:.2} tokens a pass)")
    });
    let text = format!(
        "{} prompt tokens, {} generated ({}), first after {:.0} ms, then {:.1} tokens/s, seed {}, peak memory {}",
        report.prompt_tokens,
        report.completion_tokens,
        report.finish_reason,
        report.ttft_ms,
        report.tokens_per_s,
        report.seed,
        format_bytes(report.rss_peak_bytes)
    );
    text + &draft.unwrap_or_default()
}

pub(super) fn bench(report: &BenchReport) -> String {
    let mut rows = vec![
        (
            "prefill",
            format!(
                "{:.1} tokens/s ({:.1}-{:.1}) over {} tokens",
                report.prefill_tokens_per_s,
                report.prefill_spread.min,
                report.prefill_spread.max,
                report.prompt_tokens
            ),
        ),
        (
            "decode",
            format!(
                "{:.1} tokens/s ({:.1}-{:.1}) over {} tokens",
                report.decode_tokens_per_s,
                report.decode_spread.min,
                report.decode_spread.max,
                report.generate_tokens
            ),
        ),
        ("first token", format!("{:.1} ms, then {:.2} ms each", report.ttft_ms, report.tpot_ms)),
        (
            "weights",
            format!(
                "{} a token, {:.1} GB/s of {:.1} GB/s that memory gives ({:.0} %)",
                format_bytes(report.weight_bytes_per_token),
                report.decode_bytes_per_s / 1e9,
                report.memory_bytes_per_s / 1e9,
                100.0 * report.memory_share
            ),
        ),
        (
            "threads",
            format!(
                "{} ({}, activations in {}, keys and values in {})",
                report.threads, report.isa, report.precision, report.kv_dtype
            ),
        ),
        ("peak memory", format_bytes(report.rss_peak_bytes)),
    ];
    rows.extend(report.depths.iter().map(|at| {
        let speeds = format!(
            "prefill {:.1} tokens/s, decode {:.1} tokens/s with {} tokens in the cache",
            at.prefill_tokens_per_s, at.decode_tokens_per_s, at.depth
        );
        ("depth", speeds)
    }));
    table(&rows)
}

pub(super) fn export(report: &ExportReport) -> String {
    let mut rows = vec![
        (report.output_form, format!("{} ({})", report.out.display(), format_bytes(report.bytes_after))),
        ("digest", report.output_digest.clone()),
        ("architecture", report.output_architecture.to_owned()),
        ("from", format!("{} ({})", report.form, format_bytes(report.bytes_before))),
        ("peak memory", format_bytes(report.rss_peak_bytes)),
    ];
    rows.extend(report.notes.iter().map(|note| ("note", note.clone())));
    table(&rows)
}

pub(super) fn inspect(report: &InspectReport) -> String {
    let heads: Vec<usize> = report.layers.iter().map(|layer| layer.num_attention_heads).collect();
    let kv_heads: Vec<usize> = report.layers.iter().map(|layer| layer.num_key_value_heads).collect();
    let dtypes: Vec<String> = report
        .dtypes
        .iter()
        .map(|(name, count)| format!("{name} {} in {} tensors", format_bytes(count.bytes), count.tensors))
        .collect();
    table(&[
        ("name", report.name.clone()),
        ("file", format!("{} ({})", report.path.display(), format_bytes(report.bytes))),
        ("digest", report.digest.clone()),
        ("form", report.form.to_owned()),
        ("architecture", report.architecture.to_owned()),
        ("layers", format!("{}{}", report.n_layers, if report.uniform { ", all alike" } else { "" })),
        ("hidden size", report.hidden_size.to_string()),
        ("MLP widths", widths(&report.layers)),
        (
            "heads",
            format!("{} of {}, {} for keys and values", range(&heads), report.head_dim, range(&kv_heads)),
        ),
        ("parameters", format!("{} ({} in layers)", report.total_params, report.layer_params)),
        ("dtypes", dtypes.join(", ")),
        (
            "context",
            format!(
                "{} tokens, {} each",
                report.max_position_embeddings,
                format_bytes(report.kv_bytes_per_token)
            ),
        ),
        (
            "vocabulary",
            format!(
                "{} tokens{}{}",
                report.vocab_size,
                if report.adds_bos { ", texts begin with BOS" } else { "" },
                if report.has_chat_template { ", chat template" } else { ", no chat template" }
            ),
        ),
    ])
}

pub(super) fn doctor(report: &DoctorReport) -> String {
    let mark = |level: Level| match level {
        Level::Ok => "ok     ",
        Level::Warning => "WARNING",
        Level::Error => "ERROR  ",
    };
    let mut lines = vec![format!("secateur {}", report.version)];
    for finding in &report.findings {
        lines.push(format!("{} {:<10} {}", mark(finding.level), finding.name, finding.message));
        lines.extend(finding.advice.iter().map(|advice| format!("{:>21} {advice}", "->")));
    }
    lines.push(match report.level {
        Level::Ok => "This host is ready.".to_owned(),
        Level::Warning => "This host will do.".to_owned(),
        Level::Error => "This host needs attention first.".to_owned(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_well() {
        for (values, want) in
            [(vec![], "none"), (vec![7, 7], "7"), (vec![1024, 1536, 1124], "1024-1536 (mean 1228)")]
        {
            assert_eq!(range(&values), want);
        }
    }
}
