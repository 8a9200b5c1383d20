//! Runs a template under limits, with the names that Hugging Face templates expect.

use super::time::CivilTime;
use super::tojson::tojson;
use super::{ChatMessage, ChatOptions, GenerationPrompt, template_error};
use crate::{ChatTemplateErrorKind, TokenizerError};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value};
use std::fmt;
use std::io;

/// Most bytes of a template's source.
pub const MAX_TEMPLATE_BYTES: usize = 512 << 10;
/// Most bytes of a rendered prompt.
pub const MAX_PROMPT_BYTES: usize = 16 << 20;
/// How deep templates may call themselves.
const MAX_DEPTH: usize = 100;
/// Work that every template may do. One unit is an instruction or 64 bytes of data, so this is 16 MB at most.
const BASE_FUEL: u64 = 250_000;
/// Work per message on top.
const MESSAGE_FUEL: u64 = 5_000;
/// Bytes of messages and tools for one more unit; a template may touch each of them a few times.
const BYTES_PER_FUEL: u64 = 4;

/// What a template sees.
#[derive(Debug, Clone)]
pub(super) struct Variables {
    /// Roles, not to be altered.
    pub(super) roles: Vec<String>,
    /// The other fields of each message.
    pub(super) messages: Vec<Map<String, Value>>,
    pub(super) tools: Value,
    /// The caller's own variables.
    pub(super) others: Map<String, Value>,
    pub(super) bos_token: String,
    pub(super) eos_token: String,
    pub(super) add_generation_prompt: bool,
}

impl Variables {
    pub(super) fn new(
        messages: &[ChatMessage],
        options: &ChatOptions<'_>,
        bos_token: String,
        eos_token: String,
    ) -> Self {
        let fields = |message: &ChatMessage| {
            let mut fields = Map::new();
            fields.insert("content".to_owned(), Value::String(message.content.clone()));
            fields.extend(message.extra.clone());
            fields
        };
        Self {
            roles: messages.iter().map(|message| message.role.clone()).collect(),
            messages: messages.iter().map(fields).collect(),
            tools: options.tools.cloned().unwrap_or(Value::Null),
            others: options.variables.cloned().unwrap_or_default(),
            bos_token,
            eos_token,
            add_generation_prompt: options.generation_prompt == GenerationPrompt::Add,
        }
    }

    fn context(&self) -> Map<String, Value> {
        let messages = self.roles.iter().zip(&self.messages).map(|(role, fields)| {
            let mut message = Map::new();
            message.insert("role".to_owned(), Value::String(role.clone()));
            message.extend(fields.clone());
            message.insert("role".to_owned(), Value::String(role.clone()));
            Value::Object(message)
        });
        let mut context = self.others.clone();
        context.insert("messages".to_owned(), Value::Array(messages.collect()));
        context.insert("tools".to_owned(), self.tools.clone());
        context.insert("documents".to_owned(), Value::Null);
        context.insert("bos_token".to_owned(), Value::String(self.bos_token.clone()));
        context.insert("eos_token".to_owned(), Value::String(self.eos_token.clone()));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(self.add_generation_prompt));
        context
    }

    fn fuel(&self) -> u64 {
        let n_bytes: usize =
            self.messages.iter().chain([&self.others]).map(map_size).sum::<usize>() + value_size(&self.tools);
        BASE_FUEL + MESSAGE_FUEL * self.messages.len() as u64 + n_bytes as u64 / BYTES_PER_FUEL
    }
}

fn map_size(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + value_size(value)).sum()
}

fn value_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| 8 + value_size(item)).sum(),
        Value::Object(map) => map_size(map),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

/// Checks a template's size and translates what the engine does not know: `{% generation %}` blocks mark text for
/// training and mean nothing here.
/// # Errors
/// [`TokenizerError::ChatTemplate`] of kind [`ChatTemplateErrorKind::Limit`].
pub(super) fn prepare(template: &str) -> Result<String, TokenizerError> {
    if template.len() > MAX_TEMPLATE_BYTES {
        let message = format!("{} bytes are more than the limit of {MAX_TEMPLATE_BYTES}", template.len());
        return Err(template_error(ChatTemplateErrorKind::Limit, message));
    }
    let mut prepared = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        prepared.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word =
            tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+', ' ', '\t', '\n']);
        match word {
            "generation" => prepared.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => prepared.push_str(&tag.replacen(word, "endif", 1)),
            _ => prepared.push_str(tag),
        }
        rest = after;
    }
    prepared.push_str(rest);
    Ok(prepared)
}

/// Runs a template.
/// # Errors
/// [`TokenizerError::ChatTemplate`]
pub(super) fn render(
    template: &str,
    variables: &Variables,
    now: Option<CivilTime>,
) -> Result<String, TokenizerError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|error| translate(&error))?);
    env.set_fuel(Some(variables.fuel()));
    env.set_recursion_limit(MAX_DEPTH);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        let Some(now) = now else {
            return Err(Error::new(ErrorKind::InvalidOperation, "the time is not known here"));
        };
        now.format(&format).map_err(|message| Error::new(ErrorKind::InvalidOperation, message))
    });
    let compiled = env.template_from_str(template).map_err(|error| translate(&error))?;
    let mut output = Bounded(Vec::new());
    let context = minijinja::Value::from(Serde(variables.context()));
    match compiled.render_captured_to(context, &mut output) {
        Ok(_) => String::from_utf8(output.0)
            .map_err(|error| template_error(ChatTemplateErrorKind::Render, error.to_string())),
        Err(error) => Err(translate(&error)),
    }
}

/// What a template said when it refused the messages.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn translate(error: &Error) -> TokenizerError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return template_error(ChatTemplateErrorKind::Raised, message.clone());
        }
        if current
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::FileTooLarge)
        {
            return template_error(ChatTemplateErrorKind::Limit, TOO_LONG);
        }
        cause = current.source();
    }
    let is_deep = error.detail().is_some_and(|detail| detail.contains("recursion limit"));
    let kind = match error.kind() {
        ErrorKind::SyntaxError => ChatTemplateErrorKind::Syntax,
        ErrorKind::OutOfFuel => ChatTemplateErrorKind::Limit,
        _ if is_deep => ChatTemplateErrorKind::Limit,
        _ => ChatTemplateErrorKind::Render,
    };
    template_error(kind, error.to_string())
}

const TOO_LONG: &str = "the prompt is longer than the limit";

/// Takes output up to a limit.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, TOO_LONG));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
