//! Marks what came from outside by writing it with other characters.
//!
//! The characters that control tokens are recognised by (`<`, `|`, `>`, `[`, …) get a twin in a private-use block
//! that nothing in the chat uses. Text has the same number of characters with twins in it, so that a template trims
//! and splits it as before.

use super::render::Variables;
use super::template_error;
use crate::{ChatTemplateErrorKind, TokenizerError};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// First of 256 blocks of 256 private-use characters each.
const FIRST_BLOCK: u32 = 0x10_0000;
const BLOCK_SIZE: u32 = 256;
const N_BLOCKS: usize = 255;
/// Most distinct characters that get a twin.
const MAX_GUARDS: usize = BLOCK_SIZE as usize;

/// Characters and the block where their twins are.
#[derive(Debug)]
pub(super) struct Disguise {
    /// In rising order.
    guards: Vec<char>,
    block: u32,
}

impl Disguise {
    /// Makes a disguise for a chat; `None` when nothing from outside holds a character of a control token.
    /// # Errors
    /// [`TokenizerError::ChatTemplate`] of kind [`ChatTemplateErrorKind::Limit`] when there are no twins left.
    pub(super) fn new<'t>(
        controls: impl Iterator<Item = &'t str>,
        variables: &Variables,
        template: &str,
    ) -> Result<Option<Self>, TokenizerError> {
        let guards: BTreeSet<char> = controls.flat_map(guards_of).collect();
        let mut is_needed = false;
        for_each_text(variables, &mut |text| is_needed |= text.contains(|c| guards.contains(&c)));
        if !is_needed {
            return Ok(None);
        }
        let mut used_blocks = [false; N_BLOCKS];
        let mut look = |text: &str| {
            for c in text.chars() {
                let block = u32::from(c).checked_sub(FIRST_BLOCK).map(|offset| offset / BLOCK_SIZE);
                if let Some(used) = block.and_then(|block| used_blocks.get_mut(block as usize)) {
                    *used = true;
                }
            }
        };
        for_each_text(variables, &mut look);
        look(template);
        let free = used_blocks.iter().position(|used| !used);
        let (Some(block), true) = (free, guards.len() <= MAX_GUARDS) else {
            let message = "no private-use characters are left to mark foreign text with";
            return Err(template_error(ChatTemplateErrorKind::Limit, message));
        };
        let block = FIRST_BLOCK + block as u32 * BLOCK_SIZE;
        Ok(Some(Self { guards: guards.into_iter().collect(), block }))
    }

    /// The same chat with disguised text.
    pub(super) fn put_on(&self, variables: &Variables) -> Variables {
        Variables {
            messages: variables.messages.iter().map(|fields| self.map(fields)).collect(),
            tools: self.value(&variables.tools),
            others: self.map(&variables.others),
            ..variables.clone()
        }
    }

    /// The text without its disguise, and where in it a disguised character stood, in rising order.
    pub(super) fn take_off(&self, disguised: &str) -> (String, Vec<usize>) {
        let mut text = String::with_capacity(disguised.len());
        let mut foreign = Vec::new();
        for c in disguised.chars() {
            let idx = u32::from(c).checked_sub(self.block);
            match idx.and_then(|idx| self.guards.get(idx as usize)) {
                Some(&guard) => {
                    foreign.push(text.len());
                    text.push(guard);
                }
                None => text.push(c),
            }
        }
        (text, foreign)
    }

    fn map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        let key = |key: &String| if is_word(key) { key.clone() } else { self.text(key) };
        map.iter().map(|(name, value)| (key(name), self.value(value))).collect()
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item)).collect()),
            Value::Object(map) => Value::Object(self.map(map)),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn text(&self, text: &str) -> String {
        let twin = |c: char| {
            let idx = self.guards.binary_search(&c).ok()?;
            char::from_u32(self.block + idx as u32)
        };
        text.chars().map(|c| twin(c).unwrap_or(c)).collect()
    }
}

/// Names of fields, which templates ask for.
fn is_word(text: &str) -> bool {
    text.chars().all(is_word_char)
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The characters without which a control token cannot be spelt: its punctuation, or else how it starts and ends.
fn guards_of(control: &str) -> Vec<char> {
    let punctuation: Vec<_> = control.chars().filter(|&c| !is_word_char(c) && !c.is_whitespace()).collect();
    if punctuation.is_empty() {
        control.chars().take(1).chain(control.chars().last()).collect()
    } else {
        punctuation
    }
}

fn for_each_text(variables: &Variables, look: &mut impl FnMut(&str)) {
    variables.messages.iter().chain([&variables.others]).for_each(|map| for_each_in_map(map, look));
    for_each_in(&variables.tools, look);
}

fn for_each_in_map(map: &Map<String, Value>, look: &mut impl FnMut(&str)) {
    for (key, value) in map {
        look(key);
        for_each_in(value, look);
    }
}

fn for_each_in(value: &Value, look: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| for_each_in(item, look)),
        Value::Object(map) => for_each_in_map(map, look),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
