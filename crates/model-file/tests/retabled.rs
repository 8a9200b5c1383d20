//! Tables stored anew: what is read back, when a file is taken again, and what is left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

use secateur_model::{WeightId, WeightRole, WeightSource};
use secateur_model_file::{ModelFile, RetabledSource, WriteError};
use secateur_tensor::DType;
use secateur_tensor::blocks::quantize;
use secateur_test_support::TinyModel;
use std::path::Path;
use std::sync::Arc;

fn table_id() -> WeightId {
    WeightId::global(WeightRole::EmbedTokens)
}

fn base(dir: &Path) -> Arc<dyn WeightSource> {
    Arc::new(ModelFile::open(&TinyModel::default().write_to(dir)).unwrap())
}

/// Rounds value by value, and counts the calls.
fn create(base: &Arc<dyn WeightSource>, dir: &Path, key: &str) -> (RetabledSource, usize) {
    let n_cols = base.config().hidden_size;
    let mut n_calls = 0;
    let mut round = |rows: Vec<f32>, dtype: DType| {
        n_calls += 1;
        let mut bytes = Vec::new();
        for row in rows.chunks_exact(n_cols) {
            let mut out = vec![0; dtype.row_bytes(n_cols).unwrap()];
            quantize(dtype, row, &mut out)?;
            bytes.extend(out);
        }
        Ok(bytes)
    };
    let source = RetabledSource::create(base.clone(), dir, key, DType::Q4_0, &mut round).unwrap();
    (source, n_calls)
}

fn files(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).collect()
}

#[test]
fn only_a_file_of_the_same_key_is_taken_again() {
    let (model_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = base(model_dir.path());
    let (first, n_calls) = create(&base, dir.path(), "one");
    assert!(0 < n_calls);
    let table = first.require(table_id()).unwrap();
    assert_eq!(table.dtype(), DType::Q4_0);
    let mut want = vec![0; table.row_bytes()];
    quantize(DType::Q4_0, &base.require(table_id()).unwrap().to_f32()[..table.n_cols()], &mut want).unwrap();
    assert_eq!(table.row(0), want);
    let other = WeightId::layer(0, WeightRole::QProj);
    assert_eq!(first.require(other).unwrap().data(), base.require(other).unwrap().data());
    // Pages that are given back come again from the file.
    first.give_back(table_id());
    assert_eq!(table.row(0), want);
    let (again, n_calls) = create(&base, dir.path(), "one");
    assert_eq!(n_calls, 0, "the file is there");
    assert_eq!(again.require(table_id()).unwrap().data(), table.data());
    // Another model of the same shape has files of the same size; its key differs.
    let (_, n_calls) = create(&base, dir.path(), "two");
    assert!(0 < n_calls);
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn nothing_is_left_behind() {
    let (model_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let base = base(model_dir.path());
    let mut fail = |_: Vec<f32>, _: DType| Err("no more".into());
    let result = RetabledSource::create(base.clone(), dir.path(), "k", DType::Q4_0, &mut fail);
    assert!(matches!(result, Err(WriteError::Io { action: "round", .. })));
    assert!(files(dir.path()).is_empty(), "{:?}", files(dir.path()));
    let (source, _) = create(&base, dir.path(), "k");
    std::fs::write(dir.path().join(".table-lm_head-k.bin.x.partial"), "a kill left this").unwrap();
    std::fs::write(dir.path().join("mine.txt"), "not a table").unwrap();
    RetabledSource::remove_files(dir.path()).unwrap();
    assert_eq!(files(dir.path()), ["mine.txt"]);
    assert_eq!(source.require(table_id()).unwrap().dtype(), DType::Q4_0, "what is mapped stays readable");
}
