//! Runs a tokenizer.json on the `tokenizers` crate.
//!
//! Special tokens are found here, not there, so that the caller decides where they count; the crate gets what lies
//! between them. The crate builds its tables as hash maps of strings and keeps several copies of a text while it
//! works on it (about 200 bytes a byte), so long texts are handed over in chunks where the pipeline is one of those
//! for which cutting is proven to change nothing: see [`CHUNK_BYTES`].

use crate::classes::{CharClass, class_of};
use crate::encode::{Encoder, Place};
use crate::special::{SpecialToken, SpecialTokens};
use crate::stop::{SpecialIds, find_stop_ids};
use crate::tokenizer::{Parts, Tokenizer};
use crate::vocab::{MAX_TOKENS, TokenKind, TokenTable, check_limit};
use crate::{TokenizerError, byte_level, spm};
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// Most bytes of a tokenizer.json.
pub const MAX_TOKENIZER_JSON_BYTES: usize = 64 << 20;

/// Long texts are cut before a line feed that follows a letter or a number, not before this many bytes.
///
/// All splitting patterns that [`is_cuttable`] knows end a piece there whatever comes next, and start the next one
/// with the line feed whatever came before.
const CHUNK_BYTES: usize = 16 << 10;

/// The patterns of [`crate::PreTokenizer`] as files spell them.
const CUTTABLE_PATTERNS: &[&str] = &[
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// The pipeline of a tokenizer.json.
#[derive(Debug)]
pub(crate) struct JsonPipeline {
    tokenizer: tokenizers::Tokenizer,
    is_cuttable: bool,
    /// Put before a text that does not begin with it; only where the text starts.
    start_mark: Option<char>,
    /// The tokens that the crate itself cuts out of text.
    user_defined: SpecialTokens,
}

impl JsonPipeline {
    /// Appends the tokens of a stretch of text.
    /// # Errors
    /// [`TokenizerError::Encode`]
    pub(crate) fn encode(&self, text: &str, place: Place, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self.start_mark.filter(|&mark| place == Place::Start && self.wants_mark(text, mark)) {
            Some(mark) => self.encode_chunks(&format!("{mark}{text}"), out),
            None => self.encode_chunks(text, out),
        }
    }

    fn wants_mark(&self, text: &str, mark: char) -> bool {
        let starts_with_token = || {
            let first = self.user_defined.segments(text, |_, range| range.start == 0).into_iter().next();
            matches!(first, Some(crate::special::Segment::Token(_)))
        };
        !text.starts_with([mark, ' ']) && !starts_with_token()
    }

    fn encode_chunks(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut rest = text;
        while !rest.is_empty() {
            let end = if self.is_cuttable { chunk_len(rest) } else { rest.len() };
            let (chunk, after) = rest.split_at(end);
            let encoding = guarded(|| self.tokenizer.encode_fast(chunk, false))
                .and_then(|result| result.map_err(|error| error.to_string()))
                .map_err(|message| TokenizerError::Encode { message })?;
            out.extend(encoding.get_ids());
            rest = after;
        }
        Ok(())
    }
}

/// Length of the first chunk of a text.
fn chunk_len(text: &str) -> usize {
    let ends_word = |at: usize| {
        let before = text[..at].chars().next_back().map(class_of);
        matches!(before, Some(CharClass::Letter | CharClass::Number))
    };
    let line_feeds = text.bytes().enumerate().skip(CHUNK_BYTES).filter(|&(_, byte)| byte == b'\n');
    line_feeds.map(|(at, _)| at).find(|&at| ends_word(at)).unwrap_or(text.len())
}

impl Tokenizer {
    /// Builds a tokenizer from the text of a tokenizer.json. That file names neither BOS nor EOS: BOS is what the
    /// file's own post-processor puts before a text, and stop tokens are found by their texts. Use
    /// [`Self::from_tokenizer_json_with`] when a file beside it names them.
    ///
    /// Memory: several times the size of the file while it is read, and roughly twice its size afterwards. Encoding
    /// is linear in time; it needs memory in proportion to the text unless the pipeline is one of the byte-level
    /// ones that [`crate::PreTokenizer`] knows.
    /// # Errors
    /// What is wrong with the file, or what in it is not supported; see [`TokenizerError`].
    pub fn from_tokenizer_json(json: &[u8], chat_template: Option<String>) -> Result<Self, TokenizerError> {
        Self::from_tokenizer_json_with(json, chat_template, SpecialIds::default())
    }

    /// [`Self::from_tokenizer_json`] with the special tokens that a file beside it names.
    /// # Errors
    /// As [`Self::from_tokenizer_json`], and [`TokenizerError::SpecialTokenOutOfRange`].
    pub fn from_tokenizer_json_with(
        json: &[u8],
        chat_template: Option<String>,
        mut special_ids: SpecialIds,
    ) -> Result<Self, TokenizerError> {
        check_limit("bytes of tokenizer.json", json.len(), MAX_TOKENIZER_JSON_BYTES)?;
        let mut tokenizer = read(json)?;
        let form = decoded_form(&tokenizer)?;
        let mut table = token_table(&tokenizer, form.spelling)?;
        let (mut specials, user_defined) = added_tokens(&tokenizer)?;
        let (prefix, suffix) = affixes(&tokenizer)?;
        special_ids.bos = special_ids.bos.or(prefix.first().copied());
        let stop_ids = find_stop_ids(&mut table, &mut special_ids)?;
        // Their texts made some tokens plain that the file calls special, or the other way round.
        for token in &mut specials {
            token.is_control = table.kind_of(token.id) != Some(TokenKind::UserDefined);
        }
        let start_mark = take_start_mark(&mut tokenizer)?;
        let pipeline = JsonPipeline {
            is_cuttable: is_cuttable(&tokenizer)?,
            start_mark,
            user_defined: SpecialTokens::new(user_defined),
            tokenizer,
        };
        Ok(Self::from_parts(Parts {
            table,
            encoder: Encoder::Json(Box::new(pipeline)),
            specials: SpecialTokens::new(specials),
            special_ids,
            stop_ids,
            prefix,
            suffix,
            strips_first_space: form.strips_first_space,
            chat_template,
        }))
    }
}

/// Reads the file into a pipeline that neither truncates nor pads, and leaves special tokens to us.
fn read(json: &[u8]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut tokenizer = guarded(|| tokenizers::Tokenizer::from_bytes(json))
        .and_then(|result| result.map_err(|error| error.to_string()))
        .map_err(|message| TokenizerError::Json { message })?;
    tokenizer.with_truncation(None).map_err(|error| TokenizerError::Json { message: error.to_string() })?;
    tokenizer.with_padding(None);
    tokenizer.set_encode_special_tokens(true);
    match tokenizer.get_model() {
        ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => {}
        ModelWrapper::WordPiece(_) => return Err(unsupported("a model of type WordPiece")),
        ModelWrapper::WordLevel(_) => return Err(unsupported("a model of type WordLevel")),
    }
    Ok(tokenizer)
}

/// Runs foreign code that indexes with numbers from the file; a panic of it must not become ours.
fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run))
        .map_err(|_| "the tokenizers library panicked on this input".to_owned())
}

