//! What an app says in JSON: the configuration of an instance and a request for text.
//!
//! Unknown fields are errors: a misspelt limit must not be ignored on a phone.

use crate::error::FfiError;
use secateur_service::api::{
    ChatMessage, ChatRequest, CompletionRequest, GenerationParams, Prompt, SamplingParams,
};
use secateur_service::{DEFAULT_QUEUE_LEN, PlanSettings, PruneSettings, ServiceOptions};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::time::Duration;

/// Longest JSON text taken.
const MAX_JSON_BYTES: usize = 4 << 20;
/// Longest wait for requests at the end.
const MAX_DRAIN_MS: u64 = 60_000;

/// Whether the service answers on localhost too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Http {
    /// On 127.0.0.1, for those who have the token.
    #[default]
    Localhost,
    /// No socket is opened.
    Off,
}

/// Configuration of an instance.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Folder of the store and of jobs at work: private to the app.
    state_dir: PathBuf,
    /// A GGUF file, a checkpoint's folder, or an id of the store; the newest entry of the store when absent.
    #[serde(default)]
    model: Option<String>,
    /// A pruned form of the model that guesses ahead: answers come faster and stay the same.
    #[serde(default)]
    draft: Option<String>,
    /// `auto`, a size or a percentage: the bound on the whole process.
    #[serde(default = "auto")]
    memory_budget: String,
    /// Threads that compute.
    #[serde(default)]
    n_threads: Option<usize>,
    /// Requests that may wait.
    #[serde(default = "queue_len")]
    queue_len: usize,
    /// Context to serve.
    #[serde(default)]
    context_len: Option<usize>,
    /// `auto`, `f32`, `f16` or `q8_0`.
    #[serde(default)]
    kv_dtype: Option<String>,
    /// `quality` or `compatible`: how to prune a model that does not fit at the start.
    #[serde(default)]
    policy: Option<String>,
    /// Whether to listen on localhost.
    #[serde(default)]
    pub(crate) http: Http,
    /// Port to listen on; 0 lets the system choose, which cannot collide with another app.
    #[serde(default)]
    pub(crate) port: u16,
    /// Milliseconds that requests at work may take to end when the service is stopped.
    #[serde(default = "drain_ms")]
    drain_ms: u64,
}

fn auto() -> String {
    "auto".to_owned()
}

fn queue_len() -> usize {
    DEFAULT_QUEUE_LEN
}

fn drain_ms() -> u64 {
    1000
}

impl Config {
    /// Reads the JSON of a configuration.
    /// # Errors
    /// `InvalidArgument` naming what is wrong.
    pub(crate) fn parse(json: &str) -> Result<Self, FfiError> {
        let config: Self = parse(json, "configuration")?;
        if !config.state_dir.is_absolute() {
            return Err(FfiError::argument(
                "`state_dir` must be an absolute path: apps have no working folder",
            ));
        }
        if MAX_DRAIN_MS < config.drain_ms {
            return Err(FfiError::argument(format!("`drain_ms` must be at most {MAX_DRAIN_MS}")));
        }
        Ok(config)
    }

    pub(crate) fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }

    pub(crate) fn service_options(&self) -> ServiceOptions {
        let plan = PlanSettings {
            context_len: self.context_len,
            policy: self.policy.clone(),
            kv_dtype: self.kv_dtype.clone(),
            ..PlanSettings::default()
        };
        ServiceOptions {
            model: self.model.clone(),
            draft: self.draft.clone(),
            memory_budget: self.memory_budget.clone(),
            n_threads: self.n_threads,
            queue_len: self.queue_len,
            prune: PruneSettings { plan, ..PruneSettings::default() },
            ..ServiceOptions::new(self.state_dir.clone())
        }
    }
}

/// A request for text: a chat (`messages`) or a text to continue (`prompt`), and how to choose tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GenerateJson {
    messages: Option<Vec<ChatMessage>>,
    prompt: Option<String>,
    max_tokens: Option<usize>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<u64>,
    stop: Vec<String>,
}

/// What is to be generated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Generate {
    Chat(ChatRequest),
    Complete(CompletionRequest),
}

