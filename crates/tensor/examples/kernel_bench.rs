//! Measures the kernels against what the machine can do: memory reads, fused multiply-adds.
//!
//! `cargo run --release -p secateur-tensor --example kernel_bench -- [--json] [filter]`: one line per figure, best of
//! several runs.
#![expect(clippy::print_stdout, reason = "the figures are the point")]

use bytes::Bytes;
use secateur_tensor::kernels::{
    AttentionArgs, AttentionScratch, KvSlice, MatmulMode, MatmulScratch, Precision, Store, ThreadPool,
    active_isa, attention, cross_accumulate, gram_accumulate, matmul_with, multiply_add_loop, rms_norm,
    silu_mul, softmax_in_place,
};
use secateur_tensor::{DType, WeightMatrix};
use std::hint::black_box;
use std::time::Instant;

/// Time given to one figure, in seconds.
const BUDGET_S: f64 = 0.6;

/// Steps of the loop that measures the peak.
const PEAK_STEPS: usize = 100_000;

/// Dtypes with a vector form.
const DTYPES: [DType; 6] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];

/// Figures that share a name's beginning.
type Group = fn(&Bench, &ThreadPool);

struct Bench {
    is_json: bool,
    filter: String,
}

impl Bench {
    /// Whether a figure whose name starts like this is asked for; spares its preparation otherwise.
    fn wants(&self, group: &str) -> bool {
        self.filter.is_empty() || self.filter.starts_with('-') || self.filter.split(' ').next() == Some(group)
    }

    /// Runs `work` again and again and prints `amount / best time`.
    fn figure(&self, name: &str, n_threads: usize, unit: &str, amount: f64, mut work: impl FnMut()) {
        let full = format!("{name} -t{n_threads}");
        if !full.contains(&self.filter) {
            return;
        }
        work();
        let (start, cpu_start) = (Instant::now(), cpu_seconds());
        let (mut best, mut n_runs) = (f64::INFINITY, 0.0);
        while start.elapsed().as_secs_f64() < BUDGET_S {
            let run = Instant::now();
            work();
            best = best.min(run.elapsed().as_secs_f64());
            n_runs += 1.0;
        }
        let value = amount / best;
        // What the speed would be if other processes had not taken the cores.
        let by_cpu = amount * n_runs * n_threads as f64 / (cpu_seconds() - cpu_start);
        if self.is_json {
            println!(
                "{}",
                serde_json::json!({"name": name, "threads": n_threads, "best": value, "by_cpu": by_cpu, "unit": unit})
            );
        } else {
            println!(
                "{full:<44} {value:>9.2} best {by_cpu:>9.2} by cpu time {unit}   ({:.1} us)",
                best * 1e6
            );
        }
    }
}

/// CPU seconds of all threads of this process so far; 0 where the system does not tell.
fn cpu_seconds() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn weight(dtype: DType, n_rows: usize, n_cols: usize) -> WeightMatrix {
    // Any bytes make valid blocks; a pattern without the exponents of NaN and infinity keeps speeds honest.
    let n_bytes = dtype.row_bytes(n_cols).expect("whole blocks") * n_rows;
    let data: Vec<u8> = (0..n_bytes).map(|at| (at * 37 % 61) as u8).collect();
    WeightMatrix::new(dtype, n_rows, n_cols, Bytes::from(data)).expect("the size fits")
}

fn limits(bench: &Bench, pool: &ThreadPool) {
    let n_threads = pool.n_threads();
    let peak_flops = multiply_add_loop(pool, 0) + multiply_add_loop(pool, PEAK_STEPS);
    bench.figure("limits fma peak", n_threads, "GFLOP/s", peak_flops / 1e9, || {
        multiply_add_loop(pool, PEAK_STEPS);
    });
    let data = vec![1_u64; 32 << 20];
    let n_bytes = size_of_val(&data[..]) as f64;
    bench.figure("limits memory read", n_threads, "GB/s", n_bytes / 1e9, || {
        let share = data.len() / 64;
        pool.run(64, &|task_idx| {
            let mut sums = [0_u64; 16];
            for chunk in data[task_idx * share..(task_idx + 1) * share].chunks_exact(16) {
                sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
            }
            black_box(sums);
        });
    });
    bench.figure("limits empty pool.run", n_threads, "M/s", 1000.0 / 1e6, || {
        for _ in 0..1000 {
            pool.run(2, &|task_idx| {
                black_box(task_idx);
            });
        }
    });
}

