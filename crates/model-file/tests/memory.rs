//! Resident memory while a real model is opened, digested and written anew. A test of its own process, because
//! it reads the process's peak. Uses the reference model.

mod support;

use secateur_model::{WeightId, WeightRole, WeightSource};
use secateur_model_file::{ModelFile, RetabledSource, WriteOptions, write_gguf};
use secateur_tensor::DType;
use secateur_test_support::reference_model;
use std::sync::Arc;
use support::{peak_bytes, reset_peak};

/// Rows between two give-backs.
const ROWS: usize = 4096;
/// Allowed growth of the peak over the state before: buffers, keys, and pages between two give-backs.
const OPEN_BYTES: u64 = 4 << 20;
const WRITE_BYTES: u64 = 12 << 20;
const READ_BYTES: u64 = 6 << 20;

#[test]
fn a_model_passes_through_without_becoming_resident() {
    let Some(path) = reference_model() else { return };
    let dir = tempfile::tempdir().unwrap();
    let start = reset_peak();
    let model = ModelFile::open(&path).unwrap();
    let opened = peak_bytes() - start;
    assert!(opened < OPEN_BYTES, "opening took {opened} bytes");
    model.give_back_all();
    let start = reset_peak();
    model.digest().unwrap();
    let digested = peak_bytes() - start;
    for dtype in [None, Some(DType::Q4_0)] {
        let start = reset_peak();
        let options = WriteOptions { dtype, ..WriteOptions::default() };
        write_gguf(&dir.path().join("out.gguf"), model.metadata(), &model, &options).unwrap();
        let written = peak_bytes() - start;
        println!("open {opened}, digest {digested}, write {dtype:?} {written} bytes");
        assert!(written < WRITE_BYTES, "writing {dtype:?} took {written} bytes");
    }
    assert!(digested < OPEN_BYTES, "digesting took {digested} bytes");
    // A table stored anew is read row by row, and what was read is given back, as with the model's own.
    let id = WeightId::global(WeightRole::EmbedTokens);
    let base: Arc<dyn WeightSource> = Arc::new(model);
    let mut round =
        |values: Vec<f32>, dtype: DType| Ok(vec![0; dtype.row_bytes(values.len()).unwrap_or_default()]);
    base.give_back(id);
    let start = reset_peak();
    let retabled = RetabledSource::create(base.clone(), dir.path(), "key", DType::Q4_0, &mut round).unwrap();
    let stored = peak_bytes() - start;
    println!("storing the table anew took {stored} bytes");
    assert!(stored < WRITE_BYTES, "storing the table anew took {stored} bytes");
    for source in [base.as_ref(), &retabled] {
        source.give_back(id);
        let table = source.require(id).unwrap();
        let start = reset_peak();
        for row in 0..table.n_rows() {
            std::hint::black_box(table.row(row).iter().fold(0, |sum, &byte| sum ^ byte));
            if row % ROWS == 0 {
                source.give_back_rows(id, row);
            }
        }
        let read = peak_bytes() - start;
        println!("reading the table in {} took {read} bytes", table.dtype());
        assert!(read < READ_BYTES, "reading the table in {} took {read} bytes", table.dtype());
    }
}
