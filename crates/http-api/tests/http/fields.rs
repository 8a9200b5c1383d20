//! Every documented request field: honoured, or refused by name.

use crate::fake::{Fake, app, post_json};
use axum::http::StatusCode;
use secateur_service::api::{ChatRequest, CompletionRequest};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

async fn chat(extra: Value) -> Result<ChatRequest, (StatusCode, Value)> {
    let fake = Fake::new();
    let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = post_json(&app(&fake), CHAT, &body).await;
    if answer.status == StatusCode::OK {
        return Ok(fake.with(|script| script.chats.remove(0)));
    }
    Err((answer.status, answer.json()["error"]["param"].clone()))
}

async fn completion(extra: Value) -> Result<CompletionRequest, (StatusCode, Value)> {
    let fake = Fake::new();
    let mut body = json!({"prompt": "Hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let answer = post_json(&app(&fake), COMPLETIONS, &body).await;
    if answer.status == StatusCode::OK {
        return Ok(fake.with(|script| script.completions.remove(0)));
    }
    Err((answer.status, answer.json()["error"]["param"].clone()))
}

#[tokio::test]
async fn sampling_fields_reach_the_service() {
    let all = json!({
        "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "repetition_penalty": 1.5,
        "presence_penalty": -1.5, "frequency_penalty": 2, "logit_bias": {"7": -100, "9": 2.5}, "seed": -1,
        "stop": ["a", "b", "c", "d"], "max_tokens": 5, "user": "me",
    });
    let params = [chat(all.clone()).await.unwrap().params, completion(all).await.unwrap().params];
    for params in params {
        let sampling = &params.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.25, 0.125));
        assert_eq!((sampling.top_k, sampling.repetition_penalty), (40, 1.5));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-1.5, 2.0));
        assert_eq!(sampling.logit_bias, [(7, -100.0), (9, 2.5)]);
        assert_eq!(sampling.seed, u64::MAX);
        assert_eq!(params.stop, ["a", "b", "c", "d"]);
        assert_eq!(params.max_tokens, Some(5));
        assert_eq!(params.logprobs, None);
    }
}

#[tokio::test]
async fn defaults_are_those_of_openai() {
    let params = chat(json!({})).await.unwrap().params;
    assert_eq!((params.sampling.temperature, params.sampling.top_p), (1.0, 1.0));
    assert_eq!((params.sampling.top_k, params.sampling.min_p), (0, 0.0));
    assert_eq!((params.max_tokens, params.logprobs, params.stop.len()), (None, None, 0));
    let other = chat(json!({})).await.unwrap().params;
    assert_ne!(params.sampling.seed, other.sampling.seed, "without a seed, answers differ");
}

#[tokio::test]
async fn chat_fields_are_honoured() {
    assert_eq!(chat(json!({"max_completion_tokens": 9})).await.unwrap().params.max_tokens, Some(9));
    assert_eq!(
        chat(json!({"max_tokens": 9, "max_completion_tokens": 9})).await.unwrap().params.max_tokens,
        Some(9)
    );
    assert_eq!(chat(json!({"logprobs": true})).await.unwrap().params.logprobs, Some(0));
    assert_eq!(chat(json!({"logprobs": true, "top_logprobs": 20})).await.unwrap().params.logprobs, Some(20));
    assert_eq!(chat(json!({"stop": "x"})).await.unwrap().params.stop, ["x"]);
    assert_eq!(completion(json!({"logprobs": 5})).await.unwrap().params.logprobs, Some(5));
}

#[tokio::test]
async fn harmless_values_of_unsupported_fields_pass_and_unknown_fields_too() {
    for extra in [
        json!({"tools": [], "tool_choice": "none", "functions": [], "function_call": "none"}),
        json!({"modalities": ["text"], "response_format": {"type": "text"}, "service_tier": "auto"}),
        json!({"store": false, "metadata": {}, "verbosity": "medium", "reasoning_effort": "none"}),
        json!({"prompt_cache_key": "k", "prompt_cache_retention": "in_memory", "safety_identifier": "s"}),
        json!({"audio": null, "prediction": null, "web_search_options": null, "moderation": null}),
        json!({"temperature": null, "stop": null, "n": null, "logit_bias": null, "stream": null, "seed": null}),
        json!({"surprise": {"deep": [1, 2, {"x": "y"}]}, "": 5}),
    ] {
        assert!(chat(extra.clone()).await.is_ok(), "{extra}");
    }
    for extra in
        [json!({"suffix": null, "best_of": 1, "echo": false}), json!({"suffix": "", "n": 2, "best_of": 2})]
    {
        assert!(completion(extra.clone()).await.is_ok(), "{extra}");
    }
}

