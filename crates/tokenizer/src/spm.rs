//! SentencePiece-style BPE: joins characters into whatever is a token, best score first.
//!
//! Spaces are ordinary characters here: the tokens' `▁` is read as a space when the vocabulary is built.
//! Text is worked through word by word where the vocabulary proves that to be the same as working through it
//! whole: no token has a space after something else, so no merge can cross from a word into the next word's spaces.

use crate::TokenizerError;
use crate::merge::{Joined, MergeScratch, NO_TOKEN, Symbol};
use crate::vocab::{TokenIndex, TokenKind, TokenTable};

/// The character that stands for a space in the tokens' texts.
pub(crate) const SPACE_MARK: char = '▁';

/// Scores and byte tokens.
#[derive(Debug)]
pub(crate) struct Spm {
    index: TokenIndex,
    /// By id; smaller is better.
    priorities: Vec<u32>,
    byte_ids: Box<[Option<u32>; 256]>,
    unknown_id: Option<u32>,
    words_are_separate: bool,
}

impl Spm {
    /// # Errors
    /// [`TokenizerError::ArrayLength`], [`TokenizerError::Score`], [`TokenizerError::DuplicateToken`] or
    /// [`TokenizerError::MissingByte`] when the vocabulary makes no sense.
    pub(crate) fn new(
        table: &TokenTable,
        is_mergeable: impl Fn(u32) -> bool,
        scores: &[f32],
        unknown_id: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        if scores.len() != table.len() {
            let (want, got) = (table.len(), scores.len());
            return Err(TokenizerError::ArrayLength { array: "tokenizer.ggml.scores", want, got });
        }
        let mut index = TokenIndex::with_capacity(table.len());
        let mut priorities = Vec::with_capacity(scores.len());
        let mut byte_ids = Box::new([None; 256]);
        let mut words_are_separate = true;
        for (id, &score) in table.ids().zip(scores) {
            if !score.is_finite() {
                return Err(TokenizerError::Score { id });
            }
            priorities.push(priority_of(score));
            let bytes = table.bytes_of(id).unwrap_or_default();
            match table.kind_of(id) {
                Some(TokenKind::Byte) => {
                    if let [byte] = bytes {
                        byte_ids[usize::from(*byte)].get_or_insert(id);
                    }
                }
                Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
                    if is_mergeable(id) && !bytes.is_empty() =>
                {
                    words_are_separate &= !bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
                    insert(&mut index, table, id)?;
                }
                _ => {}
            }
        }
        let missing = (0..=u8::MAX).find(|&byte| byte_ids[usize::from(byte)].is_none());
        if let (Some(byte), None) = (missing, unknown_id) {
            return Err(TokenizerError::MissingByte { byte });
        }
        Ok(Self { index, priorities, byte_ids, unknown_id, words_are_separate })
    }

    /// Appends the tokens of a text whose spaces are plain spaces.
    pub(crate) fn encode(
        &self,
        table: &TokenTable,
        text: &str,
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) {
        if !self.words_are_separate {
            return self.encode_word(table, text, scratch, out);
        }
        let mut start = 0;
        for (end, pair) in text.as_bytes().windows(2).enumerate() {
            if pair[0] != b' ' && pair[1] == b' ' {
                self.encode_word(table, &text[start..=end], scratch, out);
                start = end + 1;
            }
        }
        self.encode_word(table, &text[start..], scratch, out);
    }

    fn encode_word(&self, table: &TokenTable, word: &str, scratch: &mut MergeScratch, out: &mut Vec<u32>) {
        scratch.clear();
        for (start, c) in word.char_indices() {
            let bytes = &word.as_bytes()[start..start + c.len_utf8()];
            scratch.push(self.index.get(table, bytes).unwrap_or(NO_TOKEN), start);
        }
        scratch.run(word.len(), |left: Symbol, _, end| {
            let id = self.index.get(table, &word.as_bytes()[left.start as usize..end])?;
            Some(Joined { priority: *self.priorities.get(id as usize)?, id })
        });
        for (symbol, end) in scratch.symbols(word.len()) {
            if symbol.id == NO_TOKEN {
                self.push_bytes(&word.as_bytes()[symbol.start as usize..end], out);
            } else {
                out.push(symbol.id);
            }
        }
    }

    /// Appends the byte tokens of a character, or the unknown token when one of them is missing.
    fn push_bytes(&self, bytes: &[u8], out: &mut Vec<u32>) {
        let ids = bytes.iter().map(|&byte| self.byte_ids[usize::from(byte)]);
        match self.unknown_id {
            Some(unknown_id) if ids.clone().any(|id| id.is_none()) => out.push(unknown_id),
            _ => out.extend(ids.flatten()),
        }
    }

    /// True when every byte has a token, so that nothing becomes unknown.
    pub(crate) fn has_all_bytes(&self) -> bool {
        self.byte_ids.iter().all(Option::is_some)
    }
}

/// Reads `<0x0A>`.
pub(crate) fn parse_byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

fn insert(index: &mut TokenIndex, table: &TokenTable, id: u32) -> Result<(), TokenizerError> {
    let Some(first) = index.insert(table, id) else { return Ok(()) };
    let text = String::from_utf8_lossy(table.bytes_of(id).unwrap_or_default()).into_owned();
    Err(TokenizerError::DuplicateToken { text, first, second: id })
}

/// Maps scores to numbers that compare the other way round: the best score is the smallest number.
fn priority_of(score: f32) -> u32 {
    // Both zeros are one score.
    let bits = (score + 0.0).to_bits();
    let rising = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !rising
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_fall_as_scores_rise() {
        let scores = [f32::MIN, -2.5, -1.0, -0.0, 0.0, 1e-9, 3.0, f32::MAX];
        for pair in scores.windows(2) {
            let (low, high) = (priority_of(pair[0]), priority_of(pair[1]));
            assert!(if pair[0] == pair[1] { low == high } else { low > high }, "{pair:?}");
        }
    }

    #[test]
    fn byte_tokens() {
        for (text, want) in
            [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0x+1>", None), ("<0x1>", None), ("a", None)]
        {
            assert_eq!(parse_byte_token(text), want, "{text}");
        }
    }
}
