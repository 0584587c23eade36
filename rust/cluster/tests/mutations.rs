//! Bytes that differ a little from those of honest peers: the short run of what `make fuzz` does for long.

mod fuzzing;

use fastrand::Rng;
use fuzzing::{handshake, messages, seeds};

const CASES: u64 = 40_000;

#[test]
fn messages_survive_mutation() {
    run(&seeds::messages(), messages::check);
}

#[test]
fn handshakes_survive_mutation() {
    run(&seeds::handshakes(), handshake::check);
}

fn run(seeds: &[(&str, Vec<u8>)], check: fn(&[u8])) {
    for (_, input) in seeds {
        check(input);
    }
    for case in 0..CASES {
        let _named = Case(case);
        let mut rng = Rng::with_seed(case);
        let mut input = seeds[rng.usize(..seeds.len())].1.clone();
        for _ in 0..rng.u32(1..5) {
            mutate(&mut input, &mut rng);
        }
        check(&input);
    }
}

/// Says which case it was that failed.
struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in case {}", self.0);
        }
    }
}

fn mutate(input: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.usize(..input.len().max(1)).min(input.len());
    let end = (at + rng.usize(1..9)).min(input.len());
    match rng.u32(..6) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..end)),
        2 => input.extend_from_within(at..end),
        3 => drop(input.splice(at..at, std::iter::repeat_with(|| rng.u8(..)).take(4))),
        4 => input[at..end].iter_mut().for_each(|byte| *byte ^= 1 << rng.u32(..8)),
        _ => input[at..end].fill(*rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).expect("there are some")),
    }
}
