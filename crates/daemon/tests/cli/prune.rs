//! Pruning into a file: what comes out, and that a killed job goes on where it was.

use crate::support::{Home, last_object, signal, str_of};
use rustix::process::Signal;
use secateur_test_support::{DType, TinyLayer, TinyModel};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};

const TOKENS: &str = "4096";

fn prune_args<'a>(home: &'a Home, out: &'a str, extra: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["prune", str_of(&home.model), "-o", out, "--json"];
    args.extend(["--calibration-tokens", TOKENS, "--memory-budget", "512MiB"]);
    args.extend(extra);
    if !extra.contains(&"--ratio") {
        args.extend(["--ratio", "0.25"]);
    }
    args
}

#[test]
fn a_pruned_file_is_what_its_report_says() {
    let home = Home::with_slow_model();
    let report = home.json(&prune_args(&home, "out.gguf", &["--report", "page.html"]));
    let page = fs::read_to_string(home.path("page.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(page.contains(report["output_digest"].as_str().unwrap()));
    assert!(page.contains("layer 5: ") && !page.contains("<script"), "a bar for every layer, and no script");
    let out = home.path("out.gguf");
    let bytes = fs::read(&out).unwrap();
    assert_eq!(report["output_digest"], blake3::hash(&bytes).to_hex().as_str());
    assert_eq!(report["bytes_after"], bytes.len());
    assert!(report["bytes_after"].as_u64() < report["bytes_before"].as_u64());
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert!((number("ratio_reached") - 0.25).abs() < 0.05, "{report}");
    assert!(number("rss_peak_bytes") <= number("budget_bytes"));
    assert!(0.0 < number("held_out_loss_before") && 0.0 < number("held_out_loss_after"));
    assert_eq!(report["widths"].as_array().unwrap().len(), 6);
    assert_eq!(report["resumed"], false);
    let params = |key: &str| report[key].as_u64().unwrap();
    let inspect = home.json(&["inspect", str_of(&out), "--json"]);
    assert_eq!(inspect["layer_params"], params("params_after"));
    assert!(!home.path("out.gguf.secateur-job").exists(), "the work folder is gone");
    // The same inputs give the same bytes, whatever the number of threads; another policy gives others.
    let again = home.json(&prune_args(&home, "again.gguf", &["--threads", "1"]));
    assert_eq!(again["output_digest"], report["output_digest"]);
    let other = home.json(&prune_args(&home, "other.gguf", &["--policy", "compatible"]));
    assert_ne!(other["output_digest"], report["output_digest"]);
    let inspect = home.json(&["inspect", str_of(&home.path("other.gguf")), "--json"]);
    assert_eq!(inspect["uniform"], true);
}

#[test]
fn a_method_that_cuts_attention_removes_whole_kv_groups() {
    let home = Home::with_slow_model();
    let report =
        home.json(&prune_args(&home, "out.gguf", &["--method", "flap", "--ratio", "0.5", "--dtype", "f16"]));
    let groups: Vec<u64> =
        report["kv_heads"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(groups.contains(&1) && groups.iter().all(|&n| n == 1 || n == 2), "{report}");
    let out = home.path("out.gguf");
    let inspect = home.json(&["inspect", str_of(&out), "--json"]);
    assert_eq!(inspect["layer_params"], report["params_after"]);
    home.json(&["generate", str_of(&out), "--prompt", "a", "--json"]);
    // Its predictions have moved from those of the base model, which are no way from themselves.
    fs::write(home.path("text.txt"), "a few words of text ".repeat(20)).unwrap();
    let base = str_of(&home.model);
    let kl = |model: &str| {
        let args = ["eval", model, "--base", base, "--text", "text.txt", "--seq-len", "32", "--json"];
        home.json(&args)["kl_base"].as_f64().unwrap()
    };
    assert!(kl(base).abs() < 1e-6 && 1e-4 < kl(str_of(&out)));
}

#[test]
fn a_matrix_in_fewer_bits_is_rounded_with_feedback() {
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 256 };
    let home = Home::with(&TinyModel { layers: vec![layer; 3], dtype: DType::F16, ..TinyModel::default() });
    fs::write(home.path("text.txt"), "a few words of text ".repeat(40)).unwrap();
    let base = str_of(&home.model);
    let kl = |out: &str, method: &str| {
        let extra = ["--ratio", "0", "--dtype", "q4_0", "--method", method];
        let report = home.json(&prune_args(&home, out, &extra));
        assert_eq!(report["ratio_reached"], 0.0);
        let inspect = home.json(&["inspect", out, "--json"]);
        assert!(inspect["dtypes"].get("q4_0").is_some(), "{inspect}");
        let args = ["eval", out, "--base", base, "--text", "text.txt", "--seq-len", "64", "--json"];
        home.json(&args)["kl_base"].as_f64().unwrap()
    };
    // A method that does not fit rounds each value by itself.
    let (fed_back, plain) = (kl("a.gguf", "comp-refit"), kl("b.gguf", "wanda-sp"));
    assert!(fed_back < plain, "{fed_back} with feedback, {plain} without");
}

#[test]
fn a_model_that_fits_is_left_as_it_is() {
    let home = Home::new();
    let args = ["prune", str_of(&home.model), "-o", "same.gguf", "--memory-budget", "1GiB", "--json"];
    let report = home.json(&args);
    assert_eq!(report["ratio_reached"], 0.0);
    assert!(report["notes"].to_string().contains("fits as it is"));
    let generate = |model: &str| home.json(&["generate", model, "--prompt", "a", "--json"])["tokens"].clone();
    assert_eq!(generate("same.gguf"), generate(str_of(&home.model)));
}

#[test]
fn tables_are_stored_anew_alone_or_before_the_cut() {
    let home = Home::with_slow_model();
    let in_4_bits = |file: &str| home.json(&["inspect", file, "--json"])["dtypes"].get("q4_0").is_some();
    assert!(!in_4_bits(str_of(&home.model)));
    let args =
        ["prune", str_of(&home.model), "--table-dtype", "q4_0", "--calibration-tokens", "1024", "--json"];
    let alone = home.json(&[&args[..], &["-o", "alone.gguf", "--ratio", "0"]].concat());
    assert_eq!(alone["ratio_reached"], 0.0);
    assert!(alone["bytes_after"].as_u64() < alone["bytes_before"].as_u64());
    assert!(alone["reason"].as_str().unwrap().contains("token table is stored as q4_0"), "{alone}");
    let both = home.json(&[&args[..], &["-o", "both.gguf", "--ratio", "0.25"]].concat());
    assert!(both["bytes_after"].as_u64() < alone["bytes_after"].as_u64());
    for file in ["alone.gguf", "both.gguf"] {
        assert!(in_4_bits(file), "{file}");
        home.json(&["generate", file, "--prompt", "a", "--json"]);
        assert!(!home.path(&format!("{file}.secateur-job")).exists(), "the work folder of {file} is gone");
    }
    let refused = home.run(&[&args[..], &["-o", "x.gguf", "--ratio", "0.25", "--dtype", "f16"]].concat());
    let error = last_object(&refused)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("goes with dtype auto, keep"), "{error}");
}

fn niceness(id: u32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
}

/// Starts a job, waits for its nth line of progress and stops it by a signal; true when it ended before.
fn stop_at_line(home: &Home, n_line: usize, by: Signal) -> Option<i32> {
    let mut child = home.command(&prune_args(home, "out.gguf", &[])).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let _ = lines.take(n_line).count();
    // The tests themselves may have been told to let others go first.
    assert_eq!(
        niceness(child.id()),
        (niceness(std::process::id()) + 10).min(19),
        "a job lets others go first"
    );
    signal(&child, by);
    child.wait().unwrap().code()
}

#[test]
fn a_killed_job_goes_on_and_ends_with_the_same_bytes() {
    let home = Home::with_slow_model();
    let want = home.json(&prune_args(&home, "whole.gguf", &[]))["output_digest"].clone();
    let mut n_killed = 0;
    for n_line in [1, 2, 4, 6, 7, 8, 9, 10, 11, 12] {
        match stop_at_line(&home, n_line, Signal::KILL) {
            None => {
                n_killed += 1;
                let half_done = home.path("out.gguf").exists();
                assert!(!half_done, "nothing half-done under the result's name");
            }
            // Earlier work had brought it so close to the end that it got there first.
            Some(code) => {
                assert_eq!(code, 0);
                let bytes = fs::read(home.path("out.gguf")).unwrap();
                assert_eq!(want, blake3::hash(&bytes).to_hex().as_str());
                fs::remove_file(home.path("out.gguf")).unwrap();
            }
        }
    }
    assert_eq!(stop_at_line(&home, 3, Signal::KILL), None);
    assert!(3 <= n_killed, "only {n_killed} jobs were killed at work");
    let report = home.json(&prune_args(&home, "out.gguf", &[]));
    assert_eq!(report["output_digest"], want);
    assert_eq!(report["resumed"], Value::from(true));
    assert!(!home.path("out.gguf.secateur-job").exists());
}

#[test]
fn sigint_stops_a_job_with_a_word_on_how_to_go_on() {
    let home = Home::with_slow_model();
    let mut args = prune_args(&home, "out.gguf", &[]);
    args.iter_mut().filter(|arg| **arg == TOKENS).for_each(|arg| *arg = "16384");
    let mut command = home.command(&args);
    let mut child = command.spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{line}");
    assert!(last_object(&output)["error"].as_str().unwrap().contains("last whole layer"));
    assert!(home.path("out.gguf.secateur-job").exists());
}

#[test]
fn two_jobs_do_not_share_a_work_folder() {
    let home = Home::with_slow_model();
    let mut first = home.command(&prune_args(&home, "out.gguf", &[])).spawn().unwrap();
    let mut stderr = BufReader::new(first.stderr.take().unwrap());
    stderr.read_line(&mut String::new()).unwrap();
    let second = home.run(&prune_args(&home, "out.gguf", &[]));
    // Either the first one still works, or it is done and the second one did it again.
    match second.status.code() {
        Some(75) => assert!(String::from_utf8_lossy(&second.stderr).contains("in use")),
        code => assert_eq!(code, Some(0)),
    }
    drop(stderr);
    first.wait().unwrap();
}

#[test]
fn every_method_runs_and_is_compared_with_the_base_model() {
    let home = Home::with_slow_model();
    fs::write(home.path("text.txt"), "the quick brown fox jumps over the lazy dog. ".repeat(40)).unwrap();
    let mut args = vec!["compare", str_of(&home.model), "--ratio", "0.34", "--text", "text.txt"];
    args.extend(["--seq-len", "64", "--max-tokens", "256", "--out-dir", "rows"]);
    args.extend(["--calibration-tokens", "1024", "--memory-budget", "512MiB", "--json"]);
    let report = home.json(&args);
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    let mut want = vec!["base"];
    want.extend(secateur_service::method_names());
    assert_eq!(names, want);
    for row in &rows[1..] {
        let reached = row["ratio_reached"].as_f64().unwrap();
        assert!((reached - 0.34).abs() < 0.06, "{row}");
        assert!(1.0 < row["texts"][0]["perplexity"].as_f64().unwrap(), "{row}");
        let file = home.path(&format!("rows/{}.gguf", row["method"].as_str().unwrap()));
        let inspect = home.json(&["inspect", str_of(&file), "--json"]);
        let depth = ["shortgpt", "sleb"].contains(&row["method"].as_str().unwrap());
        assert_eq!(inspect["n_layers"].as_u64().unwrap() < 6, depth, "{row}");
    }
    let args = ["compare", str_of(&home.model), "--ratio", "0.3", "--text", "text.txt", "--out-dir", "rows"];
    let output = home.run(&[&args[..], &["--methods", "comp,none-such", "--json"]].concat());
    assert!(!output.status.success());
    assert!(last_object(&output)["error"].as_str().unwrap().contains("none-such"));
}
