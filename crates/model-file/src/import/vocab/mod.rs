//! The vocabulary of a checkpoint, in GGUF's words: byte-level BPE becomes `gpt2`, SentencePiece-like BPE `llama`.
//!
//! Kinds of tokens, places for ids without a token and the defaults follow llama.cpp's converter, so that a GGUF file
//! made of a checkpoint here says what one made there says.

mod json;
mod pieces;
mod pre;
mod side;

pub(crate) use pre::PRE_TOKENIZERS;

use super::ImportError;
use super::files::{
    Companion, MAX_SMALL_BYTES, MAX_TOKENIZER_BYTES, MAX_TOKENIZER_CONFIG_BYTES, companion, required,
};
use super::scratch::Scratch;
use crate::gguf::value::{NumberArray, NumberType, StringArray, Value};
use crate::{Metadata, ModelFileError};
use bytes::Bytes;
use json::TokenizerJson;
use pre::{Affixes, SpacePrefix};
use side::{NamedIds, TokenizerConfig};
use std::ops::Range;
use std::path::Path;

/// A vocabulary that has been read, before it is stored.
pub(super) struct Vocabulary {
    /// `gpt2` or `llama`.
    model: &'static str,
    pre: &'static str,
    tokens: StringArray,
    types: Vec<u8>,
    scores: Vec<u8>,
    merges: StringArray,
    side: Side,
    add_space_prefix: bool,
    chat_template: Option<String>,
    /// The files it was read from.
    pub(super) companions: Vec<Companion>,
}

