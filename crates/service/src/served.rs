//! What requests need of the served model before they reach the compute thread: its tokenizer and its limits.

use crate::ServiceError;
use crate::api::{
    ChatMessage, DraftView, GenerationParams, ModelView, PlanView, Prompt, ServedView, TokenLogprobView,
    TokenLogprobsView,
};
use crate::convert::{invalid, text_error};
use crate::handle::AddSpecial;
use crate::jobs::unix_s;
use crate::tools::for_template;
use secateur_generate::{
    GenerateRequest, Grammar, GrammarFactory, GrammarMatcher, TokenLogprob, TokenLogprobs,
};
use secateur_model::KvDType;
use secateur_tokenizer::{
    ChatOptions, ChatPrompt, CivilTime, DecodeFrom, DecodeOptions, StreamDecoder, Tokenizer,
};
use std::sync::{Arc, Mutex, PoisonError};

/// The served model as seen by callers.
pub(crate) struct Served {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) model: ModelView,
    pub(crate) plan: Option<PlanView>,
    pub(crate) draft: Option<DraftView>,
    pub(crate) context_len: usize,
    pub(crate) kv_dtype: KvDType,
    pub(crate) vocab_size: usize,
    /// Longest text of one token: [`longest_token_bytes`].
    pub(crate) max_token_bytes: usize,
    /// Made at the first request with a grammar.
    pub(crate) grammars: Mutex<Option<Arc<GrammarFactory>>>,
}

/// A request as the compute thread takes it.
pub(crate) struct PreparedRequest {
    pub(crate) request: GenerateRequest,
    pub(crate) grammar: Option<GrammarMatcher>,
}

/// Length of the longest text of one token, at least 1.
pub(crate) fn longest_token_bytes(tokenizer: &Tokenizer, vocab_size: usize) -> usize {
    let lengths = (0..vocab_size as u32).map(|id| tokenizer.token_bytes(id).unwrap_or_default().len());
    lengths.max().unwrap_or(0).max(1)
}

impl Served {
    /// Refuses text that cannot fit the context before it is tokenised, which takes many times its size: each token
    /// stands for a bounded number of bytes.
    pub(crate) fn check_length(&self, text: &str) -> Result<(), ServiceError> {
        let prompt_tokens = text.len().div_ceil(self.max_token_bytes);
        if prompt_tokens <= self.context_len {
            return Ok(());
        }
        Err(ServiceError::PromptTooLong { prompt_tokens, context_len: self.context_len })
    }

    /// The tokens of a conversation, up to the start of the reply.
    pub(crate) fn chat_tokens(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
    ) -> Result<Vec<u32>, ServiceError> {
        let prompt = render(&self.tokenizer, messages, tools)?;
        self.check_length(prompt.as_str())?;
        self.tokenizer.encode_chat_prompt(&prompt).map_err(|error| text_error("messages", &error))
    }

    fn grammar_factory(&self) -> Result<Arc<GrammarFactory>, ServiceError> {
        let mut grammars = self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(factory) = &*grammars {
            return Ok(factory.clone());
        }
        let factory = GrammarFactory::new(&self.tokenizer, self.vocab_size)
            .map_err(|error| invalid("response_format", error.to_string()))?;
        Ok(grammars.insert(Arc::new(factory)).clone())
    }

    /// Lets go of what can be made again.
    pub(crate) fn drop_caches(&self) {
        *self.grammars.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn matcher(&self, grammar: &Grammar) -> Result<GrammarMatcher, ServiceError> {
        let param = match grammar {
            Grammar::JsonObject | Grammar::JsonSchema(_) => "response_format",
            Grammar::Lark(_) | Grammar::Regex(_) => "grammar",
        };
        self.grammar_factory()?.matcher(grammar).map_err(|error| invalid(param, error.to_string()))
    }
    pub(crate) fn view(&self) -> ServedView {
        ServedView {
            model: self.model.clone(),
            context_len: self.context_len,
            kv_dtype: self.kv_dtype.name().to_owned(),
            plan: self.plan.clone(),
            draft: self.draft.clone(),
        }
    }

    pub(crate) fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ServiceError> {
        match prompt {
            Prompt::Text(text) => {
                self.check_length(text)?;
                self.tokenize(text, AddSpecial::Yes)
            }
            Prompt::Tokens(tokens) => self.check_tokens("prompt", tokens).map(|()| tokens.clone()),
        }
    }

    fn check_tokens(&self, param: &str, tokens: &[u32]) -> Result<(), ServiceError> {
        match tokens.iter().find(|&&token| self.vocab_size <= token as usize) {
            None => Ok(()),
            Some(token) => {
                let message = format!("token {token} is not in the vocabulary of {}", self.vocab_size);
                Err(invalid(param, message))
            }
        }
    }

    pub(crate) fn embed_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ServiceError> {
        let tokens = self.prompt_tokens(prompt)?;
        let context_len = self.context_len;
        if tokens.is_empty() {
            return Err(invalid("input", "has no tokens"));
        }
        if context_len < tokens.len() {
            return Err(ServiceError::PromptTooLong { prompt_tokens: tokens.len(), context_len });
        }
        Ok(tokens)
    }

    /// Checks a request and compiles its grammar.
    pub(crate) fn prepare(
        &self,
        prompt: Vec<u32>,
        params: &GenerationParams,
    ) -> Result<PreparedRequest, ServiceError> {
        let request = generate_request(&self.tokenizer, self.context_len, self.vocab_size, prompt, params)?;
        let grammar = params.grammar.as_ref().map(|grammar| self.matcher(grammar)).transpose()?;
        Ok(PreparedRequest { request, grammar })
    }

    pub(crate) fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
        let special = match special {
            AddSpecial::Yes => secateur_tokenizer::AddSpecial::Yes,
            AddSpecial::No => secateur_tokenizer::AddSpecial::No,
        };
        self.tokenizer.encode(text, special).map_err(|error| text_error("prompt", &error))
    }

