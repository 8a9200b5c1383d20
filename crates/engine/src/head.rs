//! The two ends of a model: token table and output head.
//!
//! Losses over many tokens never hold all logits: the vocabulary passes in blocks while running sums are
//! kept per token (online log-sum-exp), `O(n_tokens * VOCAB_BLOCK)` floats.

use crate::error::EngineError;
use crate::layer::{check_shape, require_vector};
use secateur_model::{WeightId, WeightRole, WeightSource};
use secateur_tensor::WeightMatrix;
use secateur_tensor::kernels::{
    MatmulMode, MatmulScratch, Precision, Projection, Store, ThreadPool, all_finite, matmul_each, max,
    rms_norm, sum_exp, sum_exp_gap,
};
use std::sync::Arc;

/// Vocabulary rows whose logits are in memory at a time.
const VOCAB_BLOCK: usize = 1024;

/// The token table.
#[derive(Clone, Debug)]
pub struct Embedding {
    table: WeightMatrix,
}

impl Embedding {
    /// Resolves the table.
    /// # Errors
    /// [`EngineError`] when it is missing or has the wrong shape.
    pub fn new(source: &dyn WeightSource) -> Result<Self, EngineError> {
        let id = WeightId::global(WeightRole::EmbedTokens);
        let table = source.require(id)?;
        check_shape(id, &table, source.config().vocab_size, source.config().hidden_size)?;
        Ok(Self { table })
    }

    /// Writes the rows of `tokens` to `out`: `[tokens.len(), hidden_size]`.
    /// # Errors
    /// [`EngineError::TokenOutOfRange`].
    pub fn lookup(&self, tokens: &[u32], out: &mut [f32]) -> Result<(), EngineError> {
        let vocab_size = self.table.n_rows();
        for (&token, row) in tokens.iter().zip(out.chunks_exact_mut(self.table.n_cols())) {
            let at = usize::try_from(token).ok().filter(|&at| at < vocab_size);
            let at = at.ok_or(EngineError::TokenOutOfRange { token, vocab_size })?;
            self.table.dequantize_row(at, row);
        }
        Ok(())
    }
}

/// Final norm and output head.
#[derive(Clone, Debug)]
pub struct Head {
    norm: Vec<f32>,
    eps: f32,
    weight: WeightMatrix,
    lender: Option<Lender>,
}

/// Who takes the pages of the head back.
#[derive(Clone)]
struct Lender {
    source: Arc<dyn WeightSource>,
    id: WeightId,
}

impl std::fmt::Debug for Lender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lender").field(&self.id).finish()
    }
}

/// Running log-sum-exp of one token.
#[derive(Clone, Copy)]
struct LogSumExp {
    max: f32,
    sum: f64,
}

impl LogSumExp {
    const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    fn add(&mut self, logits: &[f32]) {
        let block_max = max(logits);
        if self.max < block_max {
            self.sum *= f64::from(self.max - block_max).exp();
            self.max = block_max;
        }
        self.sum += f64::from(sum_exp(logits, self.max));
    }

    fn get(&self) -> f64 {
        f64::from(self.max) + self.sum.ln()
    }
}

/// Running sums of the divergence of one student's row from its teacher's.
#[derive(Clone, Copy)]
struct KlSums {
    student: LogSumExp,
    /// Teacher's maximum that `weighted` was taken against.
    reference: f32,
    /// Sum of `exp(l_t - reference) (l_t - l_s)`.
    weighted: f64,
}

impl KlSums {
    const EMPTY: Self = Self { student: LogSumExp::EMPTY, reference: f32::NEG_INFINITY, weighted: 0.0 };

    fn add(&mut self, teacher: &[f32], student: &[f32], reference: f32) {
        self.student.add(student);
        if self.reference < reference {
            self.weighted *= f64::from(self.reference - reference).exp();
            self.reference = reference;
        }
        self.weighted += f64::from(sum_exp_gap(teacher, student, reference));
    }

    fn get(&self, teacher: &LogSumExp) -> f64 {
        self.weighted / teacher.sum - teacher.get() + self.student.get()
    }
}

