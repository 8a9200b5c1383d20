//! Tools: their descriptions in requests, and the calls in the text of answers.
//!
//! With `tool_choice` `auto` the model writes freely and calls stand in `<tool_call>` tags or are the whole answer;
//! with `required` or a named function the answer is forced into a call by a grammar.

use super::format::{function_name, schema_value};
use crate::error::ApiError;
use crate::fields::{Fields, parse_string};
use secateur_service::api::{Grammar, SamplingParams};
use secateur_service::{TOOL_CALL_CLOSE, TOOL_CALL_OPEN};
use serde_json::{Map, Value, json};

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// What the model may call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tools {
    /// Descriptions for the template; absent when nothing may be called.
    pub(crate) described: Option<Value>,
    /// Names of the functions.
    names: Vec<String>,
    /// The answer is one call.
    pub(crate) forced: Option<Grammar>,
    /// At most one call is reported.
    only_one: bool,
}

impl Tools {
    /// True when the answer may hold calls.
    pub(crate) fn are_used(&self) -> bool {
        self.described.is_some()
    }
}

/// One function.
struct Function {
    name: String,
    parameters: Value,
    /// As it was sent.
    tool: Value,
}

enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(crate) fn tools(fields: &Fields<'_>) -> Result<Tools, ApiError> {
    let list = fields.list("tools", MAX_TOOLS)?.unwrap_or_default();
    let functions: Vec<Function> = list
        .into_iter()
        .enumerate()
        .map(|(idx, raw)| function(&Fields::of_value(raw, &format!("tools[{idx}]"), &["type", "function"])?))
        .collect::<Result<_, _>>()?;
    for (idx, function) in functions.iter().enumerate() {
        if functions[..idx].iter().any(|other| other.name == function.name) {
            return Err(ApiError::bad_param(format!("tools[{idx}].function.name"), "a name of its own"));
        }
    }
    let choice = choice(fields, functions.is_empty())?;
    let parallel = fields.boolean("parallel_tool_calls")?;
    if parallel.is_some() && functions.is_empty() {
        return Err(fields.bad("parallel_tool_calls", "absent unless there are `tools`"));
    }
    let only_one = parallel == Some(false);
    let chosen: Vec<&Function> = match &choice {
        Choice::None => return Ok(Tools::default()),
        Choice::Named(name) => functions.iter().filter(|function| function.name == *name).collect(),
        Choice::Auto | Choice::Required => functions.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(fields.bad("tool_choice", "the name of one of the `tools`"));
    }
    let forced = match choice {
        Choice::Required | Choice::Named(_) => Some(call_grammar(&chosen)),
        _ => None,
    };
    Ok(Tools {
        described: Some(functions.iter().map(|function| function.tool.clone()).collect()),
        names: functions.iter().map(|function| function.name.clone()).collect(),
        forced,
        only_one,
    })
}

fn function(tool: &Fields<'_>) -> Result<Function, ApiError> {
    match tool.string("type")?.as_deref() {
        Some("function") => {}
        Some("custom") => return Err(ApiError::unsupported(tool.path("type"), "tools are functions")),
        _ => return Err(tool.bad("type", "\"function\"")),
    }
    let raw = tool.required("function", tool.raw("function"))?;
    let path = tool.path("function");
    let fields = Fields::of_value(raw, &path, &["name", "description", "parameters", "strict"])?;
    let name = function_name(&fields)?;
    let description = fields.string("description")?;
    // Arguments are held to the schema whenever a call is forced; a call the model is free to make is not.
    fields.boolean("strict")?;
    let parameters = match fields.raw("parameters") {
        Some(raw) => schema_value(raw, &fields.path("parameters"))?,
        None => json!({"type": "object", "properties": {}}),
    };
    let mut described = Map::new();
    described.insert("name".into(), name.as_str().into());
    if let Some(description) = description {
        described.insert("description".into(), description.into());
    }
    described.insert("parameters".into(), parameters.clone());
    Ok(Function { name, parameters, tool: json!({"type": "function", "function": described}) })
}

