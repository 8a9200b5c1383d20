//! Schemas of what goes over the wire: a table of names, types and meanings.
//!
//! Types: `string`, `integer`, `number`, `boolean`, `any` or the name of a schema; in brackets for arrays; with a
//! question mark when the field may be absent or null.

use serde_json::{Map, Value, json};

/// An object and its fields.
struct Schema {
    name: &'static str,
    about: &'static str,
    fields: &'static [Field],
}

/// A field.
struct Field {
    name: &'static str,
    kind: &'static str,
    about: &'static str,
    /// Smallest and largest number, or lengths of a text or an array.
    range: Option<(f64, f64)>,
}

const fn field(name: &'static str, kind: &'static str, about: &'static str) -> Field {
    Field { name, kind, about, range: None }
}

impl Field {
    const fn within(self, min: f64, max: f64) -> Self {
        Self { range: Some((min, max)), ..self }
    }

    fn schema(&self) -> Value {
        let (kind, is_optional) = match self.kind.strip_suffix('?') {
            Some(kind) => (kind, true),
            None => (self.kind, false),
        };
        let mut schema = match kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
            Some(item) => json!({"type": "array", "items": plain(item)}),
            None => plain(kind),
        };
        if let Some((min, max)) = self.range {
            let (low, high) = match schema["type"].as_str() {
                Some("string") => ("minLength", "maxLength"),
                Some("array") => ("minItems", "maxItems"),
                _ => ("minimum", "maximum"),
            };
            schema[low] = number(min);
            schema[high] = number(max);
        }
        if is_optional && schema["type"].is_string() {
            schema["type"] = json!([schema["type"], "null"]);
        } else if is_optional && schema.get("$ref").is_some() {
            schema = json!({"oneOf": [schema, {"type": "null"}]});
        }
        if !self.about.is_empty() {
            schema["description"] = self.about.into();
        }
        schema
    }
}

/// A whole number is written as one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { Value::from(value as i64) } else { Value::from(value) }
}

