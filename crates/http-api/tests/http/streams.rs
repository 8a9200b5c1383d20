//! Answers as server-sent events, chunk by chunk.

use crate::fake::{Answer, End, Fake, app, post_json};
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

const CHAT: &str = "/v1/chat/completions";

/// The chunks of a stream and whether `[DONE]` ended it.
fn chunks(answer: &Answer) -> (Vec<Value>, bool) {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let mut data = answer.data();
    let done = data.last().is_some_and(|last| last == "[DONE]");
    if done {
        data.pop();
    }
    (data.iter().map(|line| serde_json::from_str(line).unwrap()).collect(), done)
}

async fn stream(fake: &Fake, extra: Value) -> (Vec<Value>, bool) {
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    chunks(&post_json(&app(fake), CHAT, &body).await)
}

#[tokio::test]
async fn a_chat_streams_role_text_reason_done() {
    let (chunks, done) = stream(&Fake::new(), json!({})).await;
    assert!(done);
    let first = &chunks[0];
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"], &chunk["model"]),
            (&first["id"], &first["created"], &first["model"])
        );
        assert!(chunk.get("usage").is_none(), "nobody asked for usage");
    }
    let choices: Vec<Value> = chunks.iter().map(|chunk| chunk["choices"][0].clone()).collect();
    let chunk = |delta: Value, reason: Value| json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
    assert_eq!(
        choices,
        [
            chunk(json!({"role": "assistant", "content": ""}), Value::Null),
            chunk(json!({"content": "Hello"}), Value::Null),
            chunk(json!({"content": ", "}), Value::Null),
            chunk(json!({"content": "wörld"}), Value::Null),
            chunk(json!({"content": "!"}), Value::Null),
            chunk(json!({}), json!("stop")),
        ]
    );
    assert_eq!(chunks.last().unwrap()["timings"]["predicted_n"], 4);
}

#[tokio::test]
async fn usage_comes_in_a_chunk_of_its_own_when_asked_for() {
    let (chunks, done) =
        stream(&Fake::new(), json!({"stream_options": {"include_usage": true}, "n": 2})).await;
    assert!(done);
    let (last, others) = chunks.split_last().unwrap();
    assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some()));
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 7);
    assert_eq!(last["usage"]["completion_tokens"], 8);
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 3);
}

#[tokio::test]
async fn several_answers_stream_one_after_another() {
    let (chunks, done) = stream(&Fake::new(), json!({"n": 2, "logprobs": true})).await;
    assert!(done);
    let indices: Vec<u64> =
        chunks.iter().map(|chunk| chunk["choices"][0]["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
    for start in [0, 6] {
        assert_eq!(chunks[start]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks[start + 5]["choices"][0]["finish_reason"], "stop");
        assert_eq!(chunks[start + 1]["choices"][0]["logprobs"]["content"][0]["token"], "Hello");
    }
}

#[tokio::test]
async fn failures_in_the_middle_are_an_error_object_and_no_done() {
    for (end, kind) in [
        (End::Fail, "server_error"),
        (End::Cancelled, "unavailable_error"),
        (End::Vanish, "unavailable_error"),
    ] {
        let fake = Fake::new();
        fake.with(|script| script.end = end);
        let (chunks, done) = stream(&fake, json!({"n": 2})).await;
        assert!(!done, "{end:?}");
        let (last, text) = chunks.split_last().unwrap();
        assert_eq!(last["error"]["type"], kind, "{end:?}");
        assert!(!last.to_string().contains("secret"));
        assert!(text.iter().all(|chunk| chunk["choices"][0]["index"] == 0 && chunk.get("error").is_none()));
        // The second answer is not even begun.
        assert_eq!(fake.abandoned.load(Ordering::SeqCst), 1, "{end:?}");
    }
}

#[tokio::test]
async fn completions_stream_text() {
    let fake = Fake::new();
    let body = json!({"prompt": "Say: ", "echo": true, "stream": true});
    let (chunks, done) = chunks(&post_json(&app(&fake), "/v1/completions", &body).await);
    assert!(done);
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    let texts: Vec<&str> = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["Say: ", "Hello", ", ", "wörld", "!", ""]);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn completion_logprobs_count_offsets_through_the_stream() {
    let fake = Fake::new();
    let body = json!({"prompt": "x", "logprobs": 0, "stream": true});
    let (chunks, _) = chunks(&post_json(&app(&fake), "/v1/completions", &body).await);
    let offsets: Vec<Value> =
        chunks[..4].iter().map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"][0].clone()).collect();
    assert_eq!(offsets, [0, 5, 7, 12]);
}

#[tokio::test]
async fn text_with_line_breaks_stays_one_event() {
    let fake = Fake::new();
    fake.with(|script| script.pieces = vec!["a\nb\r\n\ndata: [DONE]\n\n", "\u{2028}\0"]);
    let (chunks, done) = stream(&fake, json!({})).await;
    assert!(done);
    assert_eq!(chunks.len(), 4);
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "a\nb\r\n\ndata: [DONE]\n\n");
    assert_eq!(chunks[2]["choices"][0]["delta"]["content"], "\u{2028}\0");
}
