//! Every documented request field: honoured, or refused by name.

use crate::fake::{Fake, app, post_json};
use axum::http::StatusCode;
use secateur_service::api::{ChatRequest, CompletionRequest, Grammar, Readiness};
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
        ("service_tier", json!("flex")),
        ("store", json!(true)),
        ("stream_options.include_obfuscation", json!({"include_obfuscation": true})),
        ("tool_choice", json!("auto")),
        ("tools[0].type", json!([{"type": "custom", "custom": {"name": "f"}}])),
        ("verbosity", json!("high")),
        ("web_search_options", json!({})),
        ("cache_prompt", json!(false)),
    ];
    for (param, value) in cases {
        let field = param.split(['.', '[']).next().unwrap();
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
async fn formats_and_grammars_reach_the_service() {
    let schema = json!({"type": "object", "properties": {"x": {"type": "integer"}}});
    let named = json!({"name": "x", "strict": true, "schema": schema});
    for (extra, want) in [
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"response_format": {"type": "json_object"}}), Some(Grammar::JsonObject)),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": named}}),
            Some(Grammar::JsonSchema(schema.clone())),
        ),
        (json!({"grammar": "start: \"a\""}), Some(Grammar::Lark("start: \"a\"".into()))),
        (json!({"grammar": {"lark": "start: \"a\""}}), Some(Grammar::Lark("start: \"a\"".into()))),
        (json!({"grammar": {"regex": "a+"}}), Some(Grammar::Regex("a+".into()))),
        (json!({"grammar": {"json_schema": schema}}), Some(Grammar::JsonSchema(schema.clone()))),
    ] {
        assert_eq!(chat(extra.clone()).await.unwrap().params.grammar, want, "{extra}");
        assert_eq!(completion(extra.clone()).await.unwrap().params.grammar, want, "{extra}");
    }
    let long = "x".repeat(70_000);
    for (param, extra) in [
        ("response_format.type", json!({"response_format": {"type": "xml"}})),
        ("response_format.json_schema", json!({"response_format": {"type": "json_schema"}})),
        (
            "response_format.json_schema.name",
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
        ),
        (
            "response_format.json_schema.schema",
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": true}}}),
        ),
        ("grammar", json!({"grammar": long})),
        ("grammar", json!({"grammar": {"lark": "a", "regex": "b"}})),
        ("grammar", json!({"grammar": {}})),
        ("grammar", json!({"grammar": "a", "response_format": {"type": "json_object"}})),
    ] {
        let want = (StatusCode::BAD_REQUEST, json!(param));
        assert_eq!(chat(extra.clone()).await.unwrap_err(), want, "{extra}");
        assert_eq!(completion(extra.clone()).await.unwrap_err(), want, "{extra}");
    }
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}})
}

#[tokio::test]
async fn tools_reach_the_template_and_choices_become_grammars() {
    let tools = json!([tool("f"), tool("g")]);
    let params = chat(json!({"tools": tools})).await.unwrap().params;
    assert_eq!((params.tools, params.grammar), (Some(tools.clone()), None));
    let params = chat(json!({"tools": tools, "tool_choice": "none"})).await.unwrap().params;
    assert_eq!((params.tools, params.grammar), (None, None));
    let params = chat(json!({"tools": tools, "tool_choice": "required"})).await.unwrap().params;
    let Some(Grammar::JsonSchema(schema)) = params.grammar else { panic!("{:?}", params.grammar) };
    assert_eq!(schema["anyOf"].as_array().unwrap().len(), 2);
    let choice = json!({"type": "function", "function": {"name": "g"}});
    let params = chat(json!({"tools": tools, "tool_choice": choice})).await.unwrap().params;
    let Some(Grammar::JsonSchema(schema)) = params.grammar else { panic!("{:?}", params.grammar) };
    assert_eq!(schema["properties"]["name"]["const"], "g");
    for (param, extra) in [
        ("tools[1].function.name", json!({"tools": [tool("f"), tool("f")]})),
        ("tools[0].function.name", json!({"tools": [tool("no spaces")]})),
        ("tools[0].function", json!({"tools": [{"type": "function"}]})),
        (
            "tools[0].function.parameters",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}),
        ),
        ("tool_choice", json!({"tools": tools, "tool_choice": "sometimes"})),
        (
            "tool_choice",
            json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "h"}}}),
        ),
        ("tool_choice", json!({"tools": tools, "tool_choice": {"type": "allowed_tools"}})),
        ("tool_choice", json!({"tool_choice": "required"})),
        ("response_format", json!({"tools": tools, "response_format": {"type": "json_object"}})),
    ] {
        assert_eq!(
            chat(extra.clone()).await.unwrap_err(),
            (StatusCode::BAD_REQUEST, json!(param)),
            "{extra}"
        );
    }
}

