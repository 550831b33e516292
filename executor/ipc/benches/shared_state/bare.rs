//! The bare machine: shared memory and the least that can be built in it, with none of the promises that the crate
//! makes.
//!
//! A lock here doesn't know its holder, a ring believes what stands in it, and a peer that dies is waited for for ever.
//! That's what makes them limits.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use polypool_ipc::Fd;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use serde::{Deserialize, Serialize};

/// A line of the cache: what is written by different processes stands on different ones.
pub(crate) const LINE: usize = 64;

/// How long to spin before the rest of the machine gets a turn.
const PATIENCE: u32 = 20_000;

/// Shared memory, touched, so that no round pays for its first use.
#[derive(Debug)]
pub(crate) struct Memory {
    fd: Fd,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, and what is given out are references to atomics and raw pointers.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let fd = memfd_create("polypool-bench", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, len as u64)?;
        Memory::map(Fd::new(fd))
    }

    pub(crate) fn map(fd: Fd) -> io::Result<Self> {
        let len = usize::try_from(fstat(&fd)?.st_size).map_err(io::Error::other)?;
        // SAFETY: without MAP_FIXED the kernel chooses a free range.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &fd,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Memory { fd, start, len })
    }

    /// The bytes from `offset` on.
    pub(crate) fn bytes(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len);
        // SAFETY: in bounds, as just checked.
        unsafe { self.start.add(offset).as_ptr() }
    }

    /// The word at the beginning of a line.
    pub(crate) fn long(&self, line: usize) -> &AtomicU64 {
        // SAFETY: in bounds and aligned (mappings begin at pages); mapped as long as `self`; accessed atomically by
        // everybody.
        unsafe { &*self.bytes(line * LINE, 8).cast() }
    }

    /// The same for half a word.
    pub(crate) fn word(&self, line: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*self.bytes(line * LINE, 4).cast() }
    }

    /// The words from the beginning of a line on.
    pub(crate) fn longs(&self, line: usize, count: usize) -> &[AtomicU64] {
        // SAFETY: as above, for each of them.
        unsafe { std::slice::from_raw_parts(self.bytes(line * LINE, count * 8).cast(), count) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by us, with this length; references to it borrow `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl Serialize for Memory {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fd.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Memory::map(Fd::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Waits until that is true, spinning.
#[inline]
pub(crate) fn spin_until(mut there: impl FnMut() -> bool) {
    let mut spins = 0;
    while !there() {
        spins += 1;
        if spins % PATIENCE == 0 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

/// Sleeps while the word has that value.
pub(crate) fn sleep_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        let _ = futex::wait(word, futex::Flags::empty(), value, None);
    }
}

/// Raises the word and wakes the one who sleeps on it.
pub(crate) fn raise(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
    let _ = futex::wake(word, futex::Flags::empty(), 1);
}

/// The usual lock of three states: free, taken, taken and waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lock<'a>(pub(crate) &'a AtomicU32);

impl Lock<'_> {
    #[inline]
    pub(crate) fn lock(self) {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.wait();
        }
    }

    #[cold]
    fn wait(self) {
        for _ in 0..100 {
            std::hint::spin_loop();
            if self.0.load(Ordering::Relaxed) == 0
                && self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            let _ = futex::wait(self.0, futex::Flags::empty(), 2, None);
        }
    }

    #[inline]
    pub(crate) fn unlock(self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            let _ = futex::wake(self.0, futex::Flags::empty(), 1);
        }
    }
}

/// A ring of longs from one writer to one reader: two positions, and the reader's and the writer's idea of the other's.
#[derive(Debug)]
pub(crate) struct Ring<'a> {
    head: &'a AtomicU64,
    tail: &'a AtomicU64,
    slots: &'a [AtomicU64],
    /// Where the other side was when last looked at.
    seen: u64,
}

impl<'a> Ring<'a> {
    const SLOTS: usize = 1024;

    pub(crate) const LEN: usize = 2 * LINE + Self::SLOTS * 8;

    pub(crate) fn new(memory: &'a Memory) -> Self {
        Ring { head: memory.long(0), tail: memory.long(1), slots: memory.longs(2, Self::SLOTS), seen: 0 }
    }

    pub(crate) fn put(&mut self, value: u64) {
        let tail = self.tail.load(Ordering::Relaxed);
        if tail - self.seen == Self::SLOTS as u64 {
            spin_until(|| {
                self.seen = self.head.load(Ordering::Acquire);
                tail - self.seen < Self::SLOTS as u64
            });
        }
        self.slots[tail as usize % Self::SLOTS].store(value, Ordering::Relaxed);
        self.tail.store(tail + 1, Ordering::Release);
    }

    pub(crate) fn get(&mut self) -> u64 {
        let head = self.head.load(Ordering::Relaxed);
        if head >= self.seen {
            spin_until(|| {
                self.seen = self.tail.load(Ordering::Acquire);
                head < self.seen
            });
        }
        let value = self.slots[head as usize % Self::SLOTS].load(Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Release);
        value
    }
}

/// The C library's lock for several processes that tells the next one of its holder's death.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RobustLock(*mut libc::pthread_mutex_t);

// SAFETY: a lock is for several threads.
unsafe impl Send for RobustLock {}

impl RobustLock {
    pub(crate) const LEN: usize = size_of::<libc::pthread_mutex_t>();

    /// A new one at the beginning of the memory, which is leaked, so that it stays.
    pub(crate) fn create(memory: &'static Memory) -> io::Result<Self> {
        let lock = RobustLock::open(memory);
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialised before use, destroyed after; the lock stands in memory for it that nobody else uses yet.
        unsafe {
            check(libc::pthread_mutexattr_init(attributes.as_mut_ptr()))?;
            check(libc::pthread_mutexattr_setpshared(attributes.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED))?;
            check(libc::pthread_mutexattr_setrobust(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST))?;
            check(libc::pthread_mutex_init(lock.0, attributes.as_ptr()))?;
            check(libc::pthread_mutexattr_destroy(attributes.as_mut_ptr()))?;
        }
        Ok(lock)
    }

    /// The one that another process has created there.
    pub(crate) fn open(memory: &'static Memory) -> Self {
        RobustLock(memory.bytes(0, Self::LEN).cast())
    }

    /// Whether its last holder has died.
    pub(crate) fn lock(self) -> io::Result<bool> {
        // SAFETY: initialised by `create`, in memory that stays.
        match unsafe { libc::pthread_mutex_lock(self.0) } {
            libc::EOWNERDEAD => {
                // SAFETY: as above, and held by us.
                check(unsafe { libc::pthread_mutex_consistent(self.0) })?;
                Ok(true)
            }
            code => check(code).map(|()| false),
        }
    }

    pub(crate) fn unlock(self) -> io::Result<()> {
        // SAFETY: initialised, in memory that stays, and held by this thread.
        check(unsafe { libc::pthread_mutex_unlock(self.0) })
    }
}

fn check(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}
