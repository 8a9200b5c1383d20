//! Requests nobody should send: no answer is a 5xx, and what is wrong is named.

use crate::fake::{Fake, app, get, post, request, send};
use axum::body::Body;
use axum::http::StatusCode;
use secateur_http_api::App;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// Values that fit few fields, as JSON.
const VALUES: &[&str] = &[
    "true",
    "0",
    "-1",
    "1.5",
    "-0.0",
    "1e999",
    "-1e999",
    "1e308",
    "18446744073709551616",
    "-9223372036854775809",
    "99999999999999999999999999999999999999",
    "2147483648",
    "\"\"",
    "\"5\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "[]",
    "[[]]",
    "[null]",
    "[-1]",
    "[1e99]",
    "[\"a\",5]",
    "{}",
    "{\"a\":{}}",
    "{\"1\":\"x\"}",
    "{\"-1\":1}",
    "{\"+1\":1}",
    "{\"4294967296\":1}",
    "{\"1\":1e39}",
    "{\"1\":101}",
    "{\"1\":1,\"1\":2}",
    "\"9999999999999999999\"",
];

const CHAT_FIELDS: &[&str] = &[
    "audio",
    "cache_prompt",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "min_p",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "reasoning_effort",
    "repetition_penalty",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
];

const COMPLETION_FIELDS: &[&str] = &[
    "best_of",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "prompt",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "top_p",
    "user",
];

const NATIVE_FIELDS: &[&str] = &[
    "model",
    "memory_budget",
    "ratio",
    "context_len",
    "method",
    "policy",
    "dtype",
    "seed",
    "calibration_tokens",
    "calibration_text",
    "activate",
];

/// Every field with every value: 200, 202, 404 for the model, or 400 that names the field.
async fn sweep(app: &App, path: &str, base: &str, fields: &[&str]) -> usize {
    let mut n_cases = 0;
    for field in fields {
        for value in VALUES {
            // The base has the required field; the one under test replaces it.
            let rest = if base.starts_with(&format!("\"{field}\"")) { "" } else { base };
            let comma = if rest.is_empty() { "" } else { "," };
            let body = format!("{{{rest}{comma}\"{field}\":{value}}}");
            let answer = post(app, path, body.clone()).await;
            n_cases += 1;
            match answer.status.as_u16() {
                200 | 202 => {}
                404 => assert_eq!(*field, "model", "{body}"),
                400 => {
                    let json = answer.json();
                    let param =
                        json["error"]["param"].as_str().or(json["param"].as_str()).unwrap_or_default();
                    // A bad stop string or message is named by its place.
                    assert!(param.starts_with(field), "{body}: {}", answer.text);
                }
                status => panic!("{status} for {path} {body}: {}", answer.text),
            }
        }
    }
    n_cases
}

#[tokio::test]
async fn every_field_with_every_wrong_value() {
    let app = app(&Fake::new());
    let messages = "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    let mut n_cases = sweep(&app, CHAT, messages, CHAT_FIELDS).await;
    n_cases += sweep(&app, "/v1/completions", "\"prompt\":\"x\"", COMPLETION_FIELDS).await;
    n_cases += sweep(&app, "/api/v1/plan", "", &NATIVE_FIELDS[..4]).await;
    n_cases += sweep(&app, "/api/v1/prune", "", NATIVE_FIELDS).await;
    n_cases +=
        sweep(&app, "/v1/embeddings", "\"input\":\"x\"", &["input", "encoding_format", "dimensions"]).await;
    n_cases +=
        sweep(&app, "/tokenize", "\"content\":\"x\"", &["content", "add_special", "parse_special"]).await;
    n_cases += sweep(&app, "/detokenize", "\"tokens\":[1]", &["tokens"]).await;
    n_cases += sweep(&app, "/apply-template", "", &["messages"]).await;
    assert!(2000 < n_cases, "{n_cases}");
}