impl Generate {
    /// Reads the JSON of a request. Without settings the likeliest token is taken each time.
    /// # Errors
    /// `InvalidArgument` naming what is wrong.
    pub(crate) fn parse(json: &str) -> Result<Self, FfiError> {
        let json: GenerateJson = parse(json, "request")?;
        let default = SamplingParams::default();
        let sampling = SamplingParams {
            temperature: json.temperature.unwrap_or(default.temperature),
            top_k: json.top_k.unwrap_or(default.top_k),
            top_p: json.top_p.unwrap_or(default.top_p),
            min_p: json.min_p.unwrap_or(default.min_p),
            repetition_penalty: json.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: json.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: json.frequency_penalty.unwrap_or(default.frequency_penalty),
            seed: json.seed.unwrap_or_else(SamplingParams::random_seed),
            ..default
        };
        let params = GenerationParams {
            max_tokens: json.max_tokens,
            sampling,
            stop: json.stop,
            ..GenerationParams::default()
        };
        match (json.messages, json.prompt) {
            (Some(messages), None) => Ok(Self::Chat(ChatRequest { messages, params })),
            (None, Some(prompt)) => {
                Ok(Self::Complete(CompletionRequest { prompt: Prompt::Text(prompt), params }))
            }
            _ => Err(FfiError::argument("a request has either `messages` or `prompt`")),
        }
    }
}

/// Reads JSON; empty text is an empty object.
/// # Errors
/// `InvalidArgument` naming what is wrong.
pub(crate) fn parse<T: DeserializeOwned>(json: &str, what: &str) -> Result<T, FfiError> {
    if MAX_JSON_BYTES < json.len() {
        return Err(FfiError::argument(format!("the {what} is longer than {MAX_JSON_BYTES} bytes")));
    }
    let json = if json.trim().is_empty() { "{}" } else { json };
    serde_json::from_str(json)
        .map_err(|error| FfiError::argument(format!("the {what} is not right: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecateurCode;

    #[test]
    fn configurations_are_checked() {
        let cases = [
            ("", "state_dir"),
            ("{", "configuration"),
            ("[]", "configuration"),
            (r#"{"state_dir":"relative"}"#, "absolute"),
            (r#"{"state_dir":"/x","memory_bugdet":"1GiB"}"#, "memory_bugdet"),
            (r#"{"state_dir":"/x","port":70000}"#, "70000"),
            (r#"{"state_dir":"/x","http":"everywhere"}"#, "everywhere"),
            (r#"{"state_dir":"/x","drain_ms":600000}"#, "drain_ms"),
            (r#"{"state_dir":"/x","n_threads":-1}"#, "-1"),
        ];
        for (json, want) in cases {
            let error = Config::parse(json).unwrap_err();
            assert_eq!(error.code, SecateurCode::InvalidArgument, "{json}");
            assert!(error.message.contains(want), "{json}: {}", error.message);
        }
        let config = Config::parse(r#"{"state_dir":"/x","context_len":512,"http":"off"}"#).unwrap();
        assert_eq!(config.http, Http::Off);
        let options = config.service_options();
        assert_eq!((options.memory_budget.as_str(), options.prune.plan.context_len), ("auto", Some(512)));
    }

    #[test]
    fn requests_are_chats_or_texts() {
        for json in [
            "",
            "{}",
            r#"{"messages":[],"prompt":"a"}"#,
            r#"{"prompt":"a","max_token":3}"#,
            r#"{"prompt":1}"#,
        ] {
            assert_eq!(Generate::parse(json).unwrap_err().code, SecateurCode::InvalidArgument, "{json}");
        }
        let long = format!(r#"{{"prompt":"{}"}}"#, "a".repeat(MAX_JSON_BYTES));
        assert!(Generate::parse(&long).unwrap_err().message.contains("longer"));
        let chat = Generate::parse(r#"{"messages":[{"role":"user","content":"hi"}],"seed":7,"stop":["x"]}"#)
            .unwrap();
        let Generate::Chat(chat) = chat else { panic!("{chat:?}") };
        assert_eq!((chat.params.sampling.seed, chat.messages.len(), chat.params.stop.len()), (7, 1, 1));
        assert!(matches!(Generate::parse(r#"{"prompt":"a"}"#).unwrap(), Generate::Complete(_)));
    }
}
