//! From text to tokens: cut out special tokens, then hand what lies between them to the model's own method.

use crate::bpe::Bpe;
use crate::json::JsonPipeline;
use crate::merge::{MAX_PIECE_BYTES, MergeScratch};
use crate::special::{Segment, SpecialToken};
use crate::spm::{SPACE_MARK, Spm};
use crate::tokenizer::Tokenizer;
use crate::vocab::{TokenTable, check_limit};
use crate::{PreTokenizer, TokenizerError};
use std::borrow::Cow;
use std::ops::Range;

/// Whether the tokens that the vocabulary wants around a text are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecial {
    /// Start and end tokens are added where the vocabulary asks for them.
    Yes,
    /// The text alone.
    No,
}

/// The method of a vocabulary.
#[derive(Debug)]
pub(crate) enum Encoder {
    /// Byte-level BPE.
    Bpe { pre: PreTokenizer, bpe: Bpe },
    /// SentencePiece-style BPE.
    Spm { spm: Spm, add_space_prefix: bool },
    /// Whatever a tokenizer.json describes.
    Json(Box<JsonPipeline>),
}

/// Where in the whole text a stretch of it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the very start.
    Start,
    /// Right after a special token.
    AfterToken,
}

impl Encoder {
    fn encode(
        &self,
        table: &TokenTable,
        text: &str,
        place: Place,
        scratch: &mut MergeScratch,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        match self {
            Self::Bpe { pre, bpe } => {
                for piece in pre.pieces(text) {
                    bpe.encode_piece(table, piece.as_bytes(), scratch, out);
                }
            }
            Self::Spm { spm, add_space_prefix } => {
                let mut spaced = Cow::Borrowed(text);
                if spaced.contains(SPACE_MARK) {
                    spaced = Cow::Owned(spaced.replace(SPACE_MARK, " "));
                }
                if *add_space_prefix {
                    spaced.to_mut().insert(0, ' ');
                }
                spm.encode(table, &spaced, scratch, out);
            }
            Self::Json(pipeline) => pipeline.encode(text, place, out)?,
        }
        Ok(())
    }
}

impl Tokenizer {
    /// Encodes a text in which nothing is special: `<|im_end|>` in it is a string of ten characters.
    ///
    /// Tokens that the vocabulary declares to be plain text of their own are still cut out. Time is linear in the
    /// text; memory beside the result is that of its longest piece (28 bytes a byte), not of the text. For a
    /// vocabulary from a tokenizer.json see [`Self::from_tokenizer_json`].
    ///
    /// A byte-level vocabulary may lack tokens for some bytes, see [`Self::unencodable_bytes`].
    /// # Errors
    /// [`TokenizerError::TooLarge`] for texts beyond 1 GiB; [`TokenizerError::Encode`] when the pipeline of a
    /// tokenizer.json fails.
    pub fn encode(&self, text: &str, add_special: AddSpecial) -> Result<Vec<u32>, TokenizerError> {
        self.encode_where(text, add_special, |token, _| !token.is_control)
    }

    /// Encodes a text in which special tokens are spelt out. Only for text that is trusted as a whole: see
    /// [`Self::encode_chat_prompt`] for prompts with foreign text in them.
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_special_tokens_parsed(
        &self,
        text: &str,
        add_special: AddSpecial,
    ) -> Result<Vec<u32>, TokenizerError> {
        self.encode_where(text, add_special, |_, _| true)
    }

    /// Encodes a text; `allowed` decides which spelt-out tokens are cut out.
    pub(crate) fn encode_where(
        &self,
        text: &str,
        add_special: AddSpecial,
        allowed: impl Fn(&SpecialToken, Range<usize>) -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        check_limit("bytes of text", text.len(), MAX_PIECE_BYTES)?;
        let parts = self.parts();
        let mut out = Vec::new();
        let mut scratch = MergeScratch::default();
        if add_special == AddSpecial::Yes {
            out.extend(&parts.prefix);
        }
        let is_ours = |token: &SpecialToken| token.is_control || !matches!(parts.encoder, Encoder::Json(_));
        let segments = parts.specials.segments(text, |token, range| is_ours(token) && allowed(token, range));
        for (idx, segment) in segments.into_iter().enumerate() {
            match segment {
                Segment::Token(id) => out.push(id),
                Segment::Text(range) => {
                    let place = if idx == 0 { Place::Start } else { Place::AfterToken };
                    parts.encoder.encode(&parts.table, &text[range], place, &mut scratch, &mut out)?;
                }
            }
        }
        if add_special == AddSpecial::Yes {
            out.extend(&parts.suffix);
        }
        Ok(out)
    }

    /// The bytes that no token stands for: they vanish from encoded text. Complete vocabularies have none; those
    /// trained on clean UTF-8 lack at most bytes that do not occur in it, and sometimes rare control characters.
    #[must_use]
    pub fn unencodable_bytes(&self) -> Vec<u8> {
        match &self.parts().encoder {
            Encoder::Bpe { bpe, .. } => bpe.missing_bytes().collect(),
            Encoder::Spm { .. } | Encoder::Json(_) => Vec::new(),
        }
    }

    /// True when every text survives encoding and decoding unchanged, as far as the vocabulary tells.
    #[must_use]
    pub fn is_lossless(&self) -> bool {
        match &self.parts().encoder {
            Encoder::Bpe { bpe, .. } => bpe.missing_bytes().next().is_none(),
            Encoder::Spm { spm, .. } => spm.has_all_bytes(),
            Encoder::Json(_) => false,
        }
    }
}
