//! What must hold for any text.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use proptest::prelude::*;
use secateur_tokenizer::{
    AddSpecial, ControlTokens, DecodeFrom, DecodeOptions, GgufVocab, PreTokenizer, SpecialIds, StringList,
    Tokenizer,
};
use serde_json::Value;
use std::sync::LazyLock;

static SYNTHETIC: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let vocabs: Value = serde_json::from_str(include_str!("goldens/synthetic.json")).unwrap();
    let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let build = |(pre, vocab): (&String, &Value)| {
        let (tokens, merges, specials) =
            (texts(&vocab["tokens"]), texts(&vocab["merges"]), texts(&vocab["specials"]));
        let token_types: Vec<i32> = tokens.iter().map(|t| if specials.contains(t) { 3 } else { 1 }).collect();
        let vocab = GgufVocab {
            model: "gpt2",
            pre: Some(pre),
            tokens: &tokens as &dyn StringList,
            token_types: &token_types,
            merges: &merges,
            special_ids: SpecialIds { bos: Some(tokens.len() as u32 - 1), ..SpecialIds::default() },
            ..GgufVocab::default()
        };
        Tokenizer::from_gguf(&vocab).unwrap()
    };
    vocabs.as_object().unwrap().iter().map(build).collect()
});

/// All byte tokens, a few letters, and spaces at the start of texts.
static SENTENCE_PIECE: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "▁a", "ab", "b", "▁▁", "é"].map(str::to_owned));
    let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
    let token_types: Vec<i32> = (0..tokens.len())
        .map(|id| [2, 3, 3].get(id).copied().unwrap_or(if id < 259 { 6 } else { 1 }))
        .collect();
    Tokenizer::from_gguf(&GgufVocab {
        model: "llama",
        tokens: &tokens,
        scores: &scores,
        token_types: &token_types,
        ..GgufVocab::default()
    })
    .unwrap()
});

static REFERENCE: LazyLock<Option<Tokenizer>> =
    LazyLock::new(|| common::Reference::load().map(|reference| reference.tokenizer()));