fn choice(fields: &Fields<'_>, no_tools: bool) -> Result<Choice, ApiError> {
    let expected =
        "\"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": …}}";
    let Some(raw) = fields.raw("tool_choice") else {
        return Ok(if no_tools { Choice::None } else { Choice::Auto });
    };
    let choice = match parse_string(raw).as_deref() {
        Some("none") => return Ok(Choice::None),
        Some("auto") => Choice::Auto,
        Some("required") => Choice::Required,
        Some(_) => return Err(fields.bad("tool_choice", expected)),
        None => {
            let object = Fields::of_value(raw, "tool_choice", &["type", "function"])?;
            match object.string("type")?.as_deref() {
                Some("function") => {}
                Some("allowed_tools" | "custom") => {
                    return Err(ApiError::unsupported(
                        "tool_choice",
                        "name one function, or leave tools out",
                    ));
                }
                _ => return Err(fields.bad("tool_choice", expected)),
            }
            let raw = object.required("function", object.raw("function"))?;
            Choice::Named(function_name(&Fields::of_value(raw, "tool_choice.function", &["name"])?)?)
        }
    };
    if no_tools {
        return Err(fields.bad("tool_choice", "absent unless there are `tools`"));
    }
    Ok(choice)
}

/// JSON that calls one of the functions with arguments of its schema.
fn call_grammar(functions: &[&Function]) -> Grammar {
    let calls: Vec<Value> = functions
        .iter()
        .map(|function| {
            json!({
                "type": "object",
                "properties": {"name": {"const": function.name}, "arguments": function.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        })
        .collect();
    Grammar::JsonSchema(if let [one] = &calls[..] { one.clone() } else { json!({"anyOf": calls}) })
}

/// A call found in an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    name: String,
    /// JSON as text, as the protocol wants it.
    arguments: String,
}

impl Call {
    /// The object of the protocol.
    pub(crate) fn object(&self) -> Value {
        let id = format!("call_{:016x}", SamplingParams::random_seed());
        json!({"id": id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

/// Splits the text of an answer into what is said and what is called, piece by piece.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallReader {
    tools: Tools,
    /// Text that may be part of a call.
    held: String,
    /// The text of the answer so far has been empty.
    has_said: bool,
    calls: Vec<Call>,
}

impl CallReader {
    pub(crate) fn new(tools: &Tools) -> Self {
        Self { tools: tools.clone(), ..Self::default() }
    }

    /// Takes a piece of the answer and returns what of it is certainly said.
    pub(crate) fn push(&mut self, piece: &str) -> String {
        if !self.tools.are_used() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let mut said = String::new();
        // A forced call, or an answer that begins as JSON, is looked at as a whole.
        let is_json =
            self.tools.forced.is_some() || (!self.has_said && self.held.trim_start().starts_with(['{', '[']));
        if is_json {
            return said;
        }
        while let Some(open) = self.held.find(TOOL_CALL_OPEN) {
            let Some(length) = self.held[open..].find(TOOL_CALL_CLOSE) else { break };
            let inner = &self.held[open + TOOL_CALL_OPEN.len()..open + length];
            match self.parse(inner) {
                Some(calls) => {
                    said.push_str(self.held[..open].trim_end());
                    self.calls.extend(calls);
                    self.held.drain(..open + length + TOOL_CALL_CLOSE.len());
                }
                // Not a call after all.
                None => said.extend(self.held.drain(..open + length + TOOL_CALL_CLOSE.len())),
            }
        }
        let keep_from = self.held.find(TOOL_CALL_OPEN).unwrap_or_else(|| partial_from(&self.held));
        // White space before a call is not said.
        let keep_from = self.held[..keep_from].trim_end().len();
        said.extend(self.held.drain(..keep_from));
        if !self.calls.is_empty() && said.trim().is_empty() {
            said.clear();
        }
        self.has_said |= !said.is_empty();
        said
    }

    /// The answer is over: what is left to say, and all calls.
    pub(crate) fn finish(&mut self) -> (String, Vec<Call>) {
        let mut left = std::mem::take(&mut self.held);
        if self.tools.are_used() {
            let text = left.trim();
            // Models often end without closing the tag.
            let inner = text.strip_prefix(TOOL_CALL_OPEN).unwrap_or(text).trim_end_matches(TOOL_CALL_CLOSE);
            if let Some(calls) = self.parse(inner) {
                self.calls.extend(calls);
                left.clear();
            } else if !self.calls.is_empty() && text.is_empty() {
                left.clear();
            }
        }
        let mut calls = std::mem::take(&mut self.calls);
        if self.tools.only_one {
            calls.truncate(1);
        }
        (left, calls)
    }

    /// The calls written as JSON: an object or an array of them, `parameters` for `arguments` as Llama does.
    fn parse(&self, text: &str) -> Option<Vec<Call>> {
        let value: Value = serde_json::from_str(text.trim()).ok()?;
        let call = |value: &Value| {
            let name = value.get("name")?.as_str()?;
            let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
            let arguments = match arguments {
                Value::Object(_) => arguments.to_string(),
                Value::String(text) if serde_json::from_str::<Value>(text).is_ok() => text.clone(),
                _ => return None,
            };
            let is_known = self.tools.names.iter().any(|known| known == name);
            is_known.then(|| Call { name: name.to_owned(), arguments })
        };
        match &value {
            Value::Array(list) if !list.is_empty() => list.iter().map(call).collect(),
            other => call(other).map(|call| vec![call]),
        }
    }
}

/// Where an ending begins that may become an opening tag.
fn partial_from(text: &str) -> usize {
    (1..TOOL_CALL_OPEN.len())
        .rev()
        .find(|&length| text.ends_with(&TOOL_CALL_OPEN[..length]))
        .map_or(text.len(), |length| text.len() - length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(forced: bool) -> CallReader {
        CallReader::new(&Tools {
            described: Some(json!([])),
            names: vec!["f".into(), "g".into()],
            forced: forced.then_some(Grammar::JsonObject),
            only_one: false,
        })
    }

    /// What is said and called when the text comes in pieces of `size` characters.
    fn read(text: &str, size: usize, forced: bool) -> (String, Vec<(String, String)>) {
        let mut reader = reader(forced);
        let mut said = String::new();
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(size) {
            said.push_str(&reader.push(&piece.iter().collect::<String>()));
        }
        let (left, calls) = reader.finish();
        said.push_str(&left);
        (said, calls.into_iter().map(|call| (call.name, call.arguments)).collect())
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let f = || ("f".to_owned(), "{\"x\":1}".to_owned());
        let g = || ("g".to_owned(), "{}".to_owned());
        let tagged = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let cases = [
            ("Just text < with > signs <tool_ca", "Just text < with > signs <tool_ca", vec![]),
            (tagged, "", vec![f()]),
            (&format!("Let me look. {tagged}"), "Let me look.", vec![f()]),
            (
                &format!("{tagged}\n<tool_call>{{\"name\":\"g\",\"arguments\":{{}}}}</tool_call>"),
                "",
                vec![f(), g()],
            ),
            (
                "<tool_call>[{\"name\":\"f\",\"arguments\":{\"x\":1}},{\"name\":\"g\",\"parameters\":{}}]</tool_call>",
                "",
                vec![f(), g()],
            ),
            ("<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":1}}", "", vec![f()]),
            ("{\"name\": \"g\", \"parameters\": {}}", "", vec![g()]),
            (
                "{\"name\": \"unknown\", \"arguments\": {}}",
                "{\"name\": \"unknown\", \"arguments\": {}}",
                vec![],
            ),
            ("<tool_call>nonsense</tool_call> so", "<tool_call>nonsense</tool_call> so", vec![]),
            ("{\"a\": 1}", "{\"a\": 1}", vec![]),
        ];
        for (text, said, calls) in cases {
            for size in [1, 3, 7, 1000] {
                assert_eq!(read(text, size, false), (said.to_owned(), calls.clone()), "{text} by {size}");
            }
        }
        assert_eq!(read("{\"name\":\"f\",\"arguments\":{\"x\":1}}", 2, true), (String::new(), vec![f()]));
    }
}
