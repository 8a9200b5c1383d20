//! Reads typed fields out of untrusted JSON objects, naming the field in every error.
//!
//! Only known fields are kept, and as slices of the body: a hostile body of a megabyte costs no more than itself.
//! `null` is the same as absent. A known field given twice is an error: two readers might pick different ones.

use crate::error::ApiError;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The known fields of one JSON object.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// Path of the object in the body, with a dot at the end; empty for the body itself.
    prefix: String,
    values: Vec<(&'static str, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Reads a whole body.
    /// # Errors
    /// [`ApiError::BadJson`] when it is no JSON object.
    pub(crate) fn of_body(body: &'a [u8], known: &'static [&'static str]) -> Result<Self, ApiError> {
        let text =
            std::str::from_utf8(body).map_err(|_| ApiError::BadJson("it is not valid UTF-8".to_owned()))?;
        let values = read_object(text, known, Unknown::Ignore)
            .map_err(|error| ApiError::BadJson(error.to_string()))?;
        Ok(Self { prefix: String::new(), values })
    }

    /// Reads a whole body of our own protocol, where an unknown field is a mistake; no body is an empty object.
    /// # Errors
    /// [`ApiError::BadJson`] when it is no JSON object or has another field.
    pub(crate) fn of_strict_body(body: &'a [u8], known: &'static [&'static str]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Ok(Self { prefix: String::new(), values: Vec::new() });
        }
        let text =
            std::str::from_utf8(body).map_err(|_| ApiError::BadJson("it is not valid UTF-8".to_owned()))?;
        let values = read_object(text, known, Unknown::Refuse)
            .map_err(|error| ApiError::BadJson(error.to_string()))?;
        Ok(Self { prefix: String::new(), values })
    }

    /// Reads an object inside a body.
    /// # Errors
    /// [`ApiError::BadParam`] naming `path`.
    pub(crate) fn of_value(
        raw: &'a RawValue,
        path: &str,
        known: &'static [&'static str],
    ) -> Result<Self, ApiError> {
        let values = read_object(raw.get(), known, Unknown::Ignore)
            .map_err(|_| ApiError::bad_param(path, "an object, no field twice"))?;
        Ok(Self { prefix: format!("{path}."), values })
    }

    /// Path of a field in the body.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A field as it stands; `None` when absent or null.
    pub(crate) fn raw(&self, name: &'static str) -> Option<&'a RawValue> {
        let found = self.values.iter().find(|(known, _)| *known == name);
        found.map(|&(_, raw)| raw).filter(|raw| raw.get() != "null")
    }

    /// An error about a field.
    pub(crate) fn bad(&self, name: &str, expected: impl Into<String>) -> ApiError {
        ApiError::bad_param(self.path(name), expected)
    }

    /// The value of a field that must be there.
    /// # Errors
    /// [`ApiError::BadParam`] when it is not.
    pub(crate) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, ApiError> {
        value.ok_or_else(|| self.bad(name, "given"))
    }

    /// A string.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn string(&self, name: &'static str) -> Result<Option<String>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        parse_string(raw).map(Some).ok_or_else(|| self.bad(name, "a string of Unicode characters"))
    }

    /// A short name without control characters.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn name(&self, name: &'static str) -> Result<Option<String>, ApiError> {
        let value = self.string(name)?;
        let fits = |text: &String| text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
        if value.as_ref().is_some_and(|text| !fits(text)) {
            return Err(self.bad(name, format!("a string of at most {MAX_NAME_BYTES} bytes on one line")));
        }
        Ok(value)
    }

    /// True or false.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn boolean(&self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.raw(name).map(RawValue::get) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(self.bad(name, "true or false")),
        }
    }

    /// A number in `min..=max`.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn number(&self, name: &'static str, min: f64, max: f64) -> Result<Option<f64>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let value = serde_json::from_str::<f64>(raw.get()).ok();
        let in_range = value.filter(|value| (min..=max).contains(value));
        in_range.map(Some).ok_or_else(|| self.bad(name, format!("a number from {min} to {max}")))
    }

    /// A whole number in `min..=max`.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn integer(&self, name: &'static str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let value = serde_json::from_str::<u64>(raw.get()).ok();
        let in_range = value.filter(|value| (min..=max).contains(value));
        in_range.map(Some).ok_or_else(|| self.bad(name, format!("a whole number from {min} to {max}")))
    }

    /// The elements of an array of at most `max_len`.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn list(
        &self,
        name: &'static str,
        max_len: usize,
    ) -> Result<Option<Vec<&'a RawValue>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let expected = || self.bad(name, format!("an array of at most {max_len} elements"));
        parse_list(raw, max_len).map(Some).ok_or_else(expected)
    }

    /// The entries of an object of at most `max_len`.
    /// # Errors
    /// [`ApiError::BadParam`] for anything else.
    pub(crate) fn entries(
        &self,
        name: &'static str,
        max_len: usize,
    ) -> Result<Option<Vec<(String, &'a RawValue)>>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let mut json = serde_json::Deserializer::from_str(raw.get());
        let entries = Entries { max_len }.deserialize(&mut json).ok();
        entries.map(Some).ok_or_else(|| self.bad(name, format!("an object of at most {max_len} entries")))
    }

    /// Refuses a documented field that is not honoured, unless its value asks for nothing special: null, or one of
    /// `harmless` as JSON.
    /// # Errors
    /// [`ApiError::Unsupported`] naming the field.
    pub(crate) fn refuse(&self, name: &'static str, harmless: &[&str], why: &str) -> Result<(), ApiError> {
        match self.raw(name) {
            Some(raw) if !harmless.contains(&raw.get()) => Err(ApiError::unsupported(self.path(name), why)),
            _ => Ok(()),
        }
    }
}

