//! Every kernel runs compiled for every set of this machine that it is compiled for, shown by name.

use super::matmul::random_weight;
use super::{Product, noise};
use crate::kernels::isa::{Isa, Kernel};
use crate::kernels::matmul::MatmulScratch;
use crate::kernels::simd::Simd;
use crate::kernels::*;
use crate::{DType, WeightMatrix};
use half::f16;
use std::any::type_name;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

/// Set and kernel of every call in this process.
static RAN: Mutex<BTreeSet<(&str, &str)>> = Mutex::new(BTreeSet::new());

/// Called by each set as it runs a kernel.
pub(in crate::kernels) fn note<S: Simd, K: Kernel>() {
    let kernel = type_name::<K>().split('<').next().unwrap_or_default();
    RAN.lock().expect("no test panics inside").insert((type_name::<S>(), kernel));
}

struct SetName;

impl Kernel for SetName {
    type Output = &'static str;
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> &'static str {
        type_name::<S>()
    }
}

/// Kernels as the sources name them: `module::Kernel`.
fn declared(folder: &Path, module: &str, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("the sources are there").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() && stem != "tests" {
            declared(&path, &format!("{module}::{stem}"), names);
        } else if path.is_file() {
            let text = std::fs::read_to_string(&path).expect("the sources are text");
            let module = if stem == "mod" { module.to_owned() } else { format!("{module}::{stem}") };
            let heads = text.lines().filter(|line| line.starts_with("impl") && line.ends_with('{'));
            let kernels = heads.filter_map(|line| line.split_once(" Kernel for ")).map(|(_, name)| name);
            names.extend(
                kernels.map(|name| format!("{module}::{}", name.split(['<', ' ']).next().unwrap_or(name))),
            );
        }
    }
}

/// Calls what is public once, in sizes that need every kernel.
fn run_everything(pool: &ThreadPool) {
    let (x, y) = (noise(1, 300), noise(2, 300));
    let mut out = vec![0.0; 300];
    rms_norm(pool, &x, &y, 1e-5, &mut out);
    silu_mul(pool, &mut out, &y);
    softmax_in_place(&mut out);
    assert!(sum_exp_gap(&x, &y, max(&x)).is_finite() && sum_exp(&x, max(&x)).is_finite());
    add_in_place(pool, &mut out, &y);
    assert!(all_finite(&out) && argmax(&out).is_some());
    assert!(log_sum_exp(&x).is_finite() && dot(&x, &y).is_finite());
    let table = RotaryTable { pairs: RotaryPairs::Halves, head_dim: 10, values: &noise(3, 20) };
    rotate_heads(pool, table, &mut out[..30]);
    let (mut gram, n) = (vec![0.0; 900], 30);
    gram_accumulate(pool, &x, n, &mut gram);
    multiply_add_loop(pool, 10);
    read_loop(pool, &[&[1; 500]]);
    assert!(0 < active_isa().f32_lanes);
    let cache: Vec<f16> = noise(4, 2 * 40 * 12).iter().map(|value| f16::from_f32(*value)).collect();
    for n_tokens in [1, 20] {
        let args = AttentionArgs {
            queries: &noise(5, n_tokens * 4 * 12),
            keys: KvSlice::F16(&cache),
            values: KvSlice::F16(&cache),
            past_len: 7,
            n_tokens,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 12,
            context_len: 40,
        };
        attention(pool, &args, &mut vec![0.0; n_tokens * 48], &mut AttentionScratch::default());
    }
    for isa in Isa::all() {
        for (dtype, precision) in
            [(DType::F16, Precision::F32), (DType::Q8_0, Precision::Int8), (DType::Q6_K, Precision::Int8)]
        {
            for n_tokens in [1, 40] {
                let (weight, mut out): (WeightMatrix, _) =
                    (random_weight(dtype, 50, 256), vec![0.0; n_tokens * 50]);
                let product = Product {
                    inputs: &noise(6, n_tokens * 256),
                    weight: &weight,
                    accumulate: false,
                    precision,
                };
                product.run(isa, pool, &mut out, &mut MatmulScratch::default());
            }
        }
    }
}

#[test]
fn every_kernel_runs_on_every_set_that_it_is_compiled_for() {
    let mut kernels = BTreeSet::new();
    declared(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels"),
        "secateur_tensor::kernels",
        &mut kernels,
    );
    assert!(20 < kernels.len(), "{kernels:?}");
    run_everything(&ThreadPool::new(2));
    let ran = RAN.lock().expect("no test panics inside").clone();
    let mut missed = Vec::new();
    for kernel in &kernels {
        let multiplies_bytes = kernel.contains("::int8::") && !kernel.contains("::inputs::");
        let sets: BTreeSet<&str> = if multiplies_bytes {
            Isa::all().into_iter().map(|isa| isa.dispatch_bytes(SetName)).collect()
        } else {
            [Isa::detect().dispatch(SetName)].into()
        };
        for set in sets {
            println!("{set}: {kernel}");
            if !ran.contains(&(set, kernel.as_str())) {
                missed.push(format!("{kernel} on {set}"));
            }
        }
    }
    assert!(missed.is_empty(), "nothing runs {missed:#?}");
}
