//! An output projection of a layer at work: sums of its inputs over the windows, the choice of what stays, and the
//! fit of what is left. The same for `down_proj`, whose units are neurons, and `o_proj`, whose units are KV groups.

use crate::apply::{Recovered, storage_dtype, store_projection};
use crate::error::PruneError;
use crate::footprint::SumsIn;
use crate::job::{Job, Shared};
use crate::matrix::{MatrixView, RowStore};
use crate::methods::{Linear, Needs, Recovery, select_units, unit_range};
use crate::numeric::NumericError;
use crate::refit::{Damping, FitMatrices, FitProblem, refit};
use crate::registry::Method;
use crate::speed::solve_flops;
use crate::spill::{DiskMatrix, WeightRows};
use crate::stats::{LayerStats, StoredSums, TargetStats};
use secateur_model::{LayerIdx, ModelConfig, WeightId, WeightRole};
use secateur_tensor::kernels::{cross_accumulate, gram_accumulate, mirror_upper};
use std::sync::Arc;

/// One output projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Projection {
    pub(crate) layer_idx: LayerIdx,
    pub(crate) role: WeightRole,
    /// Input width k.
    pub(crate) n_in: usize,
    /// Output width d.
    pub(crate) n_out: usize,
    /// Neighbouring inputs that leave together.
    pub(crate) unit_len: usize,
}

impl Projection {
    /// `down_proj`: its units are the neurons of the MLP.
    pub(crate) fn of_mlp(config: &ModelConfig, layer_idx: LayerIdx) -> Self {
        let n_in = config.layers[layer_idx].intermediate_size;
        Self { layer_idx, role: WeightRole::DownProj, n_in, n_out: config.hidden_size, unit_len: 1 }
    }

    /// `o_proj`: its units are the query heads of one KV head.
    pub(crate) fn of_attention(config: &ModelConfig, layer_idx: LayerIdx) -> Self {
        let layer = &config.layers[layer_idx];
        Self {
            layer_idx,
            role: WeightRole::OProj,
            n_in: layer.num_attention_heads * config.head_dim,
            n_out: config.hidden_size,
            unit_len: layer.heads_per_kv_group() * config.head_dim,
        }
    }

    pub(crate) fn id(self) -> WeightId {
        WeightId::layer(self.layer_idx, self.role)
    }

    /// Matrices whose rows leave with the units.
    fn coupled(self) -> &'static [WeightRole] {
        match self.role {
            WeightRole::OProj => &[WeightRole::QProj, WeightRole::KProj, WeightRole::VProj],
            _ => &[WeightRole::GateProj, WeightRole::UpProj],
        }
    }

    /// Empty sums of what `method` needs.
    pub(crate) fn stats(self, method: &Method) -> LayerStats {
        let mut stats = LayerStats::new(self.n_in, self.n_out);
        if Needs::Gram <= method.width.needs() {
            stats.gram = Some(vec![0.0; self.n_in * self.n_in]);
        }
        if method.teacher.is_some() {
            let cross = vec![0.0; self.n_in * self.n_out];
            stats.target = Some(TargetStats { cross, sum: vec![0.0; self.n_out], energy: 0.0 });
        }
        stats
    }

    fn fail(self, error: &dyn std::error::Error) -> PruneError {
        numeric(self.layer_idx, error)
    }

    /// The original weight: in memory when there is room for it, else decoded row by row.
    pub(crate) fn rows(self, job: Shared<'_>) -> Result<ProjectionRows, PruneError> {
        Ok(match job.rung.sums {
            SumsIn::Files => ProjectionRows::Mapped(WeightRows::new(job.request.source.clone(), self.id())?),
            SumsIn::Memory | SumsIn::Moments => ProjectionRows::Memory(decoded(job, self.id())?),
        })
    }

    /// Chooses the `keep` units that stay, refits what is left and stores it.
    pub(crate) fn prune(
        self,
        job: &mut Job<'_>,
        method: &Method,
        keep: usize,
        stats: &mut LayerStats,
    ) -> Result<PrunedProjection, PruneError> {
        let shared = job.shared();
        let pruned = shared.solve(self.n_in, || {
            let (kept, mut recovery) = self.solve(shared, method, keep, stats)?;
            let columns = unit_range(&kept, self.unit_len);
            let source_dtype = shared.request.source.require(self.id())?.dtype();
            let dtype = storage_dtype(shared.request.dtype, source_dtype, columns.len());
            let weight =
                store_projection(shared.pool, self.layer_idx, &mut recovery, &columns, stats, dtype)?;
            Ok::<_, PruneError>(PrunedProjection { kept, weight, bias: recovery.bias })
        })?;
        job.count("solve", solve_flops(stats, pruned.kept.len() * self.unit_len));
        Ok(pruned)
    }

    fn solve(
        self,
        job: Shared<'_>,
        method: &Method,
        keep: usize,
        stats: &mut LayerStats,
    ) -> Result<(Vec<usize>, Recovery), PruneError> {
        job.check_cancel()?;
        let fail = |error: NumericError| self.fail(&error);
        if let Some(damping) = method.width.damping_by_rows() {
            let rows = self.rows(job)?;
            let rows = rows.view();
            if let Some(shares) = method.teacher {
                stats.blend_own_target(rows, shares.output).map_err(fail)?;
            } else {
                stats.set_own_target(rows).map_err(fail)?;
            }
            let problem = fit_problem(stats, rows, damping).map_err(fail)?;
            let kept = if keep * self.unit_len == self.n_in {
                (0..keep).collect()
            } else {
                select_units(&problem, self.unit_len, keep, &mut |_| job.flow()).map_err(fail)?
            };
            job.check_cancel()?;
            let weight = refit(&problem, &unit_range(&kept, self.unit_len)).map_err(fail)?;
            return Ok((kept, Recovery { weight, bias: None }));
        }
        let weight = decoded(job, self.id())?;
        let mut coupled: Vec<Vec<f32>> = Vec::new();
        if method.width.needs() == Needs::Weights {
            for &role in self.coupled() {
                coupled.push(decoded(job, WeightId::layer(self.layer_idx, role))?);
            }
        }
        let coupled: Vec<&[f32]> = coupled.iter().map(Vec::as_slice).collect();
        if let Some(shares) = method.teacher {
            stats.blend_own_target(&weight, shares.output).map_err(fail)?;
        }
        let linear = Linear {
            weight: &weight,
            n_out: self.n_out,
            n_in: self.n_in,
            unit_len: self.unit_len,
            coupled: &coupled,
        };
        let kept = method.width.select(&linear, stats, keep).map_err(fail)?;
        job.check_cancel()?;
        let recovery = method.width.recover(&linear, stats, &kept).map_err(fail)?;
        Ok((kept, recovery))
    }
}

