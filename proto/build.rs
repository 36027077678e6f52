//! Compiles the .proto files with protox: no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 5] = [
    "quorate/metadata/v1/metadata.proto",
    "quorate/admin/v1/admin.proto",
    "quorate/broker/v1/broker.proto",
    "quorate/log/v1/log.proto",
    "quorate/raft/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut public = descriptors.clone();
    // Reflection shows what a node serves to others: Raft is private.
    public.file.retain(|file| file.package() != "quorate.raft.v1");
    let out = PathBuf::from(env::var("OUT_DIR")?).join("quorate.descriptors.bin");
    fs::write(out, protox::prost::Message::encode_to_vec(&public))?;
    tonic_prost_build::configure().bytes(".quorate.raft.v1").bytes(".quorate.log.v1").compile_fds(descriptors)?;
    Ok(())
}
