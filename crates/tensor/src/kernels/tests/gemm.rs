use super::{assert_close, bits, everywhere, noise};
use crate::kernels::gemm::{Part, gram_args, run_gemm};
use crate::kernels::isa::Isa;
use crate::kernels::{GemmArgs, MatMut, MatRef, ThreadPool, cross_accumulate, mirror_upper, naive};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    beta: f32,
    /// Which of a, b and c are stored transposed.
    transposed: [bool; 3],
    gap: usize,
}

fn view(data: &[f32], n_rows: usize, n_cols: usize, gap: usize, transposed: bool) -> MatRef<'_> {
    if transposed {
        MatRef::with_row_stride(data, n_cols, n_rows, n_rows + gap).transposed()
    } else {
        MatRef::with_row_stride(data, n_rows, n_cols, n_cols + gap)
    }
}

fn with_c(c: &mut [f32], case: Case) -> MatMut<'_> {
    if case.transposed[2] {
        MatMut::with_row_stride(c, case.n, case.m, case.m + case.gap).transposed()
    } else {
        MatMut::with_row_stride(c, case.m, case.n, case.n + case.gap)
    }
}

fn check(isa: Isa, pool: &ThreadPool, place: &str, case: Case) {
    let Case { m, n, k, alpha, beta, gap, transposed: [ta, tb, _] } = case;
    let len = |rows: usize, cols: usize| (rows + gap) * (cols + gap);
    let (a, b, mut got) = (noise(1, len(m, k)), noise(2, len(k, n)), noise(3, len(m, n)));
    let mut want = got.clone();
    let (a, b) = (view(&a, m, k, gap, ta), view(&b, k, n, gap, tb));
    run_gemm(isa, pool, GemmArgs { alpha, a, b, beta, c: with_c(&mut got, case) }, Part::Whole);
    naive::gemm(GemmArgs { alpha, a, b, beta, c: with_c(&mut want, case) });
    assert_close(&got, &want, 1e-6, 1.0 + k as f32, &format!("{place}, {case:?}"));
}

#[test]
fn gemm_is_like_its_twin() {
    let sizes =
        [(1, 1, 1), (3, 5, 7), (4, 24, 256), (8, 48, 257), (17, 33, 65), (97, 193, 31), (100, 63, 300)];
    everywhere(|isa, pool, place| {
        for (m, n, k) in sizes {
            for flags in 0..8 {
                let transposed = [0, 1, 2].map(|bit| flags >> bit & 1 == 1);
                for (alpha, beta, gap) in [(1.0, 0.0, 0), (0.5, 1.0, 3), (-2.0, 0.25, 1)] {
                    check(isa, pool, place, Case { m, n, k, alpha, beta, transposed, gap });
                }
            }
        }
        for (m, n, k) in [(0, 3, 2), (3, 0, 2), (3, 2, 0)] {
            check(isa, pool, place, Case { m, n, k, alpha: 1.0, beta: 0.5, transposed: [false; 3], gap: 0 });
        }
    });
}

#[test]
fn with_beta_zero_old_values_are_not_read() {
    everywhere(|isa, pool, place| {
        let (a, b, mut c) = (noise(1, 6), noise(2, 6), [f32::NAN; 4]);
        let (a, b) = (MatRef::row_major(&a, 2, 3), MatRef::row_major(&b, 3, 2));
        let c_view = MatMut::row_major(&mut c, 2, 2);
        run_gemm(isa, pool, GemmArgs { alpha: 1.0, a, b, beta: 0.0, c: c_view }, Part::Whole);
        assert!(c.iter().all(|value| value.is_finite()), "{place}: {c:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn gemm_of_any_size_is_like_its_twin(
        m in 0_usize..130, n in 0_usize..230, k in 0_usize..300,
        alpha in -2.0_f32..2.0, beta in -2.0_f32..2.0, transposed: [bool; 3], gap in 0_usize..4,
    ) {
        let pool = ThreadPool::new(2);
        for isa in Isa::all() {
            check(isa, &pool, isa.name(), Case { m, n, k, alpha, beta, transposed, gap });
        }
    }
}

#[test]
fn gram_fills_the_upper_triangle_only() {
    everywhere(|isa, pool, place| {
        for (n, k) in [(1, 1), (3, 2), (5, 7), (40, 33), (300, 100), (17, 257), (0, 5)] {
            let z = noise(4, n * k);
            let mut got: Vec<f32> = (0..k * k).map(|at| at as f32).collect();
            let mut want = got.clone();
            run_gemm(isa, pool, gram_args(&z, k, &mut got), Part::Upper);
            naive::gram_accumulate(&z, k, &mut want);
            for i in 0..k {
                assert_eq!(
                    got[i * k..i * k + i],
                    want[i * k..i * k + i],
                    "{place}, [{n}, {k}]: lower triangle"
                );
            }
            assert_close(&got, &want, 2e-6, (n + k * k) as f32, &format!("{place}, [{n}, {k}]"));
            mirror_upper(&mut got, k);
            for i in 0..k {
                for j in 0..i {
                    assert_eq!(got[i * k + j], got[j * k + i], "{place}, [{n}, {k}]: mirror");
                }
            }
        }
    });
}

#[test]
fn cross_is_like_its_twin() {
    let pool = ThreadPool::new(2);
    for (n, k, d) in [(1, 1, 1), (5, 7, 3), (65, 100, 33), (300, 96, 24), (7, 3, 200), (0, 3, 4)] {
        let (z, t) = (noise(5, n * k), noise(6, n * d));
        let (mut got, mut want) = (noise(7, k * d), noise(7, k * d));
        cross_accumulate(&pool, &z, &t, k, d, &mut got);
        naive::cross_accumulate(&z, &t, k, d, &mut want);
        assert_close(&got, &want, 1e-6, 1.0 + n as f32, &format!("[{n}, {k}, {d}]"));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::all() {
        let (n, k) = (333, 221);
        let z = noise(8, n * k);
        let on = |n_threads| {
            let mut gram = vec![0.5; k * k];
            run_gemm(isa, &ThreadPool::new(n_threads), gram_args(&z, k, &mut gram), Part::Upper);
            bits(&gram)
        };
        let one = on(1);
        assert!([2, 3, 5].into_iter().all(|n_threads| on(n_threads) == one), "{}", isa.name());
    }
}
