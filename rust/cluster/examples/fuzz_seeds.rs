//! Write the inputs that the fuzz targets begin with: `cargo run -p rustdask-cluster --example fuzz_seeds FOLDER`.

#[path = "../tests/fuzzing/seeds.rs"]
mod seeds;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("name a folder to write to");
    for (target, inputs) in [("messages", seeds::messages()), ("handshake", seeds::handshakes())] {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, input) in inputs {
            std::fs::write(folder.join(name), input)?;
        }
    }
    Ok(())
}
