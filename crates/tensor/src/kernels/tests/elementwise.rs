use super::{ODD, assert_close, everywhere, noise};
use crate::kernels::elementwise::{
    Argmax, Axpy, Dot, LogSumExp, Max, Softmax, SumExp, exp_in_place, rms_norm_on, silu_mul_on,
};
use crate::kernels::exp::{MAX_ARGUMENT, MAX_RELATIVE_ERROR, MIN_ARGUMENT, exp};
use crate::kernels::isa::{Isa, Kernel};
use crate::kernels::simd::{MAX_LANES, Simd};
use crate::kernels::{ThreadPool, add_in_place, naive};

struct ExpOf<'a>(&'a mut [f32; MAX_LANES]);

impl Kernel for ExpOf<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for at in (0..MAX_LANES).step_by(S::LANES) {
            // SAFETY: `at + LANES <= MAX_LANES`.
            unsafe {
                let to = self.0.as_mut_ptr().add(at);
                simd.store(to, exp(simd, simd.load(to)));
            }
        }
    }
}

#[test]
fn exp_is_as_exact_as_documented() {
    for isa in Isa::all() {
        let mut worst = 0.0_f64;
        let steps = (0..u32::MAX).step_by(257 * MAX_LANES);
        for start in steps {
            let x: [f32; MAX_LANES] = std::array::from_fn(|lane| f32::from_bits(start + 257 * lane as u32));
            let mut got = x;
            isa.dispatch(ExpOf(&mut got));
            for (x, got) in x.into_iter().zip(got) {
                if x.is_nan() {
                    assert!(got.is_nan(), "{}: exp({x}) = {got}", isa.name());
                    continue;
                }
                let want = f64::from(x.clamp(MIN_ARGUMENT, MAX_ARGUMENT)).exp();
                worst = worst.max((f64::from(got) / want - 1.0).abs());
            }
        }
        println!("{}: greatest relative error of exp {worst:e}", isa.name());
        assert!(worst <= f64::from(MAX_RELATIVE_ERROR), "{}: {worst:e}", isa.name());
    }
}

#[test]
fn rms_norm_is_like_its_twin() {
    everywhere(|isa, pool, place| {
        for d in [1, 3, 7, 8, 64, 100, 576] {
            for n in [1, 2, 40] {
                let (x, weight) = (noise(1, n * d), noise(2, d));
                let (mut got, mut want) = (vec![0.0; n * d], vec![0.0; n * d]);
                rms_norm_on(isa, pool, &x, &weight, 1e-5, &mut got);
                naive::rms_norm(&x, &weight, 1e-5, &mut want);
                assert_close(&got, &want, 2e-6, 2.0, &format!("{place}, [{n}, {d}]"));
            }
        }
    });
}

#[test]
fn silu_mul_is_like_its_twin() {
    everywhere(|isa, pool, place| {
        for n in ODD.into_iter().chain([20_000]) {
            let gate: Vec<f32> = noise(3, n).iter().map(|value| value * 20.0).collect();
            let up = noise(4, n);
            let (mut got, mut want) = (gate.clone(), gate.clone());
            silu_mul_on(isa, pool, &mut got, &up);
            naive::silu_mul(&mut want, &up);
            assert_close(&got, &want, 1e-6, 20.0, &format!("{place}, {n}"));
        }
        let mut extreme = [1e30, -1e30, 100.0, -100.0, f32::NAN, 0.0];
        silu_mul_on(isa, pool, &mut extreme, &[1.0; 6]);
        assert_eq!(extreme[0], 1e30, "{place}");
        assert!(extreme[1].abs() < 1e-6 && extreme[3].abs() < 1e-30, "{place}: {extreme:?}");
        assert!(extreme[2] == 100.0 && extreme[4].is_nan() && extreme[5] == 0.0, "{place}: {extreme:?}");
    });
}

