//! Typed key/value pairs in the order of the file.

use crate::ModelFileError;
use crate::gguf::value::{Number, NumberArray, StringArray, Value};

/// Metadata of a model: pairs with unique keys, in order.
///
/// Memory: the keys. Strings and arrays share the bytes of the mapped file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pairs: Vec<(String, Value)>,
}

impl Metadata {
    /// The caller has checked that the keys are unique.
    pub(crate) fn from_unique_pairs(pairs: Vec<(String, Value)>) -> Self {
        Self { pairs }
    }

    /// Number of pairs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// True when there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> + '_ {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Replaces the value of `key` where it stands, or adds the pair at the end.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.pairs.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((key.to_owned(), value)),
        }
    }

    /// Removes `key` and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let idx = self.pairs.iter().position(|(known, _)| known == key)?;
        Some(self.pairs.remove(idx).1)
    }

    /// Keeps the pairs whose key passes.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.pairs.retain(|(key, _)| keep(key));
    }

    /// Renames every key that begins with `from` so that it begins with `to`; values stay in place.
    pub(crate) fn rename_prefix(&mut self, from: &str, to: &str) {
        for (key, _) in &mut self.pairs {
            if let Some(rest) = key.strip_prefix(from) {
                *key = format!("{to}{rest}");
            }
        }
    }

    /// The string at `key`.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(wrong(key, "a string")),
        }
    }

    /// The whole number at `key`, of any integer type, when it is not negative.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn uint(&self, key: &str) -> Result<Option<u64>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => uint_of(key, *number).map(Some),
            Some(_) => Err(wrong(key, UINT)),
        }
    }

    /// The number at `key`, of a float type.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_float().map(Some).ok_or_else(|| wrong(key, "a float")),
            Some(_) => Err(wrong(key, "a float")),
        }
    }

    /// The boolean at `key`.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_bool().map(Some).ok_or_else(|| wrong(key, "a boolean")),
            Some(_) => Err(wrong(key, "a boolean")),
        }
    }

    /// The strings at `key`.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn strings(&self, key: &str) -> Result<Option<&StringArray>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Strings(strings)) => Ok(Some(strings)),
            Some(_) => Err(wrong(key, "an array of strings")),
        }
    }

    /// The numbers at `key`.
    /// # Errors
    /// [`ModelFileError::KeyType`] when it is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<&NumberArray>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Numbers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(wrong(key, "an array of numbers")),
        }
    }

    /// The whole numbers at `key`, one for each of `n_items`; a single number stands for all of them.
    pub(crate) fn uint_for_each(
        &self,
        key: &str,
        n_items: usize,
    ) -> Result<Option<Vec<u64>>, ModelFileError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Number(number)) => uint_of(key, *number).map(|value| Some(vec![value; n_items])),
            Some(Value::Numbers(numbers)) => {
                if numbers.len() != n_items {
                    let (key, got) = (key.to_owned(), numbers.len());
                    return Err(ModelFileError::KeyLen { key, want: n_items, got });
                }
                numbers.iter().map(|number| uint_of(key, number)).collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(wrong(key, "a whole number or an array of them")),
        }
    }

    /// The value of `key`, or an error that names it.
    pub(crate) fn require<T>(key: &str, value: Option<T>) -> Result<T, ModelFileError> {
        value.ok_or_else(|| ModelFileError::MissingKey(key.to_owned()))
    }
}

const UINT: &str = "a whole number that is not negative";

fn wrong(key: &str, want: &'static str) -> ModelFileError {
    ModelFileError::KeyType { key: key.to_owned(), want }
}

fn uint_of(key: &str, number: Number) -> Result<u64, ModelFileError> {
    number.as_int().and_then(|value| u64::try_from(value).ok()).ok_or_else(|| wrong(key, UINT))
}
