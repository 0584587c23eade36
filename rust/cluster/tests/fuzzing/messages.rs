//! What holds for any bytes that are read as messages of peers.

use std::fmt::Debug;

use rustdask_core::cluster::{DataRequest, FromClient, FromNode, Hello, MAX_CONTROL_BODY_BYTES};
use rustdask_core::frame::{self, Decoder};
use serde::{de::DeserializeOwned, Serialize};

/// The first byte says which messages these are, the second how many bytes arrive at a time; the rest arrives.
pub(crate) fn check(input: &[u8]) {
    let [kind, cut, stream @ ..] = input else { return };
    let cut = usize::from(*cut).max(1);
    match kind % 4 {
        0 => check_as::<FromNode>(cut, stream),
        1 => check_as::<FromClient>(cut, stream),
        2 => check_as::<DataRequest>(cut, stream),
        _ => check_as::<Hello>(cut, stream),
    }
}

fn check_as<M: Serialize + DeserializeOwned + Debug>(cut: usize, stream: &[u8]) {
    let whole = read::<M>(stream.len().max(1), stream);
    assert_eq!(whole, read::<M>(cut, stream), "pieces of {cut} bytes are read otherwise than the whole");
    // What was read can be said again, and is read the same.
    let (frames, _) = whole;
    let (again, error) = read::<M>(stream.len().max(1), &frames.concat());
    assert_eq!((again, error), (frames, None));
}

/// The frames, each as this process would send it, and what was wrong with the one after them.
fn read<M: Serialize + DeserializeOwned>(cut: usize, stream: &[u8]) -> (Vec<Vec<u8>>, Option<String>) {
    let mut decoder = Decoder::new(MAX_CONTROL_BODY_BYTES);
    let mut frames = Vec::new();
    for piece in stream.chunks(cut) {
        decoder.push(piece);
        loop {
            match decoder.next_frame::<M>() {
                Ok(Some(read)) => {
                    let mut frame = Vec::new();
                    frame::append(&mut frame, &read.message, &read.body);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    (frames, None)
}
