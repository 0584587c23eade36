#![no_main]

#[path = "../../rust/cluster/tests/fuzzing/handshake.rs"]
mod handshake;

libfuzzer_sys::fuzz_target!(|input: &[u8]| handshake::check(input));
