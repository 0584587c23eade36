//! The scheduler machine in a simulated world: workers that are slow, die, fail to start, and whose reports arrive
//! late or twice; calls that are aborted, paused, nested and helped. All of it follows from a seed.
//!
//! `RUSTDASK_SIM_SEEDS=10000` plays that many worlds instead of 200; `RUSTDASK_SIM_SEED=17` plays only that one and
//! prints what happens in it.

mod calls;
mod driver;
mod graph;
mod rng;
mod submitters;
mod worker;
mod workshop;
mod world;

use graph::GraphWorld;
use world::World;

/// Says which seed replays a failure.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with: RUSTDASK_SIM_SEED={} cargo test -p rustdask-core --test sim", self.0);
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn every_world_comes_to_a_good_end() {
    if let Some(seed) = number("RUSTDASK_SIM_SEED") {
        World::new(seed, true).play();
        return;
    }
    for seed in 0..number("RUSTDASK_SIM_SEEDS").unwrap_or(200) {
        let _replay = Replay(seed);
        let trace = World::new(seed, false).play();
        if seed % 16 == 0 {
            assert_eq!(trace, World::new(seed, false).play(), "the same seed took another course");
        }
    }
}

#[test]
fn every_world_of_graphs_comes_to_a_good_end() {
    if let Some(seed) = number("RUSTDASK_SIM_SEED") {
        GraphWorld::new(seed, true).play();
        return;
    }
    for seed in 0..number("RUSTDASK_SIM_SEEDS").unwrap_or(200) {
        let _replay = Replay(seed);
        let trace = GraphWorld::new(seed, false).play();
        if seed % 16 == 0 {
            assert_eq!(trace, GraphWorld::new(seed, false).play(), "the same seed took another course");
        }
    }
}