/// A weight of the base model as f32; its mapped pages are given back.
fn decoded(job: Shared<'_>, id: WeightId) -> Result<Vec<f32>, PruneError> {
    let source = &job.request.source;
    let values = source.require(id)?.to_f32();
    source.give_back(id);
    Ok(values)
}

/// What is left of an output projection.
pub(crate) struct PrunedProjection {
    /// Units of the base model that stay, rising.
    pub(crate) kept: Vec<usize>,
    weight: secateur_tensor::WeightMatrix,
    bias: Option<Vec<f32>>,
}

impl PrunedProjection {
    pub(crate) fn recovered(&self) -> Recovered<'_> {
        Recovered { weight: self.weight.clone(), bias: self.bias.as_deref() }
    }
}

/// An original output projection `[d, k]`.
pub(crate) enum ProjectionRows {
    Memory(Vec<f32>),
    Mapped(WeightRows),
}

impl ProjectionRows {
    pub(crate) fn view(&self) -> MatrixView<'_> {
        match self {
            Self::Memory(values) => MatrixView::Memory(values),
            Self::Mapped(rows) => MatrixView::Stored(rows),
        }
    }
}

/// The problem of a projection with its target.
pub(crate) fn fit_problem<'a>(
    stats: &'a LayerStats,
    prior: MatrixView<'a>,
    damping: Damping,
) -> Result<FitProblem<'a>, NumericError> {
    let matrices = FitMatrices { gram: stats.gram_view()?, cross: stats.cross_view()?, prior };
    FitProblem::of_matrices(matrices, stats.n_in, stats.n_out, damping)
}

/// Turns the teacher's hidden states after a sub-layer into what an output projection would have to add to the student's
/// before it. Both `[n, d]`.
pub(crate) fn make_wanted(teacher_after: &mut [f32], before: &[f32]) {
    teacher_after.iter_mut().zip(before).for_each(|(teacher, before)| *teacher -= before);
}

/// Adds inputs `[n, k]` of a projection to its sums, and where there is a target what was wanted of it, `[n, d]`
/// ([`make_wanted`]).
pub(crate) fn accumulate(
    job: &Job<'_>,
    layer_idx: LayerIdx,
    inputs: &[f32],
    wanted: Option<&[f32]>,
    stats: &mut LayerStats,
) -> Result<(), PruneError> {
    let (k, d) = (stats.n_in, stats.n_out);
    stats.add_moments(inputs).map_err(|error| numeric(layer_idx, &error))?;
    if let Some(gram) = &mut stats.gram {
        gram_accumulate(&job.pool, inputs, k, gram);
    }
    if let (Some(target), Some(wanted)) = (&mut stats.target, wanted) {
        cross_accumulate(&job.pool, inputs, wanted, k, d, &mut target.cross);
        for row in wanted.chunks_exact(d) {
            for (sum, &value) in target.sum.iter_mut().zip(row) {
                *sum += f64::from(value);
                target.energy += f64::from(value) * f64::from(value);
            }
        }
    }
    Ok(())
}

/// Ends the accumulation: both triangles of the Gram matrix are filled, and where the rung says so the large sums
/// go to files.
pub(crate) fn settle_sums(job: &Job<'_>, stats: &mut LayerStats) -> Result<(), PruneError> {
    const FILES: [&str; 2] = ["spill-gram", "spill-cross"];
    let Some(gram) = &mut stats.gram else { return Ok(()) };
    mirror_upper(gram, stats.n_in);
    if job.rung.sums != SumsIn::Files {
        return Ok(());
    }
    let store = |name: &str, n_cols: usize, values: Vec<f32>| -> Result<Arc<dyn RowStore>, PruneError> {
        let matrix = DiskMatrix::create(&job.work.file(name), n_cols).and_then(|matrix| {
            matrix.write_rows(0, &values)?;
            Ok(matrix)
        });
        Ok(Arc::new(matrix.map_err(|error| job.io_error(name, error))?))
    };
    let gram = store(FILES[0], stats.n_in, stats.gram.take().unwrap_or_default())?;
    let cross = stats.target.as_mut().map(|target| std::mem::take(&mut target.cross)).unwrap_or_default();
    let cross = store(FILES[1], stats.n_out, cross)?;
    stats.stored = Some(StoredSums { gram, cross });
    Ok(())
}

pub(crate) fn numeric(layer_idx: LayerIdx, error: &dyn std::error::Error) -> PruneError {
    PruneError::Numeric { layer_idx, what: error.to_string() }
}