fn unsupported(feature: impl Into<String>) -> TokenizerError {
    TokenizerError::UnsupportedJson { feature: feature.into() }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    SpaceMarks,
}

struct DecodedForm {
    spelling: Spelling,
    strips_first_space: bool,
}

/// Finds out how tokens become text.
fn decoded_form(tokenizer: &tokenizers::Tokenizer) -> Result<DecodedForm, TokenizerError> {
    let mut steps = Vec::new();
    flatten(&to_value(&tokenizer.get_decoder())?, "decoders", &mut steps);
    let has = |name: &str| steps.iter().any(|step| step["type"] == name);
    if has("ByteLevel") {
        return Ok(DecodedForm { spelling: Spelling::ByteLevel, strips_first_space: false });
    }
    if has("Metaspace") || has("ByteFallback") || has("Replace") {
        let strips_first_space = steps.iter().any(|step| {
            (step["type"] == "Strip" && step["start"].as_u64() > Some(0))
                || (step["type"] == "Metaspace" && step["prepend_scheme"] != "never")
        });
        return Ok(DecodedForm { spelling: Spelling::SpaceMarks, strips_first_space });
    }
    let names: Vec<_> = steps.iter().map(|step| step["type"].to_string()).collect();
    Err(unsupported(format!("the decoder [{}]", names.join(", "))))
}

fn to_value(part: &impl serde::Serialize) -> Result<Value, TokenizerError> {
    serde_json::to_value(part).map_err(|error| TokenizerError::Json { message: error.to_string() })
}

/// Lists the steps of a pipeline part, which may be a sequence of others.
fn flatten(part: &Value, list: &str, steps: &mut Vec<Value>) {
    match part[list].as_array() {
        Some(parts) => parts.iter().for_each(|part| flatten(part, list, steps)),
        None if part.is_null() => {}
        None => steps.push(part.clone()),
    }
}

fn token_table(tokenizer: &tokenizers::Tokenizer, spelling: Spelling) -> Result<TokenTable, TokenizerError> {
    let added = tokenizer.get_added_tokens_decoder();
    let texts = tokenizer.get_vocab(true);
    let vocab_size = texts.values().chain(added.keys()).max().map_or(0, |&id| id as usize + 1);
    check_limit("tokens", vocab_size, MAX_TOKENS)?;
    if vocab_size == 0 {
        return Err(TokenizerError::EmptyVocabulary);
    }
    let mut by_id: Vec<&str> = vec![""; vocab_size];
    for (text, &id) in &texts {
        by_id[id as usize] = text;
    }
    let mut table = TokenTable::with_capacity(vocab_size);
    for (idx, text) in by_id.into_iter().enumerate() {
        match added.get(&u32::try_from(idx).unwrap_or(u32::MAX)) {
            Some(token) => {
                let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
                table.push(kind, |out| out.extend(token.content.as_bytes()))?;
            }
            None if text.is_empty() => table.push(TokenKind::Unused, |_| {})?,
            None => push_model_token(&mut table, text, spelling)?,
        }
    }
    table.shrink();
    Ok(table)
}

