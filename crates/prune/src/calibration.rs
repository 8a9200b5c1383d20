//! The calibration set: unlabeled text cut into windows, and the held-out part nothing is fitted on.

use crate::error::PruneError;

/// Tokens of one calibration sequence.
pub const WINDOW_LEN: usize = 512;
/// Tokens used for fitting when the caller does not say.
pub const DEFAULT_CALIBRATION_TOKENS: usize = 32_768;
/// Fewest windows that make sense: one to fit on, one held out.
const MIN_WINDOWS: usize = 2;
/// One window in this many is held out.
const HELD_OUT_SHARE: usize = 9;
/// Held-out windows never exceed this; they cost time and fit nothing.
const MAX_HELD_OUT: usize = 8;

/// The text that is used when the user brings none: written for this purpose, see `data/README.md`.
#[must_use]
pub fn default_text() -> String {
    DEFAULT_PARTS.concat()
}

/// The documents of [`default_text`]. Any stretch of them is a mixture of all kinds.
pub fn default_documents() -> impl Iterator<Item = &'static str> {
    DEFAULT_PARTS.iter().flat_map(|part| part.split(DOCUMENT_END)).filter(|document| !document.is_empty())
}

/// What stands between two documents.
pub const DOCUMENT_END: &str = "\n\n\n";

const DEFAULT_PARTS: [&str; 18] = [
    include_str!("../data/calibration/01.txt"),
    include_str!("../data/calibration/02.txt"),
    include_str!("../data/calibration/03.txt"),
    include_str!("../data/calibration/04.txt"),
    include_str!("../data/calibration/05.txt"),
    include_str!("../data/calibration/06.txt"),
    include_str!("../data/calibration/07.txt"),
    include_str!("../data/calibration/08.txt"),
    include_str!("../data/calibration/09.txt"),
    include_str!("../data/calibration/10.txt"),
    include_str!("../data/calibration/11.txt"),
    include_str!("../data/calibration/12.txt"),
    include_str!("../data/calibration/13.txt"),
    include_str!("../data/calibration/14.txt"),
    include_str!("../data/calibration/15.txt"),
    include_str!("../data/calibration/16.txt"),
    include_str!("../data/calibration/17.txt"),
    include_str!("../data/calibration/18.txt"),
];

/// Tokens the pruner needs for `calibration_tokens` of fitting: the held-out windows come on top.
#[must_use]
pub fn tokens_needed(calibration_tokens: usize) -> usize {
    let fit = calibration_tokens.div_ceil(WINDOW_LEN).max(1);
    (fit + held_out_for(fit)) * WINDOW_LEN
}

fn held_out_for(fit: usize) -> usize {
    (fit / (HELD_OUT_SHARE - 1)).clamp(1, MAX_HELD_OUT)
}

/// Windows of [`WINDOW_LEN`] tokens; those for fitting first, then the held-out ones.
#[derive(Debug, Clone)]
pub(crate) struct CalibrationSet {
    tokens: Vec<u32>,
    n_fit: usize,
    n_held_out: usize,
}

impl CalibrationSet {
    /// Cuts `tokens` into windows. With fewer tokens than [`tokens_needed`] the held-out share stays.
    /// # Errors
    /// [`PruneError::TooFewTokens`] when there are not even two windows.
    pub(crate) fn new(mut tokens: Vec<u32>, calibration_tokens: usize) -> Result<Self, PruneError> {
        let got = tokens.len();
        let available = got / WINDOW_LEN;
        if available < MIN_WINDOWS {
            return Err(PruneError::TooFewTokens { got, needed: MIN_WINDOWS * WINDOW_LEN });
        }
        let asked = calibration_tokens.div_ceil(WINDOW_LEN).max(1);
        let n_fit = if asked + held_out_for(asked) <= available {
            asked
        } else {
            available - (available / HELD_OUT_SHARE).clamp(1, MAX_HELD_OUT)
        };
        let n_held_out = held_out_for(n_fit).min(available - n_fit);
        tokens.truncate((n_fit + n_held_out) * WINDOW_LEN);
        Ok(Self { tokens, n_fit, n_held_out })
    }

    /// Windows that are fitted on.
    pub(crate) fn n_fit(&self) -> usize {
        self.n_fit
    }

    /// All windows, the held-out ones last.
    pub(crate) fn n_windows(&self) -> usize {
        self.n_fit + self.n_held_out
    }

    /// Tokens that are fitted on.
    pub(crate) fn fit_tokens(&self) -> usize {
        self.n_fit * WINDOW_LEN
    }

    /// The tokens of window `window_idx`.
    pub(crate) fn window(&self, window_idx: usize) -> &[u32] {
        &self.tokens[window_idx * WINDOW_LEN..(window_idx + 1) * WINDOW_LEN]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_of_the_default_text_are_whole_and_all_of_it() {
        let documents: Vec<&str> = default_documents().collect();
        assert_eq!(documents.join(DOCUMENT_END), default_text());
        let is_whole =
            |document: &&str| document.matches("```").count().is_multiple_of(2) && document.len() < 16 << 10;
        assert!(documents.iter().all(is_whole));
    }

    #[test]
    fn split_keeps_a_held_out_part_at_every_size() {
        for (n_tokens, asked, want) in [
            (1024, 32_768, Some((1, 1))),
            (1023, 32_768, None),
            (5 * 512, 1024, Some((2, 1))),
            (100 * 512, 32_768, Some((64, 8))),
            (72 * 512, 32_768, Some((64, 8))),
            (71 * 512, 32_768, Some((64, 7))),
            (20 * 512, 32_768, Some((18, 2))),
        ] {
            let set = CalibrationSet::new(vec![0; n_tokens], asked).ok();
            let got = set.as_ref().map(|set| (set.n_fit(), set.n_windows() - set.n_fit()));
            assert_eq!(got, want, "{n_tokens} tokens, {asked} asked");
        }
        assert_eq!(tokens_needed(32_768), 72 * 512);
    }
}
