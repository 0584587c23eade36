//! What workers print and log goes to this process's own streams and loggers.

use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::pools::pools;

/// Calls whose caller is waiting, and relays output itself, in its own thread (and notebook cell).
static ATTENDED: AtomicUsize = AtomicUsize::new(0);

/// Says, while it lives, that a caller relays output.
pub(crate) struct Attendance;

impl Attendance {
    pub(crate) fn start() -> Self {
        ATTENDED.fetch_add(1, Ordering::AcqRel);
        Self
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        ATTENDED.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a caller is waiting in native code.
pub(crate) fn is_attended() -> bool {
    ATTENDED.load(Ordering::Acquire) > 0
}

pub(crate) fn relay_if_unattended(py: Python<'_>) {
    if !is_attended() {
        if let Err(error) = relay(py) {
            error.write_unraisable(py, None);
        }
    }
}

/// Hand over what has come since the last time.
pub(crate) fn relay(py: Python<'_>) -> PyResult<()> {
    let outputs = pools().take_outputs();
    if outputs.is_empty() {
        return Ok(());
    }
    let module = py.import("rustdask._output")?;
    for output in outputs {
        let text = PyBytes::new(py, &output.text);
        module.call_method1(intern!(py, "take"), (output.error_stream, output.log, text))?;
    }
    Ok(())
}
