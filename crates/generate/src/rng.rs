//! A small deterministic generator of random numbers (xoshiro256++ of Blackman and Vigna, seeded by SplitMix64).
//!
//! Same seed, same numbers, on every machine. Not for secrets.

/// Generator of uniform random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// A generator that always yields the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed;
        // SplitMix64 is a bijection of a counter, so at most one of four words is zero.
        let state = std::array::from_fn(|_| {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        });
        Self { state }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// The next uniform number in `0.0..1.0`, with 53 random bits.
    pub fn next_unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_the_published_algorithm() {
        // Made with an independent implementation in Python (tests/rng_golden.py beside this crate's tests).
        let mut rng = Rng::new(42);
        let golden: Vec<u64> =
            include_str!("../tests/rng_golden.txt").lines().map(|l| l.parse().unwrap()).collect();
        let ours: Vec<u64> = (0..golden.len()).map(|_| rng.next_u64()).collect();
        assert_eq!(ours, golden);
    }

    #[test]
    fn units_are_in_range_and_even() {
        let mut rng = Rng::new(7);
        let mut buckets = [0u32; 10];
        for _ in 0..100_000 {
            let unit = rng.next_unit();
            assert!((0.0..1.0).contains(&unit));
            buckets[(unit * 10.0) as usize] += 1;
        }
        // Standard deviation of a bucket is 95: five of them.
        for (bucket, &count) in buckets.iter().enumerate() {
            assert!(count.abs_diff(10_000) < 475, "bucket {bucket}: {count}");
        }
    }
}