impl Head {
    /// Resolves norm and head; a tied head is the token table.
    /// # Errors
    /// [`EngineError`] when a weight is missing or has the wrong shape.
    pub fn new(source: &dyn WeightSource) -> Result<Self, EngineError> {
        let config = source.config();
        let id = head_id(source);
        let weight = source.require(id)?;
        check_shape(id, &weight, config.vocab_size, config.hidden_size)?;
        let norm = require_vector(source, WeightId::global(WeightRole::FinalNorm), config.hidden_size)?;
        Ok(Self { norm, eps: config.rms_norm_eps, weight, lender: None })
    }

    /// Losses and divergences give the pages of each block of the vocabulary back to `source` once it is done, so
    /// that a head of any size costs one block.
    #[must_use]
    pub fn giving_back(self, source: Arc<dyn WeightSource>) -> Self {
        let id = head_id(source.as_ref());
        Self { lender: Some(Lender { source, id }), ..self }
    }

    /// Vocabulary size.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.weight.n_rows()
    }

    pub(crate) fn hidden_size(&self) -> usize {
        self.norm.len()
    }

    /// Applies the final norm: `[n, hidden_size]` to the same shape.
    pub fn normed(&self, pool: &ThreadPool, hidden: &[f32], out: &mut [f32]) {
        rms_norm(pool, hidden, &self.norm, self.eps, out);
    }

    /// Logits `[n, vocab_size]` of tokens from their last hidden states `[n, hidden_size]`; `normed` is a buffer.
    /// # Errors
    /// [`EngineError::NotFinite`] when a logit is NaN or infinite.
    pub(crate) fn logits(
        &self,
        pool: &ThreadPool,
        hidden: &[f32],
        normed: &mut [f32],
        logits: &mut [f32],
        (precision, scratch): (Precision, &mut MatmulScratch),
    ) -> Result<(), EngineError> {
        self.normed(pool, hidden, normed);
        let mode = MatmulMode { precision, store: Store::Replace };
        let product = Projection { weight: &self.weight, out: &mut *logits };
        matmul_each(pool, normed, &mut [product], scratch, mode);
        if all_finite(logits) { Ok(()) } else { Err(EngineError::NotFinite { what: "logits" }) }
    }

    /// Negative log likelihood (nats) of `targets`, one for each row of `hidden` `[n, hidden_size]`.
    /// # Errors
    /// [`EngineError::TokenOutOfRange`], [`EngineError::NotFinite`].
    pub fn nll(&self, pool: &ThreadPool, hidden: &[f32], targets: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.nll_in(Precision::F32, pool, hidden, targets)
    }

    /// As [`Self::nll`], with activations that enter the product with the head as `precision` says.
    pub(crate) fn nll_in(
        &self,
        precision: Precision,
        pool: &ThreadPool,
        hidden: &[f32],
        targets: &[u32],
    ) -> Result<Vec<f32>, EngineError> {
        let n = targets.len();
        let vocab_size = self.vocab_size();
        if let Some(&token) = targets.iter().find(|&&token| vocab_size <= token as usize) {
            return Err(EngineError::TokenOutOfRange { token, vocab_size });
        }
        let mut sums = vec![LogSumExp::EMPTY; n];
        let mut picked = vec![0.0_f32; n];
        for_logit_blocks(precision, pool, &[(self, hidden)], |start, blocks| {
            for (row, logits) in blocks[0].chunks_exact(blocks[0].len() / n).enumerate() {
                sums[row].add(logits);
                let at = targets[row] as usize;
                if (start..start + logits.len()).contains(&at) {
                    picked[row] = logits[at - start];
                }
            }
        })?;
        let nll = |(sum, &logit): (&LogSumExp, &f32)| (sum.get() - f64::from(logit)) as f32;
        let losses: Vec<f32> = sums.iter().zip(&picked).map(nll).collect();
        if losses.iter().all(|loss| loss.is_finite()) {
            Ok(losses)
        } else {
            Err(EngineError::NotFinite { what: "logits" })
        }
    }

    /// KL divergence (nats, mean over rows) from the distributions after `teacher` to those after each of
    /// `students`: `sum_v p_t (log p_t - log p_s)`. All are last hidden states `[n, hidden_size]`, those of a student with
    /// the head that reads them; all heads have the same vocabulary.
    /// # Errors
    /// [`EngineError::Vocabulary`], [`EngineError::NotFinite`].
    pub fn mean_kl(
        &self,
        pool: &ThreadPool,
        teacher: &[f32],
        students: &[(&Self, &[f32])],
    ) -> Result<Vec<f64>, EngineError> {
        let n = teacher.len() / self.hidden_size();
        let inputs: Vec<(&Self, &[f32])> =
            std::iter::once((self, teacher)).chain(students.iter().copied()).collect();
        let mut teacher_sums = vec![LogSumExp::EMPTY; n];
        let mut pairs = vec![vec![KlSums::EMPTY; n]; students.len()];
        for_logit_blocks(Precision::F32, pool, &inputs, |_, blocks| {
            let width = blocks[0].len() / n;
            for row in 0..n {
                let at = row * width..(row + 1) * width;
                let teacher = &blocks[0][at.clone()];
                teacher_sums[row].add(teacher);
                for (sums, block) in pairs.iter_mut().zip(&blocks[1..]) {
                    sums[row].add(teacher, &block[at.clone()], teacher_sums[row].max);
                }
            }
        })?;
        let mean = |sums: &Vec<KlSums>| {
            let rows = sums.iter().zip(&teacher_sums).map(|(sums, teacher)| sums.get(teacher));
            rows.sum::<f64>() / n.max(1) as f64
        };
        let kl: Vec<f64> = pairs.iter().map(mean).collect();
        if kl.iter().all(|value| value.is_finite()) {
            Ok(kl)
        } else {
            Err(EngineError::NotFinite { what: "logits" })
        }
    }
}

