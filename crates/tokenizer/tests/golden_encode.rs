//! Encoding against the goldens of plain Python implementations; see the scripts beside them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use secateur_tokenizer::{AddSpecial, GgufVocab, PreTokenizer, SpecialIds, Tokenizer};
use serde_json::Value;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn texts_of(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Compares all cases of a golden and shows every failure.
fn check(name: &str, tokenizer: &Tokenizer, cases: &Value) {
    let mut failures = Vec::new();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 170, "{name}: {} cases", cases.len());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let want = ids_of(&case["ids"]);
        let parsed = case.get("parsed").map_or_else(|| want.clone(), ids_of);
        let got = tokenizer.encode(text, AddSpecial::No).unwrap();
        if got != want {
            failures.push(format!("{text:?}: want {want:?}, got {got:?}"));
        }
        let got = tokenizer.encode_with_special_tokens_parsed(text, AddSpecial::No).unwrap();
        if got != parsed {
            failures.push(format!("{text:?} parsed: want {parsed:?}, got {got:?}"));
        }
    }
    assert!(failures.is_empty(), "{name}: {} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn reference_vocabulary() {
    let Some(reference) = common::Reference::load() else { return };
    let tokenizer = reference.tokenizer();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    check("smollm", &tokenizer, &golden(include_str!("goldens/smollm.json")));
}

#[test]
fn pieces_of_every_pre_tokenizer() {
    let splits = golden(include_str!("goldens/splits.json"));
    let mut failures = Vec::new();
    for case in splits.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        for (name, want) in case["pieces"].as_object().unwrap() {
            let got: Vec<_> = PreTokenizer::from_name(name).unwrap().pieces(text).collect();
            if got != texts_of(want) {
                failures.push(format!("{name} {text:?}: want {want}, got {got:?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn synthetic(vocab: &Value, pre: &str) -> Tokenizer {
    let (tokens, specials) = (texts_of(&vocab["tokens"]), texts_of(&vocab["specials"]));
    let merges = texts_of(&vocab["merges"]);
    let token_types: Vec<i32> = tokens.iter().map(|t| if specials.contains(t) { 3 } else { 1 }).collect();
    Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2",
        pre: Some(pre),
        tokens: &tokens,
        token_types: &token_types,
        merges: &merges,
        special_ids: SpecialIds {
            bos: tokens.iter().position(|t| *t == "<|begin_of_text|>").map(|id| id as u32),
            ..SpecialIds::default()
        },
        ..GgufVocab::default()
    })
    .unwrap()
}

#[test]
fn synthetic_vocabulary_of_every_pre_tokenizer() {
    let vocabs = golden(include_str!("goldens/synthetic.json"));
    let vocabs = vocabs.as_object().unwrap();
    assert_eq!(vocabs.len(), 4);
    for (pre, vocab) in vocabs {
        check(pre, &synthetic(vocab, pre), &vocab["cases"]);
    }
}

#[test]
fn llama3_vocabularies_start_texts_with_bos() {
    let vocabs = golden(include_str!("goldens/synthetic.json"));
    for (pre, wanted) in [("llama-bpe", true), ("qwen2", false)] {
        let tokenizer = synthetic(&vocabs[pre], pre);
        let with = tokenizer.encode("a", AddSpecial::Yes).unwrap();
        let without = tokenizer.encode("a", AddSpecial::No).unwrap();
        assert_eq!(tokenizer.adds_bos(), wanted);
        assert_eq!(with.len() - without.len(), usize::from(wanted), "{pre}");
        assert!(with.ends_with(&without));
        assert_eq!(with.first() == tokenizer.bos_id().as_ref(), wanted, "{pre}");
    }
}

#[test]
fn sentence_piece_vocabularies() {
    let vocabs = golden(include_str!("goldens/spm.json"));
    for (name, vocab) in vocabs.as_object().unwrap() {
        let rows = vocab["tokens"].as_array().unwrap();
        let tokens: Vec<&str> = rows.iter().map(|row| row[0].as_str().unwrap()).collect();
        let scores: Vec<f32> = rows.iter().map(|row| row[1].as_f64().unwrap() as f32).collect();
        let token_types: Vec<i32> = rows.iter().map(|row| row[2].as_i64().unwrap() as i32).collect();
        let tokenizer = Tokenizer::from_gguf(&GgufVocab {
            model: "llama",
            tokens: &tokens,
            scores: &scores,
            token_types: &token_types,
            add_space_prefix: vocab["add_space_prefix"].as_bool(),
            ..GgufVocab::default()
        })
        .unwrap();
        check(name, &tokenizer, &vocab["cases"]);
        let special_ids = tokenizer.special_ids();
        assert_eq!((special_ids.unk, special_ids.bos, special_ids.eos), (Some(0), Some(1), Some(2)));
        assert_eq!(tokenizer.encode("a", AddSpecial::Yes).unwrap()[0], 1);
    }
}

#[test]
fn tokenizer_json_agrees_with_the_library_in_python() {
    let vocabs = golden(include_str!("goldens/synthetic.json"));
    let vocab = &vocabs["llama-bpe"];
    let json = include_bytes!("goldens/tokenizer.json");
    let tokenizer = Tokenizer::from_tokenizer_json(json, None).unwrap();
    let bos = tokenizer.special_token_id("<|begin_of_text|>");
    assert!(bos.is_some());
    assert_eq!(tokenizer.bos_id(), bos);
    assert!(tokenizer.adds_bos());
    assert_eq!(tokenizer.special_ids().eot, tokenizer.special_token_id("<|eot_id|>"));
    check("tokenizer.json", &tokenizer, &vocab["cases"]);
}

#[test]
fn tokenizer_json_of_the_sentence_piece_kind() {
    let cases = golden(include_str!("goldens/metaspace.json"));
    let json = include_bytes!("goldens/metaspace_tokenizer.json");
    let tokenizer = Tokenizer::from_tokenizer_json(json, None).unwrap();
    check("metaspace_tokenizer.json", &tokenizer, &cases);
    let decode = |case: &Value| tokenizer.decode(&ids_of(&case["parsed"])).unwrap();
    let cases = cases.as_array().unwrap();
    let wrong: Vec<_> =
        cases.iter().filter(|case| decode(case) != case["decoded"].as_str().unwrap()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
