//! What is read of a graph is what the protobuf types of tract-onnx say of it, and graphs that those types wrote are
//! read: they pack numbers and order fields in their own way.

use prost::Message;
use secateur_model::{WeightId, WeightRole, WeightSource};
use secateur_model_file::ModelFile;
use secateur_test_support::{Biases, Data, Style, TinyModel};
use tract_onnx::pb::{ModelProto, StringStringEntryProto};

#[test]
fn graphs_are_read_as_their_schema_says() {
    let checkpoint = TinyModel { biases: Biases::All, ..TinyModel::with_layers(2) }.checkpoint();
    for style in [Style::Optimum, Style::Genai, Style::Turned] {
        let ours = checkpoint.onnx(style);
        let mut theirs = ModelProto::decode(ours.to_bytes().as_slice()).unwrap();
        let graph = theirs.graph.as_mut().unwrap();
        assert_eq!((graph.node.len(), graph.initializer.len()), (ours.nodes.len(), ours.tensors.len()));
        for (ours, theirs) in ours.tensors.iter().zip(&mut graph.initializer) {
            let dims: Vec<i64> = ours.dims.iter().map(|&dim| dim as i64).collect();
            assert_eq!((&theirs.name, &theirs.dims), (&ours.name, &dims));
            assert_eq!(Data::Raw(theirs.raw_data.clone()), ours.data);
            theirs.doc_string = "a note".to_owned();
        }
        for (ours, theirs) in ours.nodes.iter().zip(&graph.node) {
            assert_eq!((&theirs.name, &theirs.op_type, &theirs.input), (&ours.name, &ours.op, &ours.inputs));
        }
        graph.initializer.reverse();
        let note = StringStringEntryProto { key: "k".to_owned(), value: "v".repeat(100_000) };
        theirs.metadata_props.push(note);
        let (plain, written) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        checkpoint.write_onnx(plain.path(), style);
        checkpoint.write_config(written.path());
        std::fs::write(written.path().join("model.onnx"), theirs.encode_to_vec()).unwrap();
        let (a, b) = (ModelFile::open(plain.path()).unwrap(), ModelFile::open(written.path()).unwrap());
        for layer_idx in 0..2 {
            for role in WeightRole::LAYER_MATRICES.into_iter().chain([WeightRole::QBias, WeightRole::MlpNorm])
            {
                let id = WeightId::layer(layer_idx, role);
                assert_eq!(a.require(id).unwrap().data(), b.require(id).unwrap().data(), "{id} {style:?}");
            }
        }
    }
}
