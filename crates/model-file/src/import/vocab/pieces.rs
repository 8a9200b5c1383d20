//! Scores for the tokens of a SentencePiece vocabulary that comes as a list of merges.
//!
//! GGUF's `llama` model joins the two neighbours whose joined token has the best score; a list of merges joins the
//! two neighbours whose rule comes first. They are the same when the list was made from scores: it then has a rule
//! for every way to split a token into two tokens, and all rules of one token stand together. Both are checked.

use super::json::{Merges, Texts};
use crate::import::ImportError;
use std::collections::{HashMap, HashSet};

/// Longest token whose splits are looked at.
const MAX_TOKEN_BYTES: usize = 1 << 10;

/// The score of each token of `n_tokens`: higher is joined earlier.
pub(super) fn scores(vocab: &Texts, merges: &Merges, n_tokens: usize) -> Result<Vec<f32>, ImportError> {
    let ids: HashMap<&str, u32> = vocab.iter().map(|(id, text)| (text, id)).collect();
    let unlike = |why: String| ImportError::Tokenizer(format!("merges unlike SentencePiece's ({why})"));
    let mut ranks: Vec<Option<u32>> = vec![None; n_tokens];
    let mut pairs = HashSet::new();
    let (mut rank, mut last) = (0u32, None);
    for (left, right) in merges.iter() {
        let id = |text: &str| ids.get(text).copied();
        let joined = [left, right].concat();
        let (Some(left), Some(right), Some(token)) = (id(left), id(right), id(&joined)) else {
            return Err(ImportError::Vocabulary(format!("a merge makes {joined:?}, which is no token")));
        };
        let slot = ranks
            .get_mut(token as usize)
            .ok_or_else(|| ImportError::Vocabulary(format!("token {token} is beyond the token table")))?;
        if last != Some(token) {
            if slot.is_some() {
                return Err(unlike(format!("the rules of {joined:?} do not stand together")));
            }
            rank += 1;
            *slot = Some(rank);
            last = Some(token);
        }
        pairs.insert((left, right));
    }
    for (_, text) in vocab.iter() {
        if let Some((left, right)) = missing_rule(text, &ids, &pairs)? {
            return Err(unlike(format!("there is none of {left:?} and {right:?}")));
        }
    }
    let lowest = rank + 1;
    Ok(ranks.into_iter().map(|rank| -(rank.unwrap_or(lowest) as f32)).collect())
}

/// Two tokens that make the token `text` without a rule that says so.
fn missing_rule<'t>(
    text: &'t str,
    ids: &HashMap<&str, u32>,
    pairs: &HashSet<(u32, u32)>,
) -> Result<Option<(&'t str, &'t str)>, ImportError> {
    if super::byte_of(text).is_some() || super::looks_special(text) {
        return Ok(None);
    }
    if MAX_TOKEN_BYTES < text.len() {
        return Err(ImportError::Vocabulary(format!("a token of {} bytes", text.len())));
    }
    let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
    let mut found = splits.filter(|(left, right)| {
        let both = ids.get(left).zip(ids.get(right));
        both.is_some_and(|(&left, &right)| !pairs.contains(&(left, right)))
    });
    Ok(found.next())
}
