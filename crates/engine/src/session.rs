//! Whole models: token by token with a cache, and losses of windows.

use crate::error::EngineError;
use crate::head::{Embedding, Head};
use crate::kv::KvLayer;
use crate::layer::{LayerContext, LayerScratch, SharedScratch, Step};
use secateur_model::{KvDType, ModelConfig, WeightSource};
use secateur_tensor::kernels::{Precision, ThreadPool, sized};
use std::sync::{Arc, MutexGuard, PoisonError};

/// Tokens of a prompt that pass through the layers together.
const PREFILL_CHUNK: usize = 256;

/// The most tokens of one [`Session::extend_each`].
pub const MAX_EACH: usize = 8;

/// How an engine runs.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Threads that compute, the caller included; at least 1.
    pub n_threads: usize,
}

struct Inner {
    source: Arc<dyn WeightSource>,
    pool: Arc<ThreadPool>,
    embedding: Embedding,
    head: Head,
    layers: Vec<LayerContext>,
    scratch: SharedScratch,
}

impl Inner {
    fn scratch(&self) -> MutexGuard<'_, LayerScratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A model ready to run. Cloning shares everything.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
    precision: Precision,
    /// How windows that are scored keep keys and values.
    scored_kv: KvDType,
}

impl Engine {
    /// Resolves all weights; copies none. Products are exact until [`Self::with_precision`] says otherwise.
    /// # Errors
    /// [`EngineError`] when the source does not hold a complete model.
    pub fn new(source: Arc<dyn WeightSource>, options: EngineOptions) -> Result<Self, EngineError> {
        let pool = Arc::new(ThreadPool::new(options.n_threads.max(1)));
        Self::with_pool(source, pool)
    }

    /// As [`Self::new`], over threads that somebody else made.
    /// # Errors
    /// As [`Self::new`].
    pub fn with_pool(source: Arc<dyn WeightSource>, pool: Arc<ThreadPool>) -> Result<Self, EngineError> {
        let config = source.config();
        config.validate()?;
        let scratch = SharedScratch::default();
        let layers = (0..config.n_layers())
            .map(|layer_idx| LayerContext::new(source.as_ref(), layer_idx, pool.clone(), scratch.clone()))
            .collect::<Result<Vec<_>, EngineError>>()?;
        let embedding = Embedding::new(source.as_ref())?;
        let head = Head::new(source.as_ref())?;
        let inner = Inner { source, pool, embedding, head, layers, scratch };
        Ok(Self { inner: Arc::new(inner), precision: Precision::F32, scored_kv: KvDType::F32 })
    }

    /// The same engine with activations that enter the products with weights as `precision` says.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same engine with scored windows that keep keys and values as `kv_dtype` instead of exactly.
    #[must_use]
    pub fn with_kv_dtype(self, kv_dtype: KvDType) -> Self {
        Self { scored_kv: kv_dtype, ..self }
    }