#[test]
fn softmax_and_log_sum_exp_are_like_their_twins() {
    for isa in Isa::all() {
        for n in ODD.into_iter().chain([49_152]) {
            let x: Vec<f32> = noise(5, n).iter().map(|value| value * 30.0).collect();
            let (mut got, mut want) = (x.clone(), x.clone());
            isa.dispatch(Softmax(&mut got));
            naive::softmax_in_place(&mut want);
            assert_close(&got, &want, 2e-6, 1.0, &format!("{}, {n}", isa.name()));
            let (got, want) = (isa.dispatch(LogSumExp(&x)), naive::log_sum_exp(&x));
            assert!((got - want).abs() <= 4e-6, "{}, {n}: {got} {want}", isa.name());
        }
        let mut masked = vec![f32::NEG_INFINITY; 19];
        masked[18] = 3.0;
        isa.dispatch(Softmax(&mut masked));
        assert!(masked[..18].iter().all(|value| *value == 0.0) && masked[18] == 1.0, "{}", isa.name());
        for at in [0, 9, 18] {
            let mut poisoned = vec![0.5; 19];
            poisoned[at] = f32::NAN;
            assert!(isa.dispatch(LogSumExp(&poisoned)).is_nan(), "{}, NaN at {at}", isa.name());
            poisoned[3] = f32::INFINITY;
            assert!(isa.dispatch(LogSumExp(&poisoned)).is_nan(), "{}, NaN at {at}", isa.name());
            isa.dispatch(Softmax(&mut poisoned));
            assert!(poisoned.iter().any(|value| value.is_nan()), "{}, NaN at {at}", isa.name());
        }
        assert_eq!(isa.dispatch(LogSumExp(&[])), f32::NEG_INFINITY);
    }
}

struct ExpSum<'a>(&'a mut [f32]);

impl Kernel for ExpSum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        exp_in_place(simd, self.0, 0.0)
    }
}

#[test]
fn far_below_the_maximum_the_weight_is_zero() {
    for isa in Isa::all() {
        let mut x = [-1e4, -200.0, -88.0, -87.0, 0.0, f32::NEG_INFINITY, -87.5, -1.0, -1e30];
        let sum = isa.dispatch(ExpSum(&mut x));
        let zeros: Vec<bool> = x.iter().map(|value| *value == 0.0).collect();
        assert_eq!(zeros, [true, true, true, false, false, true, true, false, true], "{}", isa.name());
        assert!((sum - 1.367_879_4).abs() < 1e-6, "{}: {sum}", isa.name());
    }
}

#[test]
fn argmax_finds_the_first_greatest() {
    for isa in Isa::all() {
        for n in ODD {
            let x = noise(6, n);
            assert_eq!(isa.dispatch(Argmax(&x)), naive::argmax(&x), "{}, {n}", isa.name());
            assert_eq!(isa.dispatch(Argmax(&vec![1.5; n])), Some(0), "{}, {n}", isa.name());
            for at in [0, n / 2, n - 1] {
                let mut x = noise(7, n);
                x[at] = f32::NAN;
                assert_eq!(isa.dispatch(Argmax(&x)), naive::argmax(&x), "{}, {n}, NaN at {at}", isa.name());
            }
        }
        assert_eq!(isa.dispatch(Argmax(&[])), None);
        assert_eq!(isa.dispatch(Argmax(&[f32::NAN; 20])), None);
        assert_eq!(isa.dispatch(Argmax(&[f32::NAN, f32::NEG_INFINITY])), Some(1));
    }
}

#[test]
fn dot_and_axpy_are_like_their_twins() {
    for isa in Isa::all() {
        for n in ODD.into_iter().chain([1536]) {
            let (a, b) = (noise(8, n), noise(9, n));
            let (got, want) = (isa.dispatch(Dot { a: &a, b: &b }), naive::dot(&a, &b));
            assert!((got - want).abs() <= 1e-6 * n as f32, "{}, {n}: {got} {want}", isa.name());
            let mut y = b.clone();
            isa.dispatch(Axpy { alpha: 0.25, x: &a, y: &mut y });
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b + 0.25 * a).collect();
            assert_close(&y, &want, 1e-6, 1.0, &format!("{}, {n}", isa.name()));
        }
    }
}

