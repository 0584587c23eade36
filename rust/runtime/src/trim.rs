//! Memory that the C library keeps after it was freed, given back to the system.

use std::time::Duration;

/// What was computed has been taken by then, and what is not needed any more is free.
const TAKEN_BY_THEN: Duration = Duration::from_millis(200);

/// Have the C library return what is free. By itself it keeps it, where threads have allocated in turns.
pub fn give_memory_back_soon() {
    #[cfg(target_env = "gnu")]
    // Where no thread can be started, memory is kept.
    let _ = std::thread::Builder::new().name("rustdask-trim".into()).spawn(|| {
        std::thread::sleep(TAKEN_BY_THEN);
        // SAFETY: the call has no preconditions.
        unsafe { libc::malloc_trim(0) };
    });
}
