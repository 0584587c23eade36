//! Shared memory: segments behind file descriptors, and mappings of them.
//!
//! A segment is a memfd (or an unlinked file in a folder that the user chose), so nothing has a name,
//! nothing is limited by the size of /dev/shm, and nothing stays when the last process that holds it ends.
//! Segments are filled with `pwrite`, never through a mapping: where memory is short that is an
//! error to report, where a store to a mapping would be SIGBUS. The unsafe code of the runtime is here, but for a line or two.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;

use rayon::prelude::*;
use rustdask_core::message::Access;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Buffers from this size on travel in segments; smaller ones in the pickle.
pub const MIN_SEGMENT_BYTES: usize = 64 << 10;

/// One `pwrite`; several go on at once on as many cores as there are.
const WRITE_BYTES: usize = 8 << 20;

/// From this size on, free memory is looked at before it is taken.
const CHECKED_BYTES: u64 = 64 << 20;

pub struct Segment {
    fd: OwnedFd,
    pub bytes: u64,
}

impl Segment {
    /// Room for `bytes`; in an unlinked file of `folder`, else in memory.
    pub fn create(bytes: u64, folder: Option<&Path>) -> io::Result<Self> {
        let fd = match folder {
            Some(folder) => {
                rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?
            }
            None => {
                ensure_free(bytes)?;
                rustix::fs::memfd_create("rustdask", MemfdFlags::CLOEXEC)?
            }
        };
        rustix::fs::ftruncate(&fd, bytes)?;
        Ok(Self { fd, bytes })
    }

    pub fn from_fd(fd: OwnedFd, bytes: u64) -> Self {
        Self { fd, bytes }
    }

    pub fn fill(&self, data: &[u8]) -> io::Result<()> {
        write_all(self.fd.as_fd(), data, 0)
    }

    /// As [`Segment::fill`], by several threads where it is worth their while.
    pub fn fill_by(&self, fillers: &Fillers, data: &[u8]) -> io::Result<()> {
        if data.len() <= WRITE_BYTES {
            return self.fill(data);
        }
        let write = |(i, chunk)| write_all(self.fd.as_fd(), chunk, (i * WRITE_BYTES) as u64);
        fillers.pool()?.install(|| data.par_chunks(WRITE_BYTES).enumerate().try_for_each(write))
    }

    pub fn fill_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        write_all(self.fd.as_fd(), data, offset)
    }

    pub fn map(&self, access: Access) -> io::Result<Mapping> {
        Mapping::new(self.fd.as_fd(), self.bytes as usize, access)
    }

    pub fn duplicate_fd(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

/// Threads that fill large segments; made when they are first needed. They are not rayon's global ones, which a forked
/// child of this process would wait for in vain.
#[derive(Default)]
pub struct Fillers(OnceLock<rayon::ThreadPool>);

impl Fillers {
    fn pool(&self) -> io::Result<&rayon::ThreadPool> {
        if let Some(pool) = self.0.get() {
            return Ok(pool);
        }
        let name = |i| format!("rustdask-fill-{i}");
        let pool = rayon::ThreadPoolBuilder::new().thread_name(name).build().map_err(io::Error::other)?;
        Ok(self.0.get_or_init(|| pool))
    }
}

impl AsFd for Segment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn write_all(fd: BorrowedFd<'_>, mut data: &[u8], mut offset: u64) -> io::Result<()> {
    while !data.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, data, offset))?;
        data = &data[written..];
        offset += written as u64;
    }
    Ok(())
}

/// An error that says what is needed and what is free, before the kernel has to kill somebody.
fn ensure_free(bytes: u64) -> io::Result<()> {
    if bytes < CHECKED_BYTES {
        return Ok(());
    }
    let Some(free) = available_memory() else { return Ok(()) };
    if bytes > free {
        return Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            format!(
                "sharing an array with workers needs {} MiB of memory and {} MiB are free; \
                 pass temp_folder= to keep shared arrays on disk instead",
                bytes >> 20,
                free >> 20
            ),
        ));
    }
    Ok(())
}

fn available_memory() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|line| line.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// A mapping of a whole segment. It outlives the segment's file descriptor.
pub struct Mapping {
    address: NonNull<c_void>,
    bytes: usize,
    pub access: Access,
}

