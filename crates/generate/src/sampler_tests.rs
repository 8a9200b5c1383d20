use super::*;
use proptest::prelude::*;

fn sampler(params: SamplingParams, vocab_size: usize) -> Sampler {
    Sampler::new(params, vocab_size).unwrap()
}

/// Shares of `n` draws.
fn shares(params: SamplingParams, logits: &[f32], n: usize) -> Vec<f64> {
    let mut sampler = sampler(params, logits.len());
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    counts.into_iter().map(|count| count as f64 / n as f64).collect()
}

fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|&l| (f64::from(l - max) / f64::from(temperature)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// The survivors by definition: sort everything, cut by k, then by mass, then by the share of the likeliest.
fn reference_survivors(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    if params.top_k != 0 {
        order.truncate(params.top_k);
    }
    let kept: Vec<f32> = order.iter().map(|&token| logits[token as usize]).collect();
    let probabilities = softmax(&kept, params.temperature);
    let mut mass = 0.0;
    let mut survivors = Vec::new();
    for (&token, &probability) in order.iter().zip(&probabilities) {
        if f64::from(params.min_p) <= probability / probabilities[0] {
            survivors.push(token);
        }
        mass += probability;
        if f64::from(params.top_p) <= mass {
            break;
        }
    }
    survivors.sort_unstable();
    survivors
}

fn survivors(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut sampler = sampler(params.clone(), logits.len());
    sampler.sample(logits).unwrap();
    sampler.candidates.iter().map(|candidate| candidate.token).collect()
}

#[test]
fn temperature_zero_takes_the_likeliest_and_the_lower_id_among_equals() {
    let greedy = SamplingParams::default();
    assert_eq!(sampler(greedy.clone(), 4).sample(&[0.0, 3.0, 3.0, 1.0]).unwrap(), 1);
    assert_eq!(sampler(greedy.clone(), 3).sample(&[f32::NEG_INFINITY, -5.0, -4.0]).unwrap(), 2);
    assert_eq!(
        sampler(SamplingParams { top_k: 1, temperature: 1.0, ..greedy }, 2).sample(&[1.0, 2.0]).unwrap(),
        1
    );
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [2.0f32, 1.0, 0.0, -1.0, 0.5];
    for temperature in [0.5f32, 1.0, 2.0] {
        let params = SamplingParams { temperature, seed: 11, ..SamplingParams::default() };
        let got = shares(params, &logits, 40_000);
        for (token, (got, want)) in got.iter().zip(softmax(&logits, temperature)).enumerate() {
            // Five standard deviations of a share of 40,000 draws.
            let tolerance = 5.0 * (want * (1.0 - want) / 40_000.0).sqrt() + 1e-9;
            assert!((got - want).abs() < tolerance, "T {temperature}, token {token}: {got} for {want}");
        }
    }
}

#[test]
fn same_seed_same_tokens_and_seeds_differ() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.37).sin()).collect();
    let run = |seed| {
        let mut sampler =
            sampler(SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() }, 500);
        (0..50).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn tiny_top_p_and_full_min_p_leave_one() {
    let logits: Vec<f32> = (0..300).map(|i| ((i * 7919) % 300) as f32 * 0.01).collect();
    let best = sampler(SamplingParams::default(), 300).sample(&logits).unwrap();
    let base = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    assert_eq!(survivors(&SamplingParams { top_p: 0.0, ..base.clone() }, &logits), [best]);
    assert_eq!(survivors(&SamplingParams { min_p: 1.0, ..base }, &logits), [best]);
}

#[test]
fn penalties_move_logits_as_documented() {
    let adjusted = |params: SamplingParams| {
        let mut sampler = sampler(params, 4);
        sampler.observe_prompt(&[0, 3]);
        sampler.accept(1);
        sampler.accept(1);
        sampler.accept(3);
        sampler.sample(&[2.0, 2.0, 2.0, -2.0]).unwrap();
        sampler.candidates.iter().map(|candidate| candidate.weight).collect::<Vec<_>>()
    };
    let base = SamplingParams::default();
    assert_eq!(
        adjusted(SamplingParams { logit_bias: vec![(0, 0.0)], ..base.clone() }),
        [2.0, 2.0, 2.0, -2.0]
    );
    assert_eq!(adjusted(SamplingParams { repetition_penalty: 2.0, ..base.clone() }), [1.0, 1.0, 2.0, -4.0]);
    assert_eq!(adjusted(SamplingParams { presence_penalty: 0.5, ..base.clone() }), [2.0, 1.5, 2.0, -2.5]);
    assert_eq!(adjusted(SamplingParams { frequency_penalty: 0.5, ..base.clone() }), [2.0, 1.0, 2.0, -2.5]);
    assert_eq!(adjusted(SamplingParams { frequency_penalty: -1.0, ..base }), [2.0, 4.0, 2.0, -1.0]);
}

