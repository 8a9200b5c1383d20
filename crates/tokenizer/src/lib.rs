//! Text to tokens, tokens to text, chats to prompts.
//!
//! - [`Tokenizer::from_gguf`] reads the vocabulary of a GGUF file (byte-level BPE and SentencePiece-style BPE) into
//!   compact tables of its own: a vocabulary of 49,152 tokens takes about 2 MiB.
//! - [`Tokenizer::from_tokenizer_json`] runs a tokenizer.json on the `tokenizers` crate.
//! - [`Tokenizer::stream_decoder`] decodes token by token without ever breaking a character.
//! - [`Tokenizer::apply_chat_template`] renders a chat under limits, and [`Tokenizer::encode_chat_prompt`] encodes
//!   the result so that text from outside cannot act as special tokens.
//!
//! This crate reads no files, keeps no state between calls, and stands alone. What it is given may come from
//! anywhere: every count has a limit, and broken input is a [`TokenizerError`].
//!
//! ```
//! use secateur_tokenizer::{AddSpecial, ChatMessage, ChatOptions, GgufVocab, Tokenizer};
//!
//! let tokenizer = Tokenizer::from_gguf(&GgufVocab {
//!     model: "gpt2",
//!     pre: Some("gpt-2"),
//!     tokens: &["h", "i", "hi", "Ċ", "s", "u", "e", "r", "<|im_start|>", "<|im_end|>"],
//!     token_types: &[1, 1, 1, 1, 1, 1, 1, 1, 3, 3],
//!     merges: &["h i"],
//!     ..GgufVocab::default()
//! })?;
//! assert_eq!(tokenizer.encode("hih", AddSpecial::No)?, [2, 0]);
//! assert_eq!(tokenizer.decode(&[2, 9, 0])?, "hih");
//! assert!(tokenizer.is_stop(9));
//!
//! let chat = [ChatMessage::new("user", "hi")];
//! let prompt = tokenizer.apply_chat_template(&chat, &ChatOptions::default())?;
//! assert!(prompt.as_str().starts_with("<|im_start|>user\nhi<|im_end|>\n"));
//! assert_eq!(tokenizer.encode_chat_prompt(&prompt)?[..7], [8, 5, 4, 6, 7, 3, 2]);
//! # Ok::<(), secateur_tokenizer::TokenizerError>(())
//! ```
#![forbid(unsafe_code)]

mod bpe;
mod byte_level;
mod chat;
mod classes;
mod decode;
mod encode;
mod error;
mod gguf;
mod json;
mod merge;
mod pretokenize;
mod special;
mod spm;
mod stop;
mod tokenizer;
mod vocab;

pub use bpe::MAX_MERGES;
pub use chat::{
    ChatMessage, ChatOptions, ChatPrompt, CivilTime, GenerationPrompt, MAX_PROMPT_BYTES, MAX_TEMPLATE_BYTES,
};
pub use decode::{ControlTokens, DecodeFrom, DecodeOptions, StreamDecoder};
pub use encode::AddSpecial;
pub use error::{ChatTemplateErrorKind, TokenizerError};
pub use gguf::{GgufVocab, StringList};
pub use json::MAX_TOKENIZER_JSON_BYTES;
pub use pretokenize::{Pieces, PreTokenizer};
pub use stop::SpecialIds;
pub use tokenizer::Tokenizer;
pub use vocab::{MAX_TOKEN_BYTES, MAX_TOKENS, MAX_VOCABULARY_BYTES, TokenKind};
