//! Character classes of the splitting patterns: `\p{L}`, `\p{N}`, `\s`, and all the rest.
//!
//! Memory: about 6 KiB of ranges, made once per process.

use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

/// What a splitting pattern can ask about a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CharClass {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`
    Space,
    /// None of the others.
    Other,
}

/// Inclusive ranges in rising order.
type Ranges = Vec<(char, char)>;

static LETTERS: LazyLock<Ranges> = LazyLock::new(|| ranges_of(r"\p{L}"));
static NUMBERS: LazyLock<Ranges> = LazyLock::new(|| ranges_of(r"\p{N}"));

/// Returns the class of a character.
pub(crate) fn class_of(c: char) -> CharClass {
    match c {
        'a'..='z' | 'A'..='Z' => CharClass::Letter,
        '0'..='9' => CharClass::Number,
        ' ' | '\t'..='\r' => CharClass::Space,
        '\0'..='\x7f' => CharClass::Other,
        _ if contains(&LETTERS, c) => CharClass::Letter,
        _ if contains(&NUMBERS, c) => CharClass::Number,
        _ if c.is_whitespace() => CharClass::Space,
        _ => CharClass::Other,
    }
}

fn contains(ranges: &Ranges, c: char) -> bool {
    let n_before = ranges.partition_point(|&(_, last)| last < c);
    ranges.get(n_before).is_some_and(|&(first, _)| first <= c)
}

fn ranges_of(pattern: &str) -> Ranges {
    let parsed = regex_syntax::parse(pattern).expect("a general category is a valid pattern");
    match parsed.kind() {
        HirKind::Class(Class::Unicode(class)) => {
            class.ranges().iter().map(|range| (range.start(), range.end())).collect()
        }
        other => unreachable!("a general category is a class of characters, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_odd_characters() {
        let cases = [
            ('é', CharClass::Letter),
            ('ſ', CharClass::Letter),
            ('語', CharClass::Letter),
            ('\u{10FFFF}', CharClass::Other),
            ('Ⅷ', CharClass::Number),
            ('½', CharClass::Number),
            ('٣', CharClass::Number),
            ('ⓐ', CharClass::Other),
            ('\u{0301}', CharClass::Other),
            ('\u{0E31}', CharClass::Other),
            ('\u{A0}', CharClass::Space),
            ('\u{85}', CharClass::Space),
            ('\u{3000}', CharClass::Space),
            ('\u{1C}', CharClass::Other),
            ('\u{200B}', CharClass::Other),
            ('\u{FEFF}', CharClass::Other),
            ('_', CharClass::Other),
        ];
        let wrong: Vec<_> = cases.iter().filter(|(c, want)| class_of(*c) != *want).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn shortcut_for_ascii_agrees_with_the_tables() {
        for c in '\0'..='\x7f' {
            let want = if contains(&LETTERS, c) {
                CharClass::Letter
            } else if contains(&NUMBERS, c) {
                CharClass::Number
            } else if c.is_whitespace() {
                CharClass::Space
            } else {
                CharClass::Other
            };
            assert_eq!(class_of(c), want, "{c:?}");
        }
    }
}