#[test]
fn bias_bans_and_forces() {
    let logits = [5.0f32, 4.0, 3.0];
    let with = |logit_bias: Vec<(u32, f32)>| SamplingParams { logit_bias, ..SamplingParams::default() };
    assert_eq!(sampler(with(vec![(0, -100.0)]), 3).sample(&logits).unwrap(), 1);
    assert_eq!(sampler(with(vec![(2, 100.0)]), 3).sample(&logits).unwrap(), 2);
    let all = with(vec![(0, -100.0), (1, -100.0), (2, -100.0)]);
    assert!(matches!(sampler(all.clone(), 3).sample(&logits), Err(GenerateError::NothingAllowed)));
    let hot = SamplingParams { temperature: 1.0, ..all };
    assert!(matches!(sampler(hot, 3).sample(&logits), Err(GenerateError::NothingAllowed)));
}

#[test]
fn unusable_logits_are_errors() {
    let cases: [&[f32]; 4] =
        [&[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY, f32::NEG_INFINITY], &[1.0, 2.0, 3.0]];
    for logits in cases {
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            assert!(sampler(params, 2).sample(logits).is_err(), "{logits:?} at {temperature}");
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let base = SamplingParams::default;
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..base() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..base() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..base() }),
        ("top_p", SamplingParams { top_p: 1.1, ..base() }),
        ("min_p", SamplingParams { min_p: -1.0, ..base() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base() }),
        ("presence_penalty", SamplingParams { presence_penalty: 2.5, ..base() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: -2.5, ..base() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, 101.0)], ..base() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(10, 1.0)], ..base() }),
    ];
    for (field, params) in cases {
        assert_eq!(Sampler::new(params, 10).unwrap_err().field, field);
    }
}

#[test]
fn sampling_allocates_its_buffers_once() {
    let params = SamplingParams { temperature: 1.0, top_k: 40, top_p: 0.9, ..SamplingParams::default() };
    let mut sampler = sampler(params, 1000);
    let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.11).cos()).collect();
    sampler.sample(&logits).unwrap();
    let before = (sampler.candidates.as_ptr(), sampler.scratch.as_ptr());
    for _ in 0..20 {
        sampler.sample(&logits).unwrap();
    }
    assert_eq!((sampler.candidates.as_ptr(), sampler.scratch.as_ptr()), before);
}

proptest! {
    #[test]
    fn survivors_are_those_of_the_definition(
        // Coarse logits make many equals.
        logits in prop::collection::vec((-40i32..40).prop_map(|l| l as f32 * 0.1), 1..300),
        top_k in 0usize..120,
        top_p in 0.05f32..1.0,
        min_p in prop_oneof![Just(0.0f32), 0.001f32..0.9],
        temperature in 0.2f32..2.0,
    ) {
        prop_assume!(top_k != 1);
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let got = survivors(&params, &logits);
        let want = reference_survivors(&params, &logits);
        // The sums differ in their last bits, which may move a bound by one of many equals.
        let differing = got.iter().filter(|t| !want.contains(t)).count() + want.iter().filter(|t| !got.contains(t)).count();
        prop_assert!(differing <= 1, "got {:?}\nwant {:?}", got, want);
    }

    #[test]
    fn a_draw_is_never_a_token_that_was_cut(
        logits in prop::collection::vec(-30f32..30.0, 2..200),
        top_k in 2usize..50,
        seed in any::<u64>(),
    ) {
        let params = SamplingParams { temperature: 1.0, top_k, seed, ..SamplingParams::default() };
        let allowed = reference_survivors(&params, &logits);
        let token = sampler(params, logits.len()).sample(&logits).unwrap();
        prop_assert!(allowed.contains(&token));
    }
}
