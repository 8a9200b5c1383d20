//! Every command on a folder with safetensors, and serving one that a download cache holds, confined.

use crate::support::{Home, Server, str_of};
use secateur_test_support::{Style, TinyModel};
use std::fs;
use std::os::unix::fs::symlink;

#[test]
fn commands_take_folders() {
    let home = Home::new();
    let folder = home.path("Tiny-HF");
    fs::create_dir(&folder).unwrap();
    let checkpoint = TinyModel::default().checkpoint();
    checkpoint.write_shards(&folder, 2);
    let model = str_of(&folder);
    let text = home.path("text.txt");
    fs::write(&text, "The gardener cut the old branches first. ".repeat(20)).unwrap();
    let inspected = home.json(&["inspect", model, "--json"]);
    assert_eq!((&inspected["form"], &inspected["name"]), (&"safetensors".into(), &"Tiny-HF".into()));
    assert_eq!(home.json(&["plan", model, "--json"])["action"], "untouched");
    let exported = home.json(&["export", model, "-o", "exported.gguf", "--json"]);
    assert_eq!(
        (&exported["form"], &exported["output_architecture"]),
        (&"safetensors".into(), &"llama".into())
    );
    let pruned = home.json(&[
        "prune",
        model,
        "-o",
        "pruned.gguf",
        "--ratio",
        "0.2",
        "--calibration-tokens",
        "1024",
        "--json",
    ]);
    assert!(0.1 < pruned["ratio_reached"].as_f64().unwrap());
    let perplexity = |model: &str| {
        let args =
            ["eval", model, "--text", str_of(&text), "--seq-len", "64", "--max-tokens", "128", "--json"];
        home.json(&args)["perplexity"].as_f64().unwrap()
    };
    let (gguf, hf) = (perplexity(str_of(&home.model)), perplexity(model));
    assert!((hf / gguf - 1.0).abs() < 1e-5, "{hf} {gguf}");
    assert!((perplexity("exported.gguf") / gguf - 1.0).abs() < 1e-5);
    // A shard that is gone is named.
    fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let output = home.run(&["inspect", model]);
    assert_eq!(output.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&output.stderr).contains("model-00002-of-00002.safetensors"));
}

#[test]
fn a_confined_service_reaches_what_the_folders_links_lead_to() {
    let home = Home::new();
    let (blobs, snapshot) = (home.path("cache/blobs"), home.path("cache/snapshots/main"));
    let onnx = snapshot.join("onnx");
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&onnx).unwrap();
    fs::create_dir(home.path("temporary")).unwrap();
    let checkpoint = TinyModel::default().checkpoint();
    checkpoint.write_config(&blobs);
    fs::write(blobs.join("model.onnx"), checkpoint.onnx(Style::Optimum).to_bytes()).unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        symlink(blobs.join(name), snapshot.join(name)).unwrap();
    }
    symlink(blobs.join("model.onnx"), onnx.join("model.onnx")).unwrap();
    for model in [snapshot.clone(), onnx.join("model.onnx")] {
        let mut command = home.command(&["serve", "--port", "0", "--json", "--model", str_of(&model)]);
        // Everything in the usual folder of temporary files may be read, and all of this test is in there.
        command.env("TMPDIR", home.path("temporary"));
        let mut server = Server::spawn(command);
        server.ready();
        assert_eq!(server.get("/v1/models").status, 200);
        server.signal(rustix::process::Signal::TERM);
        let (status, log) = server.wait();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}
