//! Reads tokenizer.json in one pass: texts go straight into one buffer, merges into the form that GGUF has for
//! lists of strings, and what is not needed is passed over. Memory: at most about three times the file.

use crate::gguf::value::StringArray;
use crate::import::ImportError;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::cell::Cell;
use std::fmt;

/// Most values in the small parts: normalizer, pre-tokenizer, post-processor.
const MAX_PART_VALUES: u32 = 1 << 12;
/// Most tokens; as many as a token table may have rows.
const MAX_TOKENS: usize = secateur_model::limits::MAX_VOCAB;

/// A tokenizer.json.
#[derive(Debug, Default)]
pub(super) struct TokenizerJson {
    pub(super) added: Vec<AddedToken>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) model: Model,
}

/// A token that is cut out of raw text.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
    #[serde(default)]
    pub(super) single_word: bool,
}

/// What turns pieces into tokens.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) kind: Option<String>,
    pub(super) vocab: Texts,
    pub(super) merges: Merges,
    pub(super) unk_token: Option<String>,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    /// A feature that changes tokens and that vocabularies of GGUF do not have.
    pub(super) odd: Option<&'static str>,
}

/// Texts of tokens with their ids, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Texts {
    bytes: String,
    entries: Vec<(u32, std::ops::Range<u32>)>,
}

impl Texts {
    /// Id and text of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.entries.iter().map(|(id, range)| (*id, &self.bytes[range.start as usize..range.end as usize]))
    }
}

/// Merge rules, best first, as GGUF has them: each with its length before it, its parts with a space between.
#[derive(Debug, Default)]
pub(super) struct Merges {
    encoded: Vec<u8>,
    len: usize,
}

impl Merges {
    pub(super) fn into_array(self) -> StringArray {
        StringArray::new(self.len, self.encoded.into())
    }

    /// The two parts of each rule.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut rest: &[u8] = &self.encoded;
        (0..self.len).map(move |_| {
            let (len, tail) = rest.split_first_chunk::<8>().expect("written by `push`");
            let (rule, tail) = tail.split_at(u64::from_le_bytes(*len) as usize);
            rest = tail;
            let rule = std::str::from_utf8(rule).expect("two strings and a space");
            rule.split_once(' ').expect("a rule has a space")
        })
    }

    /// Adds a rule that `fill` writes; false when it is no pair.
    fn push(&mut self, fill: impl FnOnce(&mut Vec<u8>)) -> bool {
        let at = self.encoded.len();
        self.encoded.extend([0; 8]);
        fill(&mut self.encoded);
        let rule = &self.encoded[at + 8..];
        let is_pair = rule.iter().filter(|&&byte| byte == b' ').count() == 1;
        let len = rule.len() as u64;
        self.encoded[at..at + 8].copy_from_slice(&len.to_le_bytes());
        self.len += 1;
        is_pair && !self.encoded[at + 8..].starts_with(b" ") && !self.encoded.ends_with(b" ")
    }
}

/// Reads a tokenizer.json.
pub(super) fn read(json: &[u8]) -> Result<TokenizerJson, ImportError> {
    serde_json::from_slice(json).map_err(|error| ImportError::Json(error.to_string()))
}

