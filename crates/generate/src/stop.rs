//! Finds stop strings in streamed text and holds back what may become one.
//!
//! The outcome does not depend on how the text was cut into pieces: the match that ends first wins, the longest among
//! those that end together.

/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;

/// Longest stop string.
pub const MAX_STOP_STRING_BYTES: usize = 1024;

/// A stop string was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopMatch {
    /// Which one.
    pub stop_string: String,
}

/// Watches a stream of text.
///
/// Memory: never more than the longest stop string and one piece of text.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A watcher for `stops`; empty strings are ignored.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Takes `piece`, appends to `out` what certainly is no part of a stop string, and tells of a match.
    ///
    /// After a match the text before it is out, the stop string and all behind it are dropped.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<StopMatch> {
        if self.stops.is_empty() {
            out.push_str(piece);
            return None;
        }
        let known = self.held.len();
        self.held.push_str(piece);
        if let Some((start, stop)) = self.first_match(known) {
            let stop_string = self.stops[stop].clone();
            out.push_str(&self.held[..start]);
            self.held.clear();
            return Some(StopMatch { stop_string });
        }
        let hold_from = self.hold_from();
        out.push_str(&self.held[..hold_from]);
        self.held.drain(..hold_from);
        None
    }

    /// Appends what was held back: the stream ended and it became no stop string.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Start and index of the match that ends first; matches end behind the first `known` bytes.
    fn first_match(&self, known: usize) -> Option<(usize, usize)> {
        let mut best: Option<(usize, usize, usize)> = None;
        for (stop_idx, stop) in self.stops.iter().enumerate() {
            let from = floor_char_boundary(&self.held, known.saturating_sub(stop.len()));
            let Some(offset) = self.held[from..].find(stop.as_str()) else { continue };
            let start = from + offset;
            let end = start + stop.len();
            let better = best.is_none_or(|(best_end, best_start, _)| (end, start) < (best_end, best_start));
            if better {
                best = Some((end, start, stop_idx));
            }
        }
        best.map(|(_, start, stop_idx)| (start, stop_idx))
    }

    /// Where the longest ending that begins a stop string starts.
    fn hold_from(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = floor_char_boundary(&self.held, self.held.len().saturating_sub(longest));
        let begins_stop = |at: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]));
        let starts = self.held[from..].char_indices().map(|(offset, _)| from + offset);
        starts.into_iter().find(|&at| begins_stop(at)).unwrap_or(self.held.len())
    }
}

/// The last place at or before `at` where a character starts.
fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&place| text.is_char_boundary(place)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What comes out, piece by piece, and what matched.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops);
        let mut outs = Vec::new();
        for piece in pieces {
            let mut out = String::new();
            let found = matcher.push(piece, &mut out);
            outs.push(out);
            if let Some(found) = found {
                return (outs, Some(found.stop_string));
            }
        }
        let mut out = String::new();
        matcher.finish(&mut out);
        outs.push(out);
        (outs, None)
    }

    #[test]
    fn prefixes_are_held_and_stops_never_shown() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            (&[], &["a", "b"], &["a", "b", ""], None),
            (&["END"], &["one E", "N", "D two"], &["one ", "", ""], Some("END")),
            (&["END"], &["one E", "N", "F"], &["one ", "", "ENF", ""], None),
            (&["END"], &["E", "E", "ND"], &["", "E", ""], Some("END")),
            (&["aab"], &["a", "a", "a", "b"], &["", "", "a", ""], Some("aab")),
            (&["abcd", "bc"], &["abcd"], &["a"], Some("bc")),
            (&["abcd", "bc"], &["a", "b", "c", "d"], &["", "", "a"], Some("bc")),
            (&["c", "abc"], &["xabc"], &["x"], Some("abc")),
            (&["\n\n"], &["a\n", "b\n", "\nc"], &["a", "\nb", ""], Some("\n\n")),
            (&["é!"], &["caf", "é", "!"], &["caf", "", ""], Some("é!")),
            (&["é!"], &["é", "é"], &["", "é", "é"], None),
            (&["日本"], &["今日", "本"], &["今", ""], Some("日本")),
            (&["STOP"], &["ST"], &["", "ST"], None),
        ];
        for (stops, pieces, want, matched) in cases {
            let got = run(stops, pieces);
            let want = (want.iter().map(|s| (*s).to_owned()).collect(), matched.map(str::to_owned));
            assert_eq!(got, want, "stops {stops:?}, pieces {pieces:?}");
        }
    }

    /// The definition: the match that ends first, the longest of those.
    fn reference(stops: &[String], text: &str) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn pieces_do_not_change_the_outcome(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            text in "[abé]{0,24}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
            ends.extend([0, chars.len()]);
            ends.sort_unstable();
            let pieces: Vec<String> =
                ends.windows(2).map(|pair| chars[pair[0]..pair[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stop_strs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (outs, matched) = run(&stop_strs, &pieces);
            prop_assert_eq!((outs.concat(), matched), reference(&stops, &text));
        }
    }
}