/// Longest name, label or id a client may send.
pub(crate) const MAX_NAME_BYTES: usize = 512;

/// A string, or `None`.
pub(crate) fn parse_string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// Elements of an array of at most `max_len`, or `None`.
pub(crate) fn parse_list(raw: &RawValue, max_len: usize) -> Option<Vec<&RawValue>> {
    List { max_len }.deserialize(&mut serde_json::Deserializer::from_str(raw.get())).ok()
}

fn read_object<'a>(
    text: &'a str,
    known: &'static [&'static str],
    unknown: Unknown,
) -> Result<Vec<(&'static str, &'a RawValue)>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let values = Object { known, unknown }.deserialize(&mut json)?;
    json.end()?;
    Ok(values)
}

/// What becomes of a field that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unknown {
    /// Clients of the OpenAI protocol send new fields freely.
    Ignore,
    /// A misspelt setting must not turn into a default.
    Refuse,
}

struct Object {
    known: &'static [&'static str],
    unknown: Unknown,
}

impl<'de> DeserializeSeed<'de> for Object {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Vec<(&'static str, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values: Self::Value = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            let Some(&name) = self.known.iter().find(|name| **name == key) else {
                if self.unknown == Unknown::Refuse {
                    return Err(serde::de::Error::custom(format!("fields are {}", self.known.join(", "))));
                }
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if values.iter().any(|(seen, _)| *seen == name) {
                return Err(serde::de::Error::custom(format!("`{name}` is given twice")));
            }
            values.push((name, map.next_value()?));
        }
        Ok(values)
    }
}

struct List {
    max_len: usize,
}

impl<'de> DeserializeSeed<'de> for List {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            if self.max_len <= values.len() {
                return Err(serde::de::Error::custom("too many elements"));
            }
            values.push(value);
        }
        Ok(values)
    }
}

struct Entries {
    max_len: usize,
}

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(entry) = map.next_entry::<String, &'de RawValue>()? {
            if self.max_len <= values.len() {
                return Err(serde::de::Error::custom("too many entries"));
            }
            values.push(entry);
        }
        Ok(values)
    }
}
