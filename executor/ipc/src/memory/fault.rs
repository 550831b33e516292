//! What happens when memory under a mapping is taken away: it turns into zeros, and the mapping is marked as lost.
//!
//! Anonymous memory is sealed, so nobody can shrink it. A file in `/dev/shm` can't be sealed (the kernel refuses), and whoever may write to it may
//! also truncate it; the next access to a page beyond its end is a SIGBUS, which ends the process. No check before the access helps, as the
//! truncation may come between the two. Copying by `pread` and `pwrite` would be safe, but costs a system call for each
//! number, and there are no atomics in it. So named memory is mapped, and the signal is dealt with, as systemd's journal and Wayland's compositors do: a handler
//! puts private pages of zeros in the place of the *whole* mapping, marks it as lost, and returns; the access that faulted then
//! finds zeros. Whoever reads looks at the mark afterwards, and reports the loss instead of the zeros.
//!
//! The handler is installed when the first named memory is mapped, never for anonymous memory alone. A SIGBUS that is not about one of our mappings goes to
//! the handler that was there before (such as the standard library's, for stack overflows).

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// One mapping under watch. Never freed, as the handler may look at it at any time; used again for the next mapping.
#[derive(Debug)]
pub(crate) struct Watch {
    /// 0: watches nothing.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
    taken: AtomicBool,
    next: AtomicPtr<Watch>,
}

static FIRST: AtomicPtr<Watch> = AtomicPtr::new(ptr::null_mut());
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Watches a mapping until it is dropped, which must happen before the unmapping.
#[derive(Debug)]
pub(crate) struct Watched(&'static Watch);

impl Watched {
    /// Watches the mapping of `len` bytes at `start`, which must be the caller's own and stay until this is dropped.
    pub(crate) fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let watch = all().find(|watch| !watch.taken.swap(true, Ordering::AcqRel)).unwrap_or_else(|| {
            let watch: &'static mut Watch = Box::leak(Box::new(Watch {
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                lost: AtomicBool::new(false),
                taken: AtomicBool::new(true),
                next: AtomicPtr::new(FIRST.load(Ordering::Acquire)),
            }));
            let new: *mut Watch = watch;
            // SAFETY: leaked, so it stays; from here on it's only used by shared reference.
            let watch = unsafe { &*new };
            while let Err(first) =
                FIRST.compare_exchange(watch.next.load(Ordering::Relaxed), new, Ordering::AcqRel, Ordering::Acquire)
            {
                watch.next.store(first, Ordering::Relaxed);
            }
            watch
        });
        watch.lost.store(false, Ordering::Relaxed);
        watch.len.store(len, Ordering::Relaxed);
        watch.start.store(start.addr(), Ordering::Release);
        Ok(Watched(watch))
    }

    /// Whether the memory has been taken away, so that what is read there is not what was written.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn all() -> impl Iterator<Item = &'static Watch> {
    let mut at = FIRST.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null, or leaked by `Watched::new`.
        let watch = unsafe { at.as_ref() }?;
        at = watch.next.load(Ordering::Acquire);
        Some(watch)
    })
}

/// Whether the handler is installed.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// The right to install the handler, held over a fork.
pub(crate) struct Frozen(#[allow(dead_code)] MutexGuard<'static, bool>);

pub(crate) fn freeze() -> Frozen {
    Frozen(INSTALLED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn install() -> io::Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: `sigaction` is plain data, for which all zero is valid. It's asked for before ours is set, so that our handler finds it.
    let before = unsafe {
        let mut before = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        before
    };
    let _ = BEFORE.set(before);
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what is allowed in one; it runs on the thread's
    // alternative stack if there is one, as the handlers of the standard library do.
    let result = unsafe {
        let mut ours = std::mem::zeroed::<libc::sigaction>();
        ours.sa_sigaction = on_sigbus as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut ours.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Calls nothing but system calls and atomics (rustix makes its calls without touching `errno`).
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO, and for a fault it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Positive codes come from the kernel; a process that sends the signal can't choose an address for us.
    let ours = (code > 0).then(|| {
        all().find(|watch| {
            let start = watch.start.load(Ordering::Acquire);
            start != 0 && address.checked_sub(start).is_some_and(|offset| offset < whole_pages(watch))
        })
    });
    if let Some(Some(watch)) = ours {
        let start = ptr::with_exposed_provenance_mut(watch.start.load(Ordering::Relaxed));
        watch.lost.store(true, Ordering::Release);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a mapping of ours that is being accessed right now (so it exists), by one of the same extent. To those who use it, it's as if another process
        // had written zeros, with which they must reckon.
        let replaced = unsafe {
            mmap_anonymous(start, watch.len.load(Ordering::Relaxed), protection, MapFlags::PRIVATE | MapFlags::FIXED)
        };
        if replaced.is_ok() {
            return;
        }
    }
    pass_on(signal, info, context);
}

fn whole_pages(watch: &Watch) -> usize {
    // The last page of a mapping can fault behind the last byte of it too; 4 KiB is the least size of a page.
    watch.len.load(Ordering::Relaxed).next_multiple_of(4096)
}

fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().map_or((libc::SIG_DFL, 0), |before| (before.sa_sigaction, before.sa_flags));
    match before {
        (libc::SIG_IGN, _) => {}
        (libc::SIG_DFL, _) => {
            // SAFETY: plain system calls, allowed in a handler: the signal comes again as this one returns, with the default action.
            unsafe {
                let mut default = std::mem::zeroed::<libc::sigaction>();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                libc::raise(signal);
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of three arguments.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: it was installed as a handler of one argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
