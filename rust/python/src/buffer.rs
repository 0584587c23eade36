//! Shared memory as Python buffers: numpy arrays are made over it without a copy.

use std::ffi::c_int;
use std::sync::Arc;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use rustdask_core::message::Access;
use rustdask_runtime::endpoint::View;
use rustdask_runtime::lease::Lease;
use rustdask_runtime::shm::Mapping;

/// What keeps the memory of a buffer alive.
enum Owner {
    View(View),
    Lease(Lease),
    /// A view of what is leased.
    Both(View, #[allow(dead_code, reason = "it keeps the memory from being filled again")] Lease),
}

/// A range of shared memory. The memory is given back when the last array over it dies.
#[pyclass(frozen, module = "rustdask._core")]
pub(crate) struct SharedBuffer(Owner);

impl SharedBuffer {
    pub(crate) fn of_view(view: View) -> Self {
        Self(Owner::View(view))
    }

    pub(crate) fn of_lease(lease: Lease) -> Self {
        Self(Owner::Lease(lease))
    }

    /// Writes to the buffer stay there.
    pub(crate) fn private(lease: &Lease) -> std::io::Result<Self> {
        Ok(Self(Owner::Both(lease.private()?, lease.clone())))
    }

    fn parts(&self) -> (&Arc<Mapping>, u64, u64) {
        match &self.0 {
            Owner::View(view) | Owner::Both(view, _) => (&view.mapping, view.offset, view.bytes),
            Owner::Lease(lease) => (lease.mapping(), lease.extent().offset, lease.extent().bytes),
        }
    }
}

#[pymethods]
impl SharedBuffer {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let (mapping, offset, bytes) = this.parts();
        let read_only = mapping.access == Access::ReadOnly;
        let start = mapping
            .range(offset, bytes)
            .ok_or_else(|| PyBufferError::new_err("the shared memory is smaller than the buffer"))?;
        // SAFETY: `view` is the caller's, and the buffer object, which it keeps, keeps the memory mapped.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                start.as_ptr().cast(),
                bytes as ffi::Py_ssize_t,
                c_int::from(read_only),
                flags,
            )
        };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}