impl<'de> Deserialize<'de> for TokenizerJson {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = TokenizerJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenizerJson, A::Error> {
                let mut read = TokenizerJson::default();
                let budget = Cell::new(MAX_PART_VALUES);
                while let Some(key) = map.next_key::<ShortKey>()? {
                    match key.0.as_str() {
                        "added_tokens" => read.added = map.next_value::<Few<AddedToken>>()?.0,
                        "normalizer" => read.normalizer = map.next_value_seed(Small(&budget))?,
                        "pre_tokenizer" => read.pre_tokenizer = map.next_value_seed(Small(&budget))?,
                        "post_processor" => read.post_processor = map.next_value_seed(Small(&budget))?,
                        "model" => read.model = map.next_value()?,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(read)
            }
        }
        reader.deserialize_map(Parts)
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Model;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the model of a tokenizer")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Model, A::Error> {
                let mut model = Model::default();
                while let Some(key) = map.next_key::<ShortKey>()? {
                    match key.0.as_str() {
                        "type" => model.kind = map.next_value()?,
                        "vocab" => model.vocab = map.next_value()?,
                        "merges" => model.merges = map.next_value()?,
                        "unk_token" => model.unk_token = map.next_value()?,
                        "byte_fallback" => model.byte_fallback = map.next_value()?,
                        "ignore_merges" => model.ignore_merges = map.next_value()?,
                        "dropout" if map.next_value::<Option<f64>>()?.is_some_and(|share| share != 0.0) => {
                            model.odd = Some("dropout of merges");
                        }
                        "continuing_subword_prefix" | "end_of_word_suffix"
                            if map.next_value::<Option<String>>()?.is_some_and(|mark| !mark.is_empty()) =>
                        {
                            model.odd = Some("marks at the ends of words");
                        }
                        "dropout" | "continuing_subword_prefix" | "end_of_word_suffix" => {}
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(model)
            }
        }
        reader.deserialize_map(Parts)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_TOKENS} tokens with their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                let place =
                    |len: usize| u32::try_from(len).map_err(|_| A::Error::custom("texts beyond 4 GiB"));
                let mut start = 0;
                while map.next_key_seed(Append(&mut texts.bytes))?.is_some() {
                    if texts.entries.len() == MAX_TOKENS {
                        return Err(A::Error::invalid_length(MAX_TOKENS + 1, &self));
                    }
                    let end = place(texts.bytes.len())?;
                    texts.entries.push((map.next_value()?, start..end));
                    start = end;
                }
                Ok(texts)
            }

            // Models other than BPE have a list here; their type is what the caller refuses.
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Texts::default())
            }
        }
        reader.deserialize_any(Pairs)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Rules;
        impl<'de> Visitor<'de> for Rules {
            type Value = Merges;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Merges, A::Error> {
                let mut merges = Merges::default();
                while items.next_element_seed(Rule(&mut merges))?.is_some() {}
                merges.encoded.shrink_to_fit();
                Ok(merges)
            }
        }
        reader.deserialize_seq(Rules)
    }
}

/// One merge: `"a b"`, or `["a", "b"]` as newer files have it.
struct Rule<'m>(&'m mut Merges);

impl<'de> DeserializeSeed<'de> for Rule<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rule<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge of two tokens without spaces")
    }

    fn visit_str<E: Error>(self, rule: &str) -> Result<(), E> {
        match self.0.push(|out| out.extend(rule.as_bytes())) {
            true => Ok(()),
            false => Err(E::custom("a merge is not of two tokens without spaces")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let pair = (items.next_element::<String>()?, items.next_element::<String>()?);
        let (Some(left), Some(right), None) = (pair.0, pair.1, items.next_element::<IgnoredAny>()?) else {
            return Err(A::Error::custom("a merge is not of two tokens"));
        };
        self.visit_str(&format!("{left} {right}"))
    }
}

/// Appends a string to a buffer.
struct Append<'b>(&'b mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}

/// A key of the format; longer ones are none.
struct ShortKey(String);

impl<'de> Deserialize<'de> for ShortKey {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Start;
        impl Visitor<'_> for Start {
            type Value = ShortKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ShortKey, E> {
                Ok(ShortKey(text.chars().take(64).collect()))
            }
        }
        reader.deserialize_str(Start)
    }
}

/// As many items as there may be tokens.
struct Few<T>(Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Items<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Few<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_TOKENS} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Few<T>, A::Error> {
                let mut read = Vec::new();
                while let Some(item) = items.next_element()? {
                    if read.len() == MAX_TOKENS {
                        return Err(A::Error::invalid_length(MAX_TOKENS + 1, &self));
                    }
                    read.push(item);
                }
                Ok(Few(read))
            }
        }
        reader.deserialize_seq(Items(std::marker::PhantomData))
    }
}

/// A value of few parts: a [`Value`] takes many times the bytes it is spelt with.
#[derive(Clone, Copy)]
struct Small<'b>(&'b Cell<u32>);

impl<'de> DeserializeSeed<'de> for Small<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| D::Error::custom("too many parts for a tokenizer's pipeline"))?);
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Small<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}