fn plain(kind: &str) -> Value {
    match kind {
        "any" => json!({}),
        "string" | "integer" | "number" | "boolean" => json!({"type": kind}),
        name => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}

/// All schemas by name.
pub(super) fn schemas() -> Value {
    let mut schemas = Map::new();
    for schema in SCHEMAS {
        let mut properties = Map::new();
        for field in schema.fields {
            properties.insert(field.name.to_owned(), field.schema());
        }
        let required: Vec<&str> =
            schema.fields.iter().filter(|field| !field.kind.ends_with('?')).map(|field| field.name).collect();
        let mut object = json!({"type": "object", "description": schema.about, "properties": properties});
        if !required.is_empty() {
            object["required"] = required.into();
        }
        schemas.insert(schema.name.to_owned(), object);
    }
    Value::Object(schemas)
}

/// Fields that chats and completions share.
mod shared {
    use super::{Field, field};

    pub(super) const MODEL: Field = field(
        "model",
        "string?",
        "Id or name of the served model, `default`, or the id of the model it was pruned from; another one is 404.",
    );
    pub(super) const TEMPERATURE: Field =
        field("temperature", "number?", "0 to 2, 1 when absent; 0 takes the likeliest token.")
            .within(0.0, 2.0);
    pub(super) const TOP_P: Field = field("top_p", "number?", "0 to 1, 1 when absent.").within(0.0, 1.0);
    pub(super) const TOP_K: Field =
        field("top_k", "integer?", "Keeps the likeliest k tokens; 0 keeps all. Not of OpenAI.")
            .within(0.0, 1048576.0);
    pub(super) const MIN_P: Field = field(
        "min_p",
        "number?",
        "0 to 1: keeps tokens at least this probable relative to the likeliest. Not of OpenAI.",
    )
    .within(0.0, 1.0);
    pub(super) const REPETITION_PENALTY: Field = field(
        "repetition_penalty",
        "number?",
        "0.01 to 10, 1 is off; over prompt and answer. Not of OpenAI.",
    )
    .within(0.01, 10.0);
    pub(super) const PRESENCE_PENALTY: Field =
        field("presence_penalty", "number?", "-2 to 2, over the answer.");
    pub(super) const FREQUENCY_PENALTY: Field =
        field("frequency_penalty", "number?", "-2 to 2, over the answer.");
    pub(super) const LOGIT_BIAS: Field =
        field("logit_bias", "any?", "Map of at most 1024 token ids to numbers from -100 (never) to 100.");
    pub(super) const SEED: Field = field(
        "seed",
        "integer?",
        "Same seed and request, same answer; each of several answers counts one up.",
    );
    pub(super) const STOP: Field =
        field("stop", "any?", "A text or up to 4 texts of at most 1024 bytes that end the answer.");
    pub(super) const STREAM: Field = field("stream", "boolean?", "Answer with server-sent events.");
    pub(super) const STREAM_OPTIONS: Field =
        field("stream_options", "StreamOptions?", "`include_usage`; `include_obfuscation` only false.");
    pub(super) const RESPONSE_FORMAT: Field = field(
        "response_format",
        "ResponseFormat?",
        "`text`, `json_object`, or `json_schema`, which the answer satisfies unless it is cut off by a limit.",
    );
    pub(super) const GRAMMAR: Field = field(
        "grammar",
        "any?",
        "A Lark grammar as text, or an object with `lark`, `regex` or `json_schema`. Not of OpenAI.",
    );
    pub(super) const USER: Field = field("user", "string?", "Accepted. A label; nothing is done with it.");
    pub(super) const SAFETY_IDENTIFIER: Field =
        field("safety_identifier", "string?", "Accepted. A label; nothing is done with it.");
    pub(super) const CACHE_PROMPT: Field = field(
        "cache_prompt",
        "boolean?",
        "Refused otherwise. Only true: the last prompts are always kept. Of llama-server.",
    );
}

const SCHEMAS: &[Schema] = &[
    Schema {
        name: "ChatCompletionRequest",
        about: "A conversation to continue.",
        fields: &[
            field(
                "messages",
                "[Message]",
                "1 to 4096 messages: roles system, developer (as system), user, assistant, tool; content is text or text parts.",
            ),
            shared::MODEL,
            field(
                "max_completion_tokens",
                "integer?",
                "Most tokens of the answer; what is left of the context when absent.",
            )
            .within(1.0, 16777216.0),
            field("max_tokens", "integer?", "Older name of `max_completion_tokens`.").within(1.0, 16777216.0),
            shared::TEMPERATURE,
            shared::TOP_P,
            shared::TOP_K,
            shared::MIN_P,
            shared::REPETITION_PENALTY,
            shared::PRESENCE_PENALTY,
            shared::FREQUENCY_PENALTY,
            shared::LOGIT_BIAS,
            shared::SEED,
            shared::STOP,
            field("n", "integer?", "1 to 8 answers; the prompt is read once.").within(1.0, 8.0),
            shared::STREAM,
            shared::STREAM_OPTIONS,
            field("logprobs", "boolean?", "Report the logprob of every token."),
            field("top_logprobs", "integer?", "0 to 20 alternatives beside each token; needs `logprobs`.")
                .within(0.0, 20.0),
            shared::RESPONSE_FORMAT,
            shared::GRAMMAR,
            field(
                "tools",
                "[Tool]?",
                "Up to 128 functions, described by the model's template, or in a system message where it has no place for them.",
            ),
            field(
                "tool_choice",
                "any?",
                "`none`, `auto`, `required` or a named function; the last two force a call that satisfies the function's schema.",
            ),
            field("parallel_tool_calls", "boolean?", "False reports the first call only."),
            shared::USER,
            shared::SAFETY_IDENTIFIER,
            field("prompt_cache_key", "string?", "Accepted. A label; prompts are compared by their tokens."),
            field("prompt_cache_retention", "string?", "Refused otherwise. Only `in_memory`."),
            shared::CACHE_PROMPT,
            field("functions", "any?", "Refused otherwise. Only []: the newer `tools` are honoured."),
            field(
                "function_call",
                "any?",
                "Refused otherwise. Only `none`: the newer `tool_choice` is honoured.",
            ),
            field("audio", "any?", "Refused otherwise. Answers are text."),
            field("modalities", "any?", "Refused otherwise. Only [\"text\"]."),
            field("prediction", "any?", "Refused otherwise. Predicted outputs are not used."),
            field("web_search_options", "any?", "Refused otherwise. The server does not reach the web."),
            field("moderation", "any?", "Refused otherwise. There is no moderation model."),
            field(
                "reasoning_effort",
                "string?",
                "Refused otherwise. Only `none`: the model does not reason apart.",
            ),
            field("verbosity", "string?", "Refused otherwise. Only `medium`."),
            field("service_tier", "string?", "Refused otherwise. Only `auto` and `default`."),
            field("store", "boolean?", "Refused otherwise. Only false: nothing is stored."),
            field("metadata", "any?", "Refused otherwise. Only {}: nothing is stored."),
        ],
    },
    Schema {
        name: "CompletionRequest",
        about: "A text to continue.",
        fields: &[
            field("prompt", "any", "A text, an array of tokens, or an array of up to 8 of either."),
            shared::MODEL,
            field("max_tokens", "integer?", "Most tokens of the answer, 16 when absent.")
                .within(1.0, 16777216.0),
            shared::TEMPERATURE,
            shared::TOP_P,
            shared::TOP_K,
            shared::MIN_P,
            shared::REPETITION_PENALTY,
            shared::PRESENCE_PENALTY,
            shared::FREQUENCY_PENALTY,
            shared::LOGIT_BIAS,
            shared::SEED,
            shared::STOP,
            field("n", "integer?", "Answers to each prompt; at most 8 in all.").within(1.0, 8.0),
            field("best_of", "integer?", "Refused otherwise. Only the same as `n`: answers are not ranked."),
            field("echo", "boolean?", "Repeats a prompt of text before the answer; not with `logprobs`."),
            field("logprobs", "integer?", "0 to 5 alternatives beside each token.").within(0.0, 5.0),
            shared::STREAM,
            shared::STREAM_OPTIONS,
            shared::RESPONSE_FORMAT,
            shared::GRAMMAR,
            field(
                "suffix",
                "string?",
                "Refused otherwise. Only an empty text: the model continues, it does not fill gaps.",
            ),
            shared::USER,
            shared::SAFETY_IDENTIFIER,
            shared::CACHE_PROMPT,
        ],
    },
    Schema {
        name: "EmbeddingRequest",
        about: "Texts to embed.",
        fields: &[
            field(
                "input",
                "any",
                "A text, an array of tokens, or an array of up to 64 of either; none empty.",
            ),
            field(
                "model",
                "string?",
                "Id or name of the served model, `default`, or the id of the model it was pruned from; another one is 404.",
            ),
            field("encoding_format", "string?", "`float`, or `base64` of little-endian f32."),
            field("dimensions", "integer?", "Refused otherwise. The model's vectors have one size."),
            field("user", "string?", "Accepted. A label; nothing is done with it."),
            field("safety_identifier", "string?", "Accepted. A label; nothing is done with it."),
        ],
    },
    Schema {
        name: "Message",
        about: "One turn of a conversation.",
        fields: &[
            field("role", "string", "system, developer, user, assistant or tool."),
            field("content", "any?", "Text, or an array of text parts; may be absent beside `tool_calls`."),
            field("refusal", "string?", "What an assistant said instead of an answer."),
            field("tool_calls", "[ToolCall]?", "Calls that the assistant made."),
            field("tool_call_id", "string?", "The call that a message of the role tool answers."),
        ],
    },
    Schema {
        name: "ToolCall",
        about: "A call of a function.",
        fields: &[
            field("id", "string?", ""),
            field("type", "string?", "function."),
            field("function", "FunctionCall", ""),
        ],
    },
    Schema {
        name: "FunctionCall",
        about: "The function and its arguments.",
        fields: &[field("name", "string", ""), field("arguments", "string", "JSON as text.")],
    },
    Schema {
        name: "Tool",
        about: "A function that may be called.",
        fields: &[field("type", "string", "function."), field("function", "Function", "")],
    },
    Schema {
        name: "Function",
        about: "Description of a function.",
        fields: &[
            field("name", "string", "").within(1.0, 64.0),
            field("description", "string?", ""),
            field("parameters", "any?", "JSON Schema of the arguments."),
            field("strict", "boolean?", "Arguments are held to the schema whenever a call is forced."),
        ],
    },
    Schema {
        name: "StreamOptions",
        about: "Settings of a stream.",
        fields: &[
            field("include_usage", "boolean?", "A last chunk tells the usage."),
            field("include_obfuscation", "boolean?", "Refused unless false."),
        ],
    },
    Schema {
        name: "ResponseFormat",
        about: "What the answer must be.",
        fields: &[
            field("type", "string", "text, json_object or json_schema."),
            field("json_schema", "NamedSchema?", "With json_schema."),
        ],
    },
    Schema {
        name: "NamedSchema",
        about: "A schema with a name.",
        fields: &[
            field("name", "string", "").within(1.0, 64.0),
            field("description", "string?", ""),
            field("schema", "any?", "JSON Schema."),
            field("strict", "boolean?", "The schema is kept either way."),
        ],
    },
    Schema {
        name: "Usage",
        about: "Tokens read and written.",
        fields: &[
            field("prompt_tokens", "integer", ""),
            field("completion_tokens", "integer?", ""),
            field("total_tokens", "integer", ""),
            field("prompt_tokens_details", "any?", ""),
        ],
    },
    Schema {
        name: "ChatCompletion",
        about: "A whole answer to a conversation.",
        fields: &[
            field("id", "string", ""),
            field("object", "string", ""),
            field("created", "integer", ""),
            field("model", "string", ""),
            field("system_fingerprint", "string", ""),
            field("choices", "[ChatChoice]", ""),
            field("usage", "Usage", ""),
            field("timings", "any", "Speed, by llama-server's names."),
        ],
    },
    Schema {
        name: "ChatChoice",
        about: "One answer.",
        fields: &[
            field("index", "integer", ""),
            field("message", "AnswerMessage", ""),
            field("logprobs", "any?", ""),
            field("finish_reason", "string", "stop, length or tool_calls."),
        ],
    },
    Schema {
        name: "AnswerMessage",
        about: "What the model said.",
        fields: &[
            field("role", "string", ""),
            field("content", "string?", ""),
            field("refusal", "string?", ""),
            field("tool_calls", "[ToolCall]?", ""),
        ],
    },
    Schema {
        name: "Completion",
        about: "A whole continuation of a text.",
        fields: &[
            field("id", "string", ""),
            field("object", "string", ""),
            field("created", "integer", ""),
            field("model", "string", ""),
            field("system_fingerprint", "string", ""),
            field("choices", "[CompletionChoice]", ""),
            field("usage", "Usage", ""),
            field("timings", "any", ""),
        ],
    },
    Schema {
        name: "CompletionChoice",
        about: "One continuation.",
        fields: &[
            field("index", "integer", ""),
            field("text", "string", ""),
            field("logprobs", "any?", ""),
            field("finish_reason", "string", ""),
        ],
    },
    Schema {
        name: "EmbeddingList",
        about: "Embeddings, in the order of the inputs.",
        fields: &[
            field("object", "string", ""),
            field("data", "[Embedding]", ""),
            field("model", "string", ""),
            field("usage", "Usage", ""),
        ],
    },
    Schema {
        name: "Embedding",
        about: "One embedding.",
        fields: &[
            field("object", "string", ""),
            field("index", "integer", ""),
            field("embedding", "any", "Numbers, or base64."),
        ],
    },
    Schema {
        name: "ModelList",
        about: "Models that requests can name.",
        fields: &[field("object", "string", ""), field("data", "[Model]", "")],
    },
    Schema {
        name: "Model",
        about: "A model that requests can name.",
        fields: &[
            field("id", "string", ""),
            field("object", "string", ""),
            field("created", "integer", ""),
            field("owned_by", "string", ""),
            field("name", "string", ""),
            field("max_model_len", "integer", ""),
        ],
    },
    Schema {
        name: "TokenizeRequest",
        about: "A text to take apart.",
        fields: &[
            field("content", "string", ""),
            field("add_special", "boolean?", "Add the tokens the model wants in front."),
            field("parse_special", "boolean?", "Refused unless false: text never acts as special tokens."),
            field("with_pieces", "boolean?", "Refused unless false: only ids are returned."),
        ],
    },
    Schema { name: "Tokens", about: "Tokens of a text.", fields: &[field("tokens", "[integer]", "")] },
    Schema {
        name: "DetokenizeRequest",
        about: "Tokens to put together.",
        fields: &[field("tokens", "[integer]", "").within(1.0, 1e9)],
    },
    Schema { name: "Content", about: "Text of tokens.", fields: &[field("content", "string", "")] },
    Schema {
        name: "ApplyTemplateRequest",
        about: "A conversation to render.",
        fields: &[field("messages", "[Message]", ""), field("tools", "[Tool]?", "")],
    },
    Schema {
        name: "RenderedPrompt",
        about: "The prompt of a conversation.",
        fields: &[field("prompt", "string", "")],
    },
    Schema {
        name: "PlanRequest",
        about: "What to plan; unknown fields are errors.",
        fields: &[
            field("model", "string?", "Id or name; the base model when absent."),
            field(
                "memory_budget",
                "any?",
                "auto, a size, a percentage or a number of bytes; the service's own when absent.",
            ),
            field("ratio", "number?", "Share of decoder-layer parameters to remove, whatever the budget.")
                .within(0.0, 1.0),
            field("context_len", "integer?", "").within(1.0, 16777216.0),
            field("policy", "string?", "quality or compatible."),
            field("dtype", "string?", "keep, f32, f16, bf16, q8_0, q4_0 or q4_1."),
            field("table_dtype", "string?", "Of the token table and the head: auto, keep or a dtype."),
        ],
    },
    Schema {
        name: "PruneRequest",
        about: "What to prune; unknown fields are errors.",
        fields: &[
            field("model", "string?", "Id or name; the base model when absent."),
            field(
                "memory_budget",
                "any?",
                "auto, a size, a percentage or a number of bytes; the service's own when absent.",
            ),
            field("ratio", "number?", "Share of decoder-layer parameters to remove, whatever the budget.")
                .within(0.0, 1.0),
            field("context_len", "integer?", "").within(1.0, 16777216.0),
            field("method", "string?", "comp, or another method of this build."),
            field("policy", "string?", ""),
            field("dtype", "string?", ""),
            field("table_dtype", "string?", "As in PlanRequest."),
            field("seed", "integer?", ""),
            field("calibration_tokens", "integer?", "").within(1.0, 16777216.0),
            field("calibration_text", "string?", "Takes the place of the built-in text."),
            field("activate", "boolean?", "Serve the result."),
        ],
    },
    Schema {
        name: "Plan",
        about: "What will be done, and why.",
        fields: &[
            field("action", "string", "untouched or prune."),
            field("policy", "string", ""),
            field("ratio", "number", ""),
            field("dtype", "string", ""),
            field("layers_to_remove", "[integer]", ""),
            field("layers", "[any]", ""),
            field("context_len", "integer", ""),
            field("kv_dtype", "string", ""),
            field("budget_bytes", "integer?", ""),
            field("base_footprint", "Footprint", ""),
            field("footprint", "Footprint", ""),
            field("predicted_perplexity_factor", "number", ""),
            field("reason", "string", ""),
        ],
    },
    Schema {
        name: "Footprint",
        about: "Bytes of a serving process, by part.",
        fields: &[
            field("weights_bytes", "integer", ""),
            field("kv_cache_bytes", "integer", ""),
            field("activations_bytes", "integer", ""),
            field("runtime_bytes", "integer", ""),
            field("total_bytes", "integer", ""),
        ],
    },
    Schema {
        name: "Job",
        about: "A prune job.",
        fields: &[
            field("id", "integer", ""),
            field("kind", "string", ""),
            field("state", "string", "queued, running, succeeded, failed or cancelled."),
            field("created_unix_s", "integer", ""),
            field("elapsed_s", "number", ""),
            field("progress", "any?", ""),
            field("plan", "Plan?", ""),
            field("model", "string?", "Id of the model made."),
            field("report", "any?", ""),
            field("error", "string?", ""),
        ],
    },
    Schema { name: "JobList", about: "All jobs.", fields: &[field("jobs", "[Job]", "")] },
    Schema {
        name: "Status",
        about: "The service at a glance.",
        fields: &[
            field("version", "string", ""),
            field("readiness", "Readiness", ""),
            field("model", "any?", ""),
            field("uptime_s", "number", ""),
            field("queued", "integer", ""),
            field("running", "integer", ""),
            field("queue_len", "integer", ""),
            field("active_job", "integer?", ""),
            field("n_threads", "integer", ""),
        ],
    },
    Schema {
        name: "Readiness",
        about: "Whether requests are answered.",
        fields: &[
            field("state", "string", "starting, loading, pruning, ready, no_model, failed or shutting_down."),
            field("message", "string?", ""),
            field("job", "integer?", ""),
            field("progress", "any?", ""),
        ],
    },
    Schema {
        name: "Health",
        about: "As llama-server answers it: `status`, or an `error`.",
        fields: &[field("status", "string?", ""), field("error", "any?", "")],
    },
    Schema {
        name: "Memory",
        about: "What the device can give and what is allowed.",
        fields: &[
            field("total_bytes", "integer", ""),
            field("available_bytes", "integer", ""),
            field("budget_bytes", "integer", ""),
            field("budget", "string", "How the budget was written."),
            field("rss_bytes", "integer", ""),
            field("rss_peak_bytes", "integer", ""),
            field("limits", "[any]", ""),
            field("pressure_some_avg10", "number?", ""),
        ],
    },
    Schema {
        name: "StoredModel",
        about: "A model that can be served.",
        fields: &[
            field("id", "string", ""),
            field("name", "string", ""),
            field("kind", "string", "base or pruned."),
            field("bytes", "integer", ""),
            field("active", "boolean", ""),
            field("created_unix_s", "integer", ""),
            field("n_layers", "integer", ""),
            field("layer_params", "integer", ""),
            field("max_position_embeddings", "integer", ""),
            field("source_digest", "string?", ""),
            field("ratio", "number?", ""),
            field("method", "string?", ""),
        ],
    },
    Schema { name: "StoredModelList", about: "All models.", fields: &[field("models", "[StoredModel]", "")] },
    Schema {
        name: "OpenAiError",
        about: "An error as OpenAI's clients read it.",
        fields: &[field("error", "OpenAiErrorBody", "")],
    },
    Schema {
        name: "OpenAiErrorBody",
        about: "What went wrong.",
        fields: &[
            field("message", "string", ""),
            field("type", "string", ""),
            field("param", "string?", "The field that is wrong."),
            field("code", "string?", ""),
        ],
    },
    Schema {
        name: "Problem",
        about: "An error of the native routes (RFC 9457).",
        fields: &[
            field("type", "string", ""),
            field("title", "string", ""),
            field("status", "integer", ""),
            field("detail", "string", ""),
            field("code", "string?", ""),
            field("param", "string?", ""),
            field("smallest_budget_bytes", "integer?", ""),
        ],
    },
];
