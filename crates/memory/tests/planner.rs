//! The planner on made-up models: what it must never do, and what it does on the reference shape.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use proptest::prelude::*;
use secateur_memory::{
    DEFAULT_CONTEXT_LEN, MIN_CONTEXT_LEN, PlanError, PlanRequest, Refusal, SHORTER_CONTEXT_RATIO, Storage,
    WeightsSummary, footprint, plan, plan_ratio,
};
use secateur_model::{
    Architecture, DType, Footprint, KvDType, LayerConfig, ModelConfig, PlanAction, PlanPolicy, PrunePlan,
    PruneRatio, RopeLayout, RopeScaling, activations_bytes, kv_cache_bytes, mixed_layer_bytes,
    writable_dtype,
};

const MIB: u64 = 1 << 20;

fn model(hidden_size: usize, vocab_size: usize, head_dim: usize, layers: Vec<LayerConfig>) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        name: "made up".into(),
        hidden_size,
        vocab_size,
        head_dim,
        max_position_embeddings: 8192,
        rms_norm_eps: 1e-5,
        rope_theta: 1e5,
        rope_layout: RopeLayout::Interleaved,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        layers,
    }
}

/// The shape of SmolLM2-135M.
fn reference() -> ModelConfig {
    let layer = LayerConfig { num_attention_heads: 9, num_key_value_heads: 3, intermediate_size: 1536 };
    model(576, 49152, 64, vec![layer; 30])
}

/// A request that leaves nothing open.
fn f16() -> PlanRequest {
    PlanRequest { kv_dtype: Some(KvDType::F16), ..PlanRequest::default() }
}

fn request(policy: PlanPolicy) -> PlanRequest {
    PlanRequest { policy, ..f16() }
}

fn ratio(value: f64) -> PruneRatio {
    PruneRatio::new(value).unwrap()
}

#[test]
fn the_cache_shrinks_before_anything_is_cut_unless_a_type_is_asked_for() {
    let (config, weights) = (reference(), WeightsSummary::uniform(&reference(), DType::Q8_0));
    let open = PlanRequest { context_len: Some(2048), ..PlanRequest::default() };
    let fixed = PlanRequest { kv_dtype: Some(KvDType::F16), ..open };
    let need = plan(&config, &weights, u64::MAX, &fixed).unwrap().footprint.total_bytes();
    let enough = plan(&config, &weights, need, &open).unwrap();
    assert_eq!((enough.action, enough.kv_dtype), (PlanAction::Untouched, KvDType::F16));
    let tight = plan(&config, &weights, need - 1, &open).unwrap();
    assert_eq!((tight.action, tight.kv_dtype), (PlanAction::Untouched, KvDType::Q8_0));
    assert_eq!(tight.base_footprint.total_bytes(), need);
    assert!(tight.reason.contains("nothing is pruned, keys and values are kept as q8_0"), "{}", tight.reason);
    let cut = plan(&config, &weights, need - 1, &fixed).unwrap();
    assert_eq!((cut.action, cut.kv_dtype), (PlanAction::Prune, KvDType::F16));
    // Heads of 80 are no whole groups: there is nothing to choose.
    let odd = ModelConfig { head_dim: 80, ..config };
    let weights = WeightsSummary::uniform(&odd, DType::Q8_0);
    let need = plan(&odd, &weights, u64::MAX, &open).unwrap().footprint.total_bytes();
    assert_eq!(plan(&odd, &weights, need - 1, &open).unwrap().kv_dtype, KvDType::F16);
    let asked = PlanRequest { kv_dtype: Some(KvDType::Q8_0), ..open };
    let error = plan(&odd, &weights, need, &asked);
    assert_eq!(error, Err(PlanError::KvDType { kv_dtype: "q8_0", head_dim: 80 }));
}

