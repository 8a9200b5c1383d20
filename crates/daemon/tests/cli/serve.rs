//! `secateur serve` over its life: start, readiness, pruning, requests, signals, systemd.

use crate::support::{Home, Server, post_text, str_of};
use rustix::process::Signal;
use secateur_test_support::{TinyLayer, TinyModel};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// Longer than any test takes.
const DRAIN: Duration = Duration::from_secs(600);

fn chat(max_tokens: usize, stream: bool) -> Value {
    json!({
        "messages": [{ "role": "user", "content": "Hello" }],
        "max_tokens": max_tokens, "temperature": 0, "stream": stream,
    })
}

/// A budget with which the tiny model must be pruned, if only a little.
fn tight_budget(home: &Home) -> String {
    let plan = home.json(&["plan", str_of(&home.model), "--json"]);
    let needed = plan["footprint"]["total_bytes"].as_u64().unwrap();
    (needed - 20_000).to_string()
}

#[test]
fn it_answers_at_once_and_chats_when_ready() {
    let home = Home::new();
    let mut server = Server::start(&home, &["--model", str_of(&home.model)]);
    assert_eq!(server.get("/livez").status, 200);
    server.ready();
    assert_eq!(server.get("/readyz").status, 200);
    let answer = server.post("/v1/chat/completions", &chat(5, false));
    assert_eq!(answer.status, 200, "{answer:?}");
    let text = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let stream = server.post("/v1/chat/completions", &chat(5, true));
    let mut streamed = String::new();
    let data = stream.body.lines().filter_map(|line| line.strip_prefix("data: "));
    for line in data.filter(|line| *line != "[DONE]") {
        let chunk: Value = serde_json::from_str(line).unwrap();
        streamed += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!(streamed, text);
    assert!(stream.body.contains("data: [DONE]"));
    let status = server.get("/api/v1/status").json();
    assert_eq!(status["readiness"]["state"], "ready");
    let id = status["model"]["model"]["id"].as_str().unwrap();
    assert_eq!(server.get("/api/v1/models").status, 200);
    assert_eq!(server.delete(&format!("/api/v1/models/{id}")).status, 409, "the user's file stays");
    assert!(server.get("/metrics").body.contains("secateur"));
    server.signal(Signal::TERM);
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("Hello") && !log.contains(&text), "no text of requests in the log");
}

#[test]
fn it_prunes_to_the_budget_once_and_restarts_with_the_stored_model() {
    let home = Home::new();
    let budget = tight_budget(&home);
    let args = [
        "--model",
        str_of(&home.model),
        "--memory-budget",
        &budget,
        "--state-dir",
        "state",
        "--calibration-tokens",
        "1024",
        "--dtype",
        "keep",
        "--table-dtype",
        "keep",
    ];
    let mut server = Server::start(&home, &args);
    server.ready();
    assert!(server.log_so_far().contains("pruning"), "{}", server.log_so_far());
    // The model serves a moment before its job is closed.
    let newest_job = || {
        let jobs = server.get("/api/v1/jobs").json();
        jobs.as_array().or(jobs["jobs"].as_array()).unwrap()[0].clone()
    };
    let job = (0..1000).map(|_| newest_job()).find(|job| job["state"] != "running").unwrap();
    assert_eq!(job["state"], "succeeded", "{job}");
    let id = job["model"].as_str().unwrap().to_owned();
    assert_eq!(server.post("/v1/chat/completions", &chat(3, false)).status, 200);
    // The store is in use, and says so to others.
    let busy = home.run(&["models", "remove", &id[..12], "--state-dir", "state"]);
    assert_eq!(busy.status.code(), Some(75), "{}", String::from_utf8_lossy(&busy.stderr));
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));

    // Also where memory was so short that the result is a poorer one: more memory will not be there at the next start.
    let mut server = Server::start(&home, &args);
    server.ready();
    assert!(server.log_so_far().contains("pruned before"), "{}", server.log_so_far());
    assert_eq!(server.get("/api/v1/status").json()["model"]["model"]["id"], id.as_str());
    drop(server);

    let list = home.json(&["models", "list", "--state-dir", "state", "--json"]);
    assert_eq!(list["models"][0]["id"], id.as_str());
    let verify = home.json(&["models", "verify", "--state-dir", "state", "--json"]);
    assert_eq!(verify["whole"], json!([id]));
    // A byte that is not what it was is found.
    let file = home.path("state/models").join(&id).join("model.gguf");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    let verify = home.run(&["models", "verify", "--state-dir", "state"]);
    assert_eq!(verify.status.code(), Some(65));
    home.json(&["models", "remove", &id[..12], "--state-dir", "state", "--json"]);
    assert_eq!(home.json(&["models", "list", "--state-dir", "state", "--json"])["models"], json!([]));
}

