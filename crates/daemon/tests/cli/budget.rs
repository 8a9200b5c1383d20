//! Pruning within a budget: the whole process stays under it on every rung of the memory ladder, the prediction is
//! right, and where the sums lie changes no byte.

use crate::support::{Home, last_object, str_of};
use secateur_test_support::{TinyLayer, TinyModel};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Two layers whose factors outweigh the program.
fn wide_model() -> Home {
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 1536 };
    let model = TinyModel { hidden_size: 128, head_dim: 32, layers: vec![layer; 2], ..TinyModel::default() };
    Home::with(&model)
}

fn prune(home: &Home, budget_bytes: u64) -> Result<Value, Value> {
    let budget = budget_bytes.to_string();
    let mut args = vec!["prune", str_of(&home.model), "-o", "out.gguf", "--ratio", "0.25", "--json"];
    args.extend(["--calibration-tokens", "1024", "--memory-budget", &budget]);
    let output = home.run(&args);
    let object = last_object(&output);
    if output.status.success() { Ok(object) } else { Err(object) }
}

fn predicted(report: &Value) -> u64 {
    let memory = &report["memory"];
    let bytes = |phase: &Value| -> u64 {
        phase["terms"].as_array().unwrap().iter().map(|term| term["bytes"].as_u64().unwrap()).sum()
    };
    let largest = memory["phases"].as_array().unwrap().iter().map(bytes).max().unwrap();
    memory["runtime_bytes"].as_u64().unwrap() + largest
}

#[test]
fn every_rung_keeps_the_process_within_its_budget() {
    let home = wide_model();
    let mut budget_bytes = 1 << 30;
    let mut rungs = Vec::new();
    let mut digests = Vec::new();
    let refused = loop {
        let report = match prune(&home, budget_bytes) {
            Ok(report) => report,
            Err(error) => break error,
        };
        let (peak, guess) = (report["rss_peak_bytes"].as_u64().unwrap(), predicted(&report));
        let rung = report["memory"]["rung"].as_str().unwrap().to_owned();
        let said = format!("{rung}: {guess} predicted, {peak} seen, {budget_bytes} allowed");
        assert!(peak <= budget_bytes, "{said}");
        assert!(guess.abs_diff(peak) as f64 <= 0.08 * peak as f64, "{said}");
        let stages = report["stage_rss_peak_bytes"].as_object().unwrap();
        // A stage shorter than the watch's interval may be missing.
        assert!(stages.contains_key("prune"), "{report}");
        for (stage, peak) in stages {
            assert!(peak.as_u64().unwrap() <= budget_bytes, "{stage}: {said}");
        }
        assert!(0.0 < report["rates"]["advance"]["gflop_per_s"].as_f64().unwrap(), "{report}");
        if report["memory"]["rung"] != "in-memory" {
            assert!(report["notes"].to_string().contains(&rung), "{report}");
        }
        rungs.push(rung);
        digests.push(report["output_digest"].clone());
        assert!(rungs.len() < 8, "the ladder ends: {rungs:?}");
        budget_bytes = guess - MIB / 2;
    };
    assert_eq!(rungs[0], "in-memory");
    assert_eq!(rungs.last().map(String::as_str), Some("moments-only"));
    assert_eq!(rungs[1], "sums-in-files");
    assert_eq!(digests[0], digests[1], "where the sums lie changes no byte");
    let smallest = refused["smallest_budget_bytes"].as_u64().unwrap_or_else(|| panic!("{refused}"));
    assert!(budget_bytes < smallest, "{refused}");
    // The number that is named is enough, give or take the pages by which two starts of a program differ.
    let report = prune(&home, smallest + MIB / 2).unwrap_or_else(|error| panic!("{error}"));
    assert!(report["rss_peak_bytes"].as_u64().unwrap() <= smallest + MIB / 2, "{report}");
}