/// Every dtype in f32, and those stored as integers with activations of bytes.
fn modes() -> impl Iterator<Item = (DType, MatmulMode, &'static str)> {
    let mode = |precision| MatmulMode { precision, store: Store::Replace };
    let floats = DTYPES.into_iter().map(move |dtype| (dtype, mode(Precision::F32), ""));
    let bytes = [DType::Q8_0, DType::Q4_0, DType::Q4_1].into_iter();
    floats.chain(bytes.map(move |dtype| (dtype, mode(Precision::Int8), " int8")))
}

fn decode(bench: &Bench, pool: &ThreadPool) {
    // Larger than the caches: 64k rows of 576, as an output head; and one layer's matrix, that stays in them.
    for (what, n_rows, n_cols) in [("head", 65_536, 576), ("layer", 1536, 576)] {
        for (dtype, mode, suffix) in modes() {
            let (weight, input) = (weight(dtype, n_rows, n_cols), noise(1, n_cols));
            let (mut out, mut scratch) = (vec![0.0; n_rows], MatmulScratch::default());
            let amount = weight.data().len() as f64 / 1e9;
            let name = format!("gemv {what} {dtype}{suffix}");
            bench.figure(&name, pool.n_threads(), "GB/s", amount, || {
                matmul_with(pool, &input, &weight, &mut out, &mut scratch, mode);
            });
        }
    }
}

/// Formats whose blocks of 256 the rows of the reference model do not fill, each beside the exact product: one token with
/// weights larger than the caches, and a prompt.
fn block_formats(bench: &Bench, pool: &ThreadPool) {
    let n_cols = 2048;
    for dtype in [DType::Q4_0, DType::Q5_0, DType::Q5_1, DType::Q4_K, DType::Q5_K, DType::Q6_K] {
        for (n_tokens, n_rows) in [(1, 24_576), (512, 2048)] {
            for precision in [Precision::F32, Precision::Int8] {
                let (weight, inputs) = (weight(dtype, n_rows, n_cols), noise(1, n_tokens * n_cols));
                let (mut out, mut scratch) = (vec![0.0; n_tokens * n_rows], MatmulScratch::default());
                let (amount, unit) = match n_tokens {
                    1 => (weight.data().len() as f64, "GB/s"),
                    _ => (2.0 * (n_tokens * n_cols * n_rows) as f64, "GFLOP/s"),
                };
                let name = format!("blocks {n_tokens} {dtype} {}", precision.name());
                bench.figure(&name, pool.n_threads(), unit, amount / 1e9, || {
                    let mode = MatmulMode { precision, store: Store::Replace };
                    matmul_with(pool, &inputs, &weight, &mut out, &mut scratch, mode);
                });
            }
        }
    }
}

fn prefill(bench: &Bench, pool: &ThreadPool) {
    for (n_tokens, n_in, n_out) in
        [(512, 576, 1536), (512, 1536, 576), (100, 576, 1536), (4, 576, 1536), (8, 576, 1536)]
    {
        for (dtype, mode, suffix) in modes() {
            let (weight, inputs) = (weight(dtype, n_out, n_in), noise(1, n_tokens * n_in));
            let (mut out, mut scratch) = (vec![0.0; n_tokens * n_out], MatmulScratch::default());
            let amount = 2e-9 * (n_tokens * n_in * n_out) as f64;
            let name = format!("matmul {n_tokens}x{n_in}x{n_out} {dtype}{suffix}");
            bench.figure(&name, pool.n_threads(), "GFLOP/s", amount, || {
                matmul_with(pool, &inputs, &weight, &mut out, &mut scratch, mode);
            });
        }
    }
}

