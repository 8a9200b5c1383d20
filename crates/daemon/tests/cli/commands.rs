//! Every command: the shape of its JSON, its exit codes, what its errors say.

use crate::support::{Home, last_object, str_of};
use secateur_test_support::TinyModel;
use serde_json::Value;
use std::fs;

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "`{key}` is not in {value}");
    }
}

const TEXT: &str = "The gardener cut the old branches first, and the young ones had light again. ";

#[test]
fn every_command_prints_one_object() {
    let home = Home::new();
    let model = str_of(&home.model);
    let text = home.path("text.txt");
    fs::write(&text, TEXT.repeat(20)).unwrap();
    let tasks = home.path("tasks.jsonl");
    let item = r#"{"query": "Question: what?", "choices": ["this", "that"], "gold": 1}"#;
    fs::write(&tasks, format!("{item}\n\n{item}\n")).unwrap();

    let plan = home.json(&["plan", model, "--json"]);
    has(
        &plan,
        &["budget_bytes", "action", "policy", "ratio", "layers", "footprint", "base_footprint", "reason"],
    );
    assert_eq!(plan["action"], "untouched");

    let eval = home.json(&[
        "eval",
        model,
        "--text",
        str_of(&text),
        "--seq-len",
        "64",
        "--max-tokens",
        "160",
        "--json",
    ]);
    has(&eval, &["perplexity", "nll", "tokens", "rss_peak_bytes"]);
    // Windows of 64, 64 and 32 tokens, the first token of each not scored.
    assert_eq!(eval["tokens"], 63 + 63 + 31);
    let (ppl, nll) = (eval["perplexity"].as_f64().unwrap(), eval["nll"].as_f64().unwrap());
    assert!((ppl - nll.exp()).abs() < 1e-9 * ppl, "{eval}");

    let eval = home.json(&["eval", model, "--tasks", str_of(&tasks), "--max-items", "1", "--json"]);
    has(&eval, &["acc", "acc_norm", "acc_stderr", "acc_norm_stderr"]);
    assert_eq!((&eval["items"], &eval["chance"]), (&Value::from(1), &Value::from(0.5)));

    let args = ["generate", model, "--prompt", "Once upon", "--max-tokens", "9", "--json"];
    let generated = home.json(&args);
    has(&generated, &["text", "tokens", "finish_reason", "ttft_ms", "tokens_per_s", "seed"]);
    assert!(generated["tokens"].as_array().unwrap().len() <= 9);
    assert_eq!(generated["text"], home.json(&args)["text"], "temperature 0 is deterministic");

    let own = |out: &str, seed: &str| {
        home.json(&["own-text", model, "-o", out, "--tokens", "300", "--seed", seed, "--json"]);
        fs::read_to_string(home.path(out)).unwrap()
    };
    let (a, again, other) = (own("a.txt", "1"), own("again.txt", "1"), own("other.txt", "2"));
    assert!(200 < a.len() && a == again && a != other);

    let bench = home.json(&[
        "bench",
        model,
        "--prompt-tokens",
        "20",
        "--generate-tokens",
        "5",
        "--repeats",
        "2",
        "--threads",
        "1",
        "--json",
    ]);
    has(
        &bench,
        &[
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "ttft_ms",
            "tpot_ms",
            "rss_peak_bytes",
            "weight_bytes_per_token",
        ],
    );
    assert_eq!(bench["threads"], 1);

    let inspect = home.json(&["inspect", model, "--json"]);
    has(&inspect, &["name", "architecture", "digest", "layers", "vocab_size", "dtypes", "layer_params"]);
    assert_eq!((&inspect["n_layers"], &inspect["uniform"]), (&Value::from(4), &Value::from(true)));

    has(&home.json(&["doctor", "--port", "0", "--json"]), &["level", "memory", "findings", "threads", "isa"]);
    has(&home.json(&["models", "list", "--json"]), &["models", "damaged"]);
    has(&home.json(&["models", "verify", "--json"]), &["whole", "damaged"]);
    let config = home.json(&["config", "show", "--origin", "--port", "9", "--json"]);
    assert_eq!(config["settings"]["port"], 9);
    assert_eq!(config["origins"]["port"], "command line");
    assert_eq!(config["origins"]["queue_len"], "default");
}

