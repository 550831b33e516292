//! A piece of shared memory: a descriptor and its mapping.
//!
//! Everything that processes share stands in segments. A segment is a memfd, without a name in any file system, so the
//! kernel frees it with the last descriptor and mapping, whatever killed their owners. It is sealed: nobody can shrink
//! it under us, which would make our next access a SIGBUS. A process maps a segment once, however many handles of it
//! arrive: [`Segment::open`] gives back the mapping it has.
//!
//! Safe code gets at the memory in two ways only: as references to structures made of atomics ([`Layout`]), and by
//! copies ([`load`](Segment::load), [`store`](Segment::store)). Neither cares what another process does at the same
//! moment.

use std::collections::HashMap;
use std::io;
use std::mem::{MaybeUninit, align_of, size_of};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use rustix::fs::FileType;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::copy;
use super::fault::Watched;
use crate::travel::Fd;
use crate::{forked, sys};

/// What may be looked at in place in shared memory.
///
/// # Safety
///
/// The type must be `repr(C)` (or one atomic) and consist of nothing but atomics and arrays of them, so that every bit
/// pattern is valid and every access is atomic.
pub(crate) unsafe trait Layout: Sync {}

// SAFETY: atomics are what the trait asks for.
unsafe impl Layout for AtomicU8 {}
// SAFETY: as above.
unsafe impl Layout for AtomicU16 {}
// SAFETY: as above.
unsafe impl Layout for AtomicU32 {}
// SAFETY: as above.
unsafe impl Layout for AtomicU64 {}
// SAFETY: as above.
unsafe impl Layout for AtomicI64 {}
// SAFETY: an array of what may be looked at may be looked at.
unsafe impl<T: Layout, const N: usize> Layout for [T; N] {}

/// A mapping of shared memory into this process.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process and not to a thread, and gives out nothing but references to atomics and
// copies.
unsafe impl Send for Mapping {}
// SAFETY: as above; every access through `&Mapping` is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes. The caller has seen that the memory has that size and keeps it.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Self> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: without MAP_FIXED the kernel chooses a free range, so no memory of this program is replaced.
        let start = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0)? };
        let start = NonNull::new(start.cast::<u8>())
            .ok_or_else(|| io::Error::other("shared memory was mapped at address zero"))?;
        Ok(Mapping { start, len })
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it begins: for those who take on the argument why what they do there is sound.
    #[inline]
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The structure of atomics at `offset`.
    ///
    /// # Panics
    ///
    /// If it doesn't fit there or isn't aligned. Offsets are constants of ours or were checked when the segment was
    /// opened.
    #[inline]
    pub(crate) fn at<T: Layout>(&self, offset: usize) -> &T {
        assert!(offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len), "outside of the shared memory");
        // SAFETY: in bounds, as just checked.
        let place = unsafe { self.start.add(offset) };
        assert!(place.addr().get().is_multiple_of(align_of::<T>()), "misaligned in shared memory");
        // SAFETY: mapped as long as `self` is borrowed, in bounds, aligned; every bit pattern is valid and every access
        // atomic (`Layout`).
        unsafe { place.cast::<T>().as_ref() }
    }

    /// As many structures of atomics as fit from `offset` on, at most `count`.
    ///
    /// # Panics
    ///
    /// As [`at`](Mapping::at).
    #[inline]
    pub(crate) fn slice<T: Layout>(&self, offset: usize, count: usize) -> &[T] {
        const { assert!(size_of::<T>() > 0) };
        assert!(offset <= self.len, "outside of the shared memory");
        // SAFETY: in bounds, as just checked.
        let place = unsafe { self.start.add(offset) };
        assert!(place.addr().get().is_multiple_of(align_of::<T>()), "misaligned in shared memory");
        let count = count.min((self.len - offset) / size_of::<T>());
        // SAFETY: as for `at`, for each of them; no mapping is larger than `isize::MAX`.
        unsafe { std::slice::from_raw_parts(place.cast::<T>().as_ptr(), count) }
    }

    /// Copies out of the memory; what others write meanwhile may be seen in part.
    ///
    /// # Panics
    ///
    /// If the range is outside.
    #[inline]
    pub(crate) fn load(&self, offset: usize, to: &mut [u8]) {
        assert!(offset.checked_add(to.len()).is_some_and(|end| end <= self.len), "outside of the shared memory");
        // SAFETY: the source is in bounds and shared memory; `to` is exclusively ours and not in this mapping, as
        // references to plain bytes of it are only given out by `Array`'s guards, which don't lead here.
        unsafe { copy::load(self.start.as_ptr().add(offset), to.as_mut_ptr(), to.len()) }
    }

    /// As [`load`](Mapping::load), into memory that need not have been written; it has been, afterwards.
    ///
    /// # Panics
    ///
    /// If the range is outside.
    #[inline]
    pub(crate) fn load_uninit(&self, offset: usize, to: &mut [MaybeUninit<u8>]) {
        assert!(offset.checked_add(to.len()).is_some_and(|end| end <= self.len), "outside of the shared memory");
        // SAFETY: as for `load`; `copy::load` only writes to it.
        unsafe { copy::load(self.start.as_ptr().add(offset), to.as_mut_ptr().cast(), to.len()) }
    }

    /// Copies into the memory; others may see it in part.
    ///
    /// # Panics
    ///
    /// If the range is outside.
    #[inline]
    pub(crate) fn store(&self, offset: usize, from: &[u8]) {
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.len), "outside of the shared memory");
        // SAFETY: as for `load`.
        unsafe { copy::store(from.as_ptr(), self.start.as_ptr().add(offset), from.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing borrowed from it outlives it.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours could not be unmapped");
    }
}