fn statistics(bench: &Bench, pool: &ThreadPool) {
    let (n, k, d) = (512, 1536, 576);
    let (z, t) = (noise(1, n * k), noise(2, n * d));
    let (mut gram, mut cross) = (vec![0.0; k * k], vec![0.0; k * d]);
    bench.figure("gram 512 of 1536", pool.n_threads(), "GFLOP/s", 1e-9 * (n * k * (k + 1)) as f64, || {
        gram_accumulate(pool, &z, k, &mut gram);
    });
    bench.figure(
        "gram cross 512 of 1536x576",
        pool.n_threads(),
        "GFLOP/s",
        2e-9 * (n * k * d) as f64,
        || {
            cross_accumulate(pool, &z, &t, k, d, &mut cross);
        },
    );
}

fn attend(bench: &Bench, pool: &ThreadPool) {
    let (n_heads, n_kv_heads, head_dim) = (9, 3, 64);
    for (past_len, n_tokens) in [(0, 512), (1536, 512), (0, 2048), (127, 1), (511, 1), (2047, 1)] {
        let context_len = past_len + n_tokens;
        let n_values = n_kv_heads * context_len * head_dim;
        let (keys, values) = (noise(1, n_values), noise(2, n_values));
        let half =
            |values: &[f32]| values.iter().map(|value| half::f16::from_f32(*value)).collect::<Vec<_>>();
        let (keys_f16, values_f16) = (half(&keys), half(&values));
        let queries = noise(3, n_tokens * n_heads * head_dim);
        let mut out = vec![0.0; queries.len()];
        let mut scratch = AttentionScratch::default();
        let pairs = n_heads * (n_tokens * past_len + n_tokens * (n_tokens + 1) / 2);
        for (dtype, keys, values) in [
            ("f32", KvSlice::F32(&keys), KvSlice::F32(&values)),
            ("f16", KvSlice::F16(&keys_f16), KvSlice::F16(&values_f16)),
        ] {
            let queries = &queries;
            let args = AttentionArgs {
                queries,
                keys,
                values,
                past_len,
                n_tokens,
                n_heads,
                n_kv_heads,
                head_dim,
                context_len,
            };
            let name = format!("attention {past_len}+{n_tokens} {dtype}");
            bench.figure(&name, pool.n_threads(), "GFLOP/s", 4e-9 * (pairs * head_dim) as f64, || {
                attention(pool, &args, &mut out, &mut scratch);
            });
        }
    }
}

fn elementwise(bench: &Bench, pool: &ThreadPool) {
    let n = 512 * 1536;
    let (mut gate, up) = (noise(1, n), noise(2, n));
    bench.figure("elementwise silu_mul 512x1536", pool.n_threads(), "Gvalue/s", n as f64 / 1e9, || {
        silu_mul(pool, &mut gate, &up)
    });
    let (x, norm) = (noise(3, 512 * 576), noise(4, 576));
    let mut out = vec![0.0; x.len()];
    bench.figure("elementwise rms_norm 512x576", pool.n_threads(), "Gvalue/s", x.len() as f64 / 1e9, || {
        rms_norm(pool, &x, &norm, 1e-5, &mut out);
    });
    bench.figure("elementwise rms_norm 1x576", pool.n_threads(), "Gvalue/s", 576.0 / 1e9, || {
        rms_norm(pool, &x[..576], &norm, 1e-5, &mut out[..576]);
    });
    let mut logits = noise(5, 49_152);
    bench.figure(
        "elementwise softmax 49152",
        pool.n_threads(),
        "Gvalue/s",
        logits.len() as f64 / 1e9,
        || {
            softmax_in_place(&mut logits);
        },
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_json = args.iter().any(|arg| arg == "--json");
    let filter = args.into_iter().find(|arg| !arg.starts_with("--")).unwrap_or_default();
    let bench = Bench { is_json, filter };
    if !is_json {
        println!("{:?}", active_isa());
    }
    for n_threads in [1, 2] {
        let pool = ThreadPool::new(n_threads);
        let groups: [(&str, Group); 7] = [
            ("limits", limits),
            ("gemv", decode),
            ("blocks", block_formats),
            ("matmul", prefill),
            ("gram", statistics),
            ("attention", attend),
            ("elementwise", elementwise),
        ];
        for (group, run) in groups {
            if bench.wants(group) {
                run(&bench, &pool);
            }
        }
    }
}