#[tokio::test]
async fn calls_and_results_of_tools_are_messages() {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}});
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]);
    let request = chat(json!({"messages": messages})).await.unwrap();
    assert_eq!(request.messages[1].extra["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    assert_eq!(request.messages[2].extra["tool_call_id"], "c1");
}

/// The answer of a model that writes `pieces`, whole and as chunks.
async fn called(pieces: Vec<&'static str>, stream: bool) -> Vec<Value> {
    let fake = Fake::new();
    fake.with(|script| script.pieces = pieces);
    let body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "tools": [tool("f")], "stream": stream,
    });
    let answer = post_json(&app(&fake), CHAT, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    if !stream {
        return vec![answer.json()["choices"][0].clone()];
    }
    let data = answer.data();
    let chunks = data.iter().filter(|data| *data != "[DONE]");
    chunks.map(|data| serde_json::from_str::<Value>(data).unwrap()["choices"][0].clone()).collect()
}

#[tokio::test]
async fn calls_in_answers_are_told_apart_from_text() {
    let pieces = || {
        vec!["Let me", " see. <tool", "_call>{\"name\": \"f\", ", "\"arguments\": {\"x\": 2}}</tool_call>"]
    };
    let whole = &called(pieces(), false).await[0];
    assert_eq!(whole["finish_reason"], "tool_calls");
    assert_eq!(whole["message"]["content"], "Let me see.");
    let function = &whole["message"]["tool_calls"][0]["function"];
    assert_eq!((function["name"].as_str(), function["arguments"].as_str()), (Some("f"), Some("{\"x\":2}")));
    let chunks = called(pieces(), true).await;
    let said: String = chunks.iter().filter_map(|chunk| chunk["delta"]["content"].as_str()).collect();
    assert_eq!(said, "Let me see.");
    let calls: Vec<&Value> = chunks.iter().filter(|chunk| chunk["delta"]["tool_calls"].is_array()).collect();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0]["delta"]["tool_calls"][0]["index"], 0);
    assert_eq!(chunks.last().unwrap()["finish_reason"], "tool_calls");
    let plain = &called(vec!["Just ", "text."], false).await[0];
    assert_eq!(
        (&plain["message"]["content"], &plain["finish_reason"]),
        (&json!("Just text."), &json!("stop"))
    );
}

#[tokio::test]
async fn the_served_model_has_several_names_and_requests_wait_for_a_swap() {
    for name in ["default", crate::fake::MODEL] {
        assert!(chat(json!({"model": name})).await.is_ok(), "{name}");
    }
    let fake = Fake::new();
    fake.with(|script| {
        script.swapping = true;
        script.readiness = Readiness::Loading;
    });
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(post_json(&app(&fake), CHAT, &body).await.status, StatusCode::OK);
    // Without a swap a model that loads is no reason to wait.
    fake.with(|script| script.readiness = Readiness::Loading);
    assert_eq!(post_json(&app(&fake), CHAT, &body).await.status, StatusCode::SERVICE_UNAVAILABLE);
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
        ("messages[0].role", json!([{"role": "function", "name": "f", "content": "x"}])),
        ("messages[0].tool_call_id", json!([{"role": "tool", "content": "x"}])),
        ("messages[0].tool_call_id", json!([{"role": "user", "content": "x", "tool_call_id": "1"}])),
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
            "messages[0].tool_calls[0].function",
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
