//! What the text of an answer must be: `response_format` and, beyond OpenAI, `grammar`.

use crate::error::ApiError;
use crate::fields::{Fields, parse_string};
use secateur_service::api::Grammar;
use serde_json::Value;
use serde_json::value::RawValue;

/// Largest grammar or schema in bytes.
const MAX_GRAMMAR_BYTES: usize = 64 << 10;
/// Longest name of a schema or a function.
pub(crate) const MAX_FUNCTION_NAME: usize = 64;

/// `response_format`: `text`, `json_object` or `json_schema`.
pub(crate) fn response_format(fields: &Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    let Some(raw) = fields.raw("response_format") else { return Ok(None) };
    let format = Fields::of_value(raw, "response_format", &["type", "json_schema"])?;
    match format.string("type")?.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => json_schema(&format).map(Some),
        _ => Err(format.bad("type", "\"text\", \"json_object\" or \"json_schema\"")),
    }
}

fn json_schema(format: &Fields<'_>) -> Result<Grammar, ApiError> {
    let raw = format.required("json_schema", format.raw("json_schema"))?;
    let path = format.path("json_schema");
    let fields = Fields::of_value(raw, &path, &["name", "description", "schema", "strict"])?;
    function_name(&fields)?;
    fields.string("description")?;
    // The answer always satisfies the schema, so both values are kept.
    fields.boolean("strict")?;
    match fields.raw("schema") {
        None => Ok(Grammar::JsonObject),
        Some(schema) => schema_value(schema, &fields.path("schema")).map(Grammar::JsonSchema),
    }
}

/// `name`: as OpenAI documents it for functions and schemas.
pub(crate) fn function_name(fields: &Fields<'_>) -> Result<String, ApiError> {
    let name = fields.string("name")?;
    let name = fields.required("name", name)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if (1..=MAX_FUNCTION_NAME).contains(&name.len()) && name.bytes().all(is_plain) {
        return Ok(name);
    }
    Err(fields.bad("name", format!("1 to {MAX_FUNCTION_NAME} letters, digits, `_` or `-`")))
}

/// A schema: a JSON object of bounded size.
pub(crate) fn schema_value(raw: &RawValue, path: &str) -> Result<Value, ApiError> {
    let expected =
        || ApiError::bad_param(path, format!("a JSON Schema object of at most {MAX_GRAMMAR_BYTES} bytes"));
    if MAX_GRAMMAR_BYTES < raw.get().len() {
        return Err(expected());
    }
    serde_json::from_str::<Value>(raw.get()).ok().filter(Value::is_object).ok_or_else(expected)
}

/// `grammar`: Lark as a string, or an object with one of `lark`, `regex` and `json_schema`.
pub(crate) fn grammar(fields: &Fields<'_>) -> Result<Option<Grammar>, ApiError> {
    let Some(raw) = fields.raw("grammar") else { return Ok(None) };
    let expected = || {
        let what = "a Lark grammar as a string, or an object with one of `lark`, `regex` and `json_schema`";
        fields.bad("grammar", format!("{what}, of 1 to {MAX_GRAMMAR_BYTES} bytes"))
    };
    let fits = |text: &String| (1..=MAX_GRAMMAR_BYTES).contains(&text.len());
    if let Some(text) = parse_string(raw) {
        return Some(text).filter(fits).map(|text| Some(Grammar::Lark(text))).ok_or_else(expected);
    }
    let object = Fields::of_value(raw, "grammar", &["lark", "regex", "json_schema"])?;
    match (object.string("lark")?, object.string("regex")?, object.raw("json_schema")) {
        (Some(text), None, None) if fits(&text) => Ok(Some(Grammar::Lark(text))),
        (None, Some(text), None) if fits(&text) => Ok(Some(Grammar::Regex(text))),
        (None, None, Some(schema)) => {
            schema_value(schema, &object.path("json_schema")).map(|schema| Some(Grammar::JsonSchema(schema)))
        }
        _ => Err(expected()),
    }
}
