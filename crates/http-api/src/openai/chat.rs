//! Reads `/v1/chat/completions` requests.

use super::format::{function_name, grammar, response_format};
use super::params::{self, MAX_TOKENS, StreamMode};
use super::tools::{Tools, tools};
use crate::error::ApiError;
use crate::fields::{Fields, parse_list, parse_string};
use secateur_service::api::{ChatMessage, GenerationParams, Grammar, MAX_TOP_LOGPROBS};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Most messages of a conversation.
pub(crate) const MAX_MESSAGES: usize = 4096;
/// Most calls in one message.
const MAX_CALLS: usize = 128;
/// Most parts of one message.
const MAX_PARTS: usize = 1024;

/// Every field that is documented or honoured; others are ignored, as OpenAI's clients add new ones freely.
pub(crate) const FIELDS: &[&str] = &[
    "audio",
    "cache_prompt",
    "frequency_penalty",
    "function_call",
    "functions",
    "grammar",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "min_p",
    "modalities",
    "model",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_retention",
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
    "web_search_options",
];

/// A request for an answer in a conversation.
#[derive(Clone, Debug)]
pub(crate) struct ChatCall {
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) params: GenerationParams,
    pub(crate) n_choices: usize,
    pub(crate) mode: StreamMode,
    pub(crate) tools: Tools,
}

impl ChatCall {
    /// Reads the body of a request.
    /// # Errors
    /// [`ApiError`] naming the first field that is wrong or not honoured.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::of_body(body, FIELDS)?;
        refuse_unsupported(&fields)?;
        let messages = messages(&fields)?;
        let tools = tools(&fields)?;
        let grammar = answer_grammar(&fields, &tools)?;
        Ok(Self {
            model: params::model(&fields)?,
            messages,
            params: GenerationParams {
                max_tokens: max_tokens(&fields)?,
                sampling: params::sampling(&fields)?,
                stop: params::stops(&fields)?,
                logprobs: logprobs(&fields)?,
                grammar,
                tools: tools.described.clone(),
            },
            tools,
            n_choices: params::n_choices(&fields)?,
            mode: params::stream_mode(&fields)?,
        })
    }
}

/// Reads the `messages` and `tools` of another route's body.
/// # Errors
/// [`ApiError`] naming the first field that is wrong.
pub(crate) fn conversation_of_body(body: &[u8]) -> Result<(Vec<ChatMessage>, Option<Value>), ApiError> {
    let fields = Fields::of_body(body, &["messages", "tools"])?;
    Ok((messages(&fields)?, tools(&fields)?.described))
}

/// The one thing that the text of the answer must follow.
fn answer_grammar(fields: &Fields<'_>, tools: &Tools) -> Result<Option<Grammar>, ApiError> {
    let format = response_format(fields)?;
    let grammar = grammar(fields)?;
    if format.is_some() && grammar.is_some() {
        return Err(fields.bad("grammar", "absent when `response_format` asks for JSON"));
    }
    let wanted = format.or(grammar);
    if wanted.is_some() && tools.are_used() {
        let param = if fields.raw("grammar").is_some() { "grammar" } else { "response_format" };
        return Err(ApiError::unsupported(
            param,
            "an answer is of a format or calls tools: \"tool_choice\": \"none\"",
        ));
    }
    Ok(wanted.or(tools.forced.clone()))
}

fn messages(fields: &Fields<'_>) -> Result<Vec<ChatMessage>, ApiError> {
    let messages = fields.list("messages", MAX_MESSAGES)?;
    let messages = fields.required("messages", messages)?;
    if messages.is_empty() {
        return Err(fields.bad("messages", "an array of at least one message"));
    }
    messages.into_iter().enumerate().map(|(idx, raw)| message(raw, idx)).collect()
}

fn refuse_unsupported(fields: &Fields<'_>) -> Result<(), ApiError> {
    params::refuse_shared(fields)?;
    fields.name("prompt_cache_key")?;
    let newer = "the newer fields `tools` and `tool_choice` are honoured";
    fields.refuse("functions", &["[]"], newer)?;
    fields.refuse("function_call", &["\"none\""], newer)?;
    fields.refuse("audio", &[], "answers are text")?;
    fields.refuse("modalities", &["[\"text\"]"], "answers are text: [\"text\"]")?;
    fields.refuse("prediction", &[], "predicted outputs are not used")?;
    fields.refuse("web_search_options", &[], "this server does not reach the web")?;
    fields.refuse("moderation", &[], "there is no moderation model")?;
    fields.refuse("reasoning_effort", &["\"none\""], "the model does not reason separately: \"none\"")?;
    fields.refuse(
        "verbosity",
        &["\"medium\""],
        "the length of answers cannot be set in words: \"medium\"",
    )?;
    fields.refuse(
        "service_tier",
        &["\"auto\"", "\"default\""],
        "there is one tier: \"auto\" or \"default\"",
    )?;
    fields.refuse("store", &["false"], "nothing is stored: false")?;
    fields.refuse("metadata", &["{}"], "nothing is stored")?;
    fields.refuse("prompt_cache_retention", &["\"in_memory\"", "\"in-memory\""], "only \"in_memory\"")?;
    fields.refuse("cache_prompt", &["true"], "the last prompts are always kept: true")
}

