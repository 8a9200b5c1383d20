//! `header-generator CRATE OUT` writes the C header of the crate in folder CRATE.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(out)) = (arguments.next(), arguments.next()) else { return Err("CRATE OUT".into()) };
    let root = Path::new(&root);
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))?;
    let sources = ["src/error.rs", "src/c_abi.rs"];
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |builder, source| {
        builder.with_src(root.join(source))
    });
    builder.generate()?.write_to_file(&out);
    Ok(())
}
