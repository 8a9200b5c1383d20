//! Finds the tokens that are cut out of raw text before anything is merged.
//!
//! Of several tokens that match at one place the longest wins; the text is searched from left to right. The search
//! walks a sorted list byte by byte, so its time at one place is bounded by the length of the match, however many
//! tokens there are.

use std::ops::Range;

/// A token that is cut out of raw text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SpecialToken {
    pub(crate) text: Box<str>,
    pub(crate) id: u32,
    /// True for tokens that steer the model; false for plain text that happens to be one token.
    pub(crate) is_control: bool,
    /// White space before the token belongs to it.
    pub(crate) eats_left: bool,
    /// White space after the token belongs to it.
    pub(crate) eats_right: bool,
}

/// All tokens that are cut out of raw text.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    /// In rising order of text, none empty.
    sorted: Vec<SpecialToken>,
    starts: Box<[bool; 256]>,
}

/// A stretch of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Ordinary text, never empty.
    Text(Range<usize>),
    /// A token that was spelt out.
    Token(u32),
}

impl SpecialTokens {
    pub(crate) fn new(tokens: impl IntoIterator<Item = SpecialToken>) -> Self {
        let mut sorted: Vec<_> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        sorted.sort();
        sorted.shrink_to_fit();
        let mut starts = Box::new([false; 256]);
        for token in &sorted {
            starts[usize::from(token.text.as_bytes()[0])] = true;
        }
        Self { sorted, starts }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &SpecialToken> {
        self.sorted.iter()
    }

    /// Cuts `text` at every token for which `allowed(token, where)` is true.
    pub(crate) fn segments(
        &self,
        text: &str,
        allowed: impl Fn(&SpecialToken, Range<usize>) -> bool,
    ) -> Vec<Segment> {
        let mut segments = Vec::new();
        let (mut pos, mut text_start) = (0, 0);
        while let Some(&byte) = text.as_bytes().get(pos) {
            let found =
                self.starts[usize::from(byte)].then(|| self.longest_at(text, pos, &allowed)).flatten();
            let Some(token) = found else {
                pos += 1;
                continue;
            };
            let mut text_end = pos;
            pos += token.text.len();
            if token.eats_left {
                text_end = text_start + text[text_start..text_end].trim_end().len();
            }
            if token.eats_right {
                pos = text.len() - text[pos..].trim_start().len();
            }
            if text_start < text_end {
                segments.push(Segment::Text(text_start..text_end));
            }
            segments.push(Segment::Token(token.id));
            text_start = pos;
        }
        if text_start < text.len() {
            segments.push(Segment::Text(text_start..text.len()));
        }
        segments
    }

    /// The longest allowed token that `text` spells at `pos`.
    fn longest_at(
        &self,
        text: &str,
        pos: usize,
        allowed: impl Fn(&SpecialToken, Range<usize>) -> bool,
    ) -> Option<&SpecialToken> {
        let mut candidates = &self.sorted[..];
        let mut best = None;
        for (depth, &byte) in text.as_bytes()[pos..].iter().enumerate() {
            let byte_at = |token: &SpecialToken| token.text.as_bytes().get(depth).copied();
            let from = candidates.partition_point(|token| byte_at(token) < Some(byte));
            let to = candidates.partition_point(|token| byte_at(token) <= Some(byte));
            candidates = &candidates[from..to];
            let Some(first) = candidates.first() else { break };
            if first.text.len() == depth + 1 && allowed(first, pos..pos + depth + 1) {
                best = Some(first);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, id: u32) -> SpecialToken {
        SpecialToken { text: text.into(), id, is_control: true, eats_left: false, eats_right: false }
    }

    fn cut(tokens: &[SpecialToken], text: &str) -> String {
        let specials = SpecialTokens::new(tokens.iter().cloned());
        let segments = specials.segments(text, |_, _| true);
        let shown = segments.into_iter().map(|segment| match segment {
            Segment::Text(range) => format!("({})", &text[range]),
            Segment::Token(id) => format!("[{id}]"),
        });
        shown.collect()
    }

    #[test]
    fn longest_token_wins_from_left_to_right() {
        let tokens = [token("<a>", 1), token("<a>b", 2), token("b", 3), token("<ab>", 4), token("é", 5)];
        let cases = [
            ("", ""),
            ("x", "(x)"),
            ("<a>", "[1]"),
            ("x<a>bb<a", "(x)[2][3](<a)"),
            ("<ab><a><", "[4][1](<)"),
            ("eé\u{301}", "(e)[5](\u{301})"),
        ];
        for (text, want) in cases {
            assert_eq!(cut(&tokens, text), want, "{text}");
        }
    }

    #[test]
    fn white_space_beside_a_token_can_belong_to_it() {
        let mut eager = token("<x>", 1);
        eager.eats_left = true;
        eager.eats_right = true;
        assert_eq!(cut(&[eager], " a \n<x> \t<x>b "), "( a)[1][1](b )");
    }

    #[test]
    fn a_refused_match_leaves_shorter_ones() {
        let specials = SpecialTokens::new([token("<a>", 1), token("<a>b", 2)]);
        let segments = specials.segments("<a>b", |token, _| token.id == 1);
        assert_eq!(segments, [Segment::Token(1), Segment::Text(3..4)]);
    }
}
