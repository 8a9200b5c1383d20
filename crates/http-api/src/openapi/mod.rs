//! `/openapi.json`: what every route takes and answers. Schemas and routes come from tables; tests hold them to the
//! readers of the fields.
//!
//! The document is made for each request: nothing of it stays in memory.

mod schemas;

use axum::Json;
use serde_json::{Map, Value, json};

/// One route.
struct Route {
    method: &'static str,
    path: &'static str,
    tag: &'static str,
    about: &'static str,
    /// Schema of the body.
    body: Option<&'static str>,
    /// Status, media type and schema of the good answer.
    good: (u16, &'static str, Option<&'static str>),
    /// May answer with server-sent events.
    streams: bool,
    /// Statuses of errors besides those that every route has.
    bad: &'static [u16],
}

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

const fn route(method: &'static str, path: &'static str, tag: &'static str, about: &'static str) -> Route {
    Route { method, path, tag, about, body: None, good: (200, JSON, None), streams: false, bad: &[] }
}

impl Route {
    const fn takes(self, body: &'static str) -> Self {
        Self { body: Some(body), ..self }
    }

    const fn answers(self, schema: &'static str) -> Self {
        Self { good: (self.good.0, self.good.1, Some(schema)), ..self }
    }

    const fn with(self, status: u16, media_type: &'static str) -> Self {
        Self { good: (status, media_type, self.good.2), ..self }
    }

    const fn or_streams(self) -> Self {
        Self { streams: true, ..self }
    }

    const fn fails(self, bad: &'static [u16]) -> Self {
        Self { bad, ..self }
    }
}

const ROUTES: &[Route] = &[
    route("post", "/v1/chat/completions", "openai", "Continues a conversation. With `stream` the answer is server-sent events that end with `[DONE]`; a failure in the middle is an event with an `error` object.")
        .takes("ChatCompletionRequest").answers("ChatCompletion").or_streams().fails(&[404, 503]),
    route("post", "/v1/completions", "openai", "Continues a text.")
        .takes("CompletionRequest").answers("Completion").or_streams().fails(&[404, 503]),
    route("post", "/v1/embeddings", "openai", "Mean-pooled hidden states after the final norm, scaled to unit length.")
        .takes("EmbeddingRequest").answers("EmbeddingList").fails(&[404, 503]),
    route("get", "/v1/models", "openai", "The model that is served, if there is one.").answers("ModelList"),
    route("get", "/v1/models/{id}", "openai", "The model that is served, when it has this id or name.")
        .answers("Model").fails(&[404]),
    route("post", "/tokenize", "llama-server", "The tokens of a text.")
        .takes("TokenizeRequest").answers("Tokens").fails(&[503]),
    route("post", "/detokenize", "llama-server", "The text of tokens.")
        .takes("DetokenizeRequest").answers("Content").fails(&[503]),
    route("post", "/apply-template", "llama-server", "The prompt that the model's template makes of a conversation.")
        .takes("ApplyTemplateRequest").answers("RenderedPrompt").fails(&[503]),
    route("get", "/api/v1/status", "native", "The service at a glance.").answers("Status"),
    route("get", "/api/v1/memory", "native", "What was measured, where, and what is allowed.").answers("Memory").fails(&[503]),
    route("post", "/api/v1/plan", "native", "What pruning would do; nothing is done.")
        .takes("PlanRequest").answers("Plan").fails(&[404, 409, 422, 503]),
    route("post", "/api/v1/prune", "native", "Starts a job that prunes; `Location` names it.")
        .takes("PruneRequest").answers("Job").with(202, JSON).fails(&[404, 409, 422, 503]),
    route("get", "/api/v1/jobs", "native", "All jobs, oldest first.").answers("JobList"),
    route("get", "/api/v1/jobs/{id}", "native", "A job.").answers("Job").fails(&[404]),
    route("delete", "/api/v1/jobs/{id}", "native", "Asks a job to stop. What it did is taken up when the same job is asked for again.")
        .answers("Job").fails(&[404]),
    route("get", "/api/v1/jobs/{id}/events", "native", "Events of a job as they come: `progress`, `planned`, `state`. `Last-Event-ID` continues behind the one seen last.")
        .with(200, EVENTS).fails(&[404, 503]),
    route("get", "/api/v1/models", "native", "The base model and the pruned models.").answers("StoredModelList").fails(&[503]),
    route("get", "/api/v1/models/{id}", "native", "A model.").answers("StoredModel").fails(&[404, 503]),
    route("delete", "/api/v1/models/{id}", "native", "Deletes a pruned model that is not served.")
        .with(204, JSON).fails(&[404, 409, 503]),
    route("post", "/api/v1/models/{id}/activate", "native", "Serves a model. Requests at work finish with the one before, those that come meanwhile wait for this one.")
        .answers("StoredModel").fails(&[404, 409, 422, 503]),
    route("get", "/livez", "health", "The process answers.").with(200, "text/plain"),
    route("get", "/readyz", "health", "Requests are answered.").answers("Readiness").fails(&[503]),
    route("get", "/health", "health", "As llama-server answers it.").answers("Health").fails(&[503]),
    route("get", "/metrics", "health", "Counters for Prometheus.").with(200, "text/plain"),
    route("get", "/openapi.json", "documentation", "This document."),
    route("get", "/docs", "documentation", "This document for people.").with(200, "text/html"),
    route("get", "/", "documentation", "A page with memory, plan, models and a chat.").with(200, "text/html"),
];

