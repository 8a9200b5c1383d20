//! `tokenizer.json` and `tokenizer_config.json` from a vocabulary of byte-level BPE.

use super::not_exportable;
use crate::import::PRE_TOKENIZERS;
use crate::{Vocab, WriteError};
use serde_json::{Map, Value, json};

/// Types of tokens in GGUF.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// tokenizer.json as text.
pub(super) fn tokenizer_json(vocab: &Vocab) -> Result<String, WriteError> {
    if vocab.model != "gpt2" {
        let why = format!("its tokenizer `{}` has no writer; byte-level BPE (`gpt2`) has", vocab.model);
        return Err(not_exportable(why));
    }
    let name = vocab.pre.as_deref().unwrap_or_default();
    let pattern = match name {
        "gpt-2" | "smollm" => None,
        _ => {
            let known = PRE_TOKENIZERS.iter().find(|(known, _)| *known == name).map(|(_, pattern)| *pattern);
            let why = || not_exportable(format!("its pre-tokenizer `{name}` has no writer"));
            Some(known.ok_or_else(why)?)
        }
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": pattern.is_none()});
    let first = match (name, pattern) {
        ("smollm", _) => Some(json!({"type": "Digits", "individual_digits": true})),
        (_, Some(pattern)) => Some(
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        ),
        _ => None,
    };
    let pre_tokenizer = match first {
        Some(first) => json!({"type": "Sequence", "pretokenizers": [first, bytes]}),
        None => bytes.clone(),
    };
    let (tokens, added) = split_tokens(vocab);
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        // Models with this pre-tokenizer compose characters first.
        "normalizer": if name == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(vocab),
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": name == "llama-bpe",
            "vocab": tokens,
            "merges": vocab.merges.iter().map(Value::from).collect::<Vec<_>>(),
        },
    });
    Ok(whole.to_string())
}

/// The tokens that are merged, and those that are cut out of raw text.
fn split_tokens(vocab: &Vocab) -> (Map<String, Value>, Vec<Value>) {
    let (mut tokens, mut added) = (Map::new(), Vec::new());
    for (id, text) in vocab.tokens.iter().enumerate() {
        match vocab.token_types.get(id).copied() {
            Some(kind @ (CONTROL | USER_DEFINED)) => added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind == CONTROL,
            })),
            Some(UNUSED) => {}
            _ => drop(tokens.insert(text.to_owned(), id.into())),
        }
    }
    (tokens, added)
}

fn post_processor(vocab: &Vocab) -> Value {
    // What runtimes take for this pre-tokenizer when a file says nothing.
    let adds_bos = vocab.add_bos.unwrap_or(vocab.pre.as_deref() == Some("llama-bpe"));
    let affix =
        |wanted: bool, id: Option<u32>| id.filter(|_| wanted).and_then(|id| Some((id, text_of(vocab, id)?)));
    let (before, after) = (affix(adds_bos, vocab.bos_id), affix(vocab.add_eos == Some(true), vocab.eos_id));
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let special = |(_, text): &(u32, String)| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let around = |letter: &str, kind: u8| {
        let text = json!({"Sequence": {"id": letter, "type_id": kind}});
        let parts = [before.as_ref().map(special), Some(text), after.as_ref().map(special)];
        parts.into_iter().flatten().collect::<Vec<Value>>()
    };
    let mut names = Map::new();
    for (id, text) in before.iter().chain(&after) {
        names.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let pair = [around("A", 0), around("B", 1)].concat();
    json!({"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": names})
}

fn text_of(vocab: &Vocab, id: u32) -> Option<String> {
    vocab.tokens.iter().nth(id as usize).map(str::to_owned)
}

/// tokenizer_config.json as text.
pub(super) fn tokenizer_config(vocab: &Vocab) -> String {
    let text = |id: Option<u32>| id.and_then(|id| text_of(vocab, id));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "bos_token": text(vocab.bos_id),
        "eos_token": text(vocab.eos_id),
        "unk_token": text(vocab.unknown_id),
        "pad_token": text(vocab.padding_id),
        "chat_template": vocab.chat_template,
    });
    format!("{config:#}\n")
}