#[test]
fn what_is_added_in_parts_is_the_plain_sum() {
    let pool = ThreadPool::new(3);
    for n in ODD.into_iter().chain([1536, 70_001]) {
        let (x, y) = (noise(8, n), noise(9, n));
        let mut got = y.clone();
        add_in_place(&pool, &mut got, &x);
        assert!(got.iter().zip(x.iter().zip(&y)).all(|(got, (x, y))| *got == x + y), "{n}");
    }
}

#[test]
fn heads_are_turned_as_by_the_twin() {
    use crate::kernels::rope::rotate_on;
    use crate::kernels::{RotaryPairs, RotaryTable};
    everywhere(|isa, pool, place| {
        for pairs in [RotaryPairs::Neighbours, RotaryPairs::Halves] {
            for (n_tokens, n_heads, head_dim) in [(1, 3, 64), (2, 1, 2), (3, 2, 10), (5, 3, 36), (40, 9, 80)]
            {
                let values = noise(3, n_tokens * 2 * head_dim);
                let table = RotaryTable { pairs, head_dim, values: &values };
                let mut got = noise(4, n_tokens * n_heads * head_dim);
                let mut want = got.clone();
                rotate_on(isa, pool, table, &mut got);
                naive::rotate_heads(table, &mut want);
                let what = format!("{place}, {pairs:?}, [{n_tokens}, {n_heads}, {head_dim}]");
                assert_close(&got, &want, 1e-6, 1.0, &what);
            }
        }
    });
}

#[test]
fn values_that_are_not_finite_are_found_anywhere() {
    use crate::kernels::elementwise::AllFinite;
    everywhere(|isa, _, place| {
        for len in ODD {
            let mut x = noise(5, len);
            x[0] = f32::MAX;
            assert!(isa.dispatch(AllFinite(&x)), "{place}, {len}");
            for at in 0..len {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let old = std::mem::replace(&mut x[at], bad);
                    assert!(!isa.dispatch(AllFinite(&x)), "{place}, {bad} at {at} of {len}");
                    x[at] = old;
                }
            }
        }
    });
}

#[test]
fn sums_of_exponentials_agree_with_plain_sums() {
    for n in ODD {
        let (x, y) = (noise(61, n), noise(62, n));
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp = |x: f32| f64::from(x - max).exp();
        let sum: f64 = x.iter().map(|&x| exp(x)).sum();
        let gap: f64 = x.iter().zip(&y).map(|(&x, &y)| exp(x) * f64::from(x - y)).sum();
        let scale: f64 = 1.0 + x.iter().zip(&y).map(|(&x, &y)| exp(x) * f64::from(x - y).abs()).sum::<f64>();
        for isa in Isa::all() {
            assert_eq!(isa.dispatch(Max(&x)).to_bits(), max.to_bits(), "{} {n}", isa.name());
            let got = isa.dispatch(SumExp { x: &x, gap_to: None, reference: max });
            assert!((f64::from(got) - sum).abs() < 1e-5 * (1.0 + sum), "{} {n}: {got} {sum}", isa.name());
            let got = isa.dispatch(SumExp { x: &x, gap_to: Some(&y), reference: max });
            assert!((f64::from(got) - gap).abs() < 1e-5 * scale, "{} {n}: {got} {gap}", isa.name());
            if let Some(last) = x.len().checked_sub(1) {
                let mut broken = x.clone();
                broken[last] = f32::NAN;
                assert!(isa.dispatch(SumExp { x: &broken, gap_to: None, reference: max }).is_nan());
                assert!(isa.dispatch(SumExp { x: &x, gap_to: Some(&broken), reference: max }).is_nan());
            }
        }
    }
}
