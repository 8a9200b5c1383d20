//! Vocabularies and files that make no sense are typed errors, never panics.

use proptest::prelude::*;
use secateur_tokenizer::{
    AddSpecial, GgufVocab, MAX_TOKEN_BYTES, PreTokenizer, SpecialIds, StringList, Tokenizer, TokenizerError,
};
use serde_json::{Value, json};

/// A small vocabulary that is fine.
fn fine() -> GgufVocab<'static> {
    GgufVocab {
        model: "gpt2",
        pre: Some("gpt-2"),
        tokens: &["a", "b", "ab", "<|im_end|>", "Ġ"],
        token_types: &[1, 1, 1, 3, 1],
        merges: &["a b"],
        ..GgufVocab::default()
    }
}

fn sentence_piece() -> GgufVocab<'static> {
    GgufVocab {
        model: "llama",
        tokens: &["<unk>", "<s>", "</s>", "a"],
        token_types: &[2, 3, 3, 1],
        scores: &[0.0, 0.0, 0.0, -1.0],
        ..GgufVocab::default()
    }
}

#[test]
fn broken_vocabularies_are_named() {
    let out = |bos, eos| SpecialIds { bos, eos, ..SpecialIds::default() };
    let long = ["x".repeat(MAX_TOKEN_BYTES + 1)];
    let cases: &[(GgufVocab<'_>, &str)] = &[
        (GgufVocab { model: "bert", ..fine() }, "tokenizer model `bert` is not supported"),
        (GgufVocab { model: "", ..fine() }, "tokenizer model `` is not supported"),
        (GgufVocab { pre: None, ..fine() }, "without a pre-tokenizer name"),
        (GgufVocab { pre: Some(""), ..fine() }, "without a pre-tokenizer name"),
        (GgufVocab { pre: Some("tekken"), ..fine() }, "pre-tokenizer `tekken` is not supported"),
        (GgufVocab { pre: Some("default"), ..fine() }, "pre-tokenizer `default` is not supported"),
        (GgufVocab { tokens: &[""; 0], token_types: &[], ..fine() }, "vocabulary without tokens"),
        (
            GgufVocab { token_types: &[1, 1], ..fine() },
            "`tokenizer.ggml.token_type` has 2 entries for 5 tokens",
        ),
        (
            GgufVocab { token_types: &[1; 9], ..fine() },
            "`tokenizer.ggml.token_type` has 9 entries for 5 tokens",
        ),
        (GgufVocab { token_types: &[1, 1, 1, 7, 1], ..fine() }, "token 3: unknown token type 7"),
        (GgufVocab { token_types: &[1, 1, 1, -1, 1], ..fine() }, "token 3: unknown token type -1"),
        (GgufVocab { token_types: &[1, 6, 1, 1, 1], ..fine() }, "token 1: `b` is marked as a byte"),
        (
            GgufVocab { tokens: &["a", "b", "ab", "a", "c"], ..fine() },
            // The one in fourth place is a control token, so it is no duplicate; with equal kinds it is.
            "",
        ),
        (
            GgufVocab { tokens: &["a", "b", "ab", "c", "a"], ..fine() },
            "tokens 0 and 4 have the same text `a`",
        ),
        (GgufVocab { merges: &["ab"], ..fine() }, "merge 0 `ab`: it is no pair"),
        (GgufVocab { merges: &[""], ..fine() }, "merge 0 ``: it is no pair"),
        (GgufVocab { merges: &["a b", "x b"], ..fine() }, "merge 1 `x b`: the left part is no token"),
        (GgufVocab { merges: &["a x"], ..fine() }, "merge 0 `a x`: the right part is no token"),
        (GgufVocab { merges: &["a a"], ..fine() }, "merge 0 `a a`: the union is no token"),
        (GgufVocab { merges: &["a b c"], ..fine() }, "the right part is outside the alphabet of bytes"),
        (GgufVocab { merges: &["語 b"], ..fine() }, "the left part is outside the alphabet of bytes"),
        (
            GgufVocab { special_ids: out(Some(5), None), ..fine() },
            "`bos_token_id` is 5, but the vocabulary has 5",
        ),
        (
            GgufVocab { special_ids: out(None, Some(u32::MAX)), ..fine() },
            "`eos_token_id` is 4294967295, but the vocabulary has 5",
        ),
        (GgufVocab { add_bos: Some(true), ..fine() }, "`tokenizer.ggml.add_bos_token` is set, but"),
        (GgufVocab { add_eos: Some(true), ..fine() }, "`tokenizer.ggml.add_eos_token` is set, but"),
        (GgufVocab { pre: Some("llama-bpe"), ..fine() }, "`tokenizer.ggml.add_bos_token` is set, but"),
        (
            GgufVocab { tokens: &long, token_types: &[], ..fine() },
            "bytes of one token: 65537 is more than the limit",
        ),
        (GgufVocab { scores: &[], ..sentence_piece() }, "`tokenizer.ggml.scores` has 0 entries for 4 tokens"),
        (
            GgufVocab { scores: &[0.0, 0.0, 0.0, f32::NAN], ..sentence_piece() },
            "token 3: the score is not a finite number",
        ),
        (
            GgufVocab { scores: &[0.0, f32::INFINITY, 0.0, 0.0], ..sentence_piece() },
            "token 1: the score is not a finite number",
        ),
        (GgufVocab { token_types: &[1, 3, 3, 1], ..sentence_piece() }, "byte 0x00 has no token"),
        (
            GgufVocab { tokens: &["<unk>", "<s>", "a", "a"], token_types: &[2, 3, 1, 1], ..sentence_piece() },
            "same text",
        ),
    ];
    let mut failures = Vec::new();
    for (idx, (vocab, want)) in cases.iter().enumerate() {
        match (Tokenizer::from_gguf(vocab), *want) {
            (Ok(_), "") => {}
            (Err(error), want) if !want.is_empty() && error.to_string().contains(want) => {}
            (result, want) => {
                failures.push(format!("case {idx}: want {want:?}, got {:?}", result.map(|_| ())))
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    Tokenizer::from_gguf(&fine()).unwrap();
    Tokenizer::from_gguf(&sentence_piece()).unwrap();
}

#[test]
fn names_of_pre_tokenizers() {
    let cases = [
        ("gpt-2", Some(PreTokenizer::Gpt2)),
        ("phi-2", Some(PreTokenizer::Gpt2)),
        ("smollm", Some(PreTokenizer::SmolLm)),
        ("llama3", Some(PreTokenizer::Llama3)),
        ("llama-v3", Some(PreTokenizer::Llama3)),
        ("llama-bpe", Some(PreTokenizer::Llama3)),
        ("falcon3", Some(PreTokenizer::Llama3)),
        ("qwen2", Some(PreTokenizer::Qwen2)),
        ("deepseek-r1-qwen", Some(PreTokenizer::Qwen2)),
        ("Qwen2", None),
        ("", None),
    ];
    for (name, want) in cases {
        assert_eq!(PreTokenizer::from_name(name), want, "{name}");
    }
}

#[test]
fn text_cannot_be_merged_into_a_control_token() {
    let tokenizer = Tokenizer::from_gguf(&GgufVocab { token_types: &[1, 1, 3, 3, 1], ..fine() }).unwrap();
    assert_eq!(tokenizer.encode("ab", AddSpecial::No).unwrap(), [0, 1]);
    assert_eq!(tokenizer.encode_with_special_tokens_parsed("ab", AddSpecial::No).unwrap(), [2]);
    let tokenizer = Tokenizer::from_gguf(&GgufVocab { token_types: &[1; 5], ..fine() }).unwrap();
    assert_eq!(tokenizer.encode("ab<|im_end|>", AddSpecial::No).unwrap(), [2]);
    // Its text makes it the end of a turn, although the file calls it normal.
    assert!(tokenizer.is_stop(3));
    assert_eq!(tokenizer.encode_with_special_tokens_parsed("ab<|im_end|>", AddSpecial::No).unwrap(), [2, 3]);
}

#[test]
fn stop_tokens_are_found_by_their_texts() {
    let build = |tokens: &[&str], special_ids: SpecialIds| {
        let token_types = vec![3; tokens.len()];
        let vocab =
            GgufVocab { tokens: &tokens, token_types: &token_types, merges: &[""; 0], special_ids, ..fine() };
        Tokenizer::from_gguf(&vocab).unwrap()
    };
    let ids = |tokenizer: &Tokenizer| tokenizer.stop_ids().iter().copied().collect::<Vec<_>>();
    let none = SpecialIds::default();
    let qwen = build(&["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|file_sep|>"], none);
    assert_eq!(ids(&qwen), [0, 2, 3]);
    assert_eq!(qwen.special_ids().eot, Some(2));
    let llama = build(&["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"], none);
    assert_eq!(ids(&llama), [1, 2, 3]);
    assert_eq!((llama.special_ids().eot, llama.special_ids().eom), (Some(3), Some(2)));
    let named = build(&["x", "<|im_end|>", "y"], SpecialIds { eos: Some(2), eot: Some(0), ..none });
    assert_eq!(ids(&named), [0, 1, 2]);
    // Where `<|end|>` only separates the messages of one reply, it does not end the reply.
    let harmony = build(&["<|end|>", "<|return|>", "<|call|>", "<|channel|>"], none);
    assert_eq!(ids(&harmony), [1, 2]);
    assert_eq!(harmony.decode(&[0, 1, 3]).unwrap(), "<|end|><|channel|>");
    let plain_end = build(&["<|end|>", "<|assistant|>"], none);
    assert_eq!(ids(&plain_end), [0]);
}

#[test]
fn broken_json_is_an_error() {
    let good: Value = serde_json::from_slice(include_bytes!("goldens/tokenizer.json")).unwrap();
    let with = |path: &str, value: Value| {
        let mut json = good.clone();
        *json.pointer_mut(path).unwrap() = value;
        serde_json::to_vec(&json).unwrap()
    };
    let cases = [
        (Vec::new(), "tokenizer.json: EOF"),
        (b"{}".to_vec(), "tokenizer.json: "),
        (b"[1, 2".to_vec(), "tokenizer.json: "),
        (with("/decoder", Value::Null), "the decoder [] is not supported"),
        (
            with("/decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true})),
            "the decoder [\"WordPiece\"]",
        ),
        (with("/model/type", json!("WordLevel")), "tokenizer.json: "),
        (with("/model/merges/0", json!(["nothing", "such"])), "tokenizer.json: "),
        (with("/model/vocab/a", json!(u32::MAX)), "tokens: 4294967296 is more than the limit"),
        (with("/added_tokens/0/single_word", json!(true)), "as a whole word only"),
        (
            with(
                "/pre_tokenizer/pretokenizers/0",
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
            ),
            "the prepend scheme `first` inside a sequence",
        ),
    ];
    let mut failures = Vec::new();
    for (idx, (json, want)) in cases.iter().enumerate() {
        match Tokenizer::from_tokenizer_json(json, None) {
            Err(error) if error.to_string().contains(want) => {}
            other => failures.push(format!("case {idx}: want {want:?}, got {:?}", other.map(|_| ()))),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let outside = SpecialIds { eos: Some(1_000_000), ..SpecialIds::default() };
    let json = serde_json::to_vec(&good).unwrap();
    let result = Tokenizer::from_tokenizer_json_with(&json, None, outside);
    assert!(matches!(result, Err(TokenizerError::SpecialTokenOutOfRange { name: "eos_token_id", .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_vocabulary_is_read_or_refused(
        tokens in prop::collection::vec("[ab▁Ġ<>0xA ]{0,4}|<0x[0-9A-F]{2}>|<unk>|</s>", 0..30),
        token_types in prop::collection::vec(0_i32..8, 0..30),
        scores in prop::collection::vec(prop::num::f32::ANY, 0..30),
        merges in prop::collection::vec("[abĠ ]{0,5}", 0..10),
        is_sentence_piece in any::<bool>(),
        bos in prop::option::of(0_u32..32),
        text in "[ab▁Ġ<>0xAs/ \n]{0,30}",
    ) {
        let n = tokens.len();
        // Half of the time the arrays have the right lengths, so that more than lengths is tested.
        let fit = |len: usize| if n % 2 == 0 { n } else { len };
        let token_types: Vec<i32> = (0..fit(token_types.len())).map(|i| token_types.get(i).map_or(1, |t| t % 7)).collect();
        let scores: Vec<f32> = (0..fit(scores.len())).map(|i| scores.get(i).copied().filter(|s| s.is_finite()).unwrap_or(0.5)).collect();
        let vocab = GgufVocab {
            model: if is_sentence_piece { "llama" } else { "gpt2" },
            pre: Some("smollm"),
            tokens: &tokens as &dyn StringList,
            token_types: &token_types,
            scores: &scores,
            merges: &merges,
            special_ids: SpecialIds { bos, ..SpecialIds::default() },
            ..GgufVocab::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_gguf(&vocab) {
            for ids in [
                tokenizer.encode(&text, AddSpecial::Yes).unwrap(),
                tokenizer.encode_with_special_tokens_parsed(&text, AddSpecial::Yes).unwrap(),
            ] {
                prop_assert!(ids.iter().all(|&id| (id as usize) < n));
                tokenizer.decode(&ids).unwrap();
            }
        }
    }
}