#[test]
fn reference_from_generous_to_tiny() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::Q4_1);
    let base = footprint(&config, &weights, 2048, &f16()).unwrap();
    assert_eq!(base.kv_cache_bytes, 45 * MIB);
    let at = |budget| plan(&config, &weights, budget, &f16());

    let untouched = at(base.total_bytes()).unwrap();
    assert_eq!(untouched.action, PlanAction::Untouched);
    assert_eq!((untouched.ratio, untouched.context_len), (PruneRatio::ZERO, 2048));
    assert_eq!(untouched.footprint, base);
    assert_eq!(untouched.layers, config.layers);
    assert!(untouched.reason.contains("nothing is pruned"), "{}", untouched.reason);

    let pruned = at(base.total_bytes() - 1).unwrap();
    assert_eq!(pruned.action, PlanAction::Prune);
    assert!(pruned.ratio.get() < 0.001 && pruned.context_len == 2048, "{pruned:?}");

    let halved = at(base.total_bytes() - 25 * MIB).unwrap();
    assert_eq!(halved.context_len, 1024);
    assert!(halved.ratio.get() <= SHORTER_CONTEXT_RATIO);
    assert!(
        halved.reason.contains("The context is 1024 tokens, since 2048 would force out"),
        "{}",
        halved.reason
    );

    let deep = at(70 * MIB).unwrap();
    assert_eq!(deep.context_len, MIN_CONTEXT_LEN);
    assert!(SHORTER_CONTEXT_RATIO < deep.ratio.get());
    assert!(deep.predicted_perplexity_factor > halved.predicted_perplexity_factor);

    let Err(PlanError::Refused(refusal)) = at(40 * MIB) else { panic!("40 MiB cannot do") };
    assert_eq!(refusal.available_bytes, 40 * MIB);
    let text = refusal.to_string();
    assert!(text.contains(&refusal.smallest_budget_bytes.to_string()), "{text}");
    assert!(text.contains("deepest cut of"), "{text}");
    let smallest = at(refusal.smallest_budget_bytes).unwrap();
    assert_eq!(smallest.footprint.total_bytes(), refusal.smallest_budget_bytes);
    assert!(smallest.layers.iter().all(|layer| layer.intermediate_size == 192), "{:?}", smallest.layers);
    assert!(matches!(at(refusal.smallest_budget_bytes - 1), Err(PlanError::Refused(_))));
    assert!(matches!(at(0), Err(PlanError::Refused(_))) && at(u64::MAX).is_ok());
}

#[test]
fn heads_stay_until_the_mlp_is_at_its_floor() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::Q4_1);
    for (asked, width, kv_heads) in
        [(0.2, 1120..=1152, 3..=3), (0.5, 512..=512, 3..=3), (0.7, 192..=192, 2..=3)]
    {
        let plan = plan_ratio(&config, &weights, ratio(asked), &f16()).unwrap();
        for layer in &plan.layers {
            assert!(width.contains(&layer.intermediate_size), "{asked}: {layer:?}");
            assert!(kv_heads.contains(&layer.num_key_value_heads), "{asked}: {layer:?}");
            assert_eq!(layer.num_attention_heads, 3 * layer.num_key_value_heads);
        }
    }
}

#[test]
fn every_ratio_is_reached_within_half_a_per_cent() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::Q4_1);
    for permille in 0..=790 {
        let asked = f64::from(permille) / 1000.0;
        let quality = plan_ratio(&config, &weights, ratio(asked), &request(PlanPolicy::Quality)).unwrap();
        // Half of the largest step, a KV group of one layer, is 0.14 %.
        assert!((quality.ratio.get() - asked).abs() < 0.0015, "{asked} {}", quality.ratio);
        let compatible = plan_ratio(&config, &weights, ratio(asked), &request(PlanPolicy::Compatible));
        // A common step of 32 neurons is 1.56 %, a KV group of all layers 8.3 %.
        let half_step = if asked < 0.65 { 0.0079 } else { 0.042 };
        match compatible {
            Ok(plan) => assert!((plan.ratio.get() - asked).abs() <= half_step, "{asked} {}", plan.ratio),
            Err(error) => assert!(0.77 < asked, "{asked}: {error}"),
        }
    }
    let too_much = plan_ratio(&config, &weights, ratio(0.9), &f16());
    let Err(PlanError::Ratio { reachable, .. }) = too_much else { panic!("{too_much:?}") };
    assert!(0.79 < reachable.get() && reachable.get() <= 0.8);
}

