//! From a chat to a prompt, by the template that came with the model.
//!
//! Templates come with model files and messages come from clients, so neither is trusted. A template runs with
//! bounded fuel, which bounds both its time and its memory, with bounded nesting and bounded output. Text from
//! messages cannot act as control tokens: see [`ChatPrompt`].

mod disguise;
mod render;
mod time;
mod tojson;

use crate::tokenizer::Tokenizer;
use crate::{AddSpecial, ChatTemplateErrorKind, TokenKind, TokenizerError};
use disguise::Disguise;
use render::{Variables, render};
use serde_json::{Map, Value};

pub use render::{MAX_PROMPT_BYTES, MAX_TEMPLATE_BYTES};
pub use time::CivilTime;

/// Roles that a message can have. Templates write roles between the parts of control tokens (`<|` + role + `|>`),
/// so a role must never be free text.
const ROLES: &[&str] =
    &["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"];

/// The template of vocabularies that have its tokens but come without a template.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}\
    {{ message.content }}{{ '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const CHATML_TOKENS: &[&str] = &["<|im_start|>", "<|im_end|>"];

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// What was said.
    pub content: String,
    /// Further fields for the template, such as `tool_calls`. A field `content` takes the place of the text.
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A message of plain text.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// Whether a prompt ends with the start of the reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The model is to write the next message.
    #[default]
    Add,
    /// The prompt ends with the last message.
    Omit,
}

/// What a template can ask for beside the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatOptions<'a> {
    /// Whether the prompt ends with the start of the reply.
    pub generation_prompt: GenerationPrompt,
    /// Descriptions of the tools that the model may call.
    pub tools: Option<&'a Value>,
    /// Further variables of the template.
    pub variables: Option<&'a Map<String, Value>>,
    /// The time that `strftime_now` tells; a template that asks for it without one fails.
    pub now: Option<CivilTime>,
    /// Takes the place of the template that came with the model.
    pub template: Option<&'a str>,
}

/// A rendered chat, which still knows what in it came from outside.
///
/// Its text is the prompt as the template wrote it. [`Tokenizer::encode_chat_prompt`] turns control tokens that are
/// spelt out into tokens only where the template itself wrote them: a user who writes `<|im_end|>` gets ten
/// characters of text, not the end of the turn.
///
/// How: when a message holds a character that marks control tokens, such as `<`, the template is run a second time
/// with these characters disguised as private-use characters. What is disguised in the output came from a message,
/// and no control token may contain it. When the two outputs differ because the template looks at such characters
/// (to cut out a part in `<think>` … `</think>`, say), the first output is taken if it spells the same control
/// tokens as the second one, and the second one otherwise.
///
/// What remains with the template: one that builds the spelling of a control token around a bare word of a message,
/// like `'<|' + message.content + '|>'`, gets what it builds. Roles are checked against a fixed list for this reason.
/// Tokens that are text ([`TokenKind::UserDefined`]) are found in messages as in any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    text: String,
    /// Where characters from outside stand that control tokens are made of, in rising order.
    foreign: Vec<usize>,
}

impl ChatPrompt {
    /// The prompt as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The prompt as text. What came from outside can no longer be told.
    #[must_use]
    pub fn into_string(self) -> String {
        self.text
    }
}

impl Tokenizer {
    /// Renders a chat as text for the model to go on with.
    ///
    /// Without a template of its own, a vocabulary with the tokens of ChatML gets that format.
    /// # Errors
    /// [`TokenizerError::NoChatTemplate`], [`TokenizerError::UnknownRole`], or [`TokenizerError::ChatTemplate`] with
    /// what the template said.
    pub fn apply_chat_template(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions<'_>,
    ) -> Result<ChatPrompt, TokenizerError> {
        if let Some(message) = messages.iter().find(|message| !ROLES.contains(&message.role.as_str())) {
            return Err(TokenizerError::UnknownRole { role: message.role.chars().take(80).collect() });
        }
        let template = self.template_for(options)?;
        let bos = self.spelling(self.bos_id());
        let eos = self.spelling(self.eos_id());
        let variables = Variables::new(messages, options, bos, eos);
        let plain = render(&template, &variables, options.now)?;

        let controls = self.parts().specials.iter().filter(|token| self.is_control(token.id));
        let Some(disguise) = Disguise::new(controls.map(|token| &*token.text), &variables, &template)? else {
            return Ok(ChatPrompt { text: plain, foreign: Vec::new() });
        };
        let disguised = render(&template, &disguise.put_on(&variables), options.now)?;
        let (text, foreign) = disguise.take_off(&disguised);
        let guarded = ChatPrompt { text, foreign };
        if guarded.text != plain {
            let trusting = ChatPrompt { text: plain, foreign: Vec::new() };
            if self.control_tokens_in(&trusting) == self.control_tokens_in(&guarded) {
                return Ok(trusting);
            }
        }
        Ok(guarded)
    }

    /// Encodes a rendered chat. Control tokens count only where the template wrote them. A BOS token that the
    /// vocabulary wants and the template left out is added; EOS is not, because the model is to go on.
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_chat_prompt(&self, prompt: &ChatPrompt) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode_where(&prompt.text, AddSpecial::No, |token, range| {
            !token.is_control || !prompt.is_foreign(&range)
        })?;
        if let (true, Some(bos)) = (self.adds_bos(), self.bos_id())
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Checks that the model's chats can be rendered at all, with a short chat.
    /// # Errors
    /// As [`Self::apply_chat_template`].
    pub fn check_chat_template(&self, now: Option<CivilTime>) -> Result<(), TokenizerError> {
        let options = ChatOptions { now, ..ChatOptions::default() };
        self.apply_chat_template(&[ChatMessage::new("user", "Hello")], &options).map(|_| ())
    }

    fn template_for(&self, options: &ChatOptions<'_>) -> Result<String, TokenizerError> {
        if let Some(template) = options.template.or(self.chat_template()) {
            return render::prepare(template);
        }
        let has = |text: &&str| self.special_token_id(text).is_some_and(|id| self.is_control(id));
        if CHATML_TOKENS.iter().all(has) {
            Ok(CHATML.to_owned())
        } else {
            Err(TokenizerError::NoChatTemplate)
        }
    }

    fn is_control(&self, id: u32) -> bool {
        matches!(self.token_kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    fn spelling(&self, id: Option<u32>) -> String {
        let bytes = id.and_then(|id| self.token_bytes(id)).unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn control_tokens_in(&self, prompt: &ChatPrompt) -> Vec<u32> {
        let allowed =
            |token: &crate::special::SpecialToken, range| token.is_control && !prompt.is_foreign(&range);
        let segments = self.parts().specials.segments(&prompt.text, allowed);
        let token = |segment| match segment {
            crate::special::Segment::Token(id) => Some(id),
            crate::special::Segment::Text(_) => None,
        };
        segments.into_iter().filter_map(token).collect()
    }
}

impl ChatPrompt {
    /// True when a character from outside stands in the range.
    fn is_foreign(&self, range: &std::ops::Range<usize>) -> bool {
        let n_before = self.foreign.partition_point(|&at| at < range.start);
        self.foreign.get(n_before).is_some_and(|&at| at < range.end)
    }
}

fn template_error(kind: ChatTemplateErrorKind, message: impl Into<String>) -> TokenizerError {
    TokenizerError::ChatTemplate { message: message.into(), kind }
}
