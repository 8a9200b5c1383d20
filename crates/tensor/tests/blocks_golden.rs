//! Every dequantiser and quantiser against values of the Python package `gguf`
//! (`tests/golden/make_blocks.py`).
#![expect(clippy::unwrap_used, reason = "test code")]

use secateur_tensor::DType;
use secateur_tensor::blocks::{QuantizeError, dequantize, quantize};

const GOLDEN: &[u8] = include_bytes!("golden/blocks.bin");

struct Record {
    kind: u32,
    dtype: DType,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn records() -> Vec<Record> {
    let mut rest = GOLDEN;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        (head, tail.is_empty())
    };
    let mut records = Vec::new();
    loop {
        let (head, _) = take(16);
        let word = |idx: usize| u32::from_le_bytes(head[4 * idx..4 * idx + 4].try_into().unwrap());
        let dtype = DType::from_ggml_id(word(1)).unwrap();
        let bytes = take(word(2) as usize).0.to_vec();
        let (raw, end) = take(4 * word(3) as usize);
        let values = raw.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        records.push(Record { kind: word(0), dtype, bytes, values });
        if end {
            return records;
        }
    }
}

#[test]
fn dequantizers_match_the_reference_bit_for_bit() {
    let mut seen = Vec::new();
    for Record { dtype, bytes, values, .. } in records().into_iter().filter(|record| record.kind == 0) {
        let mut got = vec![f32::NAN; values.len()];
        dequantize(dtype, &bytes, &mut got);
        for (idx, (got, want)) in got.iter().zip(&values).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{dtype} value {idx}: {got} instead of {want}");
        }
        seen.push(dtype);
    }
    assert_eq!(seen, DType::ALL);
}

#[test]
fn quantizers_match_the_reference_bit_for_bit() {
    let mut seen = Vec::new();
    for Record { dtype, bytes, values, .. } in records().into_iter().filter(|record| record.kind == 1) {
        let mut got = vec![0xA5; bytes.len()];
        quantize(dtype, &values, &mut got).unwrap();
        for (idx, (got, want)) in got.iter().zip(&bytes).enumerate() {
            assert_eq!(got, want, "{dtype} byte {idx}, block {}", idx / dtype.block_bytes());
        }
        seen.push(dtype);
    }
    assert_eq!(seen, [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1]);
}

#[test]
fn what_cannot_be_stored_is_refused() {
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::Q4_1] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 64];
            values[41] = bad;
            let mut out = vec![0; dtype.row_bytes(64).unwrap()];
            let error = QuantizeError::OutOfRange { dtype, index: 41 };
            assert_eq!(quantize(dtype, &values, &mut out), Err(error));
        }
    }
    let mut out = [0; 2];
    let too_large = QuantizeError::OutOfRange { dtype: DType::F16, index: 0 };
    assert_eq!(quantize(DType::F16, &[65520.0], &mut out), Err(too_large));
    let mut out = [0; 68];
    let mut values = [1.0; 64];
    values[40] = 1e8;
    let too_large = QuantizeError::OutOfRange { dtype: DType::Q8_0, index: 32 };
    assert_eq!(quantize(DType::Q8_0, &values, &mut out), Err(too_large));
    for dtype in [DType::Q5_0, DType::Q5_1, DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K] {
        let mut out = vec![0; dtype.row_bytes(256).unwrap()];
        assert_eq!(quantize(dtype, &[0.5; 256], &mut out), Err(QuantizeError::Unsupported(dtype)));
    }
    let size = QuantizeError::Size { dtype: DType::Q4_0, n_values: 33, n_bytes: 18 };
    assert_eq!(quantize(DType::Q4_0, &[0.5; 33], &mut [0; 18]), Err(size));
}
