//! Cuts text into the pieces inside which merges may happen.
//!
//! Each pre-tokenizer is defined by a regular expression with look-ahead. They are walked by hand here: one pass,
//! no backtracking, no limit on the length of a run, no memory beside the position. The tests compare the pieces
//! with those of the expressions themselves.

use crate::classes::{CharClass, class_of};

/// How a byte-level vocabulary wants its text cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// Every `\p{N}` alone, then [`Self::Gpt2`] on what lies between.
    SmolLm,
    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    Llama3,
    /// [`Self::Llama3`] with `\p{N}` in place of `\p{N}{1,3}`.
    Qwen2,
}

impl PreTokenizer {
    /// Finds a pre-tokenizer by the name that GGUF files give it in `tokenizer.ggml.pre`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de"
            | "a.x-4.0" | "mellum" | "modern-bert" | "exaone4" => Self::Gpt2,
            "smollm" => Self::SmolLm,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
            | "lfm2" | "jina-v5-nano" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => Self::Qwen2,
            _ => return None,
        })
    }

    /// True when a piece that is a token as a whole is taken as it is, without replaying its merges.
    #[must_use]
    pub fn ignores_merges(self) -> bool {
        self == Self::Llama3
    }

    /// True when texts start with the BOS token unless the file says otherwise.
    #[must_use]
    pub fn adds_bos_by_default(self) -> bool {
        self == Self::Llama3
    }

    /// Cuts `text` into pieces; together they are the whole text.
    #[must_use]
    pub fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { pre: self, rest: text, before_digit: 0 }
    }
}

/// The pieces of a text, see [`PreTokenizer::pieces`].
#[derive(Debug, Clone)]
pub struct Pieces<'t> {
    pre: PreTokenizer,
    rest: &'t str,
    /// Bytes of `rest` known to hold no number; used by [`PreTokenizer::SmolLm`] only.
    before_digit: usize,
}

impl<'t> Iterator for Pieces<'t> {
    type Item = &'t str;

    fn next(&mut self) -> Option<&'t str> {
        let first = self.rest.chars().next()?;
        let len = match self.pre {
            PreTokenizer::Gpt2 => gpt2_len(self.rest, first),
            PreTokenizer::SmolLm => self.smollm_len(first),
            PreTokenizer::Llama3 => llama3_len(self.rest, first, 3),
            PreTokenizer::Qwen2 => llama3_len(self.rest, first, 1),
        };
        let (piece, rest) = self.rest.split_at(len);
        self.rest = rest;
        self.before_digit = self.before_digit.saturating_sub(len);
        Some(piece)
    }
}

impl Pieces<'_> {
    fn smollm_len(&mut self, first: char) -> usize {
        if class_of(first) == CharClass::Number {
            return first.len_utf8();
        }
        if self.before_digit == 0 {
            self.before_digit = run_len(self.rest, |c| class_of(c) != CharClass::Number);
        }
        gpt2_len(&self.rest[..self.before_digit], first)
    }
}

/// Length of the first piece of a text that begins with `first`.
fn gpt2_len(text: &str, first: char) -> usize {
    if first == '\''
        && let Some(len) = contraction_len(text, Case::Lower)
    {
        return len;
    }
    let offset = usize::from(first == ' ');
    match text[offset..].chars().next().map(class_of) {
        Some(class) if class != CharClass::Space => {
            offset + run_len(&text[offset..], |c| class_of(c) == class)
        }
        _ => space_len(text),
    }
}

/// Length of the first piece of a text that begins with `first`.
fn llama3_len(text: &str, first: char, max_digits: usize) -> usize {
    if first == '\''
        && let Some(len) = contraction_len(text, Case::Any)
    {
        return len;
    }
    let first_class = class_of(first);
    let is_line_end = is_line_end(first);
    if first_class == CharClass::Letter {
        return run_len(text, is_letter);
    }
    if first_class == CharClass::Number {
        return text
            .chars()
            .take(max_digits)
            .take_while(|&c| class_of(c) == CharClass::Number)
            .map(char::len_utf8)
            .sum();
    }
    let first_len = first.len_utf8();
    if !is_line_end {
        let n_letters = run_len(&text[first_len..], is_letter);
        if n_letters > 0 {
            return first_len + n_letters;
        }
    }
    let offset = usize::from(first == ' ');
    let n_other = run_len(&text[offset..], |c| class_of(c) == CharClass::Other);
    if n_other > 0 {
        let end = offset + n_other;
        return end + run_len(&text[end..], self::is_line_end);
    }
    let spaces = &text[..run_len(text, is_space)];
    match spaces.rfind(['\r', '\n']) {
        Some(last_line_end) => last_line_end + 1,
        None => space_len(text),
    }
}

/// Length of `\s+(?!\S)|\s+` at the start of a text that begins with white space: the run without its last
/// character when something follows it and it is longer than one character.
fn space_len(text: &str) -> usize {
    let run = &text[..run_len(text, is_space)];
    let last_len = run.chars().next_back().map_or(0, char::len_utf8);
    if run.len() == text.len() || run.len() == last_len { run.len() } else { run.len() - last_len }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Any,
}

/// Length of `'s|'t|'re|'ve|'m|'ll|'d` at the start of a text that begins with an apostrophe.
fn contraction_len(text: &str, case: Case) -> Option<usize> {
    let mut chars = text.chars().skip(1);
    let mut next = || {
        let c = chars.next()?;
        let folded = match (case, c) {
            (Case::Lower, _) => c,
            // The long s is the one character outside ASCII that folds to one of these letters.
            (Case::Any, 'ſ') => 's',
            (Case::Any, _) => c.to_ascii_lowercase(),
        };
        Some((folded, c.len_utf8()))
    };
    let (first, first_len) = next()?;
    let wanted_second = match first {
        's' | 't' | 'm' | 'd' => return Some(1 + first_len),
        'r' | 'v' => 'e',
        'l' => 'l',
        _ => return None,
    };
    let (second, second_len) = next()?;
    (second == wanted_second).then_some(1 + first_len + second_len)
}

fn run_len(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.char_indices().find(|&(_, c)| !belongs(c)).map_or(text.len(), |(start, _)| start)
}

fn is_letter(c: char) -> bool {
    class_of(c) == CharClass::Letter
}

fn is_space(c: char) -> bool {
    class_of(c) == CharClass::Space
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n')
}
