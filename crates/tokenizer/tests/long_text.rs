//! Long texts: the same tokens as the tokenizers library gives for the whole text, in bounded time.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use secateur_tokenizer::{AddSpecial, GgufVocab, Tokenizer};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The reference vocabulary as a tokenizer.json.
fn library_json(reference: &common::Reference, pre_tokenizers: Value) -> Vec<u8> {
    let vocab = reference.vocab();
    let tokens = reference.texts("tokenizer.ggml.tokens");
    let ids: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = tokens
        .iter()
        .zip(vocab.token_types)
        .enumerate()
        .filter(|(_, (_, kind))| **kind == 3)
        .map(|(id, (token, _))| {
            json!({"id": id, "content": token, "special": true, "normalized": false, "single_word": false,
                "lstrip": false, "rstrip": false})
        })
        .collect();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": ids, "merges": reference.texts("tokenizer.ggml.merges"),
            "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false},
    });
    serde_json::to_vec(&file).unwrap()
}

fn smollm_steps() -> Value {
    json!([
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    ])
}

/// Texts of the project's data folder, or none with a message.
fn corpora() -> Vec<(String, String)> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    let folder = std::env::var_os("SECATEUR_DATA").map_or(beside, PathBuf::from);
    let read = |name: &str| Some((name.to_owned(), std::fs::read_to_string(folder.join(name)).ok()?));
    let found: Vec<_> = ["c4_slice.txt", "wiki.test.raw"].into_iter().filter_map(read).collect();
    if found.is_empty() {
        eprintln!("skipped: no data folder (set SECATEUR_DATA)");
    }
    found
}

/// About 100 KB, several chunks, in which everything that could make a cut visible stands beside line feeds.
fn made_up() -> String {
    let parts = [
        "word",
        " word",
        "\n",
        "\n\n",
        "\r\n",
        " \n",
        "\n ",
        "\t\n",
        "'s\n",
        ".\n",
        "...\n\n",
        "1\n",
        "22\n2",
        "é\n",
        "\n\u{301}",
        "語\n語",
        "  \n  x",
        "a\n'll",
        "\n1",
        "Ⅷ\n",
        "x\n\r\n",
        "\u{a0}\n",
        "z\u{200d}\n",
    ];
    // A fixed walk through the parts, so that each comes after each.
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        parts[(state >> 16) as usize % parts.len()]
    };
    (0..40_000).map(|_| next()).collect()
}

#[test]
fn whole_texts_are_encoded_as_by_the_library() {
    let Some(reference) = common::Reference::load() else { return };
    let json = library_json(&reference, smollm_steps());
    let library = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    let ours = reference.tokenizer();
    let from_json = Tokenizer::from_tokenizer_json(&json, None).unwrap();
    let mut texts = corpora();
    texts.push(("made up".to_owned(), made_up()));
    for (name, text) in &texts {
        let mut end = text.len().min(400_000);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        let whole = library.encode_fast(text, false).unwrap();
        let got = ours.encode(text, AddSpecial::No).unwrap();
        assert!(got == whole.get_ids(), "{name}: the tables differ from the library");
        let chunked = from_json.encode(text, AddSpecial::No).unwrap();
        assert!(chunked == whole.get_ids(), "{name}: chunks differ from the whole");
    }
}

#[test]
fn every_known_pipeline_can_be_cut() {
    let Some(reference) = common::Reference::load() else { return };
    let patterns = [
        ("gpt-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
        (
            "llama-bpe",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        (
            "qwen2",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ];
    let text = made_up();
    for (pre, pattern) in patterns {
        let steps = json!([
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        ]);
        let json = library_json(&reference, steps);
        let library = tokenizers::Tokenizer::from_bytes(&json).unwrap();
        let whole = library.encode_fast(text.as_str(), false).unwrap();
        let chunked =
            Tokenizer::from_tokenizer_json(&json, None).unwrap().encode(&text, AddSpecial::No).unwrap();
        assert!(chunked == whole.get_ids(), "{pre}: chunks differ from the whole");
        if pre != "llama-bpe" {
            let vocab = GgufVocab { pre: Some(pre), ..reference.vocab() };
            let got = Tokenizer::from_gguf(&vocab).unwrap().encode(&text, AddSpecial::No).unwrap();
            assert!(got == whole.get_ids(), "{pre}: the tables differ from the library");
        }
    }
}

#[test]
fn two_megabytes_are_encoded_in_seconds() {
    let Some(reference) = common::Reference::load() else { return };
    let tokenizer = reference.tokenizer();
    let prose = "The quick brown fox, aged 12, jumps over the lazy dog's tail.\n".repeat(32_000);
    // Each of these is one piece, or many pieces that a careless splitter scans again and again.
    let runs = [
        prose,
        "a".repeat(1 << 20),
        " ".repeat(1 << 20),
        "\n".repeat(1 << 20),
        "<".repeat(1 << 20),
        "<|im_en".repeat(1 << 17),
        "1a".repeat(1 << 19),
        " \n".repeat(1 << 19),
        "語".repeat(1 << 18),
    ];
    for text in &runs {
        let start = Instant::now();
        let ids = tokenizer.encode_with_special_tokens_parsed(text, AddSpecial::No).unwrap();
        let seconds = start.elapsed();
        let head: String = text.chars().take(16).collect();
        println!("{head:?}…: {} bytes, {} tokens, {seconds:?}", text.len(), ids.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), *text);
        assert!(seconds < Duration::from_secs(15), "{head:?} took {seconds:?}");
    }
}