fn push_model_token(table: &mut TokenTable, text: &str, spelling: Spelling) -> Result<(), TokenizerError> {
    match spelling {
        Spelling::ByteLevel => table.push(TokenKind::Normal, |out| {
            if !byte_level::decode_into(text, out) {
                out.extend(text.as_bytes());
            }
        }),
        Spelling::SpaceMarks => match spm::parse_byte_token(text) {
            Some(byte) => table.push(TokenKind::Byte, |out| out.push(byte)),
            None => table.push(TokenKind::Normal, |out| {
                out.extend(text.replace(spm::SPACE_MARK, " ").as_bytes());
            }),
        },
    }
}

/// The added tokens: those that the file calls special, and the others.
fn added_tokens(
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(Vec<SpecialToken>, Vec<SpecialToken>), TokenizerError> {
    let (mut specials, mut others) = (Vec::new(), Vec::new());
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if token.special && token.single_word {
            return Err(unsupported(format!("the special token `{}` as a whole word only", token.content)));
        }
        let list = if token.special { &mut specials } else { &mut others };
        list.push(SpecialToken {
            text: token.content.into(),
            id,
            is_control: token.special,
            eats_left: token.lstrip,
            eats_right: token.rstrip,
        });
    }
    Ok((specials, others))
}

/// What the file's post-processor puts before and after a text.
fn affixes(tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
    let encode = |add_special| {
        guarded(|| tokenizer.encode_fast("a", add_special))
            .and_then(|result| result.map_err(|error| error.to_string()))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|message| TokenizerError::Json { message })
    };
    let (bare, whole) = (encode(false)?, encode(true)?);
    let at = (0..=whole.len().saturating_sub(bare.len())).find(|&at| whole[at..].starts_with(&bare));
    let Some(at) = at else { return Err(unsupported("a post-processor that changes the tokens of a text")) };
    Ok((whole[..at].to_vec(), whole[at + bare.len()..].to_vec()))
}

/// Takes over from the pipeline to put a mark before the first word only, because the pipeline sees stretches of
/// a text and would take each for the first.
fn take_start_mark(tokenizer: &mut tokenizers::Tokenizer) -> Result<Option<char>, TokenizerError> {
    let pre = tokenizer.get_pre_tokenizer().cloned();
    if let Some(PreTokenizerWrapper::Metaspace(mut metaspace)) = pre {
        if metaspace.get_prepend_scheme() != PrependScheme::First {
            return Ok(None);
        }
        let mark = metaspace.get_replacement();
        metaspace.set_prepend_scheme(PrependScheme::Never);
        tokenizer.with_pre_tokenizer(Some(PreTokenizerWrapper::Metaspace(metaspace)));
        return Ok(Some(mark));
    }
    let mut steps = Vec::new();
    flatten(&to_value(&pre)?, "pretokenizers", &mut steps);
    if steps.iter().any(|step| step["prepend_scheme"] == "first") {
        return Err(unsupported("the prepend scheme `first` inside a sequence of pre-tokenizers"));
    }
    Ok(None)
}

/// True when cutting a text as [`CHUNK_BYTES`] describes cannot change its tokens.
fn is_cuttable(tokenizer: &tokenizers::Tokenizer) -> Result<bool, TokenizerError> {
    let (mut pre, mut normalizers) = (Vec::new(), Vec::new());
    flatten(&to_value(&tokenizer.get_pre_tokenizer())?, "pretokenizers", &mut pre);
    flatten(&to_value(&tokenizer.get_normalizer())?, "normalizers", &mut normalizers);
    let knows = |step: &Value| match step["type"].as_str() {
        Some("ByteLevel") => step["add_prefix_space"] == false,
        Some("Digits") => true,
        Some("Split") => {
            let pattern = step["pattern"]["Regex"].as_str();
            pattern.is_some_and(|pattern| CUTTABLE_PATTERNS.contains(&pattern))
                && step["behavior"] == "Isolated"
                && step["invert"] == false
        }
        _ => false,
    };
    let splits =
        |step: &Value| step["type"] == "Split" || (step["type"] == "ByteLevel" && step["use_regex"] == true);
    // Behind the step that spells text as bytes, a line feed no longer looks like one.
    let byte_level_at = pre.iter().position(|step| step["type"] == "ByteLevel");
    let splits_raw_text = byte_level_at.is_none_or(|at| at + 1 == pre.len());
    let added = tokenizer.get_added_tokens_decoder();
    let crosses_lines = added.values().any(|token| {
        !token.special && (token.lstrip || token.rstrip || token.single_word || token.content.contains('\n'))
    });
    Ok(pre.iter().all(knows)
        && pre.iter().any(splits)
        && splits_raw_text
        && normalizers.iter().all(|step| step["type"] == "NFC")
        && !crosses_lines)
}