#[test]
fn a_dtype_may_do_instead_of_a_cut() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::F16);
    let q8 = PlanRequest { dtype: Storage::As(DType::Q8_0), context_len: Some(512), ..f16() };
    let converted = plan(&config, &weights, 200 * MIB, &q8).unwrap();
    assert_eq!((converted.action, converted.ratio), (PlanAction::Prune, PruneRatio::ZERO));
    assert!(converted.reason.contains("stored as q8_0"), "{}", converted.reason);
    assert_eq!(converted.footprint.weights_bytes * 16, weights_of(&converted, DType::Q8_0) * 16);
    let kept = plan(&config, &weights, 200 * MIB, &PlanRequest { dtype: Storage::Keep, ..q8 }).unwrap();
    assert!(0.3 < kept.ratio.get(), "{}", kept.ratio);
    let stored = WeightsSummary::uniform(&config, DType::Q8_0);
    let same = plan(&config, &stored, 400 * MIB, &q8).unwrap();
    assert_eq!(same.action, PlanAction::Untouched);
    let error = plan(&config, &weights, 200 * MIB, &PlanRequest { dtype: Storage::As(DType::Q4_K), ..q8 });
    assert_eq!(error, Err(PlanError::DType(DType::Q4_K)));
}

#[test]
fn tables_are_stored_in_fewer_bits_before_much_is_cut() {
    let config = reference();
    let mut weights = WeightsSummary::uniform(&config, DType::Q4_1);
    let table = |dtype: DType| 49152 * dtype.row_bytes(576).unwrap() as u64;
    weights.file_bytes += table(DType::Q8_0) - weights.embedding_bytes;
    (weights.embedding_bytes, weights.embedding_dtype) = (table(DType::Q8_0), DType::Q8_0);
    let with = |budget, tables, dtype| {
        let request = PlanRequest { tables, dtype, context_len: Some(512), ..f16() };
        plan(&config, &weights, budget, &request)
    };
    let whole = footprint(&config, &weights, 512, &f16()).unwrap().total_bytes();
    let untouched = with(whole, Storage::Auto, Storage::Keep).unwrap();
    assert_eq!((untouched.action, untouched.table_dtype), (PlanAction::Untouched, None));
    // A little less: the table alone gives it, in the kinder of the two dtypes.
    let saved = table(DType::Q8_0) - table(DType::Q4_1);
    let kinder = with(whole - saved, Storage::Auto, Storage::Keep).unwrap();
    assert_eq!((kinder.action, kinder.table_dtype), (PlanAction::Prune, Some(DType::Q4_1)));
    assert_eq!((kinder.ratio, kinder.footprint.total_bytes()), (PruneRatio::ZERO, whole - saved));
    assert_eq!(kinder.base_footprint.total_bytes(), whole);
    assert!(kinder.reason.contains("token table is stored as q4_1"), "{}", kinder.reason);
    // Less still: both, and less of a cut than without.
    let (both, cut) = (
        with(whole - 2 * saved, Storage::Auto, Storage::Keep),
        with(whole - 2 * saved, Storage::Keep, Storage::Keep),
    );
    let (both, cut) = (both.unwrap(), cut.unwrap());
    assert!(PruneRatio::ZERO < both.ratio && both.ratio < cut.ratio);
    assert!(both.predicted_perplexity_factor < cut.predicted_perplexity_factor);
    assert!(cut.table_dtype.is_none());
    // The smallest feasible budget counts on the smallest table, and is exact.
    let Err(PlanError::Refused(refusal)) = with(0, Storage::Auto, Storage::Keep) else {
        panic!("nothing fits into nothing")
    };
    let Err(PlanError::Refused(kept)) = with(0, Storage::Keep, Storage::Keep) else {
        panic!("nothing fits into nothing")
    };
    let most = table(DType::Q8_0) - table(DType::Q4_0);
    assert_eq!(kept.smallest_budget_bytes - refusal.smallest_budget_bytes, most);
    let smallest = with(refusal.smallest_budget_bytes, Storage::Auto, Storage::Keep).unwrap();
    assert_eq!(smallest.footprint.total_bytes(), refusal.smallest_budget_bytes);
    assert_eq!(smallest.table_dtype, Some(DType::Q4_0));
    // A dtype that makes the tables no smaller changes nothing, and one that cannot be written is refused.
    assert_eq!(with(whole, Storage::As(DType::F16), Storage::Keep).unwrap().action, PlanAction::Untouched);
    assert_eq!(with(whole, Storage::As(DType::Q4_K), Storage::Keep), Err(PlanError::DType(DType::Q4_K)));
}

