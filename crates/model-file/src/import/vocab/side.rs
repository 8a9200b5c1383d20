//! The files beside tokenizer.json that name special tokens and the chat template. Their values have several
//! forms; each is read as what it is, without a tree of values in between.

use crate::import::ImportError;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// tokenizer_config.json, as far as it matters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenizerConfig {
    pub(super) bos_token: TokenText,
    pub(super) eos_token: TokenText,
    pub(super) unk_token: TokenText,
    pub(super) pad_token: TokenText,
    pub(super) add_bos_token: Option<bool>,
    pub(super) add_eos_token: Option<bool>,
    pub(super) chat_template: Template,
}

/// Ids in config.json and generation_config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NamedIds {
    pub(super) bos_token_id: Ids,
    pub(super) eos_token_id: Ids,
    pub(super) pad_token_id: Ids,
}

/// Reads one of these files.
pub(super) fn read<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Result<T, ImportError> {
    serde_json::from_slice(json).map_err(|error| ImportError::Json(error.to_string()))
}

/// A token by its text: `"</s>"`, or an object with `content`.
#[derive(Debug, Default)]
pub(super) struct TokenText(pub(super) Option<String>);

/// One id, several, or none.
#[derive(Debug, Default)]
pub(super) struct Ids(pub(super) Vec<u32>);

/// Most ids in a list.
const MAX_IDS: usize = 64;

/// A chat template: a text, or a list of named ones of which `default` is taken.
#[derive(Debug, Default)]
pub(super) struct Template(pub(super) Option<String>);

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl<'de> Deserialize<'de> for TokenText {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = TokenText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token")
            }

            fn visit_unit<E: Error>(self) -> Result<TokenText, E> {
                Ok(TokenText(None))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<TokenText, E> {
                Ok(TokenText(Some(text.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TokenText, A::Error> {
                let mut content = None;
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "content" => content = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(TokenText(content))
            }
        }
        reader.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Ids;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the id of a token, or at most {MAX_IDS} of them")
            }

            fn visit_unit<E: Error>(self) -> Result<Ids, E> {
                Ok(Ids::default())
            }

            // Some files write -1 for a token that the model does not have.
            fn visit_i64<E: Error>(self, _: i64) -> Result<Ids, E> {
                Ok(Ids::default())
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Ids, E> {
                let id = u32::try_from(id).map_err(|_| E::custom("an id beyond every vocabulary"))?;
                Ok(Ids(vec![id]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Ids, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element::<u32>()? {
                    if ids.len() == MAX_IDS {
                        return Err(A::Error::invalid_length(MAX_IDS + 1, &self));
                    }
                    ids.push(id);
                }
                Ok(Ids(ids))
            }
        }
        reader.deserialize_any(Forms)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Forms;
        impl<'de> Visitor<'de> for Forms {
            type Value = Template;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a chat template, or a list of them")
            }

            fn visit_unit<E: Error>(self) -> Result<Template, E> {
                Ok(Template(None))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Template, E> {
                Ok(Template(Some(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Template, A::Error> {
                let mut found = None;
                while let Some(NamedTemplate { name, template }) = items.next_element()? {
                    if name == "default" {
                        found = Some(template);
                    }
                }
                Ok(Template(found))
            }
        }
        reader.deserialize_any(Forms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let text = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
            "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "x": [[1]]}"#;
        let config: TokenizerConfig = read(text).unwrap();
        assert_eq!(config.bos_token.0.as_deref(), Some("<s>"));
        assert_eq!(config.eos_token.0.as_deref(), Some("</s>"));
        assert_eq!((config.pad_token.0, config.unk_token.0), (None, None));
        assert_eq!(config.chat_template.0.as_deref(), Some("d"));
        let ids: NamedIds =
            read(br#"{"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": -1}"#).unwrap();
        assert_eq!(
            (ids.bos_token_id.0, ids.eos_token_id.0, ids.pad_token_id.0),
            (vec![1], vec![2, 3], vec![])
        );
        for bad in
            ["{\"bos_token_id\": 4294967296}", "{\"eos_token_id\": \"x\"}", "[", "{\"eos_token_id\": [-1]}"]
        {
            assert!(read::<NamedIds>(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