    /// How activations enter the products with weights.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.inner.source.config()
    }

    /// The weights this engine reads.
    #[must_use]
    pub fn source(&self) -> &Arc<dyn WeightSource> {
        &self.inner.source
    }

    /// The threads that compute.
    #[must_use]
    pub fn pool(&self) -> Arc<ThreadPool> {
        self.inner.pool.clone()
    }

    /// Threads that compute.
    #[must_use]
    pub fn n_threads(&self) -> usize {
        self.inner.pool.n_threads()
    }

    /// Starts an empty session with room for `context_len` tokens. The cache is allocated here, once.
    /// # Errors
    /// [`EngineError::Empty`] for a context of no tokens; [`EngineError::KvDType`] when heads of this width cannot be kept so.
    pub fn session(&self, context_len: usize, kv_dtype: KvDType) -> Result<Session, EngineError> {
        if context_len == 0 {
            return Err(EngineError::Empty);
        }
        let config = self.config();
        if kv_dtype.row_bytes(config.head_dim).is_none() {
            return Err(EngineError::KvDType { kv_dtype: kv_dtype.name(), head_dim: config.head_dim });
        }
        let cache = |layer| KvLayer::new(layer, config.head_dim, context_len, kv_dtype);
        Ok(Session {
            caches: config.layers.iter().map(cache).collect(),
            context_len,
            len: 0,
            hidden: vec![0.0; config.hidden_size],
            normed: vec![0.0; config.hidden_size],
            logits: vec![0.0; config.vocab_size],
            n_logits: 0,
            engine: self.clone(),
        })
    }

    /// Negative log likelihood (nats) of tokens `1..` of a window, each given those before it.
    ///
    /// `cancelled` is asked before each chunk of a layer.
    /// # Errors
    /// [`EngineError`]; [`EngineError::Empty`] when the window has fewer than two tokens.
    pub fn score(&self, window: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, EngineError> {
        self.score_chunks(window, cancelled, |_, _| Ok(()))
    }

    /// As [`Self::score`], with the divergence (nats, sum over positions) of what this model predicts from what `base`
    /// does; both see the same tokens.
    /// # Errors
    /// As [`Self::score`]; [`EngineError::Vocabulary`] when the models do not share one.
    pub fn score_beside(
        &self,
        base: &Self,
        window: &[u32],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Vec<f32>, f64), EngineError> {
        let mut base_session = base.session(window.len(), KvDType::F32)?;
        let mut divergence = 0.0;
        let losses = self.score_chunks(window, cancelled, |chunk, hidden| {
            base_session.forward(chunk, cancelled)?;
            let base_hidden = &base_session.hidden[..chunk.len() * base.config().hidden_size];
            let student = [(&self.inner.head, hidden)];
            let mean = base.inner.head.mean_kl(&self.inner.pool, base_hidden, &student)?;
            divergence += mean[0] * chunk.len() as f64;
            Ok(())
        })?;
        Ok((losses, divergence))
    }

    /// Scores a window; `visit` sees each chunk of its tokens with the last hidden states.
    fn score_chunks(
        &self,
        window: &[u32],
        cancelled: &dyn Fn() -> bool,
        mut visit: impl FnMut(&[u32], &[f32]) -> Result<(), EngineError>,
    ) -> Result<Vec<f32>, EngineError> {
        let Some(targets) = window.get(1..).filter(|targets| !targets.is_empty()) else {
            return Err(EngineError::Empty);
        };
        let mut session = self.session(window.len(), self.scored_kv)?;
        let mut losses = Vec::with_capacity(targets.len());
        let inputs = &window[..targets.len()];
        for (chunk, targets) in inputs.chunks(PREFILL_CHUNK).zip(targets.chunks(PREFILL_CHUNK)) {
            session.forward(chunk, cancelled)?;
            let hidden = &session.hidden[..chunk.len() * self.config().hidden_size];
            losses.extend(self.inner.head.nll_in(self.precision, &self.inner.pool, hidden, targets)?);
            visit(chunk, hidden)?;
        }
        Ok(losses)
    }

    /// Sum of hidden states after the final norm over a sequence, divided by its length: a mean-pooled
    /// text embedding `[hidden_size]`.
    /// # Errors
    /// [`EngineError`].
    pub fn embed(&self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::Empty);
        }
        self.session(tokens.len(), KvDType::F32)?.embed(tokens, cancelled)
    }
}

/// One sequence: its cache and its buffers.
pub struct Session {
    engine: Engine,
    caches: Vec<KvLayer>,
    context_len: usize,
    len: usize,
    /// Hidden states of the tokens of the last step, `[n, hidden_size]`, behind them what is left of longer ones.
    hidden: Vec<f32>,
    normed: Vec<f32>,
    /// `[n_logits, vocab_size]`, behind them what is left of longer ones.
    logits: Vec<f32>,
    n_logits: usize,
}

impl Session {
    /// Tokens in the cache.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True before the first token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Room of the cache in tokens.
    #[must_use]
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// The model this session runs.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Forgets all tokens from `len` on; nothing when there are fewer.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gives the cache room for `context_len` tokens; those it holds stay, the last ones leave when they are too many.
    ///
    /// One layer is copied at a time, so the peak is the larger size and one layer of the smaller one.
    /// # Errors
    /// [`EngineError::Empty`] for a context of no tokens.
    pub fn resize(&mut self, context_len: usize) -> Result<(), EngineError> {
        if context_len == 0 {
            return Err(EngineError::Empty);
        }
        self.truncate(context_len);
        for cache in &mut self.caches {
            *cache = cache.copied(context_len, self.len);
        }
        self.context_len = context_len;
        Ok(())
    }

    /// A session with room for `context_len` tokens that has read the first `n_tokens` of this one, by copying.
    /// # Errors
    /// [`EngineError::Empty`] for a context of no tokens.
    pub fn fork(&self, n_tokens: usize, context_len: usize) -> Result<Self, EngineError> {
        if context_len == 0 {
            return Err(EngineError::Empty);
        }
        let len = n_tokens.min(self.len).min(context_len);
        let config = self.engine.config();
        Ok(Self {
            caches: self.caches.iter().map(|cache| cache.copied(context_len, len)).collect(),
            context_len,
            len,
            hidden: vec![0.0; config.hidden_size],
            normed: vec![0.0; config.hidden_size],
            logits: vec![0.0; config.vocab_size],
            n_logits: 0,
            engine: self.engine.clone(),
        })
    }

