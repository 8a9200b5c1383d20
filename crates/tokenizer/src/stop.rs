//! Which tokens end a reply, found by their texts.
//!
//! Files name one EOS token, but chat models end their turns with another one, and many files do not say which.
//! Like stock runtimes, this looks for the texts that are known to end a turn.

use crate::TokenizerError;
use crate::vocab::{TokenKind, TokenTable};
use std::collections::{BTreeMap, BTreeSet};

/// The tokens that a file names for a purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Start of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message that is not yet the end of the turn.
    pub eom: Option<u32>,
    /// Stands for what has no token.
    pub unk: Option<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
}

impl SpecialIds {
    /// # Errors
    /// [`TokenizerError::SpecialTokenOutOfRange`] when an id is outside a vocabulary of this size.
    pub(crate) fn check(&self, vocab_size: usize) -> Result<(), TokenizerError> {
        let named = [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
        ];
        let outside = named
            .iter()
            .find_map(|&(name, id)| id.filter(|&id| id as usize >= vocab_size).map(|id| (name, id)));
        let Some((name, id)) = outside else { return Ok(()) };
        Err(TokenizerError::SpecialTokenOutOfRange { name, id, vocab_size })
    }
}

/// Ends a turn; earlier ones are preferred as *the* end of a turn when the file names none.
const END_OF_TURN: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];
const END_OF_MESSAGE: &str = "<|eom_id|>";
/// Ends a reply, beside those above.
const END_OF_REPLY: &[&str] = &[
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    END_OF_MESSAGE,
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
];
/// Code models write these when a file is complete.
const END_OF_FILE: &[&[&str]] = &[
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];
/// Parts of a reply's own structure that a reader must see.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Finds the tokens that end a reply, completes `special` and corrects the kinds of such tokens in `table`.
/// # Errors
/// [`TokenizerError::SpecialTokenOutOfRange`] when an id is outside the vocabulary.
pub(crate) fn find_stop_ids(
    table: &mut TokenTable,
    special: &mut SpecialIds,
) -> Result<BTreeSet<u32>, TokenizerError> {
    special.check(table.len())?;
    let known = known_tokens(table);
    let first_of = |texts: &[&str]| texts.iter().find_map(|text| known.get(text).copied());
    let all_of = |texts: &'static [&'static str]| texts.iter().filter_map(|text| known.get(text).copied());

    special.eot = special.eot.or(first_of(END_OF_TURN));
    special.eom = special.eom.or(first_of(&[END_OF_MESSAGE]));
    let mut stop_ids: BTreeSet<u32> = all_of(END_OF_TURN).chain(all_of(END_OF_REPLY)).collect();
    stop_ids.extend(END_OF_FILE.iter().filter_map(|texts| first_of(texts)));
    for &id in &stop_ids {
        table.set_kind(id, TokenKind::Control);
    }
    for id in all_of(ALWAYS_SHOWN) {
        table.set_kind(id, TokenKind::UserDefined);
    }
    stop_ids.extend([special.eos, special.eot, special.eom].into_iter().flatten());

    let found = stop_ids.clone();
    let has = |text| known.get(text).is_some_and(|id| found.contains(id));
    let end_separates_messages =
        (has("<|return|>") && has("<|call|>")) || ((has("<|call|>") || has("<|calls|>")) && has("<|flush|>"));
    if let (true, Some(&end)) = (end_separates_messages, known.get("<|end|>")) {
        stop_ids.remove(&end);
        table.set_kind(end, TokenKind::UserDefined);
    }
    if let (true, Some(id)) = (has("<|tool_response>"), known.get("</s>")) {
        stop_ids.remove(id);
    }
    Ok(stop_ids)
}

/// The ids of all tokens whose texts appear above.
fn known_tokens(table: &TokenTable) -> BTreeMap<&'static str, u32> {
    let lists = [END_OF_TURN, END_OF_REPLY, ALWAYS_SHOWN].into_iter().chain(END_OF_FILE.iter().copied());
    let texts: BTreeMap<&[u8], &'static str> = lists.flatten().map(|text| (text.as_bytes(), *text)).collect();
    let mut known = BTreeMap::new();
    for id in table.ids() {
        if let Some(text) = table.bytes_of(id).and_then(|bytes| texts.get(bytes)) {
            known.entry(*text).or_insert(id);
        }
    }
    known
}