#[test]
fn a_draft_changes_the_speed_and_not_the_answer() {
    let home = Home::with(&TinyModel { logit_scale: 8.0, ..TinyModel::default() });
    let model = str_of(&home.model);
    let generate = |more: &[&str]| {
        let mut args = vec!["generate", model, "--prompt", "a", "--max-tokens", "24", "--json"];
        args.extend(more);
        home.json(&args)
    };
    let (plain, drafted) = (generate(&[]), generate(&["--draft", model]));
    assert_eq!(plain["tokens"], drafted["tokens"]);
    assert_eq!(plain["text"], drafted["text"]);
    assert!(plain["draft"].is_null());
    let count = |name: &str| drafted["draft"][name].as_u64().unwrap();
    assert_ne!(count("accepted"), 0);
    // A model accepts all that it guesses itself, but for the last round, which the end of the answer cuts off.
    assert!((count("accepted")..count("accepted") + 8).contains(&count("guessed")), "{}", drafted["draft"]);
    let refused = home.run(&["generate", model, "--prompt", "a", "--draft", model, "--precision", "f32"]);
    assert_eq!(refused.status.code(), Some(64), "{refused:?}");
}

#[test]
fn sampling_follows_the_seed() {
    let home = Home::new();
    let text = |seed: &str| {
        let args = [
            "generate",
            str_of(&home.model),
            "--prompt",
            "a",
            "--temperature",
            "1",
            "--seed",
            seed,
            "--json",
        ];
        home.json(&args)["text"].clone()
    };
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn plans_go_from_untouched_over_pruned_to_refused() {
    let home = Home::new();
    let model = str_of(&home.model);
    let refused = home.run(&["plan", model, "--memory-budget", "1MiB", "--json"]);
    assert_eq!(refused.status.code(), Some(69));
    let object = last_object(&refused);
    assert_eq!(object["action"], "refused");
    let smallest = object["smallest_budget_bytes"].as_u64().unwrap();
    let at = |budget: u64| home.json(&["plan", model, "--memory-budget", &budget.to_string(), "--json"]);
    let pruned = at(smallest);
    assert_eq!(pruned["action"], "prune");
    assert!(pruned["footprint"]["total_bytes"].as_u64().unwrap() <= smallest);
    let below = (smallest - 1).to_string();
    assert_eq!(home.run(&["plan", model, "--memory-budget", &below]).status.code(), Some(69));
    let needed = pruned["base_footprint"]["total_bytes"].as_u64().unwrap();
    assert_eq!(at(2 * needed)["action"], "untouched");
}

#[test]
fn failures_have_the_exit_codes_of_sysexits_and_name_the_way_out() {
    let home = Home::new();
    let model = str_of(&home.model);
    let broken = home.path("broken.gguf");
    fs::write(&broken, b"GGUF and then nothing").unwrap();
    let text = home.path("text.txt");
    fs::write(&text, TEXT).unwrap();
    let bad_tasks = home.path("bad.jsonl");
    fs::write(&bad_tasks, "{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}\n").unwrap();
    let config = home.path("bad.toml");
    fs::write(&config, "prot = 1\n").unwrap();
    let keys = home.path("keys");
    fs::write(&keys, "0123456789abcdef\n").unwrap();
    let text = str_of(&text);
    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec![], 64, "Usage"),
        (vec!["fly"], 64, "unrecognized"),
        (vec!["plan"], 64, "MODEL"),
        (vec!["eval", model], 64, "--text"),
        (vec!["plan", "absent.gguf"], 66, "absent.gguf"),
        (vec!["plan", "/"], 65, "model.safetensors"),
        (vec!["plan", str_of(&broken)], 65, "broken.gguf"),
        (vec!["plan", model, "--memory-budget", "lots"], 64, "128MiB"),
        (vec!["plan", model, "--ratio", "1.5"], 64, "from 0 to below 1"),
        (vec!["plan", model, "--policy", "brutal"], 64, "compatible"),
        (vec!["plan", model, "--dtype", "q2_k"], 64, "q4_0"),
        (vec!["plan", model, "--context-len", "999999"], 64, "trained for"),
        (vec!["prune", model, "-o", "/"], 64, "folder"),
        (vec!["prune", model, "-o", "absent/x.gguf"], 64, "no folder"),
        (vec!["prune", model, "-o", model, "--ratio", "0.2"], 64, "itself"),
        (vec!["prune", model, "-o", "x", "--ratio", "0.2", "--method", "axe"], 64, "allowed are"),
        (vec!["prune", model, "-o", "x", "--format", "onnx"], 64, "gguf"),
        (vec!["prune", model, "-o", "x", "--ratio", "0.2", "--calibration", "absent.txt"], 66, "absent.txt"),
        (vec!["prune", model, "-o", "x", "--ratio", "0.2", "--calibration", text], 64, "calibration"),
        (vec!["export", model, "-o", "x", "--dtype", "q6_k"], 64, "q4_0"),
        (vec!["eval", model, "--text", "absent.txt"], 64, "--seq-len"),
        (vec!["eval", model, "--seq-len", "64", "--text", "absent.txt"], 66, "absent.txt"),
        (
            vec!["eval", model, "--seq-len", "64", "--text", text, "--memory-budget", "1MiB"],
            69,
            "--memory-budget",
        ),
        (vec!["eval", model, "--tasks", str_of(&bad_tasks)], 65, "line 1"),
        (vec!["generate", model, "--prompt", "x", "--temperature", "9"], 64, "from 0 to 2"),
        (vec!["generate", model, "--prompt", ""], 64, "no tokens"),
        (vec!["bench", model, "--prompt-tokens", "0"], 64, "at least 1"),
        (vec!["generate", model, "--prompt", "x", "--threads", "0"], 64, "--threads"),
        (vec!["models", "remove", "0123456789"], 66, "models list"),
        (vec!["config", "show", "--config", "absent.toml"], 66, "absent.toml"),
        (vec!["config", "show", "--config", str_of(&config)], 78, "did you mean `port`"),
        (vec!["plan", model, "--log", "=="], 64, "--log"),
        (vec!["plan", model, "--log-format", "xml"], 64, "json"),
        (vec!["serve", "--host", "0.0.0.0", "--model", model], 64, "--api-key-file"),
        (vec!["serve", "--host", "elsewhere", "--model", model], 64, "IP address"),
        (vec!["serve", "--api-key-file", str_of(&keys), "--model", model], 78, "chmod 600"),
        (vec!["serve", "--port", "0", "--model", "absent.gguf"], 66, "absent.gguf"),
        (vec!["serve", "--port", "0", "--model", str_of(&broken)], 65, "broken.gguf"),
        (vec!["serve", "--port", "0", "--model", model, "--memory-budget", "1MiB"], 69, "smallest feasible"),
    ];
    let mut wrong = Vec::new();
    for (args, want_code, want) in &cases {
        let output = home.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        if code != Some(*want_code) || !stderr.contains(want) {
            wrong.push(format!("{args:?}: {code:?}, wanted {want_code} and `{want}`: {stderr}"));
        }
        let with_json = home.run(&[&args[..], &["--json"]].concat());
        // Usage errors of the parser itself come before it knows of --json.
        if with_json.status.code() != Some(64) && last_object(&with_json)["error"].as_str().is_none() {
            wrong.push(format!("{args:?}: no error in the JSON"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn help_version_and_completions_are_no_failures() {
    let home = Home::new();
    for args in
        [vec!["--help"], vec!["--version"], vec!["prune", "--help"], vec!["completions", "bash"], vec!["man"]]
    {
        let output = home.run(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("secateur"), "{args:?}");
    }
}

#[test]
fn settings_come_from_files_variables_and_flags() {
    let home = Home::new();
    fs::create_dir_all(home.path(".config/secateur")).unwrap();
    fs::write(home.path(".config/secateur/config.toml"), "port = 1\nseed = 2\nqueue_len = 3\n").unwrap();
    let mut command = home.command(&["config", "show", "--origin", "--port", "5", "--json"]);
    // Variables of scripts with the same beginning are none of ours.
    let output = command.env("SECATEUR_SEED", "4").env("SECATEUR_DATA", "/x").output().unwrap();
    let config = last_object(&output);
    let settings = &config["settings"];
    assert_eq!(
        (&settings["port"], &settings["seed"], &settings["queue_len"]),
        (&5.into(), &4.into(), &3.into())
    );
    assert_eq!(config["origins"]["seed"], "environment");
    assert!(config["origins"]["queue_len"].as_str().unwrap().ends_with("config.toml"));
}

#[test]
fn text_that_is_asked_for_goes_to_stdout_alone() {
    let home = Home::new();
    let output = home.run(&["generate", str_of(&home.model), "--prompt", "Once", "--max-tokens", "4"]);
    let json =
        home.json(&["generate", str_of(&home.model), "--prompt", "Once", "--max-tokens", "4", "--json"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.strip_suffix('\n').unwrap(), json["text"].as_str().unwrap());
    assert!(String::from_utf8_lossy(&output.stderr).contains("generated"));
}
