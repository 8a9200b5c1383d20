//! Joins neighbouring symbols, best pair first, until no pair is left that may be joined.
//!
//! One queue serves both kinds of vocabularies: the rank of a merge rule and the score of a token both become a
//! priority. Time: `O(n log n)` for a piece of `n` symbols. Memory: 16 bytes a symbol and 16 bytes a waiting pair,
//! kept in a [`MergeScratch`] and used again for the next piece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A symbol that is no token, such as a character without one.
pub(crate) const NO_TOKEN: u32 = u32::MAX;
const NONE: u32 = u32::MAX;
/// Most bytes of a piece; positions are 32 bits wide.
pub(crate) const MAX_PIECE_BYTES: usize = 1 << 30;

/// A stretch of the piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol {
    /// The token, or [`NO_TOKEN`].
    pub(crate) id: u32,
    /// Where it starts in the piece, in bytes.
    pub(crate) start: u32,
    prev: u32,
    next: u32,
}

/// A pair that waits to be joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    /// The priority above, the index of the left symbol below: better pairs, and of equals the leftmost, are smaller.
    order: u64,
    /// What the two symbols were when the pair was found.
    ids: (u32, u32),
}

/// Room for the symbols of a piece and the pairs that wait to be joined.
#[derive(Debug, Default)]
pub(crate) struct MergeScratch {
    symbols: Vec<Symbol>,
    pairs: BinaryHeap<Reverse<Pair>>,
}

/// What two neighbours become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined {
    /// The smallest is joined first.
    pub(crate) priority: u32,
    /// The token of both together.
    pub(crate) id: u32,
}

impl MergeScratch {
    /// Forgets the last piece.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.pairs.clear();
    }

    /// Adds a symbol at the right end.
    pub(crate) fn push(&mut self, id: u32, start: usize) {
        let idx = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = idx;
        }
        let prev = idx.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { id, start: start as u32, prev, next: NONE });
    }

    /// Joins all that `join(left, right, end)` allows, where `end` is the end of `right` in a piece of
    /// `piece_len` bytes.
    pub(crate) fn run(&mut self, piece_len: usize, join: impl Fn(Symbol, Symbol, usize) -> Option<Joined>) {
        // Building the heap at once is linear; pushing one pair after the other is not.
        let mut pairs = std::mem::take(&mut self.pairs).into_vec();
        pairs.extend((0..self.symbols.len() as u32).filter_map(|left| self.pair(left, piece_len, &join)));
        self.pairs = pairs.into();
        while let Some(Reverse(Pair { order, ids: (left_id, right_id) })) = self.pairs.pop() {
            let left_idx = order as u32;
            let left = self.symbols[left_idx as usize];
            if left.id != left_id || left.next == NONE {
                continue;
            }
            let right = self.symbols[left.next as usize];
            if right.id != right_id {
                continue;
            }
            let Some(joined) = join(left, right, self.end_of(right, piece_len)) else { continue };
            self.unite(left_idx, joined.id);
            let before = (left.prev != NONE).then(|| self.pair(left.prev, piece_len, &join)).flatten();
            self.pairs.extend(before);
            self.pairs.extend(self.pair(left_idx, piece_len, &join));
        }
    }

    /// The symbols that are left, each with the end of its bytes.
    pub(crate) fn symbols(&self, piece_len: usize) -> impl Iterator<Item = (Symbol, usize)> {
        let mut next = if self.symbols.is_empty() { NONE } else { 0 };
        std::iter::from_fn(move || {
            let symbol = *self.symbols.get(next as usize)?;
            next = symbol.next;
            Some((symbol, self.end_of(symbol, piece_len)))
        })
    }

    fn end_of(&self, symbol: Symbol, piece_len: usize) -> usize {
        self.symbols.get(symbol.next as usize).map_or(piece_len, |next| next.start as usize)
    }

    /// The pair that starts with the symbol `left_idx`, if it may be joined.
    fn pair(
        &self,
        left_idx: u32,
        piece_len: usize,
        join: &impl Fn(Symbol, Symbol, usize) -> Option<Joined>,
    ) -> Option<Reverse<Pair>> {
        let left = self.symbols[left_idx as usize];
        let &right = self.symbols.get(left.next as usize)?;
        let joined = join(left, right, self.end_of(right, piece_len))?;
        let order = u64::from(joined.priority) << 32 | u64::from(left_idx);
        Some(Reverse(Pair { order, ids: (left.id, right.id) }))
    }

    /// Lets the symbol swallow its right neighbour.
    fn unite(&mut self, left_idx: u32, id: u32) {
        let right_idx = self.symbols[left_idx as usize].next;
        let after = self.symbols[right_idx as usize].next;
        // A swallowed symbol must not look alive to a pair that still waits with it on the left.
        self.symbols[right_idx as usize].next = NONE;
        let left = &mut self.symbols[left_idx as usize];
        left.id = id;
        left.next = after;
        if let Some(next) = self.symbols.get_mut(after as usize) {
            next.prev = left_idx;
        }
    }
}