#[test]
fn layers_are_stored_in_fewer_bits_before_much_is_cut() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::F16);
    let with = |budget, dtype| {
        let request = PlanRequest { dtype, tables: Storage::Auto, context_len: Some(512), ..f16() };
        plan(&config, &weights, budget, &request)
    };
    let whole = footprint(&config, &weights, 512, &f16()).unwrap().total_bytes();
    assert_eq!(with(whole, Storage::Auto).unwrap().action, PlanAction::Untouched);
    // Eight bits are as good as sixteen, four cost less than cutting half of the model.
    let eight = with(whole * 2 / 3, Storage::Auto).unwrap();
    assert_eq!((eight.dtype, eight.ratio), (Some(DType::Q8_0), PruneRatio::ZERO));
    let four = with(whole / 2, Storage::Auto).unwrap();
    assert!(matches!(four.dtype, Some(DType::Q4_0 | DType::Q4_1)), "{}", four.reason);
    assert!(four.reason.contains("matrices are stored as q4"), "{}", four.reason);
    // Never worse than any fixed choice, better with more budget, and refused by the exact number.
    let mut last = f64::INFINITY;
    for budget in (0..40).map(|step| whole / 5 + step * whole / 50) {
        let Ok(auto) = with(budget, Storage::Auto) else { continue };
        assert!(auto.footprint.total_bytes() <= budget);
        assert!(auto.predicted_perplexity_factor <= last, "at {budget}");
        last = auto.predicted_perplexity_factor;
        for dtype in
            [DType::Q8_0, DType::Q4_1, DType::Q4_0].map(Storage::As).into_iter().chain([Storage::Keep])
        {
            let fixed = with(budget, dtype);
            assert!(fixed.is_err() || last <= fixed.unwrap().predicted_perplexity_factor, "at {budget}");
        }
    }
    let Err(PlanError::Refused(refusal)) = with(0, Storage::Auto) else {
        panic!("nothing fits into nothing")
    };
    let smallest = with(refusal.smallest_budget_bytes, Storage::Auto).unwrap();
    assert_eq!(smallest.footprint.total_bytes(), refusal.smallest_budget_bytes);
    assert!(with(refusal.smallest_budget_bytes - 1, Storage::Auto).is_err());
}

/// Bytes of the reference shape cut as `plan` says, from first principles.
fn weights_of(plan: &PrunePlan, dtype: DType) -> u64 {
    let config = ModelConfig { layers: plan.layers.clone(), ..reference() };
    let params = config.all_layer_params() + 49152 * 576;
    let norms = 4 * 576 * (2 * 30 + 1);
    params / dtype.block_len() as u64 * dtype.block_bytes() as u64 + norms
}