    pub(crate) fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError> {
        self.check_tokens("tokens", tokens)?;
        self.tokenizer.decode(tokens).map_err(|error| text_error("tokens", &error))
    }

    pub(crate) fn apply_template(
        &self,
        messages: &[ChatMessage],
        tools: Option<&serde_json::Value>,
    ) -> Result<String, ServiceError> {
        Ok(render(&self.tokenizer, messages, tools)?.into_string())
    }

    pub(crate) fn logprobs_view(&self, logprobs: &TokenLogprobs) -> TokenLogprobsView {
        let view = |entry: &TokenLogprob| {
            let bytes = self.tokenizer.token_bytes(entry.token).unwrap_or_default().to_vec();
            let token = String::from_utf8_lossy(&bytes).into_owned();
            TokenLogprobView { token_id: entry.token, token, bytes, logprob: entry.logprob }
        };
        TokenLogprobsView { chosen: view(&logprobs.chosen), top: logprobs.top.iter().map(view).collect() }
    }
}

/// A decoder for a reply: text that stands behind other text.
pub(crate) fn reply_decoder(tokenizer: &Tokenizer) -> StreamDecoder {
    tokenizer.stream_decoder_with(DecodeOptions { from: DecodeFrom::Middle, ..DecodeOptions::default() })
}

fn render(
    tokenizer: &Tokenizer,
    messages: &[ChatMessage],
    tools: Option<&serde_json::Value>,
) -> Result<ChatPrompt, ServiceError> {
    if messages.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    let messages = for_template(tokenizer, messages, tools);
    let messages: Vec<_> = messages
        .iter()
        .map(|message| secateur_tokenizer::ChatMessage {
            extra: message.extra.clone(),
            ..secateur_tokenizer::ChatMessage::new(&message.role, &message.content)
        })
        .collect();
    let now = i64::try_from(unix_s()).ok().map(CivilTime::from_unix);
    let options = ChatOptions { now, tools, ..ChatOptions::default() };
    tokenizer.apply_chat_template(&messages, &options).map_err(|error| text_error("messages", &error))
}

/// The tokens of a conversation, up to the start of the reply.
/// # Errors
/// [`ServiceError::Invalid`] when the model has no template or it refuses.
pub(crate) fn chat_tokens(tokenizer: &Tokenizer, messages: &[ChatMessage]) -> Result<Vec<u32>, ServiceError> {
    let prompt = render(tokenizer, messages, None)?;
    tokenizer.encode_chat_prompt(&prompt).map_err(|error| text_error("messages", &error))
}

/// A request that the generation loop will take.
/// # Errors
/// [`ServiceError::Invalid`], [`ServiceError::PromptTooLong`].
pub(crate) fn generate_request(
    tokenizer: &Tokenizer,
    context_len: usize,
    vocab_size: usize,
    prompt: Vec<u32>,
    params: &GenerationParams,
) -> Result<GenerateRequest, ServiceError> {
    let prompt_tokens = prompt.len();
    if prompt.is_empty() {
        return Err(invalid("prompt", "has no tokens"));
    }
    if context_len <= prompt_tokens {
        return Err(ServiceError::PromptTooLong { prompt_tokens, context_len });
    }
    let request = GenerateRequest {
        prompt,
        max_tokens: params.max_tokens.unwrap_or(context_len - prompt_tokens),
        sampling: params.sampling.clone(),
        stop_strings: params.stop.clone(),
        stop_tokens: tokenizer.stop_ids().iter().copied().collect(),
        logprobs: params.logprobs,
    };
    request
        .validate(vocab_size)
        .map_err(|error| invalid(error.field, format!("must be {}", error.allowed)))?;
    Ok(request)
}
