//! Whole answers of the OpenAI routes and of those of llama-server.

use crate::fake::{End, Fake, MODEL, app, get, post_json};
use axum::http::StatusCode;
use secateur_service::ServiceError;
use secateur_service::api::{Prompt, Readiness};
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat_body() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let fake = Fake::new();
    let answer = post_json(&app(&fake), CHAT, &chat_body()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "application/json");
    let body = answer.json();
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(1_700_000_000 < body["created"].as_u64().unwrap());
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], MODEL);
    assert_eq!(
        body["choices"],
        json!([{
            "index": 0, "message": {"role": "assistant", "content": "Hello, wörld!", "refusal": null},
            "logprobs": null, "finish_reason": "stop",
        }])
    );
    assert_eq!(
        body["usage"],
        json!({
            "prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 3},
        })
    );
    assert_eq!(body["timings"]["ttft_ms"], 25.0);
    assert_eq!(body["timings"]["prompt_n"], 4);
    assert_eq!((&body["timings"]["draft_n"], &body["timings"]["draft_n_accepted"]), (&json!(5), &json!(2)));
}

#[tokio::test]
async fn several_answers_have_seeds_of_their_own_and_one_prompt() {
    let fake = Fake::new();
    fake.with(|script| script.end = End::Length);
    let mut body = chat_body();
    body["n"] = 3.into();
    body["seed"] = 41.into();
    let answer = post_json(&app(&fake), CHAT, &body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (idx, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], idx);
        assert_eq!(choice["finish_reason"], "length");
    }
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let seeds =
        fake.with(|script| script.chats.iter().map(|chat| chat.params.sampling.seed).collect::<Vec<_>>());
    assert_eq!(seeds, [41, 42, 43]);
}

#[tokio::test]
async fn chat_logprobs_have_text_and_bytes() {
    let fake = Fake::new();
    let mut body = chat_body();
    body["logprobs"] = true.into();
    body["top_logprobs"] = 2.into();
    let answer = post_json(&app(&fake), CHAT, &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 4);
    assert_eq!(
        content[2],
        json!({
            "token": "wörld", "logprob": -0.5, "bytes": [119, 195, 182, 114, 108, 100],
            "top_logprobs": [
                {"token": "t0", "logprob": -1.0, "bytes": [116, 48]},
                {"token": "t1", "logprob": -2.0, "bytes": [116, 49]},
            ],
        })
    );
}

#[tokio::test]
async fn completions_take_texts_and_tokens() {
    let cases = [
        (json!("once"), vec![Prompt::Text("once".to_owned())]),
        (json!([1, 2, 3]), vec![Prompt::Tokens(vec![1, 2, 3])]),
        (json!(["a", "b"]), vec![Prompt::Text("a".to_owned()), Prompt::Text("b".to_owned())]),
        (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
    ];
    for (prompt, want) in cases {
        let fake = Fake::new();
        let answer = post_json(&app(&fake), COMPLETIONS, &json!({"prompt": prompt})).await;
        let body = answer.json();
        assert_eq!(body["object"], "text_completion");
        assert_eq!(body["choices"].as_array().unwrap().len(), want.len());
        assert_eq!(body["choices"][0]["text"], "Hello, wörld!");
        assert_eq!(body["usage"]["prompt_tokens"], 7 * want.len());
        let requests = fake.with(|script| std::mem::take(&mut script.completions));
        assert!(requests.iter().all(|request| request.params.max_tokens == Some(16)));
        assert_eq!(requests.into_iter().map(|request| request.prompt).collect::<Vec<_>>(), want);
    }
}

#[tokio::test]
async fn completion_logprobs_are_in_the_old_form_and_echo_repeats() {
    let fake = Fake::new();
    let app = app(&fake);
    let answer = post_json(&app, COMPLETIONS, &json!({"prompt": "x", "logprobs": 1})).await.json();
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["Hello", ", ", "wörld", "!"],
            "token_logprobs": [-0.5, -0.5, -0.5, -0.5],
            "top_logprobs": [{"t0": -1.0}, {"t0": -1.0}, {"t0": -1.0}, {"t0": -1.0}],
            "text_offset": [0, 5, 7, 12],
        })
    );
    let answer = post_json(&app, COMPLETIONS, &json!({"prompt": "Say: ", "echo": true})).await.json();
    assert_eq!(answer["choices"][0]["text"], "Say: Hello, wörld!");
}

#[tokio::test]
async fn models_are_those_that_requests_can_name() {
    let fake = Fake::new();
    let app = app(&fake);
    let list = get(&app, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(list["data"][0]["owned_by"], "secateur");
    for name in [MODEL, "tiny"] {
        assert_eq!(get(&app, &format!("/v1/models/{name}")).await.json()["id"], MODEL);
        let mut body = chat_body();
        body["model"] = name.into();
        assert_eq!(post_json(&app, CHAT, &body).await.status, StatusCode::OK);
    }
    let mut body = chat_body();
    body["model"] = "gpt-4".into();
    for answer in [get(&app, "/v1/models/gpt-4").await, post_json(&app, CHAT, &body).await] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.json()["error"]["code"], "model_not_found");
        assert_eq!(answer.json()["error"]["param"], "model");
    }
    fake.with(|script| script.readiness = Readiness::Loading);
    assert_eq!(get(&app, "/v1/models").await.json()["data"], json!([]));
}

