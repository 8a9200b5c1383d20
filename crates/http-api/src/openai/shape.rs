//! What distinguishes chat answers from completions: the objects around text, logprobs and finish reasons.

use super::tools::{Call, CallReader, Tools};
use secateur_service::api::{Prompt, TokenLogprobView, TokenLogprobsView};
use serde_json::{Map, Value, json};

/// Renders the choices of one kind of answer.
pub(crate) trait Shape: Send + 'static {
    /// `object` of a whole answer.
    const WHOLE: &'static str;
    /// `object` of a chunk of a stream.
    const CHUNK: &'static str;

    /// The first chunk of a choice, if it has one before any text.
    fn opening(&mut self, choice: usize) -> Option<Value>;

    /// A chunk with text, if there is something to say yet.
    fn delta(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView]) -> Option<Value>;

    /// The last chunks of a choice.
    fn closing(&mut self, choice: usize, reason: &str) -> Vec<Value>;

    /// A whole choice.
    fn whole(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView], reason: &str) -> Value;
}

/// `chat.completion`.
pub(crate) struct ChatShape {
    /// The client asked for logprobs.
    logprobs: bool,
    tools: Tools,
    /// Of the choice at work.
    reader: CallReader,
}

impl ChatShape {
    pub(crate) fn new(logprobs: bool, tools: Tools) -> Self {
        Self { logprobs, reader: CallReader::new(&tools), tools }
    }

    fn logprobs(&self, logprobs: &[TokenLogprobsView]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let entry = |token: &TokenLogprobView| json!({"token": token.token, "logprob": token.logprob, "bytes": token.bytes});
        let content: Vec<Value> = logprobs
            .iter()
            .map(|token| {
                let mut chosen = entry(&token.chosen);
                chosen["top_logprobs"] = token.top.iter().map(entry).collect();
                chosen
            })
            .collect();
        json!({"content": content, "refusal": null})
    }
}

impl Shape for ChatShape {
    const WHOLE: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";

    fn opening(&mut self, choice: usize) -> Option<Value> {
        self.reader = CallReader::new(&self.tools);
        let delta = json!({"role": "assistant", "content": ""});
        Some(json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": null}))
    }

    fn delta(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView]) -> Option<Value> {
        let said = self.reader.push(text);
        let logprobs = self.logprobs(logprobs);
        // Text that may become a call waits; its logprobs do not.
        let is_worth_it = !said.is_empty() || !logprobs.is_null();
        is_worth_it.then(|| {
            json!({"index": choice, "delta": {"content": said}, "logprobs": logprobs, "finish_reason": null})
        })
    }

    fn closing(&mut self, choice: usize, reason: &str) -> Vec<Value> {
        let (left, calls) = self.reader.finish();
        let chunk = |delta: Value, reason: Value| json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": reason});
        let mut chunks = Vec::new();
        if !left.is_empty() {
            chunks.push(chunk(json!({"content": left}), Value::Null));
        }
        for (idx, call) in calls.iter().enumerate() {
            let mut object = call.object();
            object["index"] = idx.into();
            chunks.push(chunk(json!({"tool_calls": [object]}), Value::Null));
        }
        chunks.push(chunk(json!({}), end_reason(reason, &calls).into()));
        chunks
    }

    fn whole(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView], reason: &str) -> Value {
        self.reader = CallReader::new(&self.tools);
        let mut said = self.reader.push(text);
        let (left, calls) = self.reader.finish();
        said.push_str(&left);
        let mut message = json!({"role": "assistant", "content": said, "refusal": null});
        if !calls.is_empty() {
            if said.is_empty() {
                message["content"] = Value::Null;
            }
            message["tool_calls"] = calls.iter().map(Call::object).collect();
        }
        json!({
            "index": choice,
            "message": message,
            "logprobs": self.logprobs(logprobs),
            "finish_reason": end_reason(reason, &calls),
        })
    }
}

/// Calls are a reason of their own, unless the answer was cut off.
fn end_reason<'a>(reason: &'a str, calls: &[Call]) -> &'a str {
    if calls.is_empty() || reason != "stop" { reason } else { "tool_calls" }
}

/// `text_completion`.
pub(crate) struct CompletionShape {
    /// The client asked for logprobs.
    logprobs: bool,
    /// Text to repeat before each choice; empty without `echo`.
    echoes: Vec<String>,
    /// Characters of each choice so far: where its next token starts.
    offsets: Vec<usize>,
}

impl CompletionShape {
    /// Choices are numbered prompt by prompt.
    pub(crate) fn new(prompts: &[Prompt], n_choices: usize, echo: bool, logprobs: bool) -> Self {
        let echo_of = |prompt: &Prompt| match prompt {
            Prompt::Text(text) if echo => text.clone(),
            _ => String::new(),
        };
        let echoes =
            prompts.iter().flat_map(|prompt| std::iter::repeat_n(echo_of(prompt), n_choices)).collect();
        Self { logprobs, echoes, offsets: vec![0; prompts.len() * n_choices] }
    }

    fn logprobs(&mut self, choice: usize, logprobs: &[TokenLogprobsView]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let offset = &mut self.offsets[choice];
        let (mut tokens, mut values, mut tops, mut offsets) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for TokenLogprobsView { chosen, top } in logprobs {
            tokens.push(Value::from(chosen.token.as_str()));
            values.push(Value::from(chosen.logprob));
            let top = top.iter().map(|token| (token.token.clone(), Value::from(token.logprob)));
            tops.push(Value::Object(top.collect::<Map<_, _>>()));
            offsets.push(Value::from(*offset));
            *offset += chosen.token.chars().count();
        }
        json!({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
    }
}

impl Shape for CompletionShape {
    const WHOLE: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";

    fn opening(&mut self, choice: usize) -> Option<Value> {
        let echo = std::mem::take(&mut self.echoes[choice]);
        (!echo.is_empty())
            .then(|| json!({"index": choice, "text": echo, "logprobs": null, "finish_reason": null}))
    }

    fn delta(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView]) -> Option<Value> {
        let logprobs = self.logprobs(choice, logprobs);
        Some(json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": null}))
    }

    fn closing(&mut self, choice: usize, reason: &str) -> Vec<Value> {
        vec![json!({"index": choice, "text": "", "logprobs": null, "finish_reason": reason})]
    }

    fn whole(&mut self, choice: usize, text: &str, logprobs: &[TokenLogprobsView], reason: &str) -> Value {
        let text = std::mem::take(&mut self.echoes[choice]) + text;
        let logprobs = self.logprobs(choice, logprobs);
        json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason})
    }
}
