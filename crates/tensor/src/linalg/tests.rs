//! Properties over odd sizes, against definitions written as plain loops.

use super::*;
use proptest::prelude::*;

/// Deterministic values in (-1, 1).
fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
        .collect()
}

fn spd(n: usize, seed: u64, damping: f64) -> Vec<f64> {
    let factor = noise(n * n, seed);
    let mut matrix = vec![0.0; n * n];
    multiply(
        Operand::new(&factor, n, n).t(),
        Operand::new(&factor, n, n),
        Product::Replace(1.0),
        &mut matrix,
    )
    .unwrap();
    (0..n).for_each(|i| matrix[i * n + i] += damping);
    matrix
}

fn naive_product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|at| (0..n).map(|k| a[at / n * n + k] * b[k * n + at % n]).sum()).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect()
}

/// Everything that is shared out gives the same bytes on any number of threads, in sizes beyond all blocks.
#[test]
fn threads_change_no_byte() {
    let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    for (n, n_rhs) in [(97, 5), (600, 100)] {
        let (matrix, rows) = (spd(n, 3, 0.5), noise(n_rhs * n, 5));
        let wide: Vec<f32> = rows.iter().map(|value| *value as f32).collect();
        let run = || {
            let factor = SpdFactor::new(matrix.clone(), n).unwrap();
            let (mut solved, mut white, mut columns) = (rows.clone(), rows.clone(), rows.clone());
            factor.solve_rows(&mut solved).unwrap();
            factor.whiten_rows(&mut white).unwrap();
            factor.whiten_cols(&mut columns).unwrap();
            let mut product = vec![0.0f32; n * n];
            let wide = Operand::new(&wide, n_rhs, n);
            multiply(wide.t(), wide, Product::Add(-1.0), &mut product).unwrap();
            let energies = column_energies(&product, n);
            let product: Vec<u32> = product.iter().map(|value| value.to_bits()).collect();
            let inverse = bits(&factor.into_inverse());
            (bits(&solved), bits(&white), bits(&columns), inverse, product, bits(&energies))
        };
        let alone = run();
        for n_threads in [2, 3] {
            assert!(on_threads(n_threads, run) == alone, "{n} unknowns on {n_threads} threads");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn inverse_times_matrix_is_identity(n in 0usize..150, seed in 1u64..1000) {
        let matrix = spd(n, seed, 0.5);
        let inverse = SpdFactor::new(matrix.clone(), n).unwrap().into_inverse();
        let product = naive_product(&matrix, &inverse, n);
        prop_assert!(largest_difference(&product, &identity(n)) < 1e-8);
        for i in 0..n {
            for j in 0..n {
                prop_assert_eq!(inverse[i * n + j].to_bits(), inverse[j * n + i].to_bits());
            }
        }
    }

    #[test]
    fn solving_rows_inverts_multiplication(n in 1usize..90, n_rhs in 1usize..20, seed in 1u64..1000) {
        let matrix = spd(n, seed, 0.5);
        let want = noise(n * n_rhs, seed + 7);
        let mut rows = vec![0.0; n * n_rhs];
        multiply(Operand::new(&want, n_rhs, n), Operand::new(&matrix, n, n), Product::Replace(1.0), &mut rows)
            .unwrap();
        let factor = SpdFactor::new(matrix, n).unwrap();
        factor.solve_rows(&mut rows).unwrap();
        prop_assert!(largest_difference(&rows, &want) < 1e-8);
    }

    #[test]
    fn whitened_norms_are_quadratic_forms_of_leading_blocks(n in 1usize..40, seed in 1u64..1000) {
        let matrix = spd(n, seed, 0.5);
        let row = noise(n, seed + 3);
        let factor = SpdFactor::new(matrix.clone(), n).unwrap();
        let (mut white, mut columns) = (row.clone(), row.clone());
        factor.whiten_rows(&mut white).unwrap();
        factor.whiten_cols(&mut columns).unwrap();
        prop_assert_eq!(&white, &columns);
        for p in 1..=n {
            let block = (0..p * p).map(|at| matrix[at / p * n + at % p]).collect();
            let mut solved = row[..p].to_vec();
            SpdFactor::new(block, p).unwrap().solve_rows(&mut solved).unwrap();
            let want: f64 = solved.iter().zip(&row).map(|(a, b)| a * b).sum();
            let got: f64 = white[..p].iter().map(|value| value * value).sum();
            prop_assert!((want - got).abs() < 1e-8 * want.max(1.0));
        }
    }

    #[test]
    fn ridge_solution_has_no_gradient(n in 1usize..40, n_rows in 1usize..8, seed in 1u64..1000) {
        let normal = spd(n, seed, 0.0);
        let lambda: Vec<f64> = noise(n, seed + 1).iter().map(|value| value.abs() + 0.1).collect();
        let prior: Vec<f32> = noise(n * n_rows, seed + 2).iter().map(|&value| value as f32).collect();
        let target = noise(n * n_rows, seed + 3);
        let mut rows = target.clone();
        ridge_solve(normal.clone(), &lambda, &prior, &mut rows).unwrap();
        for r in 0..n_rows {
            for i in 0..n {
                let fit: f64 = (0..n).map(|j| normal[i * n + j] * rows[r * n + j]).sum();
                let pull = lambda[i] * (rows[r * n + i] - f64::from(prior[r * n + i]));
                prop_assert!((fit - target[r * n + i] + pull).abs() < 1e-8);
            }
        }
    }
}

#[test]
fn eigenvalues_of_a_known_matrix() {
    // Second differences: eigenvalues 2 - 2 cos(pi i / (n + 1)).
    let n = 41;
    let mut matrix = vec![0.0; n * n];
    for i in 0..n {
        matrix[i * n + i] = 2.0;
        if i + 1 < n {
            matrix[i * n + i + 1] = -1.0;
            matrix[(i + 1) * n + i] = -1.0;
        }
    }
    let want = |i: usize| 2.0 - 2.0 * (std::f64::consts::PI * i as f64 / (n as f64 + 1.0)).cos();
    let found = symmetric_eigenvalues(&matrix, n).unwrap();
    for (i, value) in found.iter().enumerate() {
        assert!((value - want(i + 1)).abs() < 1e-12, "{i}: {value}");
    }
    let condition = condition_number(&matrix, n).unwrap();
    assert!((condition / (want(n) / want(1)) - 1.0).abs() < 1e-9);
    let log_det = SpdFactor::new(matrix, n).unwrap().log_det();
    assert!((log_det - (n as f64 + 1.0).ln()).abs() < 1e-9, "determinant of second differences is n + 1");
}

#[test]
fn bad_input_is_refused() {
    let shape = SpdFactor::new(vec![1.0; 5], 2).err();
    assert_eq!(shape, Some(LinalgError::Shape { what: "matrix", want: 4, got: 5 }));
    let nan = SpdFactor::new(vec![1.0, 0.0, f64::NAN, 1.0], 2).err();
    assert_eq!(nan, Some(LinalgError::NotFinite { what: "matrix", at: 2 }));
    let negative = SpdFactor::new(vec![1.0, 2.0, 2.0, 1.0], 2).err();
    assert_eq!(negative, Some(LinalgError::NotPositiveDefinite { n: 2, pivot: 1 }));
    assert_eq!(condition_number(&[1.0, 2.0, 2.0, 1.0], 2), Ok(f64::INFINITY));
    let unsorted = gather_symmetric(&[0.0; 9], 3, &[1, 1]);
    assert_eq!(unsorted, Err(LinalgError::Index { index: 1, n: 3 }));
    let outside = gather_symmetric(&[0.0; 9], 3, &[1, 3]);
    assert_eq!(outside, Err(LinalgError::Index { index: 3, n: 3 }));
    assert_eq!(gather_symmetric(&[0.0, 1.0, 2.0, 3.0], 2, &[1]), Ok(vec![3.0]));
}

#[test]
fn products_transpose_without_moving() {
    let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut out = [1.0; 4];
    multiply(Operand::new(&a, 2, 3), Operand::new(&a, 2, 3).t(), Product::Add(0.5), &mut out).unwrap();
    assert_eq!(out, [8.0, 17.0, 17.0, 39.5]);
    let mut small = [0.0; 3];
    assert!(multiply(Operand::new(&a, 2, 3), Operand::new(&a, 2, 3), Product::Add(0.5), &mut small).is_err());
}

#[test]
fn energies_of_columns_are_sums_of_squares() {
    for (n_rows, n_cols) in [(0, 3), (1, 1), (3, 513), (7, 1030)] {
        let values: Vec<f32> = noise(n_rows * n_cols, 11).iter().map(|value| *value as f32).collect();
        let of = |column: usize| -> f64 {
            (0..n_rows).map(|row| f64::from(values[row * n_cols + column]).powi(2)).sum()
        };
        let want: Vec<f64> = (0..n_cols).map(of).collect();
        assert!(largest_difference(&column_energies(&values, n_cols), &want) < 1e-12);
    }
    assert!(column_energies(&[], 0).is_empty());
}