#[tokio::test]
async fn documented_fields_without_an_effect_are_refused_by_name() {
    let cases = [
        ("audio", json!({"voice": "alloy", "format": "mp3"})),
        ("function_call", json!("auto")),
        ("functions", json!([{"name": "f"}])),
        ("metadata", json!({"a": "b"})),
        ("modalities", json!(["text", "audio"])),
        ("moderation", json!({"model": "x"})),
        ("parallel_tool_calls", json!(true)),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("prompt_cache_retention", json!("24h")),
        ("reasoning_effort", json!("high")),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}})),
        ("service_tier", json!("flex")),
        ("store", json!(true)),
        ("stream_options.include_obfuscation", json!({"include_obfuscation": true})),
        ("tool_choice", json!("auto")),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
        ("verbosity", json!("high")),
        ("web_search_options", json!({})),
        ("cache_prompt", json!(false)),
    ];
    for (param, value) in cases {
        let field = param.split('.').next().unwrap();
        let mut body = json!({"stream": true});
        body[field] = value;
        assert_eq!(chat(body.clone()).await.unwrap_err(), (StatusCode::BAD_REQUEST, json!(param)), "{body}");
    }
    for (param, body) in [
        ("suffix", json!({"suffix": "end"})),
        ("best_of", json!({"best_of": 3})),
        ("echo", json!({"echo": true, "logprobs": 1})),
        ("echo", json!({"echo": true, "prompt": [1, 2]})),
        ("n", json!({"n": 5, "prompt": ["a", "b"]})),
    ] {
        assert_eq!(
            completion(body.clone()).await.unwrap_err(),
            (StatusCode::BAD_REQUEST, json!(param)),
            "{body}"
        );
    }
}

#[tokio::test]
async fn contradictions_are_refused_by_name() {
    for (param, body) in [
        ("max_tokens", json!({"max_tokens": 1, "max_completion_tokens": 2})),
        ("top_logprobs", json!({"top_logprobs": 2})),
        ("stream_options", json!({"stream_options": {"include_usage": true}})),
    ] {
        assert_eq!(chat(body.clone()).await.unwrap_err(), (StatusCode::BAD_REQUEST, json!(param)), "{body}");
    }
}

#[tokio::test]
async fn messages_are_text_in_every_form() {
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": ", two"}]},
        {"role": "assistant", "content": null, "refusal": "I cannot."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "tool_calls": []},
        {"role": "user", "content": "", "extra": 1},
    ]);
    let request = chat(json!({"messages": messages})).await.unwrap();
    let got: Vec<(&str, &str)> =
        request.messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
    assert_eq!(
        got,
        [
            ("system", "Be brief."),
            ("user", "One, two"),
            ("assistant", "I cannot."),
            ("assistant", "No."),
            ("user", "")
        ]
    );
}

#[tokio::test]
async fn messages_that_are_no_text_are_refused_by_place() {
    let image = json!({"type": "image_url", "image_url": {"url": "https://example.org/x.png"}});
    let cases = [
        ("messages", json!([])),
        ("messages", json!({})),
        ("messages[0]", json!([5])),
        ("messages[0].role", json!([{"content": "x"}])),
        ("messages[0].role", json!([{"role": "king", "content": "x"}])),
        ("messages[0].role", json!([{"role": "tool", "content": "x", "tool_call_id": "1"}])),
        ("messages[1].content", json!([{"role": "user", "content": "x"}, {"role": "user"}])),
        ("messages[0].content", json!([{"role": "user", "content": 5}])),
        ("messages[0].content", json!([{"role": "user", "content": []}])),
        ("messages[0].content", json!([{"role": "user", "content": {}}])),
        (
            "messages[0].content[1].type",
            json!([{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]),
        ),
        ("messages[0].content[0].type", json!([{"role": "user", "content": [{"text": "x"}]}])),
        (
            "messages[0].content[0].type",
            json!([{"role": "user", "content": [{"type": "poem", "text": "x"}]}]),
        ),
        ("messages[0].content[0].text", json!([{"role": "user", "content": [{"type": "text"}]}])),
        ("messages[0].content[0].text", json!([{"role": "user", "content": [{"type": "text", "text": 1}]}])),
        ("messages[0].content[0]", json!([{"role": "user", "content": ["x"]}])),
        ("messages[0].name", json!([{"role": "user", "content": "x", "name": "ann"}])),
        (
            "messages[0].tool_calls",
            json!([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]),
        ),
        ("messages[0].function_call", json!([{"role": "assistant", "content": "x", "function_call": {}}])),
        ("messages[0].audio", json!([{"role": "assistant", "content": "x", "audio": {"id": "1"}}])),
        ("messages[0].refusal", json!([{"role": "user", "refusal": "x"}])),
    ];
    for (param, messages) in cases {
        let got = chat(json!({"messages": messages})).await.map(|request| request.messages);
        assert_eq!(got.unwrap_err(), (StatusCode::BAD_REQUEST, json!(param)), "{messages}");
    }
}
