//! Hostile counts must not make the reader allocate. A test of its own process: it lowers the limit on
//! writable memory, so that an allocation beyond the bound ends the process.
#![expect(clippy::unwrap_used, reason = "test code")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use secateur_model_file::{ModelFile, ModelFileError};
use secateur_test_support::{Gguf, GgufTensor, Meta};
use std::path::Path;

/// What the reader may take on top of the file itself, with room for the allocator's arenas.
const BOUND_BYTES: u64 = 16 << 20;

/// Writable private memory of this process, touched or not: what the limit counts.
fn data_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmData:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn array(item_type: u32, count: u64) -> Meta {
    Meta::Raw(9, [&item_type.to_le_bytes()[..], &count.to_le_bytes()].concat())
}

fn tensor(name: String, dims: Vec<u64>) -> GgufTensor {
    GgufTensor { name, dims, type_id: 0, offset: None, data: Vec::new() }
}

/// Files that promise much and hold little, and files that are full of the smallest things there are.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut gguf = Gguf::default();
        change(&mut gguf);
        gguf.to_bytes()
    };
    let counts = [1u64 << 14, 1 << 20, 1 << 32, 1 << 48, 1 << 60, u64::MAX];
    let mut files = Vec::new();
    for count in counts {
        files.push(("tensors", with(&|f| f.tensor_count = Some(count))));
        files.push(("pairs", with(&|f| f.metadata_count = Some(count))));
        files.push(("string", with(&|f| f.push("x", Meta::Raw(8, count.to_le_bytes().to_vec())))));
        files.push(("numbers", with(&|f| f.push("x", array(10, count)))));
        files.push(("strings", with(&|f| f.push("x", array(8, count)))));
        files.push(("dimensions", with(&|f| f.tensors.push(tensor("t".into(), vec![count, count])))));
        files.push(("columns", with(&|f| f.tensors.push(tensor("t".into(), vec![count])))));
        files.push(("layers", with(&|f| f.push("llama.block_count", Meta::U64(count)))));
    }
    let full = with(&|f| {
        (0..4096).for_each(|idx| f.push(format!("{idx:x}"), Meta::Bool(true)));
        f.tensors = (0..16384).map(|idx| tensor(format!("{idx:x}"), vec![1])).collect();
    });
    files.push(("as many pairs and tensors as allowed", full));
    files.push(("many empty strings", with(&|f| f.push("x", Meta::Strs(vec![String::new(); 1 << 17])))));
    files
}

fn open(bytes: &[u8], dir: &Path) -> Result<ModelFile, ModelFileError> {
    let path = dir.join("hostile.gguf");
    std::fs::write(&path, bytes).unwrap();
    ModelFile::open(&path)
}

#[test]
fn promises_of_the_file_are_not_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let files = hostile();
    let largest = files.iter().map(|(_, bytes)| bytes.len() as u64).max().unwrap();
    let before = getrlimit(Resource::Data);
    let limit = Rlimit { current: Some(data_bytes() + largest + BOUND_BYTES), ..before };
    setrlimit(Resource::Data, limit).unwrap();
    let results: Vec<_> =
        files.iter().map(|(name, bytes)| (name, open(bytes, dir.path()).is_err())).collect();
    // The limit works: what a believed promise would need is not to be had.
    let mut probe = Vec::<u8>::new();
    let too_much = probe.try_reserve_exact((largest + 2 * BOUND_BYTES) as usize);
    std::hint::black_box(&mut probe);
    setrlimit(Resource::Data, before).unwrap();
    assert!(too_much.is_err());
    assert!(results.iter().all(|(_, refused)| *refused), "{results:?}");
}
