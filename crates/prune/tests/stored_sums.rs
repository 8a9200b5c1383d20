//! Sums that lie outside of memory give the same results as sums in memory, bit by bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

use secateur_prune::matrix::{MatrixView, RowStore};
use secateur_prune::refit::{Damping, FitMatrices, FitProblem, refit};
use secateur_prune::select::{Quadratic, RemovalOptions, remove_units};
use secateur_prune::stats::{LayerStats, StoredSums, TargetStats};
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// A store that counts how many rows are asked for at once.
#[derive(Debug)]
struct Store {
    values: Mutex<Vec<f32>>,
    n_cols: usize,
    most_rows: Mutex<usize>,
}

impl Store {
    fn new(values: &[f32], n_cols: usize) -> Arc<Self> {
        Arc::new(Self { values: Mutex::new(values.to_vec()), n_cols, most_rows: Mutex::new(0) })
    }
}

impl RowStore for Store {
    fn read_rows(&self, first: usize, out: &mut [f32]) -> io::Result<()> {
        let mut most = self.most_rows.lock().unwrap();
        *most = (*most).max(out.len() / self.n_cols);
        let values = self.values.lock().unwrap();
        let rows = values.get(first * self.n_cols..first * self.n_cols + out.len());
        out.copy_from_slice(rows.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_rows(&self, first: usize, rows: &[f32]) -> io::Result<()> {
        let mut values = self.values.lock().unwrap();
        values[first * self.n_cols..first * self.n_cols + rows.len()].copy_from_slice(rows);
        Ok(())
    }
}

/// Another number each time, the same ones in each run.
fn random(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

struct Case {
    k: usize,
    d: usize,
    weight: Vec<f32>,
    stats: LayerStats,
}

fn case(k: usize, d: usize) -> Case {
    let mut state = (k * 1000 + d) as u64;
    let n = 2 * k;
    let mut draw = |len: usize| -> Vec<f32> { (0..len).map(|_| random(&mut state)).collect() };
    let (z, t, weight) = (draw(n * k), draw(n * d), draw(d * k));
    let product = |left: &[f32], a: usize, right: &[f32], b: usize| -> Vec<f32> {
        let mut out = vec![0.0f32; a * b];
        for row in 0..n {
            for i in 0..a {
                for j in 0..b {
                    out[i * b + j] += left[row * a + i] * right[row * b + j];
                }
            }
        }
        out
    };
    let mut stats = LayerStats::new(k, d);
    stats.add_moments(&z).unwrap();
    stats.gram = Some(product(&z, k, &z, k));
    let sum = (0..d).map(|out| (0..n).map(|row| f64::from(t[row * d + out])).sum()).collect();
    let energy = t.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    stats.target = Some(TargetStats { cross: product(&z, k, &t, d), sum, energy });
    Case { k, d, weight, stats }
}

/// The same statistics with the large sums elsewhere.
fn stored(stats: &LayerStats) -> (LayerStats, Arc<Store>, Arc<Store>) {
    let mut moved = stats.clone();
    let gram = Store::new(&moved.gram.take().unwrap(), stats.n_in);
    let cross = Store::new(&std::mem::take(&mut moved.target.as_mut().unwrap().cross), stats.n_out);
    moved.stored = Some(StoredSums { gram: gram.clone(), cross: cross.clone() });
    (moved, gram, cross)
}

#[test]
fn fits_and_selections_are_the_same_wherever_the_sums_lie() {
    for (k, d) in [(5, 3), (64, 16), (65, 7), (150, 40)] {
        let Case { weight, mut stats, .. } = case(k, d);
        let (mut moved, gram_store, cross_store) = stored(&stats);
        stats.blend_own_target(&weight, 0.2).unwrap();
        let weight_store = Store::new(&weight, k);
        moved.blend_own_target(MatrixView::Stored(weight_store.as_ref()), 0.2).unwrap();
        let (a, b) = (stats.target().unwrap(), moved.target.as_ref().unwrap());
        assert_eq!((&a.sum, a.energy), (&b.sum, b.energy), "k = {k}");
        assert_eq!(a.cross, *cross_store.values.lock().unwrap(), "k = {k}");

        let solve = |stats: &LayerStats, prior: MatrixView<'_>| {
            let matrices =
                FitMatrices { gram: stats.gram_view().unwrap(), cross: stats.cross_view().unwrap(), prior };
            let problem = FitProblem::of_matrices(matrices, k, d, Damping::DEFAULT).unwrap();
            let options = RemovalOptions { unit_len: 1, keep: k / 2, step: 2 };
            let quadratic = Quadratic::of_weights(&problem).unwrap();
            let removal = remove_units(quadratic, &options, &mut |_| ControlFlow::Continue(())).unwrap();
            let weight = refit(&problem, &removal.kept).unwrap();
            (removal, weight)
        };
        let in_memory = solve(&stats, MatrixView::Memory(&weight));
        let elsewhere = solve(&moved, MatrixView::Stored(weight_store.as_ref()));
        assert_eq!(in_memory, elsewhere, "k = {k}");
        for store in [gram_store, cross_store] {
            assert!(*store.most_rows.lock().unwrap() <= 64, "a panel of rows at a time, not the matrix");
        }
    }
}

#[test]
fn the_own_output_is_the_same_wherever_the_sums_lie() {
    let Case { k, d, weight, mut stats } = case(70, 9);
    let (mut moved, _, cross) = stored(&stats);
    stats.set_own_target(&weight).unwrap();
    moved.set_own_target(&weight).unwrap();
    let (a, b) = (stats.target().unwrap(), moved.target.as_ref().unwrap());
    assert_eq!((&a.sum, a.energy), (&b.sum, b.energy));
    assert_eq!(a.cross, *cross.values.lock().unwrap());
    assert_eq!(a.cross.len(), k * d);
}

#[test]
fn a_store_that_cannot_be_read_is_an_error() {
    let Case { k, d, weight, stats } = case(70, 9);
    let (mut moved, gram, _) = stored(&stats);
    gram.values.lock().unwrap().truncate(k);
    let error = moved.set_own_target(&weight).unwrap_err();
    assert!(error.to_string().contains("work file"), "{error}");
    let prior = MatrixView::Memory(&weight);
    let matrices = FitMatrices { gram: moved.gram_view().unwrap(), cross: prior, prior };
    assert!(FitProblem::of_matrices(matrices, k, d, Damping::DEFAULT).is_err());
}
