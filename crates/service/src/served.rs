//! What requests need of the served model before they reach the compute thread: its tokenizer and its limits.

use crate::ServiceError;
use crate::api::{ChatMessage, GenerationParams, Prompt};
use crate::handle::AddSpecial;
use secateur_generate::GenerateRequest;

/// Text in, tokens out, and back.
pub(crate) trait TextModel: Send + Sync {
    fn encode(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError>;
    fn encode_rendered(&self, prompt: &str) -> Result<Vec<u32>, ServiceError>;
    fn decode(&self, tokens: &[u32]) -> Result<String, ServiceError>;
    fn render(&self, messages: &[ChatMessage]) -> Result<String, ServiceError>;
    fn end_tokens(&self) -> Vec<u32>;
}

/// The served model as seen by callers.
pub(crate) struct Served {
    pub(crate) text: Box<dyn TextModel>,
    pub(crate) context_len: usize,
    pub(crate) vocab_size: usize,
}

impl Served {
    pub(crate) fn chat_tokens(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, ServiceError> {
        self.text.encode_rendered(&self.apply_template(messages)?)
    }

    pub(crate) fn prompt_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ServiceError> {
        match prompt {
            Prompt::Text(text) => self.text.encode(text, AddSpecial::Yes),
            Prompt::Tokens(tokens) => self.check_tokens(tokens).map(|()| tokens.clone()),
        }
    }

    fn check_tokens(&self, tokens: &[u32]) -> Result<(), ServiceError> {
        match tokens.iter().find(|&&token| self.vocab_size <= token as usize) {
            None => Ok(()),
            Some(token) => Err(ServiceError::Invalid {
                param: "prompt".into(),
                message: format!("token {token} is not in the vocabulary of {}", self.vocab_size),
            }),
        }
    }

    pub(crate) fn embed_tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ServiceError> {
        let tokens = self.prompt_tokens(prompt)?;
        let context_len = self.context_len;
        if tokens.is_empty() {
            let message = "the input has no tokens".to_owned();
            return Err(ServiceError::Invalid { param: "input".into(), message });
        }
        if context_len < tokens.len() {
            return Err(ServiceError::PromptTooLong { prompt_tokens: tokens.len(), context_len });
        }
        Ok(tokens)
    }

    pub(crate) fn generate_request(
        &self,
        prompt: Vec<u32>,
        params: &GenerationParams,
    ) -> Result<GenerateRequest, ServiceError> {
        let (prompt_tokens, context_len) = (prompt.len(), self.context_len);
        if prompt.is_empty() {
            let message = "the prompt has no tokens".to_owned();
            return Err(ServiceError::Invalid { param: "prompt".into(), message });
        }
        if context_len <= prompt_tokens {
            return Err(ServiceError::PromptTooLong { prompt_tokens, context_len });
        }
        let request = GenerateRequest {
            prompt,
            max_tokens: params.max_tokens.unwrap_or(context_len - prompt_tokens),
            sampling: params.sampling.clone(),
            stop_strings: params.stop.clone(),
            stop_tokens: self.text.end_tokens(),
            logprobs: params.logprobs,
        };
        request.validate(self.vocab_size).map_err(|error| ServiceError::Invalid {
            param: error.field.to_owned(),
            message: format!("must be {}", error.allowed),
        })?;
        Ok(request)
    }

    pub(crate) fn tokenize(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>, ServiceError> {
        self.text.encode(text, special)
    }

    pub(crate) fn detokenize(&self, tokens: &[u32]) -> Result<String, ServiceError> {
        self.check_tokens(tokens)?;
        self.text.decode(tokens)
    }

    pub(crate) fn apply_template(&self, messages: &[ChatMessage]) -> Result<String, ServiceError> {
        self.text.render(messages)
    }
}