/// Shared memory and its mapping in this process: sealed, or watched.
pub(crate) struct Segment {
    fd: Fd,
    /// Over a mapping that others can take away from under us. Dropped before the mapping.
    watched: Option<Watched>,
    mapping: Mapping,
    /// What this process uses it for.
    purpose: Purpose,
    /// Whether a plain slice of this memory exists in this process; see `Array`.
    pub(crate) sliced: AtomicBool,
}

/// What memory is used for: the kind of an object, or [`BYTES`]. One memory has one purpose as long as a process has it
/// mapped, whatever handles of it arrive: a handle that lies could make atomics of the elements that an array lends as
/// a slice.
pub(crate) type Purpose = u32;

/// What is not an object of a kind of its own: bytes, lists, boards.
pub(crate) const BYTES: Purpose = 0;

type Known = HashMap<(u64, u64), Weak<Segment>>;

/// The segments that this process has mapped, by device and inode.
fn known() -> &'static Mutex<Known> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// The table of segments, held over a fork.
pub(crate) struct Frozen(MutexGuard<'static, Known>);

pub(crate) fn freeze() -> Frozen {
    Frozen(known().lock().unwrap_or_else(PoisonError::into_inner))
}

impl Frozen {
    /// In a forked child: those who had slices are other threads, of the parent.
    pub(crate) fn forget(&mut self) {
        for segment in self.0.values().filter_map(Weak::upgrade) {
            segment.sliced.store(false, Ordering::Relaxed);
        }
    }
}

impl Segment {
    /// New memory, all zero. Its pages take room when they are first touched.
    pub(crate) fn create(len: usize) -> io::Result<Arc<Self>> {
        Segment::create_for(len, BYTES)
    }

    /// As [`create`](Segment::create), for an object of a kind of its own.
    pub(crate) fn create_for(len: usize, purpose: Purpose) -> io::Result<Arc<Self>> {
        forked::watch()?;
        let fd = sys::create_shared_memory(len)?;
        let mapping = Mapping::new(fd.as_fd(), len, true)?;
        let id = identity(fd.as_fd())?;
        Ok(remember(id, Segment::over(Fd::new(fd), None, mapping, purpose), |_| true))
    }

    fn over(fd: Fd, watched: Option<Watched>, mapping: Mapping, purpose: Purpose) -> Arc<Self> {
        Arc::new(Segment { fd, watched, mapping, purpose, sliced: AtomicBool::new(false) })
    }

    /// The same memory, if it's used for the same thing. What stands in it, and which references go into it, is only
    /// sound for one.
    fn used_for(self: Arc<Self>, purpose: Purpose) -> io::Result<Arc<Self>> {
        if self.purpose == purpose {
            return Ok(self);
        }
        let name = |purpose: Purpose| match purpose {
            BYTES => "bytes".to_owned(),
            kind => kind.to_le_bytes().escape_ascii().to_string(),
        };
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "a handle was expected to be of kind {:?}, but its memory is used as {:?} in this process",
                name(purpose),
                name(self.purpose)
            ),
        ))
    }

    /// The memory behind a descriptor that arrived from elsewhere, of at least `least` bytes.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is smaller, or could still be shrunk by others.
    pub(crate) fn open(fd: &Fd, least: usize) -> io::Result<Arc<Self>> {
        Segment::open_for(fd, least, BYTES)
    }

    /// As [`open`](Segment::open), for an object of a kind of its own.
    pub(crate) fn open_for(fd: &Fd, least: usize, purpose: Purpose) -> io::Result<Arc<Self>> {
        forked::watch()?;
        let id = identity(fd.as_fd())?;
        // One that is only watched doesn't do here: what stands in it would turn into zeros one day.
        if let Some(segment) = find(id).filter(|segment| segment.watched.is_none()) {
            segment.check_len(least)?;
            return segment.used_for(purpose);
        }
        sys::check_is_memory(fd.as_fd())?;
        // The seals first: from then on the size is final.
        sys::check_sealed(fd.as_fd())?;
        let len = usize::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        if len == 0 {
            return Err(too_small(0, least));
        }
        let mapping = Mapping::new(fd.as_fd(), len, true)?;
        let segment = Segment::over(fd.clone(), None, mapping, purpose);
        segment.check_len(least)?;
        remember(id, segment, |other| other.watched.is_none()).used_for(purpose)
    }

    /// As [`open`](Segment::open), but takes memory that isn't sealed as well, and watches it: if somebody truncates
    /// it, it turns into zeros and [`is_lost`](Segment::is_lost).
    pub(crate) fn open_any(fd: &Fd, least: usize) -> io::Result<Arc<Self>> {
        forked::watch()?;
        if sys::check_sealed(fd.as_fd()).is_ok() {
            return Segment::open(fd, least);
        }
        sys::check_is_memory(fd.as_fd())?;
        let stat = rustix::fs::fstat(fd)?;
        if !FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a descriptor of no memory came with a handle"));
        }
        let id = identity(fd.as_fd())?;
        if let Some(segment) = find(id).filter(|segment| !segment.is_lost()) {
            segment.check_len(least)?;
            return segment.used_for(BYTES);
        }
        let len = usize::try_from(stat.st_size).unwrap_or(0);
        if len == 0 {
            return Err(too_small(0, least));
        }
        let mapping = Mapping::new(fd.as_fd(), len, true)?;
        let watched = Some(Watched::new(mapping.start(), len)?);
        let segment = Segment::over(fd.clone(), watched, mapping, BYTES);
        segment.check_len(least)?;
        remember(id, segment, |other| !other.is_lost()).used_for(BYTES)
    }

    /// Whether somebody has truncated the memory, so that it isn't shared any more and its content is gone. Never, if
    /// it's sealed.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.watched.as_ref().is_some_and(Watched::is_lost)
    }

    fn check_len(&self, least: usize) -> io::Result<()> {
        if self.mapping.len() < least { Err(too_small(self.mapping.len(), least)) } else { Ok(()) }
    }

    pub(crate) fn fd(&self) -> &Fd {
        &self.fd
    }
}

