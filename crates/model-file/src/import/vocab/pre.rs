//! What the pipeline of a tokenizer.json is called in GGUF.
//!
//! Stock converters tell pre-tokenizers apart by the tokens of a test text; here they are told by what they are, and
//! one that is not known is refused, because a wrong one gives wrong tokens without a word.

use crate::import::ImportError;
use serde_json::Value;

/// Names in GGUF of the pre-tokenizers that are a pattern, and the pattern.
pub(crate) const PRE_TOKENIZERS: [(&str, &str); 2] = [("llama-bpe", LLAMA3), ("qwen2", QWEN2)];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Whether a piece that is a token as a whole is taken as it is.
pub(super) type IgnoreMerges = bool;

/// The name in GGUF of a byte-level pipeline.
pub(super) fn byte_level_name(
    normalizer: &Value,
    pre_tokenizer: &Value,
    ignore_merges: IgnoreMerges,
) -> Result<&'static str, ImportError> {
    for step in steps(normalizer, "normalizers") {
        // Runtimes that read GGUF do not compose characters; their vocabularies of such models say nothing of it.
        if step["type"] != "NFC" {
            return Err(unsupported("the normalizer", step));
        }
    }
    let name = match &steps(pre_tokenizer, "pretokenizers")[..] {
        [bytes] if is_byte_level(bytes, Splits::Words) => "gpt-2",
        [digits, bytes] if is_each_digit(digits) && is_byte_level(bytes, Splits::Words) => "smollm",
        [split, bytes] if is_split(split, LLAMA3) && is_byte_level(bytes, Splits::Nothing) => "llama-bpe",
        [split, bytes] if is_split(split, QWEN2) && is_byte_level(bytes, Splits::Nothing) => "qwen2",
        _ => return Err(unsupported("the pre-tokenizer", pre_tokenizer)),
    };
    if ignore_merges != (name == "llama-bpe") {
        let how = if ignore_merges { "with" } else { "without" };
        return Err(ImportError::Tokenizer(format!("the pre-tokenizer `{name}` {how} `ignore_merges`")));
    }
    Ok(name)
}

/// How a vocabulary with marked spaces treats the start of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpacePrefix {
    Added,
    NotAdded,
}

/// Recognises a pipeline that only marks spaces, as SentencePiece does.
pub(super) fn space_marks(normalizer: &Value, pre_tokenizer: &Value) -> Result<SpacePrefix, ImportError> {
    let is_prepend = |step: &Value| step["type"] == "Prepend" && step["prepend"] == "\u{2581}";
    let is_replace = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "\u{2581}"
    };
    let normal = match &steps(normalizer, "normalizers")[..] {
        [] => None,
        [replace] if is_replace(replace) => Some(SpacePrefix::NotAdded),
        [prepend, replace] if is_prepend(prepend) && is_replace(replace) => Some(SpacePrefix::Added),
        _ => return Err(unsupported("the normalizer", normalizer)),
    };
    match (normal, &steps(pre_tokenizer, "pretokenizers")[..]) {
        (Some(prefix), []) => Ok(prefix),
        (None, [step]) if step["type"] == "Metaspace" && step["replacement"] == "\u{2581}" => {
            if step["split"] == true {
                return Err(unsupported("the pre-tokenizer", step));
            }
            match step["prepend_scheme"].as_str() {
                Some("always" | "first") => Ok(SpacePrefix::Added),
                Some("never") => Ok(SpacePrefix::NotAdded),
                None if step["add_prefix_space"] == true => Ok(SpacePrefix::Added),
                _ => Err(unsupported("the pre-tokenizer", step)),
            }
        }
        _ => Err(unsupported("the pre-tokenizer", pre_tokenizer)),
    }
}

/// Tokens that a post-processor puts around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Affixes {
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// What the post-processor puts around a text; `None` when it is not its business.
pub(super) fn affixes(post_processor: &Value) -> Result<Option<Affixes>, ImportError> {
    let mut found = None;
    for step in steps(post_processor, "processors") {
        match step["type"].as_str() {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if found.is_none() => found = Some(template(step)?),
            _ => return Err(unsupported("the post-processor", step)),
        }
    }
    Ok(found)
}