#[test]
fn uneven_layers_become_alike_only_where_that_is_possible() {
    let wide = LayerConfig { num_attention_heads: 8, num_key_value_heads: 4, intermediate_size: 512 };
    let narrow = LayerConfig { intermediate_size: 400, ..wide };
    let headless = LayerConfig { num_attention_heads: 0, num_key_value_heads: 0, ..wide };
    let compatible =
        PlanRequest { runtime_bytes: 0, context_len: Some(16), ..request(PlanPolicy::Compatible) };

    let config = model(256, 64, 32, vec![wide, narrow, wide]);
    let weights = WeightsSummary::uniform(&config, DType::Q8_0);
    let need = footprint(&config, &weights, 16, &compatible).unwrap().total_bytes();
    let whole = plan(&config, &weights, need, &compatible).unwrap();
    assert_eq!((whole.action, whole.layers), (PlanAction::Untouched, config.layers.clone()));
    let alike = plan(&config, &weights, need - 1, &compatible).unwrap();
    assert!(
        alike.layers.iter().all(|layer| layer.intermediate_size == 400 || layer.intermediate_size == 384)
    );
    assert!(alike.layers.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", alike.layers);

    let tiny = LayerConfig { intermediate_size: 48, ..wide };
    for other in [headless, tiny] {
        let config = model(256, 64, 32, vec![wide, other]);
        let weights = WeightsSummary::uniform(&config, DType::F16);
        let need = footprint(&config, &weights, 16, &compatible).unwrap().total_bytes();
        let refused = plan(&config, &weights, need - 1, &compatible);
        let Err(PlanError::Refused(Refusal { smallest_budget_bytes, reason, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(smallest_budget_bytes, need);
        assert!(reason.contains("nothing that may be cut under this policy"), "{reason}");
        let free = PlanRequest { policy: PlanPolicy::Quality, ..compatible };
        assert!(plan(&config, &weights, need - 1, &free).is_ok());
    }
}

#[test]
fn requests_that_make_no_sense() {
    let config = reference();
    let weights = WeightsSummary::uniform(&config, DType::Q4_1);
    let with = |context_len| PlanRequest { context_len: Some(context_len), ..f16() };
    for asked in [0, 8193, usize::MAX] {
        let got = plan(&config, &weights, u64::MAX, &with(asked));
        assert_eq!(got, Err(PlanError::Context { asked, max: 8192 }));
        assert!(footprint(&config, &weights, asked, &f16()).is_err());
    }
    let fewer = WeightsSummary { layers: Vec::new(), ..weights.clone() };
    let got = plan(&config, &fewer, u64::MAX, &f16());
    assert_eq!(got, Err(PlanError::Mismatch { layers: 30, summarised: 0 }));
    let broken = ModelConfig { hidden_size: 0, ..config };
    assert!(matches!(plan(&broken, &weights, 1, &f16()), Err(PlanError::Config(_))));
}

#[test]
fn a_short_model_has_a_short_context() {
    let config = ModelConfig { max_position_embeddings: 300, ..reference() };
    let weights = WeightsSummary::uniform(&config, DType::Q4_1);
    let plan = plan(&config, &weights, 80 * MIB, &f16()).unwrap();
    assert_eq!(plan.context_len, 300);
}

/// The largest shapes that configurations may have are planned without overflow and in little time.
#[test]
fn absurd_shapes_are_planned() {
    let layer =
        LayerConfig { num_attention_heads: 1024, num_key_value_heads: 1024, intermediate_size: 1 << 18 };
    let mut config = model(1 << 18, 1 << 20, 1024, vec![layer; 512]);
    config.max_position_embeddings = 1 << 24;
    let weights = WeightsSummary::uniform(&config, DType::F32);
    let request = PlanRequest { context_len: Some(1 << 24), kv_dtype: Some(KvDType::F32), ..f16() };
    let refused = plan(&config, &weights, 1 << 40, &request);
    assert!(matches!(refused, Err(PlanError::Refused(_))), "{refused:?}");
    let fits = plan(&config, &weights, u64::MAX, &request).unwrap();
    assert_eq!(fits.action, PlanAction::Untouched);
}

/// A random model that is small enough to plan a thousand times.
#[derive(Clone, Debug)]
struct Made {
    config: ModelConfig,
    weights: WeightsSummary,
    request: PlanRequest,
}

fn made() -> impl Strategy<Value = Made> {
    let layer = (0_usize..=4, 1_usize..=3, 0_usize..=40, prop::sample::select(DType::ALL.to_vec()));
    let shape = (1_usize..=4, prop::collection::vec(layer, 1..6), any::<bool>());
    let policy = prop::sample::select(vec![PlanPolicy::Quality, PlanPolicy::Compatible]);
    let dtypes = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1];
    let dtype = prop::option::of(prop::sample::select(dtypes.to_vec()))
        .prop_map(|dtype| dtype.map_or(Storage::Keep, Storage::As));
    let context = prop::option::of(1_usize..4096);
    let wishes = (policy, dtype, context, 0_u64..100_000, 100_usize..4096);
    (shape, wishes).prop_map(
        |((hidden, layers, is_uniform), (policy, dtype, context_len, runtime_bytes, max))| {
            let shapes = layers.iter().map(|&(kv_heads, per_group, width, _)| LayerConfig {
                num_attention_heads: kv_heads * per_group,
                num_key_value_heads: kv_heads,
                // Some widths are odd multiples of 16, as no snapped width is.
                intermediate_size: 16 * width,
            });
            let mut shapes: Vec<LayerConfig> = shapes.collect();
            if is_uniform {
                let first = shapes[0];
                shapes.fill(first);
            }
            let mut config = model(256 * hidden, 300, 32, shapes);
            config.max_position_embeddings = max;
            let mut weights = WeightsSummary::uniform(&config, DType::Q4_0);
            for (layer, (_, _, _, dtype)) in weights.layers.iter_mut().zip(&layers) {
                // The reader only takes dtypes that divide the rows.
                layer.dtypes = [*dtype; 7];
            }
            weights.file_bytes = 12_345_678;
            let context_len = context_len.map(|len| len.min(max));
            let request = PlanRequest { context_len, policy, dtype, runtime_bytes, ..f16() };
            Made { config, weights, request }
        },
    )
}

impl Made {
    fn plan(&self, budget_bytes: u64) -> Result<PrunePlan, PlanError> {
        plan(&self.config, &self.weights, budget_bytes, &self.request)
    }

    /// The least and the most that matter: the smallest feasible budget and that of the untouched model.
    fn bounds(&self) -> (u64, u64) {
        let Err(PlanError::Refused(refusal)) = self.plan(0) else { panic!("nothing fits into nothing") };
        let context_len = DEFAULT_CONTEXT_LEN.min(self.config.max_position_embeddings);
        let context_len = self.request.context_len.unwrap_or(context_len);
        let whole = footprint(&self.config, &self.weights, context_len, &self.request).unwrap();
        (refusal.smallest_budget_bytes, whole.total_bytes().max(refusal.smallest_budget_bytes))
    }

    fn budget(&self, share: f64) -> u64 {
        let (least, most) = self.bounds();
        least + ((most - least) as f64 * share) as u64
    }

    /// The footprint of a shape from first principles.
    fn footprint(&self, plan: &PrunePlan) -> Footprint {
        let Self { config, weights, request } = self;
        let dtypes = |layer_idx: usize, layer: &LayerConfig| {
            let (base, mut dtypes) = (&config.layers[layer_idx], weights.layers[layer_idx].dtypes);
            if base.intermediate_size != layer.intermediate_size {
                dtypes[6] = writable_dtype(dtypes[6]);
            }
            if base.num_key_value_heads != layer.num_key_value_heads {
                dtypes[3] = writable_dtype(dtypes[3]);
            }
            request.dtype.asked().map_or(dtypes, |dtype| [dtype; 7])
        };
        let bytes = |layers: &[LayerConfig], of: &dyn Fn(usize, &LayerConfig) -> [DType; 7]| -> u64 {
            let bytes = |(layer_idx, layer)| mixed_layer_bytes(config, layer, &of(layer_idx, layer));
            layers.iter().enumerate().map(bytes).sum()
        };
        let old_layers = bytes(&config.layers, &|layer_idx, _| weights.layers[layer_idx].dtypes);
        let vectors: u64 = weights.layers.iter().map(|layer| layer.vector_bytes).sum();
        let old_weights = old_layers + vectors + weights.final_norm_bytes + weights.embedding_bytes;
        let other = weights.file_bytes.saturating_sub(old_weights);
        // The table is Q4_0: of the dtypes asked for, the 4-bit ones leave it.
        let table = match request.dtype.asked() {
            None | Some(DType::Q4_0 | DType::Q4_1) => weights.embedding_bytes,
            Some(dtype) => (config.vocab_size * dtype.row_bytes(config.hidden_size).unwrap()) as u64,
        };
        let widest = if plan.policy == PlanPolicy::Quality { &config.layers } else { &plan.layers };
        Footprint {
            weights_bytes: bytes(&plan.layers, &dtypes) + vectors + weights.final_norm_bytes + table + other,
            kv_cache_bytes: kv_cache_bytes(config, &plan.layers, plan.context_len, plan.kv_dtype),
            activations_bytes: activations_bytes(config, widest, plan.context_len.min(256)),
            runtime_bytes: request.runtime_bytes,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_keeps_its_promises(made in made(), share in -0.1_f64..1.1) {
        let budget = made.budget(share.max(0.0));
        let plan = made.plan(budget).unwrap();
        prop_assert_eq!(plan.footprint, made.footprint(&plan));
        prop_assert!(plan.footprint.total_bytes() <= budget);
        let after = ModelConfig { layers: plan.layers.clone(), ..made.config.clone() };
        prop_assert_eq!(after.validate(), Ok(()));
        let (before, after_params) = (made.config.all_layer_params(), after.all_layer_params());
        let gone = if before == 0 { 0.0 } else { (before - after_params) as f64 / before as f64 };
        prop_assert!((plan.ratio.get() - gone).abs() < 1e-12 && gone <= 0.8);
        if plan.policy == PlanPolicy::Compatible && gone != 0.0 {
            prop_assert!(after.is_uniform(), "{:?}", plan.layers);
        }
        for (old, new) in made.config.layers.iter().zip(&plan.layers) {
            prop_assert!(new.intermediate_size <= old.intermediate_size);
            prop_assert!(old.intermediate_size <= 8 * new.intermediate_size);
            let snapped = new.intermediate_size % 32 == 0;
            let common = made.config.layers.iter().any(|layer| layer.intermediate_size == new.intermediate_size);
            prop_assert!(snapped || common, "{:?} -> {:?}", old, new);
            prop_assert_eq!(old.heads_per_kv_group(), new.heads_per_kv_group());
            prop_assert!(old.num_key_value_heads.min(1) <= new.num_key_value_heads);
        }
        prop_assert_eq!(plan.action == PlanAction::Untouched, gone == 0.0 && !plan.reason.contains("stored as"));
        prop_assert!(!plan.reason.is_empty() && 1.0 <= plan.predicted_perplexity_factor);
    }

    #[test]
    fn more_budget_never_means_less(made in made(), a in 0.0_f64..1.2, b in 0.0_f64..1.2) {
        let (less, more) = (made.budget(a.min(b)), made.budget(a.max(b)));
        let (poor, rich) = (made.plan(less).unwrap(), made.plan(more).unwrap());
        prop_assert!(poor.context_len <= rich.context_len);
        if poor.context_len == rich.context_len {
            prop_assert!(rich.ratio <= poor.ratio, "{} {}", poor.ratio, rich.ratio);
            prop_assert!(rich.predicted_perplexity_factor <= poor.predicted_perplexity_factor);
        } else {
            // A longer context was worth no more than the share allowed for it.
            prop_assert!(rich.ratio.get() <= SHORTER_CONTEXT_RATIO);
        }
    }

    #[test]
    fn a_refusal_is_exact(made in made(), below in 1_u64..1_000_000) {
        let (smallest, _) = made.bounds();
        let plan = made.plan(smallest).unwrap();
        prop_assert_eq!(plan.footprint.total_bytes(), smallest);
        for budget in [smallest - 1, smallest.saturating_sub(below)] {
            match made.plan(budget) {
                Err(PlanError::Refused(refusal)) => {
                    prop_assert_eq!(refusal.smallest_budget_bytes, smallest);
                    prop_assert_eq!(refusal.available_bytes, budget);
                    prop_assert!(smallest <= refusal.needed_bytes || made.request.dtype != Storage::Keep);
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    /// No shallower cut would have fitted.
    #[test]
    fn a_cut_is_no_deeper_than_it_must(made in made(), share in 0.0_f64..1.0, shallower in 0.0_f64..1.0) {
        let budget = made.budget(share);
        let plan = made.plan(budget).unwrap();
        let request = PlanRequest { context_len: Some(plan.context_len), ..made.request };
        let asked = ratio(plan.ratio.get() * shallower);
        let other = plan_ratio(&made.config, &made.weights, asked, &request).unwrap();
        if other.ratio < plan.ratio {
            prop_assert!(budget < other.footprint.total_bytes(), "{} {}", other.ratio, plan.ratio);
        }
        // Nor is the nearest shape to a ratio any further than another that is known.
        let gap = |of: &PrunePlan| (of.ratio.get() - asked.get()).abs();
        prop_assert!(gap(&other) <= gap(&plan));
        prop_assert_eq!(other.footprint, made.footprint(&other));
    }
}
