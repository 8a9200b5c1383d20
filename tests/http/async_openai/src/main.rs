//! `secateur-async-openai-check http://127.0.0.1:8712/v1`: every endpoint, whole and streamed.
//!
//! Requests are typed by the crate (made from JSON to be short), answers are read by its types: a field of ours that
//! these do not accept is a failure.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::CreateChatCompletionRequest;
use async_openai::types::completions::CreateCompletionRequest;
use async_openai::types::embeddings::CreateEmbeddingRequest;
use futures::StreamExt;
use serde_json::{Value, json};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn chat(more: Value) -> Fallible<CreateChatCompletionRequest> {
    let mut body = json!({"model": "default", "messages": [{"role": "user", "content": "Name a fruit."}], "max_completion_tokens": 60, "temperature": 0.0});
    body.as_object_mut().ok_or("an object")?.extend(more.as_object().ok_or("an object")?.clone());
    Ok(serde_json::from_value(body)?)
}

async fn said(client: &Client<OpenAIConfig>, more: Value) -> Fallible<(String, String)> {
    let whole = client.chat().create(chat(more.clone())?).await?;
    let text = whole.choices[0].message.content.clone().unwrap_or_default();
    let mut more = more;
    more["stream"] = true.into();
    more["stream_options"] = json!({"include_usage": true});
    let mut stream = client.chat().create_stream(chat(more)?).await?;
    let (mut streamed, mut has_usage) = (String::new(), false);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        has_usage |= chunk.usage.is_some();
        for choice in chunk.choices {
            streamed.push_str(&choice.delta.content.unwrap_or_default());
        }
    }
    assert!(has_usage, "the last chunk has the usage");
    Ok((text, streamed))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Fallible<()> {
    let base = std::env::args().nth(1).ok_or("usage: secateur-async-openai-check BASE-URL")?;
    let client = Client::with_config(OpenAIConfig::new().with_api_base(base).with_api_key("none"));

    let models = client.models().list().await?;
    assert_eq!(models.data.len(), 1);
    assert_eq!(client.models().retrieve(&models.data[0].id).await?.id, models.data[0].id);
    println!("ok   models");

    let (text, streamed) = said(&client, json!({"seed": 1, "logprobs": true, "top_logprobs": 2})).await?;
    assert!(!text.is_empty() && text == streamed, "{text:?} {streamed:?}");
    println!("ok   chat, whole and streamed");

    let schema = json!({"type": "object", "properties": {"ripe": {"type": "boolean"}}, "required": ["ripe"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema, "strict": true}});
    let (text, streamed) = said(&client, json!({"response_format": format})).await?;
    assert!(serde_json::from_str::<Value>(&text)?["ripe"].is_boolean() && text == streamed, "{text}");
    println!("ok   JSON schema");

    let tool = json!({"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"town": {"type": "string", "maxLength": 9}}, "required": ["town"], "additionalProperties": false}}});
    let answer = client.chat().create(chat(json!({"tools": [tool], "tool_choice": "required"}))?).await?;
    let calls = serde_json::to_value(&answer.choices[0].message.tool_calls)?;
    assert_eq!(calls[0]["function"]["name"], "get_weather", "{calls}");
    println!("ok   tools");

    let request: CreateCompletionRequest =
        serde_json::from_value(json!({"model": "default", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.0}))?;
    let whole = client.completions().create(request.clone()).await?;
    let request = CreateCompletionRequest { stream: Some(true), ..request };
    let mut stream = client.completions().create_stream(request).await?;
    let mut streamed = String::new();
    while let Some(chunk) = stream.next().await {
        streamed.extend(chunk?.choices.into_iter().map(|choice| choice.text));
    }
    assert_eq!(whole.choices[0].text, streamed);
    println!("ok   completions");

    let request: CreateEmbeddingRequest = serde_json::from_value(json!({"model": "default", "input": ["a cat", "a kitten"]}))?;
    let answer = client.embeddings().create(request).await?;
    let norm = answer.data[0].embedding.iter().map(|value| value * value).sum::<f32>();
    assert!(answer.data.len() == 2 && (norm - 1.0).abs() < 1e-3, "{norm}");
    println!("ok   embeddings");

    let error = client.chat().create(chat(json!({"model": "no-such-model"}))?).await;
    assert!(matches!(&error, Err(OpenAIError::ApiError(_))), "{error:?}");
    println!("ok   errors");
    Ok(())
}
