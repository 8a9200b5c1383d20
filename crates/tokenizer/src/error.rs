//! What can go wrong with a vocabulary, a text or a chat template.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// `tokenizer.ggml.model` is none of those that this crate reads.
    #[error("tokenizer model `{model}` is not supported (supported: `gpt2`, `llama`)")]
    UnsupportedModel {
        /// The name in the file.
        model: String,
    },
    /// `tokenizer.ggml.pre` is none of those that this crate implements.
    #[error("pre-tokenizer `{pre}` is not supported")]
    UnsupportedPreTokenizer {
        /// The name in the file.
        pre: String,
    },
    /// A byte-level vocabulary does not say how its text is split.
    #[error("byte-level vocabulary without a pre-tokenizer name (`tokenizer.ggml.pre`)")]
    MissingPreTokenizer,
    /// The vocabulary holds no tokens.
    #[error("vocabulary without tokens")]
    EmptyVocabulary,
    /// A count or a size in the vocabulary is beyond what this crate accepts.
    #[error("{what}: {got} is more than the limit of {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How much there is, or the first count beyond the limit.
        got: u64,
        /// The limit.
        limit: u64,
    },
    /// An array beside the tokens has another length than they have.
    #[error("`{array}` has {got} entries for {want} tokens")]
    ArrayLength {
        /// Name of the array.
        array: &'static str,
        /// Number of tokens.
        want: usize,
        /// Number of entries.
        got: usize,
    },
    /// A token type is not one of the seven of the format.
    #[error("token {id}: unknown token type {value}")]
    TokenType {
        /// The token.
        id: u32,
        /// The type in the file.
        value: i32,
    },
    /// A score cannot be ordered.
    #[error("token {id}: the score is not a finite number")]
    Score {
        /// The token.
        id: u32,
    },
    /// Two tokens have the same text, so that encoding would be a matter of chance.
    #[error("tokens {first} and {second} have the same text `{text}`")]
    DuplicateToken {
        /// The text of both.
        text: String,
        /// The smaller id.
        first: u32,
        /// The larger id.
        second: u32,
    },
    /// A byte token is not spelt `<0x00>` … `<0xFF>`.
    #[error("token {id}: `{text}` is marked as a byte but does not name one")]
    ByteToken {
        /// The token.
        id: u32,
        /// Its text.
        text: String,
    },
    /// A vocabulary with scores has neither all byte tokens nor an unknown token.
    #[error("byte 0x{byte:02X} has no token and the vocabulary has no unknown token")]
    MissingByte {
        /// The first byte without a token.
        byte: u8,
    },
    /// A merge is not of the form `left right`, or one of the two or their union is no token.
    #[error("merge {rank} `{text}`: {problem}")]
    Merge {
        /// Position in the list of merges.
        rank: usize,
        /// The merge as it stands in the file.
        text: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A special id points outside the vocabulary.
    #[error("`{name}` is {id}, but the vocabulary has {vocab_size} tokens")]
    SpecialTokenOutOfRange {
        /// Name of the special id.
        name: &'static str,
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// The file asks for a token at the start or end of texts but does not say which.
    #[error("`{flag}` is set, but `{name}` is missing")]
    MissingSpecialToken {
        /// The flag that is set.
        flag: &'static str,
        /// The id that is missing.
        name: &'static str,
    },
    /// A tokenizer.json cannot be read.
    #[error("tokenizer.json: {message}")]
    Json {
        /// What the reader said.
        message: String,
    },
    /// A tokenizer.json uses a feature that this crate does not handle.
    #[error("tokenizer.json: {feature} is not supported")]
    UnsupportedJson {
        /// The feature.
        feature: String,
    },
    /// A text could not be encoded.
    #[error("cannot encode the text: {message}")]
    Encode {
        /// What the encoder said.
        message: String,
    },
    /// A token id is outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocab_size} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// The model has no chat template, and its vocabulary is not one of ChatML.
    #[error("the model has no chat template and its vocabulary lacks `<|im_start|>` and `<|im_end|>`")]
    NoChatTemplate,
    /// A message has a role that no chat template knows.
    #[error("unknown role `{role}`")]
    UnknownRole {
        /// The role.
        role: String,
    },
    /// A chat template is broken, refused the messages or ran into a limit.
    #[error("chat template: {message}")]
    ChatTemplate {
        /// What the template engine said, or what the template raised.
        message: String,
        /// Why it stopped.
        kind: ChatTemplateErrorKind,
    },
}

/// Why a chat template did not render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChatTemplateErrorKind {
    /// The source is not a valid template.
    Syntax,
    /// The template itself refused the messages with `raise_exception`.
    Raised,
    /// A limit on source, work, nesting or output was reached.
    Limit,
    /// Anything else, such as an unknown variable.
    Render,
}
