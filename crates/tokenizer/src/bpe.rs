//! Byte-level BPE: joins bytes by ranked merge rules.
//!
//! Memory: 12 bytes a rule and 4 bytes for each slot of the index (at most 3 slots a rule); 48,900 rules take
//! 0.8 MiB.

use crate::byte_level;
use crate::merge::{Joined, MergeScratch};
use crate::vocab::{TokenIndex, TokenKind, TokenTable, check_limit, n_slots};
use crate::{StringList, TokenizerError};
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

/// Most merge rules a vocabulary may have.
pub const MAX_MERGES: usize = 1 << 21;

/// Merge rules, found by the pair of tokens they join.
#[derive(Debug)]
pub(crate) struct Bpe {
    index: TokenIndex,
    /// The token of each byte.
    byte_ids: Box<[Option<u32>; 256]>,
    /// Left, right and united token, by rank.
    rules: Vec<[u32; 3]>,
    /// `rank + 1`, or 0 for a free slot.
    slots: Vec<u32>,
    hasher: RandomState,
    ignores_merges: bool,
}

impl Bpe {
    /// Reads the rules of a vocabulary.
    /// # Errors
    /// [`TokenizerError::DuplicateToken`] or [`TokenizerError::Merge`] when tokens or rules make no sense.
    pub(crate) fn new(
        table: &TokenTable,
        is_mergeable: impl Fn(u32) -> bool,
        merges: &dyn StringList,
        ignores_merges: bool,
    ) -> Result<Self, TokenizerError> {
        let index = index_of(table, is_mergeable)?;
        let mut byte_ids = Box::new([None; 256]);
        for byte in 0..=u8::MAX {
            byte_ids[usize::from(byte)] = index.get(table, &[byte]);
        }
        let rules = read_rules(table, &index, merges)?;
        let mut bpe = Self {
            index,
            byte_ids,
            slots: vec![0; n_slots(rules.len())],
            rules,
            hasher: RandomState::new(),
            ignores_merges,
        };
        for rank in 0..bpe.rules.len() {
            let [left, right, _] = bpe.rules[rank];
            // Of two rules for one pair the better one counts.
            if let Err(free) = bpe.probe(left, right) {
                bpe.slots[free] = rank as u32 + 1;
            }
        }
        Ok(bpe)
    }

    /// Appends the tokens of one piece of text. Bytes without a token are left out, as the tokenizer that such a
    /// model was trained with leaves them out.
    pub(crate) fn encode_piece(
        &self,
        table: &TokenTable,
        piece: &[u8],
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) {
        if self.ignores_merges
            && let Some(id) = self.index.get(table, piece)
        {
            out.push(id);
            return;
        }
        scratch.clear();
        for (start, &byte) in piece.iter().enumerate() {
            if let Some(id) = self.byte_ids[usize::from(byte)] {
                scratch.push(id, start);
            }
        }
        scratch.run(piece.len(), |left, right, _| {
            let rank = self.probe(left.id, right.id).ok()?;
            Some(Joined { priority: rank as u32, id: self.rules[rank][2] })
        });
        out.extend(scratch.symbols(piece.len()).map(|(symbol, _)| symbol.id));
    }

    /// The bytes that no token stands for.
    pub(crate) fn missing_bytes(&self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(|&byte| self.byte_ids[usize::from(byte)].is_none())
    }

    /// The rank of the rule for a pair, or the slot where it would go.
    fn probe(&self, left: u32, right: u32) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one((left, right)) as usize & mask;
        loop {
            let Some(rank) = self.slots[slot].checked_sub(1) else { return Err(slot) };
            let rank = rank as usize;
            let rule = self.rules[rank];
            if rule[0] == left && rule[1] == right {
                return Ok(rank);
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// Indexes the tokens that merges can name. Tokens cut out of raw text can be named too when their text means the
/// same in the alphabet of bytes; control tokens cannot, so that no text can be merged into one.
fn index_of(table: &TokenTable, is_mergeable: impl Fn(u32) -> bool) -> Result<TokenIndex, TokenizerError> {
    let mut index = TokenIndex::with_capacity(table.len());
    for id in table.ids() {
        let is_normal = table.kind_of(id) == Some(TokenKind::Normal);
        let bytes = table.bytes_of(id).unwrap_or_default();
        if !is_normal || bytes.is_empty() || !is_mergeable(id) {
            continue;
        }
        if let Some(first) = index.insert(table, id) {
            let text = String::from_utf8_lossy(bytes).into_owned();
            return Err(TokenizerError::DuplicateToken { text, first, second: id });
        }
    }
    for id in table.ids() {
        let is_user_defined = table.kind_of(id) == Some(TokenKind::UserDefined);
        let bytes = table.bytes_of(id).unwrap_or_default();
        if is_user_defined && !bytes.is_empty() && bytes.iter().all(u8::is_ascii_graphic) {
            // A normal token with the same bytes keeps its place.
            index.insert(table, id);
        }
    }
    Ok(index)
}

/// Reads the rules in order of rank. A rule with a control token in it is left out: text must not become one.
fn read_rules(
    table: &TokenTable,
    index: &TokenIndex,
    merges: &dyn StringList,
) -> Result<Vec<[u32; 3]>, TokenizerError> {
    let controls = control_texts(table);
    let texts = merges.texts();
    let mut rules = Vec::with_capacity(texts.size_hint().0.min(MAX_MERGES));
    let mut united = Vec::new();
    for (rank, text) in texts.enumerate() {
        check_limit("merges", rank + 1, MAX_MERGES)?;
        let wrong = |problem| TokenizerError::Merge { rank, text: text.chars().take(80).collect(), problem };
        // The search starts after the first character, which may itself be a space.
        let split = text.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(start, _)| start);
        let (left, right) = split.map(|at| (&text[..at], &text[at + 1..])).ok_or(wrong("it is no pair"))?;
        united.clear();
        if !byte_level::decode_into(left, &mut united) {
            return Err(wrong("the left part is outside the alphabet of bytes"));
        }
        let n_left = united.len();
        if !byte_level::decode_into(right, &mut united) {
            return Err(wrong("the right part is outside the alphabet of bytes"));
        }
        let parts = [
            (&united[..n_left], "the left part is no token"),
            (&united[n_left..], "the right part is no token"),
            (&united[..], "the union is no token"),
        ];
        if parts.iter().any(|(part, _)| controls.contains(part)) {
            continue;
        }
        let mut rule = [0; 3];
        for (id, (part, problem)) in rule.iter_mut().zip(parts) {
            *id = index.get(table, part).ok_or_else(|| wrong(problem))?;
        }
        rules.push(rule);
    }
    rules.shrink_to_fit();
    Ok(rules)
}

/// The texts of all control tokens.
fn control_texts(table: &TokenTable) -> BTreeSet<&[u8]> {
    let is_control = |&id: &u32| matches!(table.kind_of(id), Some(TokenKind::Control | TokenKind::Unknown));
    table.ids().filter(is_control).filter_map(|id| table.bytes_of(id)).collect()
}