/// `max_completion_tokens`, or its old name; both only when they agree.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let old = fields.integer("max_tokens", 1, MAX_TOKENS)?;
    let new = fields.integer("max_completion_tokens", 1, MAX_TOKENS)?;
    if old.is_some() && new.is_some() && old != new {
        return Err(fields.bad("max_tokens", "absent when `max_completion_tokens` says otherwise"));
    }
    Ok(new.or(old).map(|tokens| tokens as usize))
}

fn logprobs(fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS as u64)?;
    match (wanted, top) {
        (false, Some(1..)) => Err(fields.bad("top_logprobs", "absent unless `logprobs` is true")),
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
    }
}

fn message(raw: &RawValue, idx: usize) -> Result<ChatMessage, ApiError> {
    let path = format!("messages[{idx}]");
    let known = &[
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "refusal",
        "audio",
        "annotations",
    ];
    let fields = Fields::of_value(raw, &path, known)?;
    let role = fields.string("role")?;
    let role = match fields.required("role", role)?.as_str() {
        "system" => "system",
        // OpenAI's newer name for the same thing; templates know only the old one.
        "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        "function" => {
            return Err(ApiError::unsupported(fields.path("role"), "the newer role is \"tool\""));
        }
        _ => return Err(fields.bad("role", "system, developer, user, assistant or tool")),
    };
    fields.refuse("name", &["\"\""], "templates do not name speakers")?;
    fields.refuse("function_call", &[], "the newer field `tool_calls` is honoured")?;
    fields.refuse("audio", &[], "messages are text")?;
    fields.refuse("annotations", &["[]"], "messages are text")?;
    let mut extra = Map::new();
    let calls = fields.list("tool_calls", MAX_CALLS)?.unwrap_or_default();
    if !calls.is_empty() {
        if role != "assistant" {
            return Err(fields.bad("tool_calls", "absent but in messages of the assistant"));
        }
        let path = fields.path("tool_calls");
        let calls = calls.into_iter().enumerate().map(|(idx, raw)| tool_call(raw, &format!("{path}[{idx}]")));
        extra.insert("tool_calls".to_owned(), calls.collect::<Result<_, _>>()?);
    }
    match (fields.name("tool_call_id")?, role) {
        (Some(id), "tool") => {
            extra.insert("tool_call_id".to_owned(), id.into());
        }
        (None, "tool") => return Err(fields.bad("tool_call_id", "given")),
        (Some(_), _) => return Err(fields.bad("tool_call_id", "absent but in messages of the role tool")),
        (None, _) => {}
    }
    let content = match (fields.raw("content"), fields.string("refusal")?) {
        (Some(content), None) => text_of_content(content, &fields.path("content"))?,
        // A refusal that the client sends back is what the assistant said.
        (None, Some(refusal)) if role == "assistant" => refusal,
        (_, Some(_)) => return Err(fields.bad("refusal", "absent, or alone in an assistant message")),
        // What an assistant calls may be all it says.
        (None, None) if extra.contains_key("tool_calls") => String::new(),
        (None, None) => return Err(fields.bad("content", "given")),
    };
    Ok(ChatMessage { role: role.to_owned(), content, extra })
}

/// A call in the conversation so far, with its arguments as templates want them: JSON, not text.
fn tool_call(raw: &RawValue, path: &str) -> Result<Value, ApiError> {
    let call = Fields::of_value(raw, path, &["id", "type", "function"])?;
    let id = call.name("id")?;
    call.refuse("type", &["\"function\""], "tools are functions")?;
    let function = call.required("function", call.raw("function"))?;
    let function = Fields::of_value(function, &call.path("function"), &["name", "arguments"])?;
    let name = function_name(&function)?;
    let arguments = function.string("arguments")?;
    let arguments = function.required("arguments", arguments)?;
    let arguments = serde_json::from_str::<Value>(&arguments).unwrap_or(Value::String(arguments));
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// A string, or an array of text parts.
fn text_of_content(raw: &RawValue, path: &str) -> Result<String, ApiError> {
    if let Some(text) = parse_string(raw) {
        return Ok(text);
    }
    let expected =
        || ApiError::bad_param(path, format!("a string or an array of at most {MAX_PARTS} text parts"));
    let parts = parse_list(raw, MAX_PARTS).ok_or_else(expected)?;
    if parts.is_empty() {
        return Err(expected());
    }
    let mut text = String::new();
    for (idx, part) in parts.into_iter().enumerate() {
        text.push_str(&text_of_part(part, &format!("{path}[{idx}]"))?);
    }
    Ok(text)
}

fn text_of_part(raw: &RawValue, path: &str) -> Result<String, ApiError> {
    let part = Fields::of_value(raw, path, &["type", "text", "refusal"])?;
    let kind = part.string("type")?;
    let field = match part.required("type", kind)?.as_str() {
        "text" => "text",
        "refusal" => "refusal",
        "image_url" | "input_audio" | "file" | "image" | "video_url" | "audio_url" => {
            return Err(ApiError::unsupported(part.path("type"), "the model reads text only"));
        }
        _ => return Err(part.bad("type", "\"text\"")),
    };
    let text = part.string(field)?;
    part.required(field, text)
}
