//! From tokens to text, whole or as it comes.

use crate::TokenizerError;
use crate::tokenizer::Tokenizer;
use crate::vocab::TokenKind;

/// Whether control tokens appear in decoded text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ControlTokens {
    /// They are left out.
    #[default]
    Skip,
    /// They are spelt out.
    Show,
}

/// Where the tokens stand in their text. It matters for vocabularies that put a space before each text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DecodeFrom {
    /// At its start: a space put there by encoding is taken away.
    #[default]
    Start,
    /// Behind other text, as a generated reply does: the tokens' text is taken as it is.
    Middle,
}

/// How tokens become text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeOptions {
    /// What happens to control tokens.
    pub control_tokens: ControlTokens,
    /// Where the tokens stand.
    pub from: DecodeFrom,
}

/// Decodes token by token and never hands out part of a character.
///
/// Bytes that may still become a character are held back (at most three). Bytes that cannot become one turn into
/// U+FFFD, exactly where [`String::from_utf8_lossy`] would put it in the whole text, so the stream's text is the same
/// whatever the tokens were cut into.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    options: DecodeOptions,
    held: Vec<u8>,
    strips_space: bool,
}

impl Tokenizer {
    /// Decodes tokens to text from its start, without control tokens. Broken characters become U+FFFD.
    /// # Errors
    /// [`TokenizerError::TokenOutOfRange`]
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.decode_with(ids, DecodeOptions::default())
    }

    /// Decodes tokens to text. Broken characters become U+FFFD.
    /// # Errors
    /// [`TokenizerError::TokenOutOfRange`]
    pub fn decode_with(&self, ids: &[u32], options: DecodeOptions) -> Result<String, TokenizerError> {
        let mut decoder = self.stream_decoder_with(options);
        let mut text = String::new();
        for &id in ids {
            decoder.push(id, &mut text)?;
        }
        decoder.finish(&mut text);
        Ok(text)
    }

    /// A decoder whose output, token by token, is that of [`Self::decode`].
    #[must_use]
    pub fn stream_decoder(&self) -> StreamDecoder {
        self.stream_decoder_with(DecodeOptions::default())
    }

    /// A decoder whose output, token by token, is that of [`Self::decode_with`].
    #[must_use]
    pub fn stream_decoder_with(&self, options: DecodeOptions) -> StreamDecoder {
        let strips_space = self.parts().strips_first_space && options.from == DecodeFrom::Start;
        StreamDecoder { tokenizer: self.clone(), options, held: Vec::new(), strips_space }
    }
}

impl StreamDecoder {
    /// Appends the text that becomes whole with this token to `out`.
    /// # Errors
    /// [`TokenizerError::TokenOutOfRange`]; the decoder can go on with another token.
    pub fn push(&mut self, id: u32, out: &mut String) -> Result<(), TokenizerError> {
        let table = &self.tokenizer.parts().table;
        let (Some(kind), Some(mut bytes)) = (table.kind_of(id), table.bytes_of(id)) else {
            return Err(TokenizerError::TokenOutOfRange { id, vocab_size: table.len() });
        };
        let is_shown = match kind {
            TokenKind::Control | TokenKind::Unknown => self.options.control_tokens == ControlTokens::Show,
            _ => kind.is_text(),
        };
        if !is_shown || bytes.is_empty() {
            return Ok(());
        }
        if self.strips_space {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strips_space = false;
        }
        if self.held.is_empty() {
            let n_used = append_whole(bytes, out);
            self.held.extend(&bytes[n_used..]);
        } else {
            self.held.extend(bytes);
            let n_used = append_whole(&self.held, out);
            self.held.drain(..n_used);
        }
        Ok(())
    }

    /// Appends what is still held back: part of a character, which becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }

    /// Number of bytes held back.
    #[must_use]
    pub fn n_held_bytes(&self) -> usize {
        self.held.len()
    }
}

/// Appends `bytes` to `out` except for an unfinished character at their end; returns how many bytes were used.
fn append_whole(bytes: &[u8], out: &mut String) -> usize {
    let mut n_used = 0;
    loop {
        let rest = &bytes[n_used..];
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                return bytes.len();
            }
            Err(error) => {
                let n_valid = error.valid_up_to();
                out.push_str(std::str::from_utf8(&rest[..n_valid]).unwrap_or_default());
                n_used += n_valid;
                let Some(n_broken) = error.error_len() else { return n_used };
                out.push(char::REPLACEMENT_CHARACTER);
                n_used += n_broken;
            }
        }
    }
}