impl std::ops::Deref for Segment {
    type Target = Mapping;

    #[inline]
    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

/// Which memory it is: device and inode.
pub(super) fn identity(fd: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    #[allow(clippy::unnecessary_cast)] // The types differ between systems.
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

fn find(id: (u64, u64)) -> Option<Arc<Segment>> {
    known().lock().unwrap_or_else(PoisonError::into_inner).get(&id).and_then(Weak::upgrade)
}

/// Enters a mapping, unless another thread has entered one of the same memory meanwhile that will do: there must be one
/// only.
fn remember(id: (u64, u64), segment: Arc<Segment>, will_do: impl FnOnce(&Segment) -> bool) -> Arc<Segment> {
    let mut known = known().lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(other) = known.get(&id).and_then(Weak::upgrade).filter(|other| will_do(other)) {
        // Ours goes when the lock has: its drop is nobody's business here.
        drop(known);
        return other;
    }
    // Those that have gone are swept when the table would grow, so that it stays as large as what is in use.
    if known.len() == known.capacity() {
        known.retain(|_, segment| segment.strong_count() > 0);
    }
    known.insert(id, Arc::downgrade(&segment));
    segment
}

fn too_small(has: usize, least: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the shared memory has {has} bytes, and this kind of object takes at least {least}"),
    )
}