fn template(step: &Value) -> Result<Affixes, ImportError> {
    let parts = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let special = |part: &Value| part["SpecialToken"]["id"].as_str().map(str::to_owned);
    let is_text = |part: &&Value| part["Sequence"]["id"] == "A";
    let wrong = || unsupported("the post-processor", step);
    match parts {
        [text] if is_text(&text) => Ok(Affixes::default()),
        [before, text] if is_text(&text) => {
            Ok(Affixes { before: Some(special(before).ok_or_else(wrong)?), after: None })
        }
        [text, after] if is_text(&text) => {
            Ok(Affixes { before: None, after: Some(special(after).ok_or_else(wrong)?) })
        }
        [before, text, after] if is_text(&text) => Ok(Affixes {
            before: Some(special(before).ok_or_else(wrong)?),
            after: Some(special(after).ok_or_else(wrong)?),
        }),
        _ => Err(wrong()),
    }
}

/// The steps of a part of the pipeline, which may be a sequence of others.
fn steps<'v>(part: &'v Value, list: &str) -> Vec<&'v Value> {
    match part[list].as_array() {
        Some(parts) => parts.iter().flat_map(|part| steps(part, list)).collect(),
        None if part.is_null() => Vec::new(),
        None => vec![part],
    }
}

/// What a byte-level step splits by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Splits {
    Words,
    Nothing,
}

fn is_byte_level(step: &Value, splits: Splits) -> bool {
    // Where the file says nothing, words are split.
    let does = if step["use_regex"] == false { Splits::Nothing } else { Splits::Words };
    step["type"] == "ByteLevel" && step["add_prefix_space"] == false && does == splits
}

fn is_each_digit(step: &Value) -> bool {
    step["type"] == "Digits" && step["individual_digits"] == true
}

fn is_split(step: &Value, pattern: &str) -> bool {
    step["type"] == "Split"
        && step["pattern"]["Regex"] == pattern
        && step["behavior"] == "Isolated"
        && step["invert"] != true
}

fn unsupported(what: &str, part: &Value) -> ImportError {
    let text: String = part.to_string().chars().take(160).collect();
    ImportError::Tokenizer(format!("{what} {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pipelines_have_names() {
        let bytes =
            |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": use_regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let two = |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let name = |pre: &Value, ignores: bool| byte_level_name(&Value::Null, pre, ignores).ok();
        assert_eq!(name(&bytes(true), false), Some("gpt-2"));
        assert_eq!(name(&two(digits.clone(), bytes(true)), false), Some("smollm"));
        assert_eq!(name(&two(split(LLAMA3), bytes(false)), true), Some("llama-bpe"));
        assert_eq!(name(&two(split(QWEN2), bytes(false)), false), Some("qwen2"));
        for (pre, ignores) in [
            (bytes(false), false),
            (bytes(true), true),
            (two(split(QWEN2), bytes(true)), false),
            (two(split(LLAMA3), bytes(false)), false),
            (two(split("."), bytes(false)), false),
            (two(bytes(true), digits), false),
            (json!({"type": "Whitespace"}), false),
            (Value::Null, false),
        ] {
            assert_eq!(name(&pre, ignores), None, "{pre}");
        }
    }

    #[test]
    fn templates_say_what_stands_around_a_text() {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let processor = |single: Vec<Value>| json!({"type": "TemplateProcessing", "single": single});
        let both = processor(vec![special("<s>"), text.clone(), special("</s>")]);
        let want = Affixes { before: Some("<s>".to_owned()), after: Some("</s>".to_owned()) };
        assert_eq!(affixes(&both).unwrap(), Some(want));
        assert_eq!(affixes(&processor(vec![text.clone()])).unwrap(), Some(Affixes::default()));
        assert_eq!(affixes(&Value::Null).unwrap(), None);
        assert_eq!(affixes(&json!({"type": "ByteLevel"})).unwrap(), None);
        for single in [vec![], vec![text.clone(), text.clone()], vec![special("a"), special("b"), text]] {
            assert!(affixes(&processor(single)).is_err());
        }
        assert!(affixes(&json!({"type": "BertProcessing"})).is_err());
    }
}