/// Text with what tokenizers trip over: white space, digits, apostrophes, all scripts, special tokens.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z]{1,8}",
        "[0-9]{1,6}",
        "[ \t\r\n]{1,5}",
        "['’](s|t|re|ve|m|ll|d|S|LL|x)",
        "[!-/:-@\\[-`{-~]{1,4}",
        "\\PC{1,4}",
        any::<char>().prop_map(String::from),
        Just("<|im_end|>".to_owned()),
        Just("<|eot_id|>".to_owned()),
        Just("\u{301}\u{200d}".to_owned()),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], options: DecodeOptions) -> (String, Vec<String>) {
    let mut decoder = tokenizer.stream_decoder_with(options);
    let mut chunks = Vec::new();
    for &id in ids {
        let mut chunk = String::new();
        decoder.push(id, &mut chunk).unwrap();
        assert!(decoder.n_held_bytes() < 4);
        chunks.push(chunk);
    }
    let mut chunk = String::new();
    decoder.finish(&mut chunk);
    chunks.push(chunk);
    (chunks.concat(), chunks)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_text_survives(text in text()) {
        for tokenizer in SYNTHETIC.iter() {
            prop_assert!(tokenizer.is_lossless());
            let ids = tokenizer.encode(&text, AddSpecial::Yes).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
            let shown = DecodeOptions { control_tokens: ControlTokens::Show, from: DecodeFrom::Middle };
            let ids = tokenizer.encode_with_special_tokens_parsed(&text, AddSpecial::No).unwrap();
            prop_assert_eq!(&tokenizer.decode_with(&ids, shown).unwrap(), &text);
        }
    }

    #[test]
    fn reference_text_survives(text in text()) {
        let Some(tokenizer) = REFERENCE.as_ref() else { return Ok(()) };
        let missing = tokenizer.unencodable_bytes();
        let mut bytes = text.clone().into_bytes();
        bytes.retain(|byte| !missing.contains(byte));
        let ids = tokenizer.encode(&text, AddSpecial::No).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn sentence_piece_text_survives(text in text()) {
        let text = text.replace('▁', "_");
        let ids = SENTENCE_PIECE.encode(&text, AddSpecial::Yes).unwrap();
        prop_assert_eq!(SENTENCE_PIECE.decode(&ids).unwrap(), text);
    }

    #[test]
    fn pieces_are_the_text(text in text()) {
        for pre in [PreTokenizer::Gpt2, PreTokenizer::SmolLm, PreTokenizer::Llama3, PreTokenizer::Qwen2] {
            let pieces: Vec<_> = pre.pieces(&text).collect();
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(pieces.concat(), text.as_str());
        }
    }

    #[test]
    fn streams_say_what_whole_texts_say(
        ids in prop::collection::vec(0_u32..400, 0..80),
        shows in any::<bool>(),
        starts in any::<bool>(),
    ) {
        let options = DecodeOptions {
            control_tokens: if shows { ControlTokens::Show } else { ControlTokens::Skip },
            from: if starts { DecodeFrom::Start } else { DecodeFrom::Middle },
        };
        for tokenizer in SYNTHETIC.iter().chain([&*SENTENCE_PIECE]) {
            let n = tokenizer.vocab_size() as u32;
            let ids: Vec<u32> = ids.iter().map(|id| id % n).collect();
            let (streamed, chunks) = stream(tokenizer, &ids, options);
            // An independent way to the same text: all bytes first, then characters.
            let mut bytes = Vec::new();
            for &id in &ids {
                use secateur_tokenizer::TokenKind::{Control, Unknown, Unused};
                match tokenizer.token_kind(id).unwrap() {
                    Unused => {}
                    Control | Unknown if !shows => {}
                    _ => bytes.extend(tokenizer.token_bytes(id).unwrap()),
                }
            }
            let has_prefix = std::ptr::eq(tokenizer, &*SENTENCE_PIECE) && starts;
            let skipped = usize::from(has_prefix && bytes.first() == Some(&b' '));
            prop_assert_eq!(&streamed, &String::from_utf8_lossy(&bytes[skipped..]));
            prop_assert_eq!(&streamed, &tokenizer.decode_with(&ids, options).unwrap());
            // No chunk ends inside a character that a later byte completes.
            prop_assert_eq!(chunks.len(), ids.len() + 1);
        }
    }
}

#[test]
fn a_character_in_pieces_comes_out_whole() {
    let tokenizer = &*SENTENCE_PIECE;
    let byte = |byte: u8| u32::from(byte) + 3;
    let ids =
        [byte(0xF0), byte(0x9F), byte(0x98), byte(0x80), byte(0xE2), byte(b'x'), byte(0xFF), byte(0xC3)];
    let (_, chunks) = stream(tokenizer, &ids, DecodeOptions::default());
    assert_eq!(chunks, ["", "", "", "😀", "", "\u{FFFD}x", "\u{FFFD}", "", "\u{FFFD}"]);
}

#[test]
fn a_token_outside_the_vocabulary_is_an_error() {
    let tokenizer = &*SENTENCE_PIECE;
    let vocab_size = tokenizer.vocab_size();
    let outside = [vocab_size as u32, u32::MAX];
    for id in outside {
        let error = tokenizer.decode(&[id]).unwrap_err();
        assert_eq!(error.to_string(), format!("token {id} is outside the vocabulary of {vocab_size} tokens"));
        assert_eq!(tokenizer.token_bytes(id), None);
        assert_eq!(tokenizer.token_kind(id), None);
    }
}

#[test]
fn tokenizers_and_decoders_can_move_between_threads() {
    fn can_move<T: Send + Sync + Clone + 'static>(_: &T) {}
    can_move(&*SENTENCE_PIECE);
    can_move(&SENTENCE_PIECE.stream_decoder());
}