#[tokio::test]
async fn numbers_out_of_range_are_refused_by_name() {
    let app = app(&Fake::new());
    for (field, values) in [
        ("temperature", &["-0.1", "2.1", "1e999", "\"1\""][..]),
        ("top_p", &["-0.1", "1.1"]),
        ("min_p", &["-0.1", "1.1"]),
        ("top_k", &["-1", "1.5", "99999999"]),
        ("repetition_penalty", &["0", "11"]),
        ("presence_penalty", &["-2.1", "2.1"]),
        ("frequency_penalty", &["-2.1", "2.1"]),
        ("n", &["0", "-1", "9", "1.5"]),
        ("max_tokens", &["0", "-1", "1e3", "99999999999"]),
        ("max_completion_tokens", &["0", "-1"]),
        ("top_logprobs", &["21", "-1"]),
        ("seed", &["1.5", "18446744073709551616", "-9223372036854775809"]),
        ("stop", &["[\"a\",\"b\",\"c\",\"d\",\"e\"]", "\"\"", "[\"\"]", "5"]),
        ("logit_bias", &["{\"1\":100.5}", "{\"x\":1}", "{\" 1\":1}", "[]"]),
        ("stream_options", &["5", "{\"include_usage\":5}"]),
        ("user", &["\"a\\nb\"", "5"]),
    ] {
        for value in values {
            let mut body =
                "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,".to_owned();
            if field == "top_logprobs" {
                body.push_str("\"logprobs\":true,");
            }
            body.push_str(&format!("\"{field}\":{value}}}"));
            let answer = post(&app, CHAT, body.clone()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
            let param = answer.json()["error"]["param"].clone();
            assert!(param.as_str().unwrap().starts_with(field), "{body}: {param}");
        }
    }
}

#[tokio::test]
async fn bodies_that_are_no_json_object() {
    let app = app(&Fake::new());
    let deep = |open: &str, n: usize| format!("{{\"messages\":{}", open.repeat(n));
    let nested = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let nested_unknown = format!("{{\"x\":{}{},\"messages\":5}}", "[".repeat(100_000), "]".repeat(100_000));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" ".to_vec(),
        b"null".to_vec(),
        b"5".to_vec(),
        b"\"x\"".to_vec(),
        b"[]".to_vec(),
        b"{".to_vec(),
        b"{}}".to_vec(),
        b"{} {}".to_vec(),
        b"{\"messages\":NaN}".to_vec(),
        b"{\"messages\":Infinity}".to_vec(),
        b"{'messages':[]}".to_vec(),
        b"{\"messages\":[],}".to_vec(),
        b"{\"messages\":[] \"n\":1}".to_vec(),
        b"{messages:[]}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        b"{\"messages\":\"\xff\"}".to_vec(),
        b"{\"messages\":\"\xed\xa0\x80\"}".to_vec(),
        b"{\"messages\":\"\xc0\xaf\"}".to_vec(),
        b"{\"\xff\":1}".to_vec(),
        b"{\"messages\":\"a\nb\"}".to_vec(),
        b"{\"n\":1,\"n\":2,\"messages\":[]}".to_vec(),
        b"{\"mess\\u0061ges\":[],\"messages\":[]}".to_vec(),
        b"\0\0\0\0".to_vec(),
        b"model=x&messages=y".to_vec(),
        b"<xml/>".to_vec(),
        deep("[", 200_000).into_bytes(),
        deep("{\"a\":", 100_000).into_bytes(),
        nested.into_bytes(),
        nested_unknown.into_bytes(),
        format!("{{{}}}", "\"a\":0,".repeat(100_000)).into_bytes(),
        format!("{{\"messages\":[{}0]}}", "0,".repeat(400_000)).into_bytes(),
        format!("{{\"stop\":[{}\"\"],\"messages\":[]}}", "\"\",".repeat(200_000)).into_bytes(),
        format!("{{\"messages\":{}}}", "9".repeat(900_000)).into_bytes(),
        format!("{{\"logit_bias\":{{{}\"x\":0}},\"messages\":[]}}", "\"1\":0,".repeat(90_000)).into_bytes(),
    ];
    for path in [CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template"] {
        for body in &bodies {
            let answer = post(&app, path, body.clone()).await;
            let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {start}: {}", answer.text);
            assert_eq!(answer.json()["error"]["type"], "invalid_request_error", "{path} {start}");
            assert!(answer.text.len() < 2000, "{path} {start}: an answer of {} bytes", answer.text.len());
        }
    }
    for path in ["/api/v1/plan", "/api/v1/prune"] {
        for body in bodies.iter().filter(|body| !body.is_empty()) {
            let answer = post(&app, path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}: {}", answer.text);
            assert_eq!(answer.header("content-type"), "application/problem+json");
        }
    }
}

#[tokio::test]
async fn bodies_too_long_or_not_declared_are_refused() {
    let app = app(&Fake::new());
    let long = format!("{{\"messages\":\"{}\"}}", "x".repeat(1 << 20));
    for path in [CHAT, "/v1/completions", "/tokenize"] {
        let answer = post(&app, path, long.clone()).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.json()["error"]["code"], "body_too_large");
    }
    assert_eq!(post(&app, "/api/v1/plan", long).await.json()["status"], 413);
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json", "", "\u{1f600}"]
    {
        let request = request("POST", CHAT).header("content-type", content_type.as_bytes());
        let answer = send(&app, request.body(Body::from("{\"messages\":[]}")).unwrap()).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{content_type}");
    }
    for content_type in ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"] {
        let request = request("POST", CHAT).header("content-type", content_type);
        let answer = send(&app, request.body(Body::from("{\"messages\":[]}")).unwrap()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{content_type}");
    }
}