/// Special tokens and what is put around a text.
#[derive(Debug, Default)]
struct Side {
    /// Key below `tokenizer.ggml.` and id.
    ids: Vec<(&'static str, u32)>,
    add_bos: bool,
    add_eos: bool,
}

/// Where the parts of a vocabulary are in the temporary file.
pub(super) struct Places {
    tokens: Range<usize>,
    types: Range<usize>,
    scores: Range<usize>,
    merges: Range<usize>,
}

/// Type numbers of GGUF.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// Reads the tokenizer in `dir` for a token table of `n_rows`. `config` is config.json, which may name ids.
pub(super) fn read(dir: &Path, n_rows: usize, config: &[u8]) -> Result<Vocabulary, ModelFileError> {
    let file = required(dir, "tokenizer.json", MAX_TOKENIZER_BYTES)?;
    let tokenizer = json::read(file.bytes()).map_err(|error| file.wrong(error))?;
    let settings_file = companion(dir, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES)?;
    let generation_file = companion(dir, "generation_config.json", MAX_SMALL_BYTES)?;
    let template_file = companion(dir, "chat_template.jinja", MAX_SMALL_BYTES)?;
    let mut settings: TokenizerConfig = read_side(settings_file.as_ref())?;
    let generation: NamedIds = read_side(generation_file.as_ref())?;
    let named: NamedIds = side::read(config)?;
    let chat_template = match &template_file {
        Some(file) => {
            let text = std::str::from_utf8(file.bytes());
            Some(text.map_err(|_| file.wrong(ImportError::Json("not UTF-8".to_owned())))?.to_owned())
        }
        None => settings.chat_template.0.take(),
    };
    let side = find_side(&tokenizer, &settings, [&named, &generation]).map_err(|error| file.wrong(error))?;
    let read = assemble(tokenizer, n_rows).map_err(|error| file.wrong(error))?;
    let companions = [Some(file), settings_file, generation_file, template_file].into_iter().flatten();
    Ok(Vocabulary { side, chat_template, companions: companions.collect(), ..read })
}

fn read_side<T: Default + serde::de::DeserializeOwned>(
    file: Option<&Companion>,
) -> Result<T, ModelFileError> {
    match file {
        Some(file) => side::read(file.bytes()).map_err(|error| file.wrong(error)),
        None => Ok(T::default()),
    }
}

/// The tokens by id, their types, scores and merges. What the files beside say is left empty.
fn assemble(tokenizer: TokenizerJson, n_rows: usize) -> Result<Vocabulary, ModelFileError> {
    let model = &tokenizer.model;
    match model.kind.as_deref() {
        None | Some("BPE") => {}
        Some(other) => {
            let name: String = other.chars().take(40).collect();
            return Err(ImportError::Tokenizer(format!("a model of type {name}")).into());
        }
    }
    if let Some(odd) = model.odd {
        return Err(ImportError::Tokenizer(odd.to_owned()).into());
    }
    if let Some(token) = tokenizer.added.iter().find(|token| token.single_word) {
        return Err(
            ImportError::Tokenizer(format!("the token {:?} as a whole word only", token.content)).into()
        );
    }
    let (normalizer, pre_tokenizer) = (&tokenizer.normalizer, &tokenizer.pre_tokenizer);
    let (tokens, types) = token_table(&tokenizer, n_rows)?;
    let common = |model, pre, scores: Vec<u8>, merges, add_space_prefix| Vocabulary {
        model,
        pre,
        tokens,
        types: types.iter().flat_map(|kind| kind.to_le_bytes()).collect(),
        scores,
        merges,
        side: Side::default(),
        add_space_prefix,
        chat_template: None,
        companions: Vec::new(),
    };
    if model.byte_fallback {
        let prefix = pre::space_marks(normalizer, pre_tokenizer)?;
        let scores = pieces::scores(&model.vocab, &model.merges, n_rows)?;
        let scores = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        return Ok(common("llama", "default", scores, StringArray::empty(), prefix == SpacePrefix::Added));
    }
    let pre = pre::byte_level_name(normalizer, pre_tokenizer, model.ignore_merges)?;
    Ok(common("gpt2", pre, Vec::new(), tokenizer.model.merges.into_array(), false))
}

/// Texts and types of the tokens `0..n_rows`. Ids without a token get a text that nothing is merged into.
fn token_table(tokenizer: &TokenizerJson, n_rows: usize) -> Result<(StringArray, Vec<i32>), ModelFileError> {
    let (vocab, added) = (&tokenizer.model.vocab, &tokenizer.added);
    let highest = vocab.iter().map(|(id, _)| id).chain(added.iter().map(|token| token.id)).max();
    let Some(highest) = highest else {
        return Err(ImportError::Vocabulary("it has no tokens".to_owned()).into());
    };
    if n_rows <= highest as usize {
        return Err(ModelFileError::VocabSize { tokens: highest as usize + 1, rows: n_rows });
    }
    let mut texts: Vec<Option<&str>> = vec![None; n_rows];
    let mut types = vec![kind::UNUSED; n_rows];
    let unknown = tokenizer.model.unk_token.as_deref();
    for (id, text) in vocab.iter() {
        if texts[id as usize].replace(text).is_some() {
            return Err(ImportError::Vocabulary(format!("two tokens have the id {id}")).into());
        }
        types[id as usize] = match tokenizer.model.byte_fallback {
            true if byte_of(text).is_some() => kind::BYTE,
            true if unknown == Some(text) => kind::UNKNOWN,
            _ => kind::NORMAL,
        };
    }
    for token in added {
        let (idx, text) = (token.id as usize, token.content.as_str());
        if texts[idx].replace(text).is_some_and(|other| other != text) {
            return Err(ImportError::Vocabulary(format!("two tokens have the id {}", token.id)).into());
        }
        types[idx] = match token.special || looks_special(text) {
            true if types[idx] == kind::UNKNOWN => kind::UNKNOWN,
            true => kind::CONTROL,
            false => kind::USER_DEFINED,
        };
    }
    let fillers: Vec<String> =
        (0..n_rows).filter(|&id| texts[id].is_none()).map(|id| format!("[PAD{id}]")).collect();
    let mut filler = fillers.iter().map(String::as_str);
    let all = texts.into_iter().map(|text| text.or_else(|| filler.next()).unwrap_or_default());
    Ok((StringArray::from_strs(all), types))
}

/// The byte that `<0x0A>` stands for.
fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit());
    is_hex.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

/// True for texts that steer a model although their file does not call them special.
fn looks_special(text: &str) -> bool {
    let within = |start, end| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (2 < text.chars().count() && (within("<|", "|>") || within("<｜", "｜>")))
}