#[test]
fn a_stored_model_is_served_by_its_id_and_without_a_model_there_is_none() {
    let home = Home::new();
    let mut server = Server::start(&home, &["--state-dir", "state"]);
    server.wait_for("no model");
    assert_eq!(server.get("/livez").status, 200);
    assert_eq!(server.get("/readyz").status, 503);
    assert_eq!(server.post("/v1/chat/completions", &chat(1, false)).status, 503);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));

    let mut server = Server::start(&home, &["--model", str_of(&home.model), "--state-dir", "state"]);
    server.ready();
    let prune = json!({ "ratio": 0.25, "calibration_tokens": 1024, "activate": true });
    let accepted = server.post("/api/v1/prune", &prune);
    assert_eq!(accepted.status, 202, "{accepted:?}");
    server.wait_for("Tiny-pruned");
    let id = server.get("/api/v1/status").json()["model"]["model"]["id"].as_str().unwrap().to_owned();
    drop(server);

    for args in [vec!["--state-dir", "state"], vec!["--state-dir", "state", "--model", &id[..10]]] {
        let mut server = Server::start(&home, &args);
        server.ready();
        assert_eq!(server.get("/api/v1/status").json()["model"]["model"]["id"], id.as_str(), "{args:?}");
    }
}

#[test]
fn sigterm_with_eight_streams_ends_every_one_of_them() {
    let layer = TinyLayer { heads: 4, kv_heads: 2, intermediate_size: 256 };
    let model = TinyModel { layers: vec![layer; 6], context_length: 65_536, ..TinyModel::default() };
    let home = Home::with(&model);
    let mut server = Server::start(&home, &["--model", str_of(&home.model), "--context-len", "65536"]);
    server.ready();
    // Answers that would go on for much longer.
    let mut body = chat(60_000, true);
    body["logit_bias"] = json!({"0": -100, "1": -100, "2": -100});
    let mut streams: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(post_text("/v1/chat/completions", &body).as_bytes()).unwrap();
            BufReader::new(stream)
        })
        .collect();
    for stream in &mut streams {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.contains("200"), "{line}");
    }
    // That it takes less than 5 s where the machine is not busy is for `tests/http/run drain` to see.
    server.signal(Signal::TERM);
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut rest = String::new();
                stream.read_to_string(&mut rest).unwrap();
                rest
            })
        })
        .collect();
    let (status, log) = server.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    for reader in readers {
        let rest = reader.join().unwrap();
        assert!(rest.contains("data: [DONE]") || rest.contains("\"code\":\"shutting_down\""), "{rest}");
    }
}

#[test]
fn keys_come_from_a_credential_and_a_hangup_reads_them_again() {
    let home = Home::new();
    let credentials = home.path("credentials");
    fs::create_dir(&credentials).unwrap();
    let file = credentials.join("api-key");
    fs::write(&file, "# no key yet\n").unwrap();
    let mut command = home.command(&["serve", "--port", "0", "--json", "--socket", "s.sock"]);
    command.env("CREDENTIALS_DIRECTORY", &credentials);
    let mut server = Server::spawn(command);
    server.wait_for("no model");
    assert_eq!(server.get("/v1/models").status, 200, "a file without keys asks for none");
    fs::write(&file, "admin:0123456789abcdef\n").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("read again");
    assert_eq!(server.get("/v1/models").status, 401);
    // The socket's file says who may come.
    let mut unix = std::os::unix::net::UnixStream::connect(home.path("s.sock")).unwrap();
    unix.write_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    unix.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    // What is wrong changes nothing.
    fs::write(&file, "short\n").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("all stays as it was");
    assert_eq!(server.get("/v1/models").status, 401);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn an_idle_service_without_a_model_is_small() {
    let home = Home::new();
    let mut server = Server::start(&home, &["--state-dir", "state"]);
    server.wait_for("no model");
    let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    // How much of the program's file is resident beside it is the kernel's choice: `tests/http/run idle` looks at that.
    assert!(kib < 4 << 10, "{kib} KiB of its own");
}

#[test]
fn a_second_signal_ends_at_once() {
    let home = Home::with_slow_model();
    let mut server =
        Server::start(&home, &["--model", str_of(&home.model), "--drain-s", &DRAIN.as_secs().to_string()]);
    server.ready();
    // A connection that sends half a request keeps the drain waiting.
    let mut stream = server.connect();
    stream
        .write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    assert_eq!(server.get("/livez").status, 200);
    server.signal(Signal::TERM);
    server.wait_for("stopping");
    server.signal(Signal::TERM);
    let started = Instant::now();
    let (status, log) = server.wait();
    assert!(started.elapsed() < DRAIN / 2);
    assert!(matches!(status.code(), Some(0 | 69)), "{status:?} {log}");
}

#[test]
fn systemd_is_told_about_ready_status_watchdog_and_stopping() {
    let home = Home::new();
    let path = home.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut command = home.command(&["serve", "--port", "0", "--json", "--model", str_of(&home.model)]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000");
    let server = Server::spawn(command);
    let mut seen = Vec::new();
    let mut wait_for = |want: &str| {
        let mut buffer = [0; 4096];
        while !seen.iter().any(|message: &String| message.contains(want)) {
            let n = socket.recv(&mut buffer).unwrap();
            seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
        }
    };
    wait_for("READY=1");
    wait_for("STATUS=serving");
    wait_for("WATCHDOG=1");
    server.signal(Signal::TERM);
    wait_for("STOPPING=1");
    assert_eq!(server.wait().0.code(), Some(0));
}

#[test]
fn a_taken_port_is_named() {
    let home = Home::new();
    let server = Server::start(&home, &["--model", str_of(&home.model)]);
    let port = server.address.rsplit(':').next().unwrap();
    let output = home.run(&["serve", "--port", port, "--model", str_of(&home.model)]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--port"));
}