#[tokio::test]
async fn routes_and_ids_that_do_not_exist() {
    let app = app(&Fake::new());
    for path in [
        "/v1",
        "/v1/",
        "/v1/chat",
        "/v2/models",
        "/api",
        "/api/v1",
        "/api/v1/nothing",
        "/..",
        "/../etc/passwd",
        "//",
        "/v1/models/",
        "/v1/models/..",
        "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v1/models/%00",
        "/v1/models/%ff",
        "/v1/models/a/b",
        "/api/v1/jobs/",
        "/api/v1/jobs/0",
        "/api/v1/jobs/-1",
        "/api/v1/jobs/+1",
        "/api/v1/jobs/1.5",
        "/api/v1/jobs/abc",
        "/api/v1/jobs/18446744073709551616",
        "/api/v1/jobs/%31%00",
        "/api/v1/jobs/1%2f..",
        "/api/v1/jobs/2/events",
        "/api/v1/jobs/x/events",
        "/api/v1/models/..",
        "/api/v1/models/%2e%2e",
        "/api/v1/models/..%2f..%2fetc%2fpasswd",
        "/api/v1/models/a%5cb",
        "/api/v1/models/%0a",
        "/api/v1/models/%ff",
        "/api/v1/models/.hidden",
        "/openapi.json/x",
    ] {
        let answer = get(&app, path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.text);
        assert!(!answer.text.contains("etc"), "{path}: the path comes back in {}", answer.text);
        let native = path.starts_with("/api/") || path == "/api";
        assert_eq!(answer.header("content-type") == "application/problem+json", native, "{path}");
    }
    let long = "a".repeat(5000);
    assert_eq!(get(&app, &format!("/api/v1/models/{long}")).await.status, StatusCode::NOT_FOUND);
    for (method, path) in [
        ("GET", CHAT),
        ("DELETE", CHAT),
        ("POST", "/v1/models"),
        ("PUT", "/api/v1/plan"),
        ("POST", "/api/v1/status"),
        ("PATCH", "/api/v1/jobs/1"),
        ("DELETE", "/livez"),
        ("TRACE", "/"),
        ("BREW", "/metrics"),
    ] {
        let answer = send(&app, request(method, path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(!answer.header("allow").is_empty(), "{method} {path}");
        let body: Value = answer.json();
        let code = if path.starts_with("/api/") { &body["code"] } else { &body["error"]["code"] };
        assert_eq!(code, &json!("method_not_allowed"));
    }
}