/// Finds the ids of special tokens: by the texts of tokenizer_config.json, else by the ids that `named` have.
fn find_side(
    tokenizer: &TokenizerJson,
    settings: &TokenizerConfig,
    named: [&NamedIds; 2],
) -> Result<Side, ImportError> {
    let id_of = |text: &str| {
        let added = tokenizer.added.iter().find(|token| token.content == text).map(|token| token.id);
        added.or_else(|| tokenizer.model.vocab.iter().find(|(_, known)| *known == text).map(|(id, _)| id))
    };
    let around = pre::affixes(&tokenizer.post_processor)?;
    let Affixes { before, after } = around.clone().unwrap_or_default();
    let by_text = |text: &Option<String>| text.as_deref().and_then(id_of);
    let first =
        |ids: fn(&NamedIds) -> &side::Ids| named.iter().find_map(|named| ids(named).0.first().copied());
    let template = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => id_of(text).map(Some).ok_or_else(|| {
            ImportError::Vocabulary(format!("the post-processor names {text:?}, which is no token"))
        }),
    };
    let (before, after) = (template(&before)?, template(&after)?);
    let bos = by_text(&settings.bos_token.0).or(before).or(first(|named| &named.bos_token_id));
    let eos = by_text(&settings.eos_token.0).or(after).or(first(|named| &named.eos_token_id));
    let unknown = by_text(&settings.unk_token.0).or(by_text(&tokenizer.model.unk_token));
    let padding = by_text(&settings.pad_token.0).or(first(|named| &named.pad_token_id));
    for (around, id, what) in [(before, bos, "before"), (after, eos, "after")] {
        if around.is_some() && around != id {
            let why = format!("a token other than BOS or EOS {what} every text");
            return Err(ImportError::Tokenizer(why));
        }
    }
    let add_bos = settings.add_bos_token.unwrap_or(before.is_some());
    let add_eos = settings.add_eos_token.unwrap_or(after.is_some());
    if (add_bos && bos.is_none()) || (add_eos && eos.is_none()) {
        return Err(ImportError::Vocabulary(
            "a token is to be put around texts, and none is named".to_owned(),
        ));
    }
    let ids = [
        ("bos_token_id", bos),
        ("eos_token_id", eos),
        ("unknown_token_id", unknown),
        ("padding_token_id", padding),
    ];
    let ids = ids.into_iter().filter_map(|(key, id)| Some((key, id?))).collect();
    Ok(Side { ids, add_bos, add_eos })
}

impl Vocabulary {
    /// Bytes it takes in the temporary file, with room for gaps.
    pub(super) fn bytes(&self) -> u64 {
        let parts = [self.tokens.data().len(), self.types.len(), self.scores.len(), self.merges.data().len()];
        parts.iter().map(|&len| len as u64 + 64).sum()
    }

    /// Puts the long parts into the temporary file.
    pub(super) fn store(&self, scratch: &mut Scratch) -> Result<Places, ModelFileError> {
        Ok(Places {
            tokens: scratch.piece(self.tokens.data())?,
            types: scratch.piece(&self.types)?,
            scores: scratch.piece(&self.scores)?,
            merges: scratch.piece(self.merges.data())?,
        })
    }

    /// Says in `metadata` what a GGUF file would; the long parts are views into `file`, the mapped temporary file.
    pub(super) fn describe(&self, places: &Places, file: &Bytes, metadata: &mut Metadata) {
        let view = |range: &Range<usize>| file.slice(range.clone());
        let strings = |array: &StringArray, range| Value::Strings(StringArray::new(array.len(), view(range)));
        let numbers = |kind, range| Value::Numbers(NumberArray::new(kind, view(range)));
        let mut set = |name: &str, value: Value| metadata.set(&format!("tokenizer.ggml.{name}"), value);
        set("model", self.model.into());
        set("pre", self.pre.into());
        set("tokens", strings(&self.tokens, &places.tokens));
        set("token_type", numbers(NumberType::I32, &places.types));
        if !self.scores.is_empty() {
            set("scores", numbers(NumberType::F32, &places.scores));
        }
        if !self.merges.is_empty() {
            set("merges", strings(&self.merges, &places.merges));
        }
        for (name, id) in &self.side.ids {
            set(name, (*id).into());
        }
        set("add_bos_token", self.side.add_bos.into());
        set("add_eos_token", self.side.add_eos.into());
        set("add_space_prefix", self.add_space_prefix.into());
        if let Some(template) = &self.chat_template {
            metadata.set("tokenizer.chat_template", template.as_str());
        }
    }
}