    /// Reads `tokens` into the empty session and returns the mean of their hidden states after the final norm:
    /// a text embedding `[hidden_size]`.
    /// # Errors
    /// [`EngineError`]; [`EngineError::ContextFull`] when they have no room.
    pub fn embed(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<Vec<f32>, EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::Empty);
        }
        self.truncate(0);
        let engine = self.engine.clone();
        let hidden_size = engine.config().hidden_size;
        let mut sum = vec![0.0_f32; hidden_size];
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            self.forward(chunk, cancelled)?;
            let hidden = &self.hidden[..chunk.len() * hidden_size];
            let mut normed = vec![0.0; hidden.len()];
            engine.inner.head.normed(&engine.inner.pool, hidden, &mut normed);
            for row in normed.chunks_exact(hidden_size) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        let n = tokens.len() as f32;
        sum.iter_mut().for_each(|value| *value /= n);
        if sum.iter().all(|value| value.is_finite()) {
            Ok(sum)
        } else {
            Err(EngineError::NotFinite { what: "hidden states" })
        }
    }

    /// Adds `tokens` and returns the logits `[vocab_size]` after the last one.
    ///
    /// `cancelled` is asked before every layer of a prompt chunk and before a decode step. After an error
    /// the session is as long as before the call.
    /// # Errors
    /// [`EngineError`]; [`EngineError::Cancelled`] when `cancelled` said so.
    pub fn extend(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<&[f32], EngineError> {
        self.extend_by(tokens, 1, cancelled)
    }

    /// As [`Self::extend`] with at most [`MAX_EACH`] tokens, and returns the logits after each of them:
    /// `[tokens.len(), vocab_size]`.
    ///
    /// With [`Precision::Int8`] they are bit for bit those of the same tokens one by one.
    /// # Errors
    /// As [`Self::extend`].
    /// # Panics
    /// For more tokens.
    pub fn extend_each(
        &mut self,
        tokens: &[u32],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<&[f32], EngineError> {
        assert!(tokens.len() <= MAX_EACH, "{} tokens, at most {MAX_EACH}", tokens.len());
        self.extend_by(tokens, tokens.len(), cancelled)
    }

    /// The logits that the last call of [`Self::extend`] or [`Self::extend_each`] returned.
    #[must_use]
    pub fn last_logits(&self) -> &[f32] {
        &self.logits[..self.n_logits * self.engine.config().vocab_size]
    }

    fn extend_by(
        &mut self,
        tokens: &[u32],
        n_logits: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<&[f32], EngineError> {
        let old_len = self.len;
        let result = self.extend_inner(tokens, n_logits, cancelled);
        if let Err(error) = result {
            self.len = old_len;
            return Err(error);
        }
        self.n_logits = n_logits;
        Ok(self.last_logits())
    }

    fn extend_inner(
        &mut self,
        tokens: &[u32],
        n_logits: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Err(EngineError::Empty);
        }
        for chunk in tokens.chunks(PREFILL_CHUNK) {
            self.forward(chunk, cancelled)?;
        }
        let inner = &*self.engine.inner;
        let hidden_size = self.engine.config().hidden_size;
        let last_chunk = (tokens.len() - 1) % PREFILL_CHUNK + 1;
        let last = &self.hidden[(last_chunk - n_logits) * hidden_size..last_chunk * hidden_size];
        let normed = sized(&mut self.normed, last.len());
        let logits = sized(&mut self.logits, n_logits * inner.head.vocab_size());
        let scratch = &mut inner.scratch().kernels.matmul;
        inner.head.logits(&inner.pool, last, normed, logits, (self.engine.precision, scratch))
    }

    fn check_room(&self, asked: usize) -> Result<(), EngineError> {
        let free = self.context_len - self.len;
        if asked <= free {
            return Ok(());
        }
        Err(EngineError::ContextFull { asked, free, context_len: self.context_len })
    }

    /// Runs a chunk of tokens through all layers; their last hidden states are in `self.hidden` then.
    fn forward(&mut self, tokens: &[u32], cancelled: &dyn Fn() -> bool) -> Result<(), EngineError> {
        self.check_room(tokens.len())?;
        let inner = &*self.engine.inner;
        let len = tokens.len() * self.engine.config().hidden_size;
        let hidden = sized(&mut self.hidden, len);
        inner.embedding.lookup(tokens, hidden)?;
        let step = Step { first: self.len, precision: self.engine.precision };
        let mut scratch = inner.scratch();
        for (nth, (layer, cache)) in inner.layers.iter().zip(&mut self.caches).enumerate() {
            // A decode step is short: it is asked once.
            if (nth == 0 || 1 < tokens.len()) && cancelled() {
                return Err(EngineError::Cancelled);
            }
            layer.forward(step, hidden, cache, &mut scratch);
        }
        self.len += tokens.len();
        Ok(())
    }
}
