//! Copies between shared memory and memory of our own, while another process or thread may write to the shared side.
//!
//! A plain `memcpy` of bytes that somebody writes at the same moment is a data race, and undefined. What is done here is equal to a
//! series of relaxed atomic accesses: the copy may be torn (some bytes old, some new), and nothing worse. Up to [`BLOCK`] bytes
//! it is just that, word by word; above, on x86-64, one `rep movsb`, which the compiler can't see through and for which it must thus assume
//! no more than such a series; it runs at the speed of the memory. Between the two, from 16 bytes on, it's pairs of words, in the same way: what
//! follows usually reads the copy in pairs as well, and a read that spans two writes just made has to wait for both.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// From this many bytes on, the instruction for blocks is faster than words, its start-up included.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const BLOCK: usize = 512;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const BLOCK: usize = usize::MAX;

/// From this many bytes on, a copy is made in steps of as many.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STEP: usize = 16;
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
const STEP: usize = usize::MAX;

/// Copies `count` bytes out of shared memory.
///
/// # Safety
///
/// `from` must be readable, in memory that is only ever accessed atomically or by this module while it is shared, for `count` bytes;
/// `to` must be writable memory of our own for as many, and the two must not overlap.
#[inline]
pub(crate) unsafe fn load(from: *const u8, to: *mut u8, count: usize) {
    if count >= BLOCK {
        // SAFETY: as the caller promises.
        unsafe { block(from, to, count) };
        return;
    }
    if count >= STEP {
        // SAFETY: as the caller promises.
        unsafe { steps(from, to, count) };
        return;
    }
    let mut at = 0;
    if from.addr().is_multiple_of(8) {
        while at + 8 <= count {
            // SAFETY: in bounds as the caller promises, aligned as just checked (steps of 8 keep it); atomics may race with atomics.
            let word = unsafe { &*from.add(at).cast::<AtomicU64>() }.load(Ordering::Relaxed);
            // SAFETY: `to` has room for the eight bytes; it need not be aligned.
            unsafe { to.add(at).cast::<u64>().write_unaligned(word) };
            at += 8;
        }
    }
    while at < count {
        // SAFETY: in bounds as the caller promises; bytes are always aligned.
        unsafe { to.add(at).write((*from.add(at).cast::<AtomicU8>()).load(Ordering::Relaxed)) };
        at += 1;
    }
}

/// Copies `count` bytes into shared memory.
///
/// # Safety
///
/// As for [`load`], with the roles of `from` and `to` exchanged.
#[inline]
pub(crate) unsafe fn store(from: *const u8, to: *mut u8, count: usize) {
    if count >= BLOCK {
        // SAFETY: as the caller promises.
        unsafe { block(from, to, count) };
        return;
    }
    if count >= STEP {
        // SAFETY: as the caller promises.
        unsafe { steps(from, to, count) };
        return;
    }
    let mut at = 0;
    if to.addr().is_multiple_of(8) {
        while at + 8 <= count {
            // SAFETY: `from` has the eight bytes; it need not be aligned.
            let word = unsafe { from.add(at).cast::<u64>().read_unaligned() };
            // SAFETY: in bounds as the caller promises, aligned as just checked; atomics may race with atomics.
            unsafe { &*to.add(at).cast::<AtomicU64>() }.store(word, Ordering::Relaxed);
            at += 8;
        }
    }
    while at < count {
        // SAFETY: in bounds as the caller promises; bytes are always aligned.
        unsafe { (*to.add(at).cast::<AtomicU8>()).store(from.add(at).read(), Ordering::Relaxed) };
        at += 1;
    }
}

/// # Safety
///
/// `from` readable and `to` writable for `count` bytes, at least [`STEP`], not overlapping.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
unsafe fn steps(from: *const u8, to: *mut u8, count: usize) {
    let mut at = 0;
    loop {
        // SAFETY: the two instructions read and write 16 bytes in bounds, aligned or not. To the compiler they are opaque, and what they do could be
        // written as relaxed atomic byte accesses.
        unsafe {
            std::arch::asm!(
                "movups {pair}, [{from}]",
                "movups [{to}], {pair}",
                pair = out(xmm_reg) _,
                from = in(reg) from.add(at),
                to = in(reg) to.add(at),
                options(nostack, preserves_flags),
            );
        }
        if at + STEP == count {
            return;
        }
        // The last step may begin within the one before.
        at = (at + STEP).min(count - STEP);
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn steps(_from: *const u8, _to: *mut u8, _count: usize) {
    unreachable!("no copy is that long")
}

/// # Safety
///
/// `from` readable and `to` writable for `count` bytes, not overlapping.
#[cfg(all(target_arch = "x86_64", not(miri)))]
unsafe fn block(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the instruction reads and writes exactly the bytes the caller vouches for; the direction flag is clear on entry, as the
    // ABI demands. To the compiler it is opaque, and what it does could be written as relaxed atomic byte accesses.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") count => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
unsafe fn block(_from: *const u8, _to: *mut u8, _count: usize) {
    unreachable!("no copy is that long")
}
