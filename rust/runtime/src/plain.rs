//! Plain values (numbers, strings, bytes, tuples, lists, dicts, None) to and from Python's pickle,
//! without running any of pickle's code: metadata crosses the boundary this way, tasks never do.

use std::fmt;

use serde::{de::DeserializeOwned, Serialize};
use serde_pickle::{DeOptions, SerOptions};

/// serde-pickle recurses once per level, and 20,000 levels overflow a thread's stack; 1,000 are safe.
const MAX_DEPTH: usize = 1000;

#[derive(Debug)]
pub enum PlainError {
    /// So many bytes could open a container that it might be nested too deeply to read safely.
    TooDeep,
    NotPlain(serde_pickle::Error),
}

impl fmt::Display for PlainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooDeep => write!(f, "the pickle could be nested more than {MAX_DEPTH} levels deep"),
            Self::NotPlain(error) => write!(f, "the pickle does not hold the plain value that is expected: {error}"),
        }
    }
}

impl std::error::Error for PlainError {}

/// Pickle a plain value; `pickle.loads` reads it.
pub fn dumps<T: Serialize>(value: &T) -> Vec<u8> {
    serde_pickle::to_vec(value, SerOptions::new()).expect("plain values can be written")
}

/// Read a plain value that `pickle.dumps` or cloudpickle wrote.
pub fn loads<T: DeserializeOwned>(pickle: &[u8]) -> Result<T, PlainError> {
    // Every level takes one of these opcodes. Bytes of strings may look like them, so this errs on the safe side.
    let openers = pickle
        .iter()
        .filter(|byte| matches!(byte, b'(' | b']' | b'}' | b')' | b't' | b'l' | b'd' | 0x85..=0x87 | 0x8f..=0x91));
    if openers.count() > MAX_DEPTH {
        return Err(PlainError::TooDeep);
    }
    serde_pickle::from_slice(pickle, DeOptions::new()).map_err(PlainError::NotPlain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_pickles_of_plain_values_are_read() {
        // pickle.dumps(("exited", 3, 4242, -9, 1 << 40), 5)
        let pickle = b"\x80\x05\x95\x1c\x00\x00\x00\x00\x00\x00\x00(\x8c\x06exited\x94K\x03M\x92\x10J\xf7\xff\xff\xff\x8a\x06\x00\x00\x00\x00\x00\x01t\x94.";
        let (what, worker, pid, status, memory): (String, u32, i32, i32, u64) = loads(pickle).unwrap();
        assert_eq!((what.as_str(), worker, pid, status, memory), ("exited", 3, 4242, -9, 1 << 40));
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let mut pickle = vec![b']'; 20_000];
        pickle.extend(vec![b'a'; 19_999]);
        pickle.push(b'.');
        assert!(matches!(loads::<Vec<u8>>(&pickle), Err(PlainError::TooDeep)));
    }

    #[test]
    fn what_is_not_plain_is_an_error() {
        assert!(matches!(loads::<u32>(b"cos\nsystem\n."), Err(PlainError::NotPlain(_))));
    }
}