/// Calls `visit(first vocabulary row, logits [n, block] of each input)` for block after block. An input is a head with
/// last hidden states `[n, hidden_size]` of its model.
fn for_logit_blocks(
    precision: Precision,
    pool: &ThreadPool,
    inputs: &[(&Head, &[f32])],
    mut visit: impl FnMut(usize, &[&[f32]]),
) -> Result<(), EngineError> {
    let (first, hidden) = inputs[0];
    let (vocab_size, n) = (first.vocab_size(), hidden.len() / first.hidden_size());
    if let Some((other, _)) = inputs.iter().find(|(head, _)| head.vocab_size() != vocab_size) {
        return Err(EngineError::Vocabulary { vocab_size, other: other.vocab_size() });
    }
    let normed: Vec<Vec<f32>> = inputs
        .iter()
        .map(|(head, hidden)| {
            let mut out = vec![0.0; hidden.len()];
            head.normed(pool, hidden, &mut out);
            out
        })
        .collect();
    let mut buffers = vec![vec![0.0; n * VOCAB_BLOCK]; inputs.len()];
    let mut scratch = MatmulScratch::default();
    let mode = MatmulMode { precision, store: Store::Replace };
    let mut start = 0;
    while start < vocab_size {
        let block = VOCAB_BLOCK.min(vocab_size - start);
        for (((head, _), normed), buffer) in inputs.iter().zip(&normed).zip(&mut buffers) {
            let rows = head.weight.rows(start, block);
            let product = Projection { weight: &rows, out: &mut buffer[..n * block] };
            matmul_each(pool, normed, &mut [product], &mut scratch, mode);
        }
        let views: Vec<&[f32]> = buffers.iter().map(|buffer| &buffer[..n * block]).collect();
        visit(start, &views);
        start += block;
        for lender in inputs.iter().filter_map(|(head, _)| head.lender.as_ref()) {
            lender.source.give_back_rows(lender.id, start);
        }
    }
    Ok(())
}

/// The weight that is the output head: a tied one is the token table.
fn head_id(source: &dyn WeightSource) -> WeightId {
    let is_tied = source.config().tie_word_embeddings;
    WeightId::global(if is_tied { WeightRole::EmbedTokens } else { WeightRole::LmHead })
}
