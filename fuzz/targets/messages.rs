#![no_main]

#[path = "../../rust/cluster/tests/fuzzing/messages.rs"]
mod messages;

libfuzzer_sys::fuzz_target!(|input: &[u8]| messages::check(input));
