use super::{assert_close, bits, everywhere, noise};
use crate::DType;
use crate::blocks::quantize;
use crate::kernels::attention::attention_on;
use crate::kernels::isa::Isa;
use crate::kernels::{AttentionArgs, AttentionScratch, KvSlice, ThreadPool, attention_scratch_bytes, naive};
use half::f16;

#[derive(Clone, Copy, Debug)]
struct Case {
    past_len: usize,
    n_tokens: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    context_len: usize,
}

struct Data {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    keys_f16: Vec<f16>,
    values_f16: Vec<f16>,
    keys_q8: Vec<u8>,
    values_q8: Vec<u8>,
}

/// How keys and values lie in the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    F32,
    F16,
    Q8,
}

impl Kept {
    fn all(head_dim: usize) -> impl Iterator<Item = Self> {
        let q8 = head_dim.is_multiple_of(32).then_some(Self::Q8);
        [Self::F32, Self::F16].into_iter().chain(q8)
    }
}

impl Data {
    fn new(case: Case) -> Self {
        let n = case.n_kv_heads * case.context_len * case.head_dim;
        let half = |values: &[f32]| values.iter().map(|value| f16::from_f32(*value)).collect();
        let (keys, values) = (noise(2, n), noise(3, n));
        let q8 = |values: &[f32]| {
            let whole = &values[..values.len() / 32 * 32];
            let mut bytes = vec![0; whole.len() / 32 * 34];
            quantize(DType::Q8_0, whole, &mut bytes).unwrap();
            bytes
        };
        let queries = noise(1, case.n_tokens * case.n_heads * case.head_dim);
        let queries = queries.into_iter().map(|value| value * 4.0).collect();
        Self {
            queries,
            keys_f16: half(&keys),
            values_f16: half(&values),
            keys_q8: q8(&keys),
            values_q8: q8(&values),
            keys,
            values,
        }
    }

    fn args(&self, case: Case, kept: Kept) -> AttentionArgs<'_> {
        let Case { past_len, n_tokens, n_heads, n_kv_heads, head_dim, context_len } = case;
        let (keys, values) = match kept {
            Kept::F32 => (KvSlice::F32(&self.keys), KvSlice::F32(&self.values)),
            Kept::F16 => (KvSlice::F16(&self.keys_f16), KvSlice::F16(&self.values_f16)),
            Kept::Q8 => (KvSlice::Q8_0(&self.keys_q8), KvSlice::Q8_0(&self.values_q8)),
        };
        let queries = &self.queries;
        AttentionArgs {
            queries,
            keys,
            values,
            past_len,
            n_tokens,
            n_heads,
            n_kv_heads,
            head_dim,
            context_len,
        }
    }
}

fn check(isa: Isa, pool: &ThreadPool, place: &str, case: Case) {
    let data = Data::new(case);
    for kept in Kept::all(case.head_dim) {
        let args = data.args(case, kept);
        let (mut got, mut want) = (vec![f32::NAN; data.queries.len()], vec![0.0; data.queries.len()]);
        let mut scratch = AttentionScratch::default();
        attention_on(isa, pool, &args, &mut got, &mut scratch);
        naive::attention(&args, &mut want);
        assert_close(&got, &want, 3e-6, 1.0, &format!("{place}, {kept:?}, {case:?}"));
        let most = attention_scratch_bytes(pool.n_threads(), case.n_heads, case.head_dim, case.context_len);
        assert!(scratch.buffer.len() * 4 <= most, "{place}, {case:?}: more scratch than promised");
    }
}

#[test]
fn attention_is_like_its_twin() {
    let heads = [(1, 1), (9, 3), (4, 2), (5, 1), (7, 1), (3, 3)];
    everywhere(|isa, pool, place| {
        for (n_heads, n_kv_heads) in heads {
            for head_dim in [4, 7, 16, 32, 64, 96, 100] {
                for (past_len, n_tokens) in [(0, 1), (5, 1), (0, 2), (0, 17), (130, 3), (40, 65)] {
                    let context_len = past_len + n_tokens + 3;
                    check(
                        isa,
                        pool,
                        place,
                        Case { past_len, n_tokens, n_heads, n_kv_heads, head_dim, context_len },
                    );
                }
            }
        }
        for (past_len, n_tokens) in [(255, 1), (256, 1), (700, 1), (300, 200)] {
            let context_len = past_len + n_tokens;
            let case = Case { past_len, n_tokens, n_heads: 9, n_kv_heads: 3, head_dim: 64, context_len };
            check(isa, pool, place, case);
        }
    });
}

#[test]
fn keys_after_the_token_are_never_read() {
    let case = Case { past_len: 3, n_tokens: 40, n_heads: 4, n_kv_heads: 2, head_dim: 16, context_len: 60 };
    everywhere(|isa, pool, place| {
        let mut data = Data::new(case);
        for head in 0..case.n_kv_heads {
            for at in (head * 60 + 43) * 16..(head + 1) * 60 * 16 {
                data.keys[at] = f32::NAN;
                data.values[at] = f32::NAN;
            }
        }
        let mut out = vec![0.0; data.queries.len()];
        attention_on(isa, pool, &data.args(case, Kept::F32), &mut out, &mut AttentionScratch::default());
        assert!(out.iter().all(|value| value.is_finite()), "{place}");
    });
}

#[test]
fn large_scores_stay_finite() {
    let case = Case { past_len: 0, n_tokens: 30, n_heads: 2, n_kv_heads: 1, head_dim: 8, context_len: 300 };
    everywhere(|isa, pool, place| {
        for (past_len, n_tokens) in [(0, 30), (290, 1)] {
            let case = Case { past_len, n_tokens, ..case };
            let mut data = Data::new(case);
            data.queries.iter_mut().for_each(|value| *value *= 1e4);
            let args = data.args(case, Kept::F32);
            let (mut got, mut want) = (vec![0.0; data.queries.len()], vec![0.0; data.queries.len()]);
            attention_on(isa, pool, &args, &mut got, &mut AttentionScratch::default());
            naive::attention(&args, &mut want);
            assert_close(&got, &want, 2e-2, 1.0, &format!("{place}, {case:?}"));
        }
    });
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for isa in Isa::all() {
        let depths = [(600, 1), (20, 150)].into_iter();
        for ((past_len, n_tokens), kept) in
            depths.flat_map(|depth| Kept::all(32).map(move |kept| (depth, kept)))
        {
            let case = Case { past_len, n_tokens, n_heads: 6, n_kv_heads: 2, head_dim: 32, context_len: 700 };
            let data = Data::new(case);
            let on = |n_threads| {
                let mut out = vec![0.0; data.queries.len()];
                let pool = ThreadPool::new(n_threads);
                attention_on(isa, &pool, &data.args(case, kept), &mut out, &mut AttentionScratch::default());
                bits(&out)
            };
            let one = on(1);
            assert!([2, 3, 5].into_iter().all(|n_threads| on(n_threads) == one), "{}, {case:?}", isa.name());
        }
    }
}