#[tokio::test]
async fn refusals_of_the_service_have_a_status_a_type_and_a_way_out() {
    type Case = (fn() -> ServiceError, StatusCode, &'static str, Value, Value);
    let cases: [Case; 6] = [
        (
            || ServiceError::Busy { queue_len: 8, retry_after: Duration::from_secs(4) },
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            json!("busy"),
            Value::Null,
        ),
        (
            || ServiceError::NotReady { message: "pruning".to_owned() },
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            json!("not_ready"),
            Value::Null,
        ),
        (
            || ServiceError::ShuttingDown,
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable_error",
            json!("shutting_down"),
            Value::Null,
        ),
        (
            || ServiceError::PromptTooLong { prompt_tokens: 500, context_len: 128 },
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            json!("context_length_exceeded"),
            json!("messages"),
        ),
        (
            || ServiceError::Invalid { param: "logit_bias".to_owned(), message: "no such token".to_owned() },
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            json!("invalid_value"),
            json!("logit_bias"),
        ),
        (
            || ServiceError::Internal { message: "secret path".to_owned() },
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            Value::Null,
            Value::Null,
        ),
    ];
    for (refusal, status, kind, code, param) in cases {
        let fake = Fake::new();
        fake.with(|script| script.refusal = Some(refusal));
        // Streaming or not: what is known before the first byte has a status.
        for stream in [false, true] {
            let mut body = chat_body();
            body["stream"] = stream.into();
            let answer = post_json(&app(&fake), CHAT, &body).await;
            assert_eq!(answer.status, status, "{kind} {code}");
            let error = &answer.json()["error"];
            assert_eq!((&error["type"], &error["code"], &error["param"]), (&json!(kind), &code, &param));
            assert!(!answer.text.contains("secret"));
            assert_eq!(answer.headers.contains_key("retry-after"), status == StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    let fake = Fake::new();
    fake.with(|script| {
        script.refusal = Some(|| ServiceError::Busy { queue_len: 8, retry_after: Duration::from_secs(4) });
    });
    assert_eq!(post_json(&app(&fake), CHAT, &chat_body()).await.header("retry-after"), "4");
}

#[tokio::test]
async fn generations_that_fail_are_errors_without_details() {
    for (end, status) in [
        (End::Fail, StatusCode::INTERNAL_SERVER_ERROR),
        (End::Cancelled, StatusCode::SERVICE_UNAVAILABLE),
        (End::Vanish, StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let fake = Fake::new();
        fake.with(|script| script.end = end);
        let answer = post_json(&app(&fake), CHAT, &chat_body()).await;
        assert_eq!(answer.status, status, "{end:?}");
        assert!(answer.json()["error"]["message"].is_string());
        assert!(!answer.text.contains("secret"), "{}", answer.text);
    }
}

#[tokio::test]
async fn embeddings_have_unit_length_in_both_encodings() {
    let fake = Fake::new();
    let app = app(&fake);
    let body = json!({"input": ["ab", [1, 2, 3]], "model": MODEL});
    let answer = post_json(&app, "/v1/embeddings", &body).await.json();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    let vector: Vec<f64> = serde_json::from_value(answer["data"][1]["embedding"].clone()).unwrap();
    assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6, "{vector:?}");
    let body = json!({"input": "ab", "encoding_format": "base64"});
    let answer = post_json(&app, "/v1/embeddings", &body).await.json();
    // base64.b64encode(struct.pack("<2f", 0.6, 0.8))
    assert_eq!(answer["data"][0]["embedding"], "mpkZP83MTD8=");
    for (param, body) in [
        ("input", json!({})),
        ("input", json!({"input": ""})),
        ("input", json!({"input": []})),
        ("input", json!({"input": ["a", ""]})),
        ("input", json!({"input": vec!["a"; 65]})),
        ("dimensions", json!({"input": "a", "dimensions": 8})),
        ("encoding_format", json!({"input": "a", "encoding_format": "hex"})),
    ] {
        let answer = post_json(&app, "/v1/embeddings", &body).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param))
        );
    }
}

#[tokio::test]
async fn text_routes_speak_like_llama_server() {
    let fake = Fake::new();
    let app = app(&fake);
    let cases = [
        ("/tokenize", json!({"content": "ab"}), json!({"tokens": [97, 98]})),
        ("/tokenize", json!({"content": "ab", "add_special": true}), json!({"tokens": [0, 97, 98]})),
        ("/tokenize", json!({"content": ""}), json!({"tokens": []})),
        ("/detokenize", json!({"tokens": [97, 98]}), json!({"content": "ab"})),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "Hi"}]}),
            json!({"prompt": "<user>Hi"}),
        ),
    ];
    for (path, body, want) in cases {
        let answer = post_json(&app, path, &body).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, want), "{path} {body}");
    }
    for (path, body, param) in [
        ("/tokenize", json!({}), "content"),
        ("/tokenize", json!({"content": 5}), "content"),
        ("/tokenize", json!({"content": "a", "parse_special": true}), "parse_special"),
        ("/tokenize", json!({"content": "a", "with_pieces": true}), "with_pieces"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [4_294_967_295u32]}), "tokens"),
        ("/apply-template", json!({"messages": "x"}), "messages"),
    ] {
        let answer = post_json(&app, path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}");
        assert_eq!(answer.json()["error"]["param"], param, "{path} {body}");
    }
}