/// What a status of an error means.
fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is wrong; `param` names the field.",
        401 => "A key is needed, or this one is not known.",
        403 => "Not for this host, this page or this key.",
        404 => "There is no such thing.",
        405 => "The route knows other methods.",
        408 => "The body did not arrive in time.",
        409 => "The state of things does not allow it now.",
        413 => "The body is too large.",
        415 => "The body is not declared as JSON.",
        422 => "It cannot be done within the budget; `smallest_budget_bytes` says what would do.",
        500 => "The server or the model failed; the log says why.",
        503 => "Busy, loading, pruning or shutting down; `Retry-After` says when to come back.",
        _ => "See the specification of HTTP.",
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

fn responses(route: &Route) -> Value {
    let (status, media_type, schema) = route.good;
    let mut content = Map::new();
    if status != 204 {
        content.insert(media_type.to_owned(), json!({"schema": schema.map_or(json!({}), reference)}));
    }
    if route.streams {
        content.insert(EVENTS.to_owned(), json!({"schema": {"type": "string"}}));
    }
    let mut responses = Map::new();
    let mut good = json!({"description": "Done."});
    if !content.is_empty() {
        good["content"] = Value::Object(content);
    }
    responses.insert(status.to_string(), good);
    let is_native = route.path.starts_with("/api/");
    let body_errors: &[u16] = if route.body.is_some() { &[400, 408, 413, 415] } else { &[] };
    // Health checks tell in their own words why they fail.
    let own = matches!(route.path, "/readyz" | "/health");
    let mut errors: Vec<u16> = [401, 403, 500].iter().chain(body_errors).chain(route.bad).copied().collect();
    errors.sort_unstable();
    errors.dedup();
    for status in errors {
        let (media_type, schema) = match is_native {
            true => ("application/problem+json", "Problem"),
            false => (JSON, "OpenAiError"),
        };
        let schema = if own && status == 503 { route.good.2.unwrap_or(schema) } else { schema };
        let answer =
            json!({"description": meaning(status), "content": {media_type: {"schema": reference(schema)}}});
        responses.insert(status.to_string(), answer);
    }
    Value::Object(responses)
}

fn operation(route: &Route) -> Value {
    let name: String = route.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut operation = json!({
        "tags": [route.tag],
        "operationId": format!("{}{name}", route.method),
        "description": route.about,
        "responses": responses(route),
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({"required": true, "content": {JSON: {"schema": reference(body)}}});
    }
    let mut parameters = Vec::new();
    if route.path.contains("{id}") {
        parameters.push(json!({"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    if route.good.1 == EVENTS {
        let about = "Number of the event seen last.";
        parameters.push(
            json!({"name": "Last-Event-ID", "in": "header", "description": about, "schema": {"type": "string"}}),
        );
    }
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    operation
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut document = json!({"openapi": "3.1.0"});
    document["info"] = json!({
        "title": "Secateur",
        "description": "A language model that was pruned to fit this device, served from it. Routes under `/v1` speak \
            OpenAI's protocol, those under `/api/v1` are the service's own.",
        "version": env!("CARGO_PKG_VERSION"),
        "license": {"name": "MIT OR Apache-2.0"},
    });
    let keys = json!({
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    });
    document["components"] = json!({"schemas": schemas::schemas(), "securitySchemes": keys});
    // Without keys, which is the default on loopback, nothing needs to be shown.
    document["security"] = json!([{}, {"bearer": []}, {"header": []}]);
    let mut paths = Map::new();
    for route in ROUTES {
        paths.entry(route.path).or_insert_with(|| json!({}))[route.method] = operation(route);
    }
    document["paths"] = Value::Object(paths);
    document
}

/// `GET /openapi.json`.
pub(crate) async fn openapi() -> Json<Value> {
    Json(document())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{CHAT_FIELDS, COMPLETION_FIELDS, EMBEDDING_FIELDS};
    use std::collections::BTreeSet;

    #[test]
    fn the_document_is_the_one_in_the_repository() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("SECATEUR_UPDATE_DOCS").is_some() {
            std::fs::write(path, &made).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(made == kept, "docs/openapi.json is old; run this test with SECATEUR_UPDATE_DOCS=1");
    }

    #[test]
    fn schemas_name_every_field_that_is_read() {
        let document = document();
        for (schema, fields) in [
            ("ChatCompletionRequest", CHAT_FIELDS),
            ("CompletionRequest", COMPLETION_FIELDS),
            ("EmbeddingRequest", EMBEDDING_FIELDS),
        ] {
            let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
            let described: BTreeSet<&str> = properties.keys().map(String::as_str).collect();
            let read: BTreeSet<&str> = fields.iter().copied().collect();
            assert_eq!(described, read, "{schema}");
            let silent = properties.iter().find(|(_, about)| !about.to_string().contains("description"));
            assert!(silent.is_none(), "{schema}: {silent:?} says nothing");
        }
    }

    #[test]
    fn the_table_of_fields_in_the_documentation_is_whole() {
        let text = include_str!("../../../../docs/api.md");
        let section = |title: &str| {
            text.split(title).nth(1).unwrap_or_default().split("\n## ").next().unwrap().to_owned()
        };
        for (title, fields) in [
            ("## Chat completions", CHAT_FIELDS),
            ("## Completions", COMPLETION_FIELDS),
            ("## Embeddings", EMBEDDING_FIELDS),
        ] {
            let section = section(title);
            let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
            let described: BTreeSet<&str> = rows.collect();
            let read: BTreeSet<&str> = fields.iter().copied().collect();
            assert_eq!(described, read, "{title}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
