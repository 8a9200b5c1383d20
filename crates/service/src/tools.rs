//! Tools in conversations: as the model's template writes them, or as text where it knows none.
//!
//! Many small models come with a template that has no place for tools. Their conversations then say it in words, in
//! the form that Hermes and Qwen models were trained on: a system message lists the tools, calls stand in
//! `<tool_call>` tags and results in `<tool_response>` tags.

use crate::api::ChatMessage;
use secateur_tokenizer::Tokenizer;
use serde_json::Value;
use std::borrow::Cow;

/// Opens a call in the text of an answer.
pub const TOOL_CALL_OPEN: &str = "<tool_call>";
/// Closes it.
pub const TOOL_CALL_CLOSE: &str = "</tool_call>";

/// The conversation as the template can write it.
pub(crate) fn for_template<'a>(
    tokenizer: &Tokenizer,
    messages: &'a [ChatMessage],
    tools: Option<&Value>,
) -> Cow<'a, [ChatMessage]> {
    let knows_tools = tokenizer.chat_template().is_some_and(|template| template.contains("tools"));
    let uses_tools = tools.is_some() || messages.iter().any(|message| !message.extra.is_empty());
    if knows_tools || !uses_tools {
        return Cow::Borrowed(messages);
    }
    let mut plain: Vec<ChatMessage> = messages.iter().map(in_words).collect();
    if let Some(tools) = tools {
        let text = description(tools);
        match plain.first_mut().filter(|message| message.role == "system") {
            Some(system) => system.content = format!("{}\n\n{text}", system.content),
            None => {
                let system = ChatMessage { role: "system".into(), content: text, ..ChatMessage::default() };
                plain.insert(0, system);
            }
        }
    }
    Cow::Owned(plain)
}

fn description(tools: &Value) -> String {
    let mut text = String::from("You may call functions. These are available:\n<tools>\n");
    for tool in tools.as_array().into_iter().flatten() {
        text.push_str(&tool.to_string());
        text.push('\n');
    }
    text.push_str(
        "</tools>\nTo call one, answer with its name and arguments as JSON in tags:\n<tool_call>\n\
         {\"name\": \"NAME\", \"arguments\": {}}\n</tool_call>",
    );
    text
}

/// A message without fields that a template of bare texts would drop.
fn in_words(message: &ChatMessage) -> ChatMessage {
    let plain = |role: &str, content: String| ChatMessage {
        role: role.to_owned(),
        content,
        ..ChatMessage::default()
    };
    if message.role == "tool" {
        return plain("user", format!("<tool_response>\n{}\n</tool_response>", message.content));
    }
    let mut content = message.content.clone();
    for call in message.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        if !content.is_empty() {
            content.push('\n');
        }
        let function = &call["function"];
        let call = serde_json::json!({"name": function["name"], "arguments": function["arguments"]});
        content.push_str(&format!("{TOOL_CALL_OPEN}\n{call}\n{TOOL_CALL_CLOSE}"));
    }
    plain(&message.role, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_and_results_become_text() {
        let calls =
            json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        let mut call = ChatMessage { role: "assistant".into(), ..ChatMessage::default() };
        call.extra.insert("tool_calls".into(), calls);
        assert_eq!(
            in_words(&call).content,
            "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"x\":1}}\n</tool_call>"
        );
        let mut result = ChatMessage { role: "tool".into(), content: "7".into(), ..ChatMessage::default() };
        result.extra.insert("tool_call_id".into(), json!("c1"));
        let result = in_words(&result);
        assert_eq!(
            (result.role.as_str(), result.content.as_str()),
            ("user", "<tool_response>\n7\n</tool_response>")
        );
        assert!(result.extra.is_empty());
        let text = description(&json!([{"type": "function", "function": {"name": "f"}}]));
        assert!(text.contains("{\"type\":\"function\",\"function\":{\"name\":\"f\"}}\n</tools>"), "{text}");
    }
}
