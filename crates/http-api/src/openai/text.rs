//! `/tokenize`, `/detokenize` and `/apply-template`, as llama-server spells them.

use super::{chat, params};
use crate::app::AppState;
use crate::backend::Backend;
use crate::body::JsonBody;
use crate::error::OpenAiError;
use crate::fields::Fields;
use axum::Json;
use axum::extract::State;
use secateur_service::AddSpecial;
use serde_json::{Value, json};

/// `POST /tokenize`: `{content, add_special}` to `{tokens}`.
pub(crate) async fn tokenize<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Json<Value>, OpenAiError> {
    let _permit = state.shared.admit()?;
    let fields = Fields::of_body(&body.0, &["content", "add_special", "parse_special", "with_pieces"])?;
    fields.refuse("parse_special", &["false"], "text never acts as special tokens: false")?;
    fields.refuse("with_pieces", &["false"], "only ids are returned: false")?;
    let content = fields.string("content")?;
    let content = fields.required("content", content)?;
    let special =
        if fields.boolean("add_special")?.unwrap_or(false) { AddSpecial::Yes } else { AddSpecial::No };
    let tokens = state.blocking(move |backend| backend.tokenize(&content, special)).await?;
    Ok(Json(json!({"tokens": tokens})))
}

/// `POST /detokenize`: `{tokens}` to `{content}`.
pub(crate) async fn detokenize<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Json<Value>, OpenAiError> {
    let _permit = state.shared.admit()?;
    let fields = Fields::of_body(&body.0, &["tokens"])?;
    let raw = fields.required("tokens", fields.raw("tokens"))?;
    let tokens =
        params::token_ids(raw).ok_or_else(|| fields.bad("tokens", "an array of token ids, not empty"))?;
    let content = state.blocking(move |backend| backend.detokenize(&tokens)).await?;
    Ok(Json(json!({"content": content})))
}

/// `POST /apply-template`: `{messages, tools}` to `{prompt}`.
pub(crate) async fn apply_template<B: Backend>(
    State(state): State<AppState<B>>,
    body: JsonBody,
) -> Result<Json<Value>, OpenAiError> {
    let _permit = state.shared.admit()?;
    let (messages, tools) = chat::conversation_of_body(&body.0)?;
    let prompt = state.blocking(move |backend| backend.apply_template(&messages, tools.as_ref())).await?;
    Ok(Json(json!({"prompt": prompt})))
}
