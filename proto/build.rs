//! Compiles the .proto files with protox: no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use tonic_prost_build::FileDescriptorSet;

const FILES: [&str; 5] = [
    "quorate/metadata/v1/metadata.proto",
    "quorate/admin/v1/admin.proto",
    "quorate/broker/v1/broker.proto",
    "quorate/log/v1/log.proto",
    "quorate/raft/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    let mut public = descriptors.clone();
    // Reflection shows what a node serves to others: Raft is private.
    public.file.retain(|file| file.package() != "quorate.raft.v1");
    fs::write(out.join("quorate.descriptors.bin"), protox::prost::Message::encode_to_vec(&public))?;
    compile_encoded(out.join("encoded"), descriptors.clone())?;
    tonic_prost_build::configure().bytes(".quorate.raft.v1").bytes(".quorate.log.v1").compile_fds(descriptors)?;
    Ok(())
}

/// The broker service once more, for a server whose feed has its events encoded already.
fn compile_encoded(out: PathBuf, mut descriptors: FileDescriptorSet) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(&out)?;
    descriptors.file.retain(|file| file.package() == "quorate.broker.v1");
    tonic_prost_build::configure()
        .build_client(false)
        .out_dir(out)
        .extern_path(".quorate.broker.v1", "crate::broker")
        .extern_path(".quorate.broker.v1.WatchEvent", "crate::encoded::WatchEvent")
        .extern_path(".quorate.admin.v1", "crate::admin")
        .extern_path(".quorate.metadata.v1", "crate::metadata")
        .compile_fds(descriptors)?;
    Ok(())
}