// SAFETY: a mapping is plain memory; who may touch which part of it when is agreed by messages.
unsafe impl Send for Mapping {}
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, bytes: usize, access: Access) -> io::Result<Self> {
        let (protection, flags) = match access {
            Access::CopyOnWrite => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE),
            Access::ReadOnly => (ProtFlags::READ, MapFlags::SHARED),
            Access::Shared => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
        };
        // SAFETY: the kernel chooses the address, so no existing memory is affected.
        let address = unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0)? };
        let address = NonNull::new(address).expect("a successful mmap is not at address 0");
        Ok(Self { address, bytes, access })
    }

    /// Address of a range, after checking that it lies in the mapping.
    pub fn range(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.bytes as u64 {
            return None;
        }
        // SAFETY: offset <= self.bytes was just checked.
        Some(unsafe { self.address.cast::<u8>().add(offset as usize) })
    }

    /// Overwrite the beginning of a shared mapping, which nobody else may be reading or writing meanwhile.
    /// Where the segment has memory already this is several times faster than writing to its file.
    pub fn overwrite(&self, data: &[u8]) {
        assert!(self.access == Access::Shared && data.len() <= self.bytes, "the data fits into a shared mapping");
        // SAFETY: the mapping is writable and as long, and the caller's data is not in it.
        unsafe { self.address.cast::<u8>().copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
    }

    /// A copy of a range.
    pub fn copy_range(&self, offset: u64, bytes: u64) -> Option<Vec<u8>> {
        let start = self.range(offset, bytes)?;
        // SAFETY: the range was checked, and the peer doesn't write to a segment that it has announced as filled.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes as usize) }.to_vec())
    }

    /// Undo what was written to a private mapping, so that the segment's own bytes show again.
    /// Only while nothing else refers to the mapping. True when something had been written.
    pub fn reset(&self, pages: &PageMap) -> io::Result<bool> {
        if self.access != Access::CopyOnWrite || !pages.any_private(self.address.as_ptr() as usize, self.bytes)? {
            return Ok(false);
        }
        // SAFETY: the range is this mapping, which stays mapped; its pages are filled from the file again.
        unsafe { rustix::mm::madvise(self.address.as_ptr(), self.bytes, Advice::LinuxDontNeed)? };
        Ok(true)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody refers to the mapping any more. Unmapping a whole mapping cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.bytes) };
    }
}

/// Bytes in shared memory, which another process can still read when this one has been killed.
///
/// Their number stands before them; it is written after them.
pub struct Ledger {
    mapping: Mapping,
    bytes: usize,
}

const LEDGER_HEAD: usize = std::mem::size_of::<u64>();

impl Ledger {
    /// A ledger with room for that many bytes, and its segment.
    pub fn create(room: usize) -> io::Result<(Self, Segment)> {
        let segment = Segment::create((LEDGER_HEAD + room) as u64, None)?;
        // Here, memory that is short is an error, and not a signal later on.
        segment.fill(&vec![0; LEDGER_HEAD + room])?;
        Ok((Self { mapping: segment.map(Access::Shared)?, bytes: 0 }, segment))
    }

    /// False when there is no room.
    pub fn push(&mut self, data: &[u8]) -> bool {
        let end = LEDGER_HEAD + self.bytes + data.len();
        if end > self.mapping.bytes {
            return false;
        }
        let at = self.mapping.range((end - data.len()) as u64, data.len() as u64).expect("its end was just checked");
        // SAFETY: the range is in the mapping and not the caller's, and readers go by the number alone.
        unsafe { at.copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
        self.set_bytes(self.bytes + data.len());
        true
    }

    pub fn clear(&mut self) {
        self.set_bytes(0);
    }

    pub fn as_bytes(&self) -> &[u8] {
        let start = self.mapping.range(LEDGER_HEAD as u64, self.bytes as u64).expect("so much was pushed");
        // SAFETY: the range is mapped, and written through `&mut self` alone.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.bytes) }
    }

    /// What stands in the ledger of another process, which has ended.
    pub fn read(mapping: &Mapping) -> Vec<u8> {
        let head = mapping.copy_range(0, LEDGER_HEAD as u64).and_then(|head| head.try_into().ok());
        let bytes = head.map_or(0, u64::from_ne_bytes);
        mapping.copy_range(LEDGER_HEAD as u64, bytes).unwrap_or_default()
    }

    fn set_bytes(&mut self, bytes: usize) {
        self.bytes = bytes;
        // SAFETY: a mapping begins at a page, and is longer than the number.
        let number = unsafe { std::sync::atomic::AtomicU64::from_ptr(self.mapping.address.as_ptr().cast()) };
        number.store(bytes as u64, std::sync::atomic::Ordering::Release);
    }
}

/// The kernel's table of this process's pages (Documentation/admin-guide/mm/pagemap.rst).
pub struct PageMap {
    file: std::fs::File,
    page_bytes: usize,
}

impl PageMap {
    pub fn open() -> io::Result<Self> {
        let file = std::fs::File::open("/proc/self/pagemap")?;
        Ok(Self { file, page_bytes: rustix::param::page_size() })
    }

    /// Whether any page of a file mapping has become private: written to since it was mapped.
    fn any_private(&self, address: usize, bytes: usize) -> io::Result<bool> {
        match scan_for_private(&self.file, address, bytes) {
            Some(found) => Ok(found),
            None => self.read_for_private(address, bytes),
        }
    }

