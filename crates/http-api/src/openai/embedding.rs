//! `POST /v1/embeddings`: mean-pooled hidden states of unit length.

use super::{ask, params};
use crate::app::AppState;
use crate::backend::Backend;
use crate::body::JsonBody;
use crate::error::{ApiError, OpenAiError};
use crate::fields::{Fields, parse_list, parse_string};
use axum::Json;
use axum::extract::State;
use secateur_service::api::{EmbeddingView, Prompt};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// Most texts of one request.
const MAX_INPUTS: usize = 64;

/// Every field that is documented or honoured.
pub(crate) const FIELDS: &[&str] =
    &["input", "model", "encoding_format", "dimensions", "user", "safety_identifier"];

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Float,
    Base64,
}

struct EmbeddingCall {
    model: Option<String>,
    inputs: Vec<Prompt>,
    encoding: Encoding,
}

impl EmbeddingCall {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::of_body(body, FIELDS)?;
        params::refuse_shared(&fields)?;
        fields.refuse("dimensions", &[], "the model's vectors have one size")?;
        let encoding = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(_) => return Err(fields.bad("encoding_format", "float or base64")),
        };
        let input = fields.required("input", fields.raw("input"))?;
        let inputs = inputs(input).ok_or_else(|| {
            let what = "a text, an array of tokens, or an array of at most";
            fields.bad("input", format!("{what} {MAX_INPUTS} of either; none of them empty"))
        })?;
        Ok(Self { model: params::model(&fields)?, inputs, encoding })
    }
}

fn inputs(raw: &RawValue) -> Option<Vec<Prompt>> {
    if let Some(single) = text(raw) {
        return Some(vec![single]);
    }
    if let Some(tokens) = params::token_ids(raw) {
        return Some(vec![Prompt::Tokens(tokens)]);
    }
    let list = parse_list(raw, MAX_INPUTS).filter(|list| !list.is_empty())?;
    let input = |raw| text(raw).or_else(|| params::token_ids(raw).map(Prompt::Tokens));
    list.into_iter().map(input).collect()
}

fn text(raw: &RawValue) -> Option<Prompt> {
    parse_string(raw).filter(|text| !text.is_empty()).map(Prompt::Text)
}

/// Scales a vector to unit length, as OpenAI's are; a zero vector stays.
fn normalised(mut values: Vec<f32>) -> Vec<f32> {
    let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if 0.0 < norm {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    values
}

/// Base64 (RFC 4648, padded) of the values as little-endian bytes.
fn base64(values: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .enumerate()
            .fold(0u32, |word, (idx, &byte)| word | u32::from(byte) << (16 - 8 * idx));
        for digit in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * digit)) as usize & 63];
            text.push(if digit <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

/// `POST /v1/embeddings`.
pub(crate) async fn embed<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Json<Value>, OpenAiError> {
    let _permit = state.shared.admit()?;
    let EmbeddingCall { model, inputs, encoding } = EmbeddingCall::parse(&body.0)?;
    let make = || embed_all(&state.backend, &inputs);
    let (served, embeddings) = ask(&state.backend, model.as_deref(), make).await?;
    let mut data = Vec::with_capacity(inputs.len());
    let mut prompt_tokens = 0;
    for (index, embedding) in embeddings.into_iter().enumerate() {
        prompt_tokens += embedding.prompt_tokens;
        let values = normalised(embedding.values);
        let embedding = match encoding {
            Encoding::Float => Value::from(values),
            Encoding::Base64 => Value::from(base64(&values)),
        };
        data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
    }
    let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
    Ok(Json(json!({"object": "list", "data": data, "model": served.id, "usage": usage})))
}

async fn embed_all<B: Backend>(backend: &B, inputs: &[Prompt]) -> Result<Vec<EmbeddingView>, ApiError> {
    let mut embeddings = Vec::with_capacity(inputs.len());
    for input in inputs {
        let embedding = backend.embed(input).await;
        embeddings.push(embedding.map_err(|error| ApiError::from(error).about_prompt("input"))?);
    }
    Ok(embeddings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // base64.b64encode(struct.pack("<f", 1.0)), two and three values likewise.
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0, -2.5, 3.0]), "AACAPwAAIMAAAEBA");
    }

    #[test]
    fn vectors_get_unit_length() {
        assert_eq!(normalised(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalised(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