    /// For kernels before 6.7; some ten times slower.
    fn read_for_private(&self, address: usize, bytes: usize) -> io::Result<bool> {
        use std::os::unix::fs::FileExt;
        const ENTRY: usize = 8;
        let mut entries = vec![0u8; ENTRY * 8192];
        let pages = bytes.div_ceil(self.page_bytes);
        let first = address / self.page_bytes;
        let mut page = 0;
        while page < pages {
            let want = (pages - page).min(entries.len() / ENTRY) * ENTRY;
            let chunk = &mut entries[..want];
            self.file.read_exact_at(chunk, ((first + page) * ENTRY) as u64)?;
            if chunk.chunks_exact(ENTRY).any(|e| is_private(u64::from_le_bytes(e.try_into().expect("8 bytes")))) {
                return Ok(true);
            }
            page += want / ENTRY;
        }
        Ok(false)
    }
}

/// Have the kernel look for a page that is present or swapped and not of the file; None where it cannot.
fn scan_for_private(pagemap: &std::fs::File, address: usize, bytes: usize) -> Option<bool> {
    use std::os::fd::AsRawFd;
    /// `struct pm_scan_arg` of linux/fs.h.
    #[repr(C)]
    #[derive(Default)]
    struct Scan {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        regions: u64,
        region_count: u64,
        max_pages: u64,
        inverted: u64,
        all_of: u64,
        any_of: u64,
        returned: u64,
    }
    const PAGEMAP_SCAN: u64 = 0xc060_6610;
    const FILE: u64 = 1 << 2;
    const PRESENT: u64 = 1 << 3;
    const SWAPPED: u64 = 1 << 4;
    let page = rustix::param::page_size() as u64;
    let mut region = [0u64; 3];
    let mut scan = Scan {
        size: std::mem::size_of::<Scan>() as u64,
        start: address as u64,
        end: (address as u64 + bytes as u64).next_multiple_of(page),
        regions: region.as_mut_ptr() as u64,
        region_count: 1,
        max_pages: 1,
        inverted: FILE,
        all_of: FILE,
        any_of: PRESENT | SWAPPED,
        returned: PRESENT | SWAPPED,
        ..Scan::default()
    };
    // SAFETY: the kernel writes to `scan` and to one region, both of which outlive the call.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &mut scan) };
    (found >= 0).then_some(found > 0)
}

/// Present or swapped, and not a page of the file.
fn is_private(entry: u64) -> bool {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE_PAGE: u64 = 1 << 61;
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE_PAGE == 0
}

/// Bytes of a buffer that somebody else keeps alive and unchanged for the while.
///
/// # Safety
/// `address` must point to `bytes` readable bytes that outlive the returned slice.
pub unsafe fn borrow<'a>(address: usize, bytes: usize) -> &'a [u8] {
    std::slice::from_raw_parts(address as *const u8, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_mapping_forgets_what_was_written() {
        let segment = Segment::create(3 * 4096, None).unwrap();
        segment.fill(&[7u8; 3 * 4096]).unwrap();
        let mapping = segment.map(Access::CopyOnWrite).unwrap();
        let pages = PageMap::open().unwrap();
        assert_eq!(mapping.copy_range(4096, 1).unwrap(), [7]);
        assert!(!mapping.reset(&pages).unwrap());
        unsafe { mapping.range(4096, 1).unwrap().write(9) };
        assert_eq!(mapping.copy_range(4096, 1).unwrap(), [9]);
        let start = mapping.range(0, 0).unwrap().as_ptr() as usize;
        assert!(pages.read_for_private(start, 3 * 4096).unwrap());
        assert!(mapping.reset(&pages).unwrap());
        assert!(!pages.read_for_private(start, 3 * 4096).unwrap());
        assert_eq!(mapping.copy_range(4096, 1).unwrap(), [7]);
    }

    #[test]
    fn ranges_outside_are_refused() {
        let segment = Segment::create(4096, None).unwrap();
        let mapping = segment.map(Access::ReadOnly).unwrap();
        assert!(mapping.range(4096, 0).is_some());
        assert!(mapping.range(4090, 7).is_none());
        assert!(mapping.range(u64::MAX, 2).is_none());
    }

    #[test]
    fn a_ledger_is_read_by_others() {
        let (mut ledger, segment) = Ledger::create(10).unwrap();
        let elsewhere = segment.map(Access::ReadOnly).unwrap();
        assert!(ledger.push(b"abc") && ledger.push(b"defg"));
        assert!(!ledger.push(b"hijk"));
        assert_eq!((ledger.as_bytes(), Ledger::read(&elsewhere)), (&b"abcdefg"[..], b"abcdefg".to_vec()));
        ledger.clear();
        assert_eq!(Ledger::read(&elsewhere), b"");
        assert!(ledger.push(b"0123456789"));
        assert_eq!(Ledger::read(&elsewhere), b"0123456789");
    }

    #[test]
    fn large_fills_arrive_whole() {
        let data: Vec<u8> = (0..20 << 20).map(|i| (i % 251) as u8).collect();
        let segment = Segment::create(data.len() as u64, None).unwrap();
        segment.fill_by(&Fillers::default(), &data).unwrap();
        assert_eq!(segment.map(Access::Shared).unwrap().copy_range(0, data.len() as u64).unwrap(), data);
    }
}
